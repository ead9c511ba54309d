"use strict";
// The page asks the API again and again and shows what it says. Everything that
// comes from there is put into the page as text, never as markup.

const POLL_MS = 500;      // while the page is seen
const HIDDEN_MS = 5000;   // while it is not
const ANSWER_MS = 8000;   // an answer that takes longer is none
const LONG_MS = 3000;     // to wait for an answer without a word about it

const state = {
  status: null, hosts: [], vms: [], incidents: [], raft: null,
  details: new Map(),     // incidents with their time lines, by id
  demo: null, hasDemo: true,
  contact: Date.now(), asked: Date.now(), failure: "", complaint: "", busy: new Set(),
};

// ---- asking ----

async function ask(path, options = {}) {
  const response = await fetch(path, { ...options, cache: "no-store", signal: AbortSignal.timeout(ANSWER_MS) });
  const type = response.headers.get("Content-Type") || "";
  const body = type.includes("json") ? await response.json() : null;
  if (!response.ok) {
    const error = new Error((body && (body.detail || body.title)) || `${response.status} ${response.statusText}`);
    error.status = response.status;
    throw error;
  }
  return body;
}

async function poll() {
  state.asked = Date.now();
  const wanted = ["status", "hosts", "vms", "incidents", "raft"];
  const answers = await Promise.allSettled(wanted.map((name) => ask("/v1/" + name)));
  answers.forEach((answer, i) => { if (answer.status === "fulfilled") state[wanted[i]] = answer.value; });
  const failed = answers.find((answer) => answer.status === "rejected");
  state.failure = failed ? String(failed.reason.message || failed.reason) : "";
  if (!failed) state.contact = Date.now();
  await Promise.allSettled([pollDetails(), pollDemo()]);
}

// pollDetails fetches the time lines that are open on the page and not over.
async function pollDetails() {
  const open = state.incidents.filter((incident) => isOpen("incident-" + incident.id, !incident.closed_at));
  await Promise.allSettled(open.map(async (incident) => {
    const known = state.details.get(incident.id);
    if (known && known.closed_at) return;
    state.details.set(incident.id, await ask("/v1/incidents/" + encodeURIComponent(incident.id)));
  }));
  for (const id of state.details.keys()) {
    if (!state.incidents.some((incident) => incident.id === id)) state.details.delete(id);
  }
}

function isOpen(key, byDefault) {
  const element = document.querySelector(`[data-key="${CSS.escape(key)}"]`);
  return element ? element.open : byDefault;
}

// pollDemo reads the truth, which only a demo knows. An agent has no such thing.
async function pollDemo() {
  if (!state.hasDemo) return;
  try {
    state.demo = await ask("/demo/hosts");
  } catch (error) {
    if (error.status === 404) state.hasDemo = false;
  }
}

async function run() {
  try {
    await poll();
  } catch (error) {
    state.failure = String(error.message || error);
  }
  render();
  setTimeout(run, document.hidden ? HIDDEN_MS : POLL_MS);
}

// ---- acting (demo only) ----

document.addEventListener("click", async (event) => {
  const button = event.target.closest("button[data-post]");
  if (!button || state.busy.has(button.dataset.post)) return;
  const path = button.dataset.post;
  state.busy.add(path);
  render();
  try {
    await ask(path, { method: "POST" });
    state.complaint = "";
  } catch (error) {
    state.complaint = `${button.textContent}: ${error.message}`;
  }
  state.busy.delete(path);
  await pollDemo();
  render();
});

// ---- building ----

// el makes an element. Children are elements, strings, numbers or nothing.
function el(tag, attributes, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) element.setAttribute(name, value);
  }
  for (const child of children.flat(Infinity)) {
    if (child === null || child === undefined || child === false || child === "") continue;
    element.append(child instanceof Node ? child : document.createTextNode(String(child)));
  }
  return element;
}

// show makes what is on the page look like the new elements, and keeps every
// element that can stay: focus, selection and opened details survive.
function show(id, ...children) {
  const target = document.getElementById(id);
  const wanted = el("div", null, children);
  morphChildren(target, wanted);
}

function morphChildren(target, wanted) {
  const keyed = new Map();
  for (const child of target.children) if (child.dataset.key) keyed.set(child.dataset.key, child);
  let at = target.firstChild;
  for (const want of [...wanted.childNodes]) {
    const key = want.dataset && want.dataset.key;
    let have = key ? keyed.get(key) : at;
    if (!key && have && have.dataset && have.dataset.key) have = null;
    if (!have || have.nodeName !== want.nodeName) {
      target.insertBefore(want, at);
      continue;
    }
    if (have === at) at = at.nextSibling;
    else target.insertBefore(have, at);
    morph(have, want);
  }
  while (at) {
    const next = at.nextSibling;
    at.remove();
    at = next;
  }
}

