//go:build lab

package scenarios

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/base64"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/haven-ha/haven"
	"github.com/haven-ha/haven/internal/client"
	"github.com/haven-ha/haven/internal/pki"
	"github.com/haven-ha/haven/internal/tlsmux"
	"github.com/haven-ha/haven/test/lab"
)

// binaries is where the shipped programs are built, once for all scenarios.
var binaries string

func TestMain(m *testing.M) {
	lab.RunChild()
	os.Exit(run(m))
}

func run(m *testing.M) int {
	dir, err := os.MkdirTemp("", "haven-bin-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer func() { _ = os.RemoveAll(dir) }()
	build := exec.Command("go", "build", "-o", dir, "github.com/haven-ha/haven/cmd/havend", "github.com/haven-ha/haven/cmd/haven-helper", "github.com/haven-ha/haven/cmd/haven")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "build: %v\n%s", err, out)
		return 1
	}
	binaries = dir
	return m.Run()
}

// site is a cluster in a lab.
type site struct {
	t   testing.TB
	lab *lab.Lab
	ca  *pki.CA
	api *client.Client
}

// options change what newSite builds. Without them everything is as shipped, but
// for the start-up grace: minutes of waiting would prove nothing more.
type options struct {
	hosts     int
	fencing   string // more keys of the section fencing
	action    string // what is done to a failed host; empty is off
	levels    string // the ladder; empty is [[bmc]]
	bmc       string // more keys of the devices called bmc
	feeds     int    // switched power supplies of each host: devices psu-a and psu-b
	more      string // more sections
	twoStores bool
	// watchdog arms each host's watchdog device on these terms, such as "timeout: 3s,
	// silence: 8s"; empty: there is none.
	watchdog string
	stores   string // the stores instead of those that the lab mounts, as in heartbeat.stores
	// programs is where other builds of the programs are; empty is as shipped.
	programs string
	// env is the environment of a host's programs.
	env func(lab.HostInfo) ([]string, error)
}

// newSite builds a lab with a cluster of Haven on it and waits until it is whole.
func newSite(t testing.TB, o options) *site {
	t.Helper()
	if o.hosts == 0 {
		o.hosts = 3
	}
	s := &site{t: t}
	var err error
	s.ca, err = pki.NewCA("lab", pki.DefaultCALifetime)
	s.ok(err)
	gossip := make([]byte, 32)
	_, err = rand.Read(gossip)
	s.ok(err)
	if o.programs == "" {
		o.programs = binaries
	}
	infos := make([]lab.HostInfo, 0, o.hosts)
	s.lab, err = lab.New(t.Context(), lab.Config{
		Hosts: o.hosts, TwoStores: o.twoStores, Watchdogs: o.watchdog != "", Feeds: o.feeds,
		Programs: func(h lab.HostInfo) ([]lab.Program, error) {
			// Each host's file names all hosts, so it is written when all are known.
			if infos = append(infos, h); len(infos) == o.hosts {
				if err := s.writeConfigs(infos, o, base64.StdEncoding.EncodeToString(gossip)); err != nil {
					return nil, err
				}
			}
			var env []string
			if o.env != nil {
				var err error
				if env, err = o.env(h); err != nil {
					return nil, err
				}
			}
			return []lab.Program{
				{Name: "haven-helper", Args: []string{o.programs + "/haven-helper", "--host", h.Name}, Env: env, RestartAfter: time.Second},
				{Name: "havend", Args: []string{o.programs + "/havend", "--host", h.Name}, Env: env, RestartAfter: time.Second},
			}, nil
		},
	})
	s.ok(err)
	t.Cleanup(func() {
		if t.Failed() {
			s.showLogs()
		}
		if err := s.lab.Close(); err != nil {
			t.Error(err)
		}
	})
	s.initStore(s.lab.ExportDir())
	if o.twoStores {
		s.initStore(s.lab.SecondExportDir())
	}
	s.connect()
	return s
}

// shortGrace is the one key that differs from what is shipped.
const shortGrace = "start_up_grace: 3s"

