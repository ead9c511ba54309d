package detector

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/haven-ha/haven"
)

var update = flag.Bool("update", false, "rewrite the transcripts in testdata")

// TestScenarios replays the transcripts in testdata. A line at the margin is a
// command to the world; the indented lines below it are what the machine then
// concluded, each with its virtual time. Every step is checked by the dumb
// machine as well. They guard P2, P4, P5, P6 and P9.
func TestScenarios(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) < 15 {
		t.Fatalf("transcripts: %d, %v", len(files), err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
			t.Parallel()
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			p := player{t: t}
			var got strings.Builder
			for line := range strings.Lines(string(want)) {
				if strings.HasPrefix(line, "  ") {
					continue
				}
				got.WriteString(line)
				if f := strings.Fields(line); len(f) > 0 && f[0] != "#" {
					got.WriteString(p.play(f))
				}
			}
			if p.w.differs != "" {
				t.Error(p.w.differs)
			}
			if *update {
				if err := os.WriteFile(file, []byte(got.String()), 0o644); err != nil {
					t.Fatal(err)
				}
			} else if got.String() != string(want) {
				t.Errorf("transcript differs; got:\n%s", got.String())
			}
		})
	}
}

// player turns commands into changes of the world.
type player struct {
	t     *testing.T
	w     *world
	last  map[haven.HostID]string
	holds string
}

func (p *player) play(f []string) string {
	p.t.Helper()
	if f[0] == "cluster" {
		p.cluster(f[1:])
		return ""
	}
	switch f[0] {
	case "warm":
		p.run(p.duration(f[1]))
		for i := range p.w.out.Hosts {
			if j := &p.w.out.Hosts[i]; j.Verdict != haven.VerdictHealthy {
				return fmt.Sprintf("  %s is %s\n", j.Host, j.Verdict)
			}
		}
		return ""
	case "run":
		return p.run(p.duration(f[1]))
	case "explain":
		return p.explain(haven.HostID(f[1]))
	case "asked":
		return fmt.Sprintf("  %d probes, %d BMC readings\n", p.w.probes, p.w.reads)
	case "lag":
		p.w.lag = f[1] == "on"
	case "mumble":
		p.w.mumbles = f[1] == "on"
	case "stall": // self's process is stopped; its loop knows that afterwards
		self := p.w.host(p.w.self)
		self.hung, p.w.stalled = true, true
		for end := p.w.now + p.duration(f[1]); p.w.now < end; {
			p.w.step()
		}
		self.hung, p.w.stalled, p.w.lag = false, false, true
		out := p.run(2 * time.Second)
		p.w.lag = false
		return out
	case "elect":
		p.w.master, p.w.since, p.w.leader = true, p.w.now, p.w.self
	case "hang-store", "free-store":
		p.store(f)
	default:
		for id := range strings.SplitSeq(f[1], ",") {
			h := p.w.host(haven.HostID(id))
			if h == nil {
				p.t.Fatalf("no host %q", id)
			}
			p.change(h, f)
		}
	}
	return ""
}

func (p *player) duration(s string) time.Duration {
	d, err := time.ParseDuration(s)
	if err != nil {
		p.t.Fatal(err)
	}
	return d
}

// cluster builds the world: name=value settings first, then hosts. A host is
// id, with ":witness" for one without VMs and stores.
func (p *player) cluster(f []string) {
	cfg := Normal()
	cfg.StartupGrace, cfg.Stores = 0, 0
	w := newWorld(cfg, "")
	for _, a := range f {
		k, v, ok := strings.Cut(a, "=")
		switch {
		case !ok:
			id, role, _ := strings.Cut(a, ":")
			h := newWorld(cfg, "", haven.HostID(id)).hosts[0]
			if role == "witness" {
				h.role, h.storeless = haven.RoleWitness, true
			}
			w.hosts = append(w.hosts, h)
			if w.self == "" {
				w.self = h.id
			}
		case k == "stores":
			for s := range strings.SplitSeq(v, ",") {
				w.stores = append(w.stores, &worldStore{name: s, hung: map[haven.HostID]bool{}})
			}
			w.cfg.Stores = len(w.stores)
		case k == "grace":
			w.cfg.StartupGrace = p.duration(v)
		case k == "fence_without_store":
			w.cfg.FenceWithoutStore = v == "true"
		case k == "flap_calm":
			w.cfg.FlapCalm = p.duration(v)
		case k == "flap_window":
			w.cfg.FlapWindow = p.duration(v)
		case k == "cold":
			w.cold = v == "true"
		case k == "down":
			for id := range strings.SplitSeq(v, ",") {
				h := w.host(haven.HostID(id))
				h.power, h.agent, h.helper, h.gossip.State = false, false, false, GossipDead
			}
		case k == "leader":
			w.leader, w.master = haven.HostID(v), false
		case k == "profile" && v == "fast":
			grace, stores := w.cfg.StartupGrace, w.cfg.Stores
			w.cfg = Fast()
			w.cfg.StartupGrace, w.cfg.Stores = grace, stores
		default:
			p.t.Fatalf("setting %q", a)
		}
	}
	if w.leader == "" {
		w.leader = w.self
	}
	m, err := New(w.cfg)
	if err != nil {
		p.t.Fatal(err)
	}
	w.m, w.twin = m, newDumb(w.cfg)
	p.w, p.last = w, map[haven.HostID]string{}
}