function morph(have, want) {
  if (have.nodeType === Node.TEXT_NODE) {
    if (have.data !== want.data) have.data = want.data;
    return;
  }
  const kept = have.nodeName === "DETAILS" ? "open" : "";
  for (const { name } of [...have.attributes]) if (name !== kept && !want.hasAttribute(name)) have.removeAttribute(name);
  for (const { name, value } of want.attributes) if (name !== kept && have.getAttribute(name) !== value) have.setAttribute(name, value);
  morphChildren(have, want);
}

function table(caption, heads, rows) {
  return el("table", { "aria-label": caption },
    el("thead", null, el("tr", null, heads.map((head) => el("th", { scope: "col" }, head)))),
    el("tbody", null, rows));
}

function age(ms) {
  if (ms === undefined || ms === null) return "";
  if (ms < 950) return `${Math.round(ms)} ms`;
  if (ms < 60000) return `${(ms / 1000).toFixed(1)} s`;
  if (ms < 3600000) return `${Math.floor(ms / 60000)} min ${Math.floor(ms / 1000) % 60} s`;
  return `${Math.floor(ms / 3600000)} h ${Math.floor(ms / 60000) % 60} min`;
}

const clock = (time) => new Date(time).toLocaleTimeString([], { hour12: false });

function plural(n, noun) { return `${n} ${noun}${n === 1 ? "" : "s"}`; }

const TONES = {
  healthy: "ok", alive: "ok", on: "ok", running: "ok", owned: "ok", closed: "ok", yes: "ok",
  suspect: "warn", silent: "warn", stale: "warn", "storage-lost": "warn", isolated: "warn", partitioned: "warn", "agent-down": "warn",
  unreachable: "warn", paused: "warn", freed: "warn", ordered: "warn", stopped: "dim", shutdown: "dim", left: "dim", none: "dim", unknown: "dim",
  dead: "bad", failed: "bad", off: "bad", crashed: "bad", shutoff: "bad", no: "bad",
};

const word = (text) => el("span", { class: "word " + (TONES[text] || "") }, text);

// ---- showing ----

function render() {
  renderStatus();
  renderHosts();
  renderIncidents();
  renderVMs();
  renderRaft();
  renderTruth();
  document.querySelector("main").classList.toggle("old", lost());
}

// lost says that nothing new was heard for longer than a few polls take.
const lost = () => !document.hidden && Date.now() - state.contact > (state.failure ? 3 * POLL_MS : LONG_MS) &&
  (state.failure !== "" || Date.now() - state.asked > LONG_MS);

function renderStatus() {
  const s = state.status;
  if (s) document.title = (s.healthy ? "" : "! ") + "Haven " + s.cluster;
  show("status", s && [
    el("p", { class: "sentence " + (s.healthy ? "ok" : s.holds || s.stale ? "warn" : "bad") }, s.sentence),
    el("p", { class: "dim" },
      `Cluster ${s.cluster}, master ${s.master || "unknown"}, term ${termOf(s.term)}, answered by ${s.self}` +
      (s.stale ? ", which cannot reach the master" : "") + (s.incidents_open ? `; ${plural(s.incidents_open, "open incident")}` : "") + "."),
    (s.holds || []).map((hold) => el("p", { class: "notice hold", "data-key": "hold-" + hold.reason },
      el("b", null, hold.reason), ": ", hold.detail)),
  ] || el("p", null, "Asking how the cluster is …"));
  const violations = state.demo ? state.demo.violations : [];
  show("alerts",
    lost() && el("p", { class: "notice", "data-key": "lost" },
      el("b", null, "Contact lost since "), clock(state.contact), ". What follows may be old. ", el("span", { class: "dim" }, state.failure)),
    state.complaint && el("p", { class: "notice", "data-key": "complaint" }, state.complaint),
    violations.map((text) => el("p", { class: "notice", "data-key": text }, el("b", null, "A promise was broken: "), text)));
}

const termOf = (term) => (term ? `${term.generation}.${term.term}` : "unknown");

function path(view) {
  return el("td", null, word(view.state), view.age_ms ? [" ", el("span", { class: "dim small age" }, age(view.age_ms))] : "",
    view.why && el("div", { class: "dim small" }, view.why));
}

// watchdogNote is what a host promises about its watchdog, and, while it is silent, how
// far the proof by time is.
function watchdogNote(w) {
  const why = w.why && ": " + w.why + (w.left_ms ? ` (${age(w.left_ms)} left at least)` : "");
  return el("div", { class: w.state === "armed" ? "small dim" : "small warn", title: "counts: " + (w.stores || []).join(", ") },
    `watchdog ${w.state}, resets it ${age(w.bound_ms)} after its last life`, why);
}