// writeConfigs puts the cluster's one file, and what it names, on every host.
func (s *site) writeConfigs(infos []lab.HostInfo, o options, gossip string) error {
	stores := "{name: nfs1, type: dir, path: " + lab.HostStorePath + "/.haven}"
	if o.twoStores {
		stores += ", {name: nfs2, type: dir, path: " + lab.HostSecondStorePath + "/.haven}"
	}
	if o.stores != "" {
		stores = o.stores
	}
	if o.watchdog != "" {
		o.fencing += fmt.Sprintf("\nwatchdog: {device: %s, %s}", lab.HostWatchdog, o.watchdog)
	}
	var y strings.Builder
	fmt.Fprintf(&y, `
cluster: lab
gossip: {key_file: /etc/haven/gossip.key}
api: {ca_file: /etc/haven/ca.pem, cert_file: /etc/haven/host.pem, key_file: /etc/haven/host.key}
helper: {cert_file: /etc/haven/host.pem, key_file: /etc/haven/host.key, username: haven, password_file: /etc/haven/helper.password}
log: {level: debug}
heartbeat: {stores: [%s]}
detection: {%s}
fencing:
  action: %s
  levels: %s
  devices: {%s}
%s
%s
hosts:
`, stores, shortGrace, cmp.Or(o.action, "off"), cmp.Or(o.levels, "[[bmc]]"), strings.Join(o.devices(infos[0]), ", "),
		indent(o.fencing), o.more)
	for _, h := range infos {
		fmt.Fprintf(&y, "  %s: {address: %s, fencing: {devices: {%s}}}\n", h.Name, h.Address, strings.Join(o.ownDevices(h), ", "))
	}
	files := map[string]string{
		"haven.yaml": y.String(), "gossip.key": gossip + "\n", "ca.pem": string(s.ca.Pair().Cert), "helper.password": "lab-helper\n",
	}
	for _, h := range infos {
		files["bmc-"+h.Name+".password"] = h.BMCPassword + "\n"
	}
	for _, h := range infos {
		addr, err := netip.ParseAddr(h.Address)
		if err != nil {
			return err
		}
		pair, err := s.ca.IssueHost(haven.HostID(h.Name), []netip.Addr{addr}, pki.DefaultHostLifetime)
		if err != nil {
			return err
		}
		files["host.pem"], files["host.key"] = string(pair.Cert), string(pair.Key)
		for name, data := range files {
			if err := os.WriteFile(filepath.Join(h.ConfigDir, name), []byte(data), 0o600); err != nil {
				return err
			}
		}
	}
	return nil
}

// indent puts keys under a section.
func indent(keys string) string {
	return "  " + strings.Join(strings.Split(keys, "\n"), "\n  ")
}

func (o options) climbs(device string) bool {
	return strings.Contains(cmp.Or(o.levels, "[[bmc]]"), device)
}

// devices are what the fence devices of all hosts have in common.
func (o options) devices(one lab.HostInfo) (all []string) {
	if o.climbs("bmc") {
		all = append(all, "bmc: {"+strings.TrimSuffix("driver: ipmi, "+o.bmc, ", ")+"}")
	}
	for _, f := range one.Feeds {
		all = append(all, fmt.Sprintf(
			"psu-%s: {driver: command, command: {program: %s, arguments: [\"haven-lab:outlet\", \"{address}\", \"{action}\", \"{host}\"], exit_on: %d, exit_off: %d}}",
			f.Name, f.Program, lab.OutletOn, lab.OutletOff))
	}
	return all
}

// ownDevices are what a host's fence devices have of their own.
func (o options) ownDevices(h lab.HostInfo) (all []string) {
	if o.climbs("bmc") {
		all = append(all, fmt.Sprintf("bmc: {address: %s, username: %s, password_file: /etc/haven/bmc-%s.password}", h.BMCAddress, h.BMCUser, h.Name))
	}
	for _, f := range h.Feeds {
		all = append(all, fmt.Sprintf("psu-%s: {address: %s}", f.Name, f.Strip))
	}
	return all
}

// initStore makes a store as an operator does. The child that does the work must not
// be a child of this process: it ends with the thread that started it, and here
// threads end that were in a namespace.
func (s *site) initStore(export string) {
	s.t.Helper()
	path := filepath.Join(export, ".haven")
	s.ok(os.MkdirAll(path, 0o755))
	if out, err := exec.CommandContext(s.t.Context(), binaries+"/haven", "store", "init", path, "--cluster", "lab").CombinedOutput(); err != nil {
		s.t.Fatalf("init store: %v\n%s", err, out)
	}
}

// seat is the operator's network.
type seat struct{ *lab.Lab }

func (seat) Listen(string, string) (net.Listener, error)         { return nil, os.ErrPermission }
func (seat) ListenPacket(string, string) (net.PacketConn, error) { return nil, os.ErrPermission }
func (s seat) DialContext(ctx context.Context, network, addr string) (net.Conn, error) {
	return s.Dial(ctx, network, addr)
}

func (s *site) connect() {
	s.t.Helper()
	pair, err := s.ca.IssueOperator("tester", pki.RoleAdmin, pki.DefaultOperatorLifetime)
	s.ok(err)
	creds, err := pki.NewCredentials("lab", s.ca.Pair().Cert, pair)
	s.ok(err)
	s.api = client.New(tlsmux.NewTransport(seat{s.lab}, creds, func(id haven.HostID) (string, bool) {
		h, err := s.lab.HostNamed(string(id))
		if err != nil {
			return "", false
		}
		return h.Address + ":7947", true
	}))
}