func (p *player) store(f []string) {
	for _, s := range p.w.stores {
		if s.name != f[1] && f[1] != "all" {
			continue
		}
		who := haven.HostID("")
		if len(f) > 2 {
			who = haven.HostID(f[2])
		}
		s.hung[who] = f[0] == "hang-store"
	}
}

func (p *player) change(h *worldHost, f []string) {
	switch f[0] {
	case "power-off":
		h.power, h.agent, h.helper = false, false, false
	case "power-on":
		h.power, h.boot = true, h.boot+1
	case "start":
		h.agent, h.helper, h.left = true, true, ""
		h.gossip.State = GossipDead
	case "hang":
		h.hung = true
	case "resume":
		h.hung = false
	case "kill-agent":
		h.agent = false
	case "kill-helper":
		h.helper = false
	case "cut":
		h.group = len(h.id) + int(h.id[0])
		if len(f) > 2 {
			h.group = 1
		}
	case "heal":
		h.group, h.isolated, h.deaf, h.unheard = 0, false, false, false
	case "isolated":
		h.isolated = true
	case "mute":
		h.mute = true
	case "unmute":
		h.mute = false
	case "sigstop":
		h.agent = false
	case "sigcont":
		h.agent = true
	case "libvirt-hang":
		h.silent = true
	case "deafen":
		h.deaf, h.isolated = true, true
	case "unheard":
		h.unheard = true
	case "idle":
		h.writing = false
	case "maintenance":
		h.maint = true
	case "proved":
		h.proved = true
	case "bmc":
		h.bmc = strings.TrimPrefix(f[2], "real") // "real" tells the truth
	case "distrust":
		h.distrust = true
	case "guid":
		h.guid = haven.Unknown
	case "stop", "shutdown":
		p.leave(h, f[0])
	default:
		p.t.Fatalf("command %q", f[0])
	}
}

func (p *player) leave(h *worldHost, how string) {
	h.left = haven.LeaveStopped
	if how == "shutdown" {
		h.left = haven.LeaveShutdown
	}
	h.agent = false
	h.gossip = Gossip{State: GossipLeft, Since: p.w.now, Left: h.left}
	for _, s := range p.w.stores {
		p.w.beat(h, s.name+"/agent", h.left)
	}
}

func (p *player) run(d time.Duration) string {
	var b strings.Builder
	for end := p.w.now + d; p.w.now < end; {
		p.w.step()
		holds := []string{}
		for _, h := range p.w.out.Holds {
			holds = append(holds, h.Reason+alarm(h))
		}
		if s := strings.Join(holds, " "); s != p.holds {
			p.holds = s
			fmt.Fprintf(&b, "  %6.1fs cluster holds: [%s]\n", p.w.now.Seconds(), s)
		}
		for i := range p.w.out.Hosts {
			p.line(&b, &p.w.out.Hosts[i])
		}
		for _, e := range p.w.out.Ended {
			who := "cluster"
			if e.Host != "" {
				who = string(e.Host)
			}
			fmt.Fprintf(&b, "  %6.1fs %s: hold %s ended after %s: %s\n", e.At.Seconds(), who, e.Hold.Reason, e.At-e.Hold.Since, e.Why)
		}
	}
	return b.String()
}

func alarm(h Hold) string {
	if h.Alarm {
		return " ALARM"
	}
	return ""
}

func (p *player) line(b *strings.Builder, j *Judgement) {
	s := string(j.Verdict)
	if j.Hold.Held() {
		s += " held:" + j.Hold.Reason + alarm(j.Hold)
	}
	if j.Distrust {
		s += " distrust-bmc"
	}
	if j.Flapping {
		s += " flapping" + alarm(j.Quarantine)
	}
	if j.MayFence() {
		s += " may-fence"
	}
	if p.last[j.Host] == s {
		return
	}
	p.last[j.Host] = s
	fmt.Fprintf(b, "  %6.1fs %s %s (%d/%d): %s\n", p.w.now.Seconds(), j.Host, s, j.Rounds, j.RoundsNeeded, j.Why)
}

func (p *player) explain(id haven.HostID) string {
	var b strings.Builder
	for i := range p.w.out.Hosts {
		if j := &p.w.out.Hosts[i]; j.Host == id {
			fmt.Fprintf(&b, "  %s since %.1fs, power off proved %t\n", j.Verdict, j.Since.Seconds(), j.PowerOff)
			for _, m := range j.Missing {
				fmt.Fprintf(&b, "  missing: %s\n", m)
			}
			if j.Hold.Held() {
				fmt.Fprintf(&b, "  hold since %.1fs: %s\n", j.Hold.Since.Seconds(), j.Hold.Detail)
			}
			if j.Quarantine.Held() {
				fmt.Fprintf(&b, "  quarantine since %.1fs, until %.1fs: %s\n", j.Quarantine.Since.Seconds(), j.QuarantineUntil.Seconds(), j.Quarantine.Detail)
			}
			if j.NoFence != "" {
				fmt.Fprintf(&b, "  no fence: %s\n", j.NoFence)
			}
			for _, e := range j.Evidence {
				fmt.Fprintf(&b, "  %s\n", e)
			}
		}
	}
	return b.String()
}