function renderHosts() {
  const heads = ["Host", "Verdict", "Network", "Storage", "Helper", "Power", "VMs"];
  if (state.demo) heads.push("Break or mend");
  show("hosts", table("Hosts and what is known of them", heads, state.hosts.map((host) => el("tr", { "data-key": host.host },
    el("th", { scope: "row" }, host.host, host.host === (state.status || {}).master && el("span", { class: "light dim" }, " master"),
      el("div", { class: "light dim small" }, host.address, host.zone && ", zone " + host.zone, host.role !== "hypervisor" && ", " + host.role)),
    el("td", { class: "why" }, word(host.verdict), " ", el("span", { class: "dim small age" }, age(host.verdict_age_ms)),
      el("div", { class: "small" }, host.explanation),
      host.refuses && el("div", { class: "small warn" }, "takes no VMs: " + host.refuses),
      (host.missing || []).map((text) => el("div", { class: "small warn" }, "missing: " + text)),
      host.quarantine && el("div", { class: "small warn" }, "quarantined: " + host.quarantine),
      host.wrong_device && el("div", { class: "small warn" }, "not fenced, wrong-device: " + host.wrong_device),
      (host.devices || []).filter((d) => d.failed).map((d) => el("div", { class: "small warn", title: d.advice || "" },
        `fence device ${d.device} fails, ${d.failed}: ${d.detail}`, d.tested && ` (tested ${age(d.age_ms || 0)} ago)`)),
      host.watchdog && watchdogNote(host.watchdog),
      host.hold && el("div", { class: "small warn" }, "held, " + host.hold.reason + ": " + host.hold.detail),
      host.proof && el("div", { class: "small" }, "proved dead by " + host.proof.by + ": " + host.proof.detail),
      host.evidence && host.verdict !== "healthy" && evidence(host.evidence, "evidence-" + host.host)),
    path(host.network), path(host.storage), path(host.helper), path(host.power),
    el("td", { class: "number" }, host.vms,
      el("div", { class: "dim small age" }, `${host.load.memory_free_mib} MiB free`), el("div", { class: "dim small age" }, `of ${host.load.memory_mib} MiB`)),
    state.demo && el("td", null, faults(host)),
  ))));
}

function evidence(list, key) {
  return el("details", { "data-key": key }, el("summary", { class: "small dim" }, plural(list.length, "observation")),
    el("ul", { class: "small" }, list.map((e) => el("li", null,
      e.kind + (e.store ? ` on ${e.store}` : "") + ": ", word(e.value), ` by ${e.observer}, ${age(e.age_ms)} old` + (e.detail ? `: ${e.detail}` : "")))));
}

const PARTS = [
  ["power", "Cut power", "Give power back"], ["network", "Pull network cable", "Plug network in"],
  ["storage", "Hang storage", "Let storage go on"], ["agent", "Kill agent", "Start agent"], ["bmc", "Silence BMC", "Let BMC answer"],
];

function faults(host) {
  const truth = state.demo.hosts.find((h) => h.host === host.host);
  if (!truth) return "";
  const buttons = PARTS.map(([part, cut, mend]) => {
    const post = `/demo/hosts/${encodeURIComponent(host.host)}/${part}/${truth[part] ? "off" : "on"}`;
    return el("button", {
      "data-post": post, "data-key": part, class: truth[part] ? "" : "broken", type: "button",
      "aria-label": (truth[part] ? cut : mend) + ": " + host.host,
      disabled: state.busy.has(post) || (part === "agent" && !truth.power),
    }, truth[part] ? cut : mend);
  });
  const incident = state.incidents.find((i) => i.host === host.host && !i.closed_at);
  if (!truth.power && incident && incident.hold) {
    const post = `/demo/hosts/${encodeURIComponent(host.host)}/confirm-dead`;
    buttons.push(el("button", { "data-post": post, "data-key": "dead", type: "button", disabled: state.busy.has(post) }, "Say, as operator, that it is off"));
  }
  return el("div", { class: "buttons" }, buttons);
}

function renderIncidents() {
  show("incidents", state.incidents.length === 0 && el("p", { class: "dim" }, "There were none."),
    state.incidents.map((incident) => {
      const detail = state.details.get(incident.id);
      return el("details", { class: "incident", "data-key": "incident-" + incident.id, open: !incident.closed_at },
        el("summary", null, el("b", null, incident.host), ` ${clock(incident.opened_at)}, ${incident.verdict}: `,
          incident.closed_at ? incident.outcome : word(incident.step),
          incident.hold && el("span", { class: "warn" }, ` held, ${incident.hold.reason}: ${incident.hold.detail}`)),
        detail ? incidentBody(detail) : el("p", { class: "dim" }, "…"));
    }));
}