func (s *site) ok(err error) {
	s.t.Helper()
	if err != nil {
		s.t.Fatal(err)
	}
}

func (s *site) showLogs() {
	logs, _ := filepath.Glob(s.lab.Dir() + "/hosts/*/log/haven*.log")
	for _, log := range logs {
		data, err := os.ReadFile(log)
		if err != nil {
			continue
		}
		lines := slices.DeleteFunc(strings.Split(string(data), "\n"), func(l string) bool { return strings.Contains(l, "level=DEBUG") })
		s.t.Logf("%s:\n%s", log, strings.Join(lines[max(0, len(lines)-120):], "\n"))
	}
	if keep := os.Getenv("HAVEN_KEEP_LOGS"); keep != "" {
		_ = exec.Command("cp", "-r", s.lab.Dir()+"/hosts", keep).Run()
	}
	for _, st := range s.lab.Stamps() {
		s.t.Logf("%s %s", st.At.Format("15:04:05.000"), st.What)
	}
}

// ask polls an answer of any agent but those named until it is as wanted.
func ask[T any](s *site, limit time.Duration, path, what string, ok func(T) bool, but ...*lab.Host) T {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), limit)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	var last T
	var lastErr error
	for {
		for _, h := range s.lab.Hosts() {
			if slices.Contains(but, h) {
				continue
			}
			var v T
			one, cancel := context.WithTimeout(ctx, time.Second)
			err := s.api.Get(one, haven.HostID(h.Name), path, &v)
			cancel()
			if err != nil {
				lastErr = err
				continue
			}
			if last = v; ok(v) {
				return v
			}
			break
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			s.t.Fatalf("waited %s for %s; last answer %+v; last error %v", limit, what, last, lastErr)
		}
	}
}

// whole waits until every host is healthy, its BMC was read and nothing holds.
func (s *site) whole() client.Status {
	s.t.Helper()
	n := len(s.lab.Hosts())
	ask(s, 90*time.Second, "/v1/hosts", "healthy hosts with BMCs that say on", func(hosts []client.Host) bool {
		good := 0
		for _, h := range hosts {
			if h.Verdict == haven.VerdictHealthy && h.Connected && h.Power.State == "on" && h.Storage.State == "alive" && h.Helper.State == "alive" {
				good++
			}
		}
		return good == n
	})
	return ask(s, 90*time.Second, "/v1/status", "a master that nothing holds back", func(st client.Status) bool {
		return !st.Stale && len(st.Holds) == 0 && st.HostsUp == n
	})
}

// master returns the host that leads.
func (s *site) master() *lab.Host {
	s.t.Helper()
	st := s.whole()
	h, err := s.lab.HostNamed(string(st.Master))
	s.ok(err)
	return h
}

// slave returns a host that does not lead.
func (s *site) slave() *lab.Host {
	s.t.Helper()
	master := s.master()
	for _, h := range slices.Backward(s.lab.Hosts()) {
		if h != master {
			return h
		}
	}
	return nil
}

// guests starts VMs on a host and waits until they write and are protected.
func (s *site) guests(h *lab.Host, names ...string) []*lab.Guest {
	s.t.Helper()
	var all []*lab.Guest
	for _, name := range names {
		all = append(all, s.guest(h, lab.GuestConfig{Name: name}))
	}
	s.protected(h, all...)
	return all
}

// guest starts a VM on a host and waits until it writes.
func (s *site) guest(h *lab.Host, c lab.GuestConfig) *lab.Guest {
	s.t.Helper()
	g, err := s.lab.NewGuest(c)
	s.ok(err)
	s.ok(g.Define(s.t.Context(), h))
	s.ok(g.Start(s.t.Context(), h))
	ctx, cancel := context.WithTimeout(s.t.Context(), 30*time.Second)
	defer cancel()
	_, err = g.WaitWrite(ctx, 0)
	s.ok(err)
	return g
}

func (s *site) protected(h *lab.Host, guests ...*lab.Guest) {
	s.t.Helper()
	ask(s, 30*time.Second, "/v1/vms", "protected VMs", func(vms []client.VM) bool {
		n := 0
		for _, v := range vms {
			if v.Protected && string(v.Owner) == h.Name && v.Phase == "owned" && v.Desired == "running" {
				n++
			}
		}
		return n >= len(guests)
	})
}

// elsewhere waits until each guest's first write by another boot than the given
// one was seen, and returns when that was.
func (s *site) elsewhere(limit time.Duration, g *lab.Guest, before uint32) lab.Write {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), limit)
	defer cancel()
	w, err := g.WaitWriter(ctx, before)
	if err != nil {
		s.t.Fatalf("%s does not write again within %s: %v", g.Name, limit, err)
	}
	return w
}