function incidentBody(incident) {
  const zero = Date.parse(incident.suspected_at || incident.opened_at);
  const lines = (incident.timeline || []).map((entry, i) => ({
    at: Date.parse(entry.at), who: entry.by, step: entry.step, what: entry.what, key: "t" + i, evidence: entry.evidence,
  }));
  if (incident.suspected_at) lines.unshift({ at: zero, who: "", step: "suspicion", what: "a path showed no life", key: "s" });
  for (const vm of incident.vms || []) {
    if (vm.ordered_at) lines.push({ at: Date.parse(vm.ordered_at), who: "", step: "order", what: `${vm.name} to ${vm.owner}, epoch ${vm.epoch}`, key: "o" + vm.vm });
    if (vm.reported_at) lines.push({ at: Date.parse(vm.reported_at), who: vm.owner, step: "report", what: `${vm.name}: ${vm.status} ${vm.explanation || ""}`, key: "r" + vm.vm });
    if (vm.hold) lines.push({ at: Date.parse(vm.hold.since), who: "", step: "held", what: `${vm.name}: ${vm.hold.reason}, ${vm.hold.detail}`, key: "h" + vm.vm });
  }
  lines.sort((a, b) => a.at - b.at);
  return el("table", { "aria-label": "Time line of incident " + incident.id },
    el("tbody", null, lines.map((line) => el("tr", { "data-key": line.key },
      el("td", { class: "number mono" }, `${line.at - zero} ms`), el("td", null, word(line.step)), el("td", { class: "dim" }, line.who),
      el("td", { class: "why" }, line.what, line.evidence && evidence(line.evidence, "e" + line.key))))));
}

function renderVMs() {
  const heads = ["VM", "State", "Owner", "Phase", "Epoch", "Memory", "Remarks"];
  if (state.demo) heads.push("In truth");
  show("vms", state.vms.length === 0 ? el("p", { class: "dim" }, "There are none.") :
    table("VMs, their owners and states", heads, state.vms.map((vm) => el("tr", { "data-key": vm.vm + vm.owner },
      el("th", { scope: "row", title: vm.vm }, vm.name),
      el("td", null, word(vm.state)),
      el("td", null, vm.owner),
      el("td", null, vm.protected ? word(vm.phase) : el("span", { class: "dim" }, "not protected"), vm.order && el("span", { class: "dim small" }, " order " + vm.order)),
      el("td", { class: "number" }, vm.epoch || ""),
      el("td", { class: "number" }, vm.memory_mib + " MiB"),
      el("td", { class: "why small" }, vm.why && el("div", null, vm.why), vm.hold && el("div", { class: "warn" }, `held, ${vm.hold.reason}: ${vm.hold.detail}`)),
      state.demo && vmTruth(vm)))));
}

function vmTruth(vm) {
  const truth = state.demo.vms.find((t) => t.vm === vm.vm);
  if (!truth) return el("td");
  const once = truth.runs_on.length === 1;
  return el("td", { class: once ? "small" : truth.runs_on.length ? "small bad" : "small warn" },
    truth.runs_on.length ? "runs on " + truth.runs_on.join(" and ") : "runs nowhere", `, started ${plural(truth.starts, "time")}`);
}

function renderRaft() {
  const raft = state.raft;
  if (!raft) return;
  show("raft",
    el("p", { class: "dim" }, `As ${raft.self} sees it: ${raft.state}, leader ${raft.leader || "unknown"}, term ${raft.term}, ` +
      `generation ${raft.generation}, committed ${raft.commit_index}, applied ${raft.applied_index}, snapshot ${raft.snapshot_index}.`),
    table("Raft servers", ["Host", "Role", "Last contact", "Address", "Server"], raft.servers.map((server) => el("tr", { "data-key": server.id },
      el("th", { scope: "row" }, server.host || "unknown"),
      el("td", null, server.leader ? "leader" : server.voter ? "voter" : "learner"),
      el("td", null, server.last_contact_ms === undefined ? "" : age(server.last_contact_ms) + " ago"),
      el("td", { class: "mono" }, server.address),
      el("td", { class: "mono dim" }, server.id)))));
}

function renderTruth() {
  document.getElementById("s-truth").hidden = !state.demo;
  if (!state.demo) return;
  show("truth", el("p", { class: "dim" }, "The demo knows it, the agents do not. Newest first."),
    el("ol", { class: "small", reversed: true }, [...state.demo.events].reverse().slice(0, 40).map((event) =>
      el("li", { "data-key": event.at + event.text }, el("span", { class: "mono dim" }, clock(event.at) + " "), event.text))));
}

setInterval(render, 1000); // A lost contact shows while an answer is waited for.
run();