// nonce names the boot of a guest that writes now.
func (s *site) nonce(g *lab.Guest) uint32 {
	s.t.Helper()
	h, err := g.Header()
	s.ok(err)
	return h.Nonce
}

// settled waits until no incident is open and every VM runs.
func (s *site) settled(limit time.Duration, but ...*lab.Host) client.Status {
	s.t.Helper()
	return ask(s, limit, "/v1/status", "all VMs running and no incident open", func(st client.Status) bool {
		return !st.Stale && st.VMs == st.VMsUp && st.Incidents == 0
	}, but...)
}

// once checks P1 by the guests' own journals: nobody ever found the traces of
// another writer, and each ran on as many boots as it should.
func (s *site) once(boots uint32, guests ...*lab.Guest) {
	s.t.Helper()
	for _, g := range guests {
		j, err := g.Journal()
		s.ok(err)
		if j.Conflicts != 0 {
			s.t.Errorf("P1: %s noticed %d times that another copy writes its disk", g.Name, j.Conflicts)
		}
		if j.Boots != boots {
			s.t.Errorf("%s was booted %d times, want %d", g.Name, j.Boots, boots)
		}
		running := 0
		for _, h := range s.lab.Hosts() {
			on, err := h.PowerIsOn()
			s.ok(err)
			if !on {
				continue
			}
			ctx, cancel := context.WithTimeout(s.t.Context(), 10*time.Second)
			state, err := g.State(ctx, h)
			cancel()
			if err == nil && state == "running" {
				running++
			}
		}
		if running != 1 {
			s.t.Errorf("%s runs on %d hosts", g.Name, running)
		}
	}
}

// noPowerCommands checks P4: no BMC got a command.
func (s *site) noPowerCommands() {
	s.t.Helper()
	for h, cmds := range s.powerCommands() {
		if len(cmds) > 0 {
			s.t.Errorf("P4: the BMC of %s got %v", h.Name, cmds)
		}
	}
}

// powerCommands are those that came to each host's BMC so far.
func (s *site) powerCommands() map[*lab.Host][]lab.PowerCommand {
	s.t.Helper()
	all := map[*lab.Host][]lab.PowerCommand{}
	for _, h := range s.lab.Hosts() {
		cmds, err := h.PowerCommands()
		s.ok(err)
		all[h] = cmds
	}
	return all
}

// incident returns the newest incident of a host with its time line.
func (s *site) incident(h *lab.Host, but ...*lab.Host) client.Incident {
	s.t.Helper()
	all := ask(s, 10*time.Second, "/v1/incidents", "an incident of "+h.Name, func(all []client.Incident) bool {
		return slices.ContainsFunc(all, func(in client.Incident) bool { return string(in.Host) == h.Name })
	}, but...)
	i := slices.IndexFunc(all, func(in client.Incident) bool { return string(in.Host) == h.Name })
	return ask(s, 10*time.Second, "/v1/incidents/"+string(all[i].ID), "that incident", func(client.Incident) bool { return true }, but...)
}

// verdict waits until the master judges a host in a way.
func (s *site) verdict(limit time.Duration, h *lab.Host, want haven.Verdict, but ...*lab.Host) client.Host {
	s.t.Helper()
	return s.verdictAmong(limit, h, []haven.Verdict{want}, but...)
}

// verdictAmong waits until the master judges a host in one of some ways.
func (s *site) verdictAmong(limit time.Duration, h *lab.Host, want []haven.Verdict, but ...*lab.Host) client.Host {
	s.t.Helper()
	var out client.Host
	ask(s, limit, "/v1/hosts", fmt.Sprintf("%s judged %v", h.Name, want), func(hosts []client.Host) bool {
		for _, v := range hosts {
			if string(v.Host) == h.Name {
				out = v
				return slices.Contains(want, v.Verdict)
			}
		}
		return false
	}, but...)
	s.t.Logf("%s is judged %s: %s", h.Name, out.Verdict, out.Explanation)
	return out
}

// waitArmed waits until a host's watchdog runs, and the master's ledger relies on it.
func (s *site) waitArmed(h *lab.Host) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), time.Minute)
	defer cancel()
	s.ok(h.WaitWatchdog(ctx, true))
	for {
		var st client.Status
		err := s.api.Get(ctx, haven.HostID(h.Name), "/v1/status", &st)
		if w := st.Local.Watchdog; err == nil && w != nil && w.State == "armed" && w.Declared.Armed() && w.Agreed {
			return
		}
		select {
		case <-ctx.Done():
			s.t.Fatalf("the watchdog of %s is not armed: %+v, %v", h.Name, st.Local.Watchdog, err)
		case <-time.After(100 * time.Millisecond):
		}
	}
}
