package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"
)

// Lab is a running lab. Its methods may be called from several goroutines.
type Lab struct {
	spec   *spec
	log    *slog.Logger
	hosts  []*Host
	stamps stamps

	owner  bool // Close takes the lab down
	guard  *guard
	reaper sync.WaitGroup // one for each child of this process
	close  sync.Once
	closed error
}

// New builds a lab, powers all hosts on and waits until each libvirtd answers and
// has probed QEMU. On error it leaves nothing behind. The caller must Close it.
func New(ctx context.Context, c Config) (*Lab, error) {
	if isChild() {
		return nil, errors.New("lab.RunChild was not called first thing in main or TestMain")
	}
	if err := checkMachine(c.BMC); err != nil {
		return nil, fmt.Errorf("this machine cannot run the lab: %w", err)
	}
	s, err := newSpec(c)
	if err != nil {
		return nil, err
	}
	if err := s.claim(); err != nil {
		if s.OwnDir {
			err = errors.Join(err, os.RemoveAll(s.Dir))
		}
		return nil, err
	}
	l := newLab(s, c.Logger)
	l.owner = true
	if err := l.build(ctx, c); err != nil {
		return nil, errors.Join(fmt.Errorf("build lab: %w", err), l.Close())
	}
	return l, nil
}

// Open finds a lab that another process built. Closing it leaves the lab as it is.
func Open(dir string, log *slog.Logger) (*Lab, error) {
	s, err := loadSpec(dir)
	if err != nil {
		return nil, err
	}
	return newLab(s, log), nil
}

func newLab(s *spec, log *slog.Logger) *Lab {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	l := &Lab{spec: s, log: log}
	for _, h := range s.Hosts {
		l.hosts = append(l.hosts, &Host{HostInfo: h, lab: l})
	}
	return l
}

// claim takes the directory and the prefix. From here on Down finds everything.
func (s *spec) claim() error {
	if err := os.MkdirAll(s.Dir, 0o755); err != nil {
		return fmt.Errorf("make state directory: %w", err)
	}
	if _, err := os.Stat(specFile(s.Dir)); err == nil {
		return fmt.Errorf("%s holds a lab already: take it down first", s.Dir)
	}
	for _, n := range s.namespaces() {
		if _, err := os.Lstat(s.netnsPath(n)); err == nil {
			return fmt.Errorf("prefix %q is in use: network namespace %s exists", s.Prefix, s.netns(n))
		}
	}
	// The cgroup is the lock on the prefix: only one can make it.
	if err := os.Mkdir(s.Cgroup, 0o755); err != nil {
		return fmt.Errorf("prefix %q is in use: %w", s.Prefix, err)
	}
	if err := s.save(); err != nil {
		return errors.Join(fmt.Errorf("write lab state: %w", err), os.Remove(s.Cgroup))
	}
	return nil
}

func (l *Lab) build(ctx context.Context, c Config) error {
	start := time.Now()
	steps := []struct {
		name string
		do   func() error
	}{
		{"files", func() error { return l.makeFiles(c.Persist) }},
		{"network", func() error { return l.spec.buildNetwork(ctx) }},
		{"storage", func() error { return l.Each(func(h *Host) error { return h.startStorage(ctx) }) }},
		{"watchdogs", func() error { return l.Each(func(h *Host) error { return h.startDog(ctx) }) }},
		{"BMCs", func() error { return l.Each(func(h *Host) error { return h.startBMC(ctx) }) }},
		{"power strips", func() error { return l.startStrips(ctx) }},
		{"programs", func() error { return l.placePrograms(c.Programs) }},
		{"power", func() error { return l.Each(func(h *Host) error { return h.PowerOn(ctx) }) }},
		{"libvirt", func() error { return l.Each(func(h *Host) error { return h.WaitReady(ctx) }) }},
		{"capabilities", func() error { return l.Each(func(h *Host) error { return h.probe(ctx) }) }},
	}
	for _, step := range steps {
		if err := step.do(); err != nil {
			return fmt.Errorf("%s: %w", step.name, err)
		}
		l.log.Info("lab step done", "step", step.name, "ms", time.Since(start).Milliseconds())
	}
	return nil
}

// makeFiles makes the state directory's content and starts the guard.
func (l *Lab) makeFiles(persist bool) error {
	s := l.spec
	dirs := []string{s.file("bin"), s.file("mnt"), s.file("ctl"), s.file("log"), s.file("hosts"), s.file("bmc"), s.guestDir()}
	for _, which := range s.storages() {
		dirs = append(dirs, s.export()+which)
		for _, h := range s.Hosts {
			dirs = append(dirs, s.mount(h.Name+which))
		}
	}
	for _, h := range s.Hosts {
		if s.Watchdogs {
			dirs = append(dirs, s.dogMount(h.Name))
		}
		for _, g := range []cgroup{s.hostCgroup(h.Name), s.bmcCgroup(h.Name), s.storeCgroup(h.Name)} {
			dirs = append(dirs, string(g))
		}
	}
	for _, name := range s.feedNames() {
		dirs = append(dirs, s.stripDir(name), string(s.stripCgroup(name)))
	}
	for _, d := range dirs {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return err
		}
	}
	if err := s.installBinary(); err != nil {
		return err
	}
	for _, h := range s.Hosts {
		if err := errors.Join(s.prepareHost(h), s.prepareBMC(h)); err != nil {
			return err
		}
	}
	if persist {
		return nil
	}
	var err error
	l.guard, err = startGuard(s)
	return err
}

// installBinary keeps this program for the helpers: `go run` and `go test` delete
// it when they end.
func (s *spec) installBinary() error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	if os.Link(self, s.binary()) == nil {
		return nil
	}
	in, err := os.Open(self)
	if err != nil {
		return err
	}
	defer in.Close() //nolint:errcheck // opened for reading
	out, err := os.OpenFile(s.binary(), os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o755)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}

func (l *Lab) placePrograms(programs func(HostInfo) ([]Program, error)) error {
	for _, h := range l.hosts {
		var list []Program
		if programs != nil {
			var err error
			if list, err = programs(h.HostInfo); err != nil {
				return fmt.Errorf("choose programs of %s: %w", h.Name, err)
			}
		}
		if err := l.spec.savePrograms(h.Name, list); err != nil {
			return err
		}
	}
	return nil
}

// adopt collects a child of this process when it ends.
func (l *Lab) adopt(d *daemon) {
	if d != nil {
		l.reaper.Go(d.wait)
	}
}

// Close takes the lab down, if this process built it, within half a minute. Only
// the first call does anything; all return its result.
func (l *Lab) Close() error {
	l.close.Do(func() {
		if !l.owner {
			return
		}
		l.closed = l.spec.tearDown(context.Background())
		if l.guard != nil {
			l.closed = errors.Join(l.closed, l.guard.dismiss())
		}
		if l.closed == nil { // else a child may live, and waiting could be for ever
			l.reaper.Wait()
		}
	})
	return l.closed
}

// Hosts are all hosts in the order of their index.
func (l *Lab) Hosts() []*Host { return slices.Clone(l.hosts) }

// Host is the host of an index from 1; it panics without one.
func (l *Lab) Host(i int) *Host { return l.hosts[i-1] }

// HostNamed finds a host by name.
func (l *Lab) HostNamed(name string) (*Host, error) {
	for _, h := range l.hosts {
		if h.Name == name {
			return h, nil
		}
	}
	return nil, fmt.Errorf("no host %q in this lab", name)
}

// Each calls f for every host at once and waits for all.
func (l *Lab) Each(f func(*Host) error) error {
	errs := make([]error, len(l.hosts))
	var all sync.WaitGroup
	for i, h := range l.hosts {
		all.Go(func() { errs[i] = f(h) })
	}
	all.Wait()
	return errors.Join(errs...)
}

// Dir is the lab's state directory.
func (l *Lab) Dir() string { return l.spec.Dir }

// Prefix names the lab's network namespaces and its cgroup.
func (l *Lab) Prefix() string { return l.spec.Prefix }

// ExportDir is the shared storage itself, past all faults.
func (l *Lab) ExportDir() string { return l.spec.export() }

// SecondExportDir is the second shared storage itself, of a lab with
// [Config.TwoStores].
func (l *Lab) SecondExportDir() string { return l.spec.export() + second }

// Dial connects from the operator's seat, which has a leg on each network and
// whose wires are never cut. The address must be numeric.
func (l *Lab) Dial(ctx context.Context, network, address string) (net.Conn, error) {
	return dialIn(ctx, l.spec.netnsPath(operatorNS), network, address)
}

// Mark writes a line into the lab's diary of times.
func (l *Lab) Mark(what string) Stamp {
	s := l.stamps.add(what)
	l.log.Info("lab", "what", what, "at_ms", s.Ms())
	return s
}

// Stamps are all marks so far, those of the faults included, oldest first.
func (l *Lab) Stamps() []Stamp {
	l.stamps.mu.Lock()
	defer l.stamps.mu.Unlock()
	return slices.Clone(l.stamps.all)
}

// StorageAll sets the mode of every host's storage, one right after the other.
func (l *Lab) StorageAll(ctx context.Context, m StorageMode) error {
	return l.Each(func(h *Host) error { return h.Storage(ctx, m) })
}

// CutOneWay drops what from sends to to on the management network; the other
// direction stays.
func (l *Lab) CutOneWay(ctx context.Context, from, to *Host) error {
	l.Mark(from.Name + " to " + to.Name + " cut")
	return l.spec.setCut(ctx, true, direction{from.Name, to.Name})
}

// HealOneWay ends [Lab.CutOneWay]; without a cut it does nothing.
func (l *Lab) HealOneWay(ctx context.Context, from, to *Host) error {
	l.Mark(from.Name + " to " + to.Name + " healed")
	return l.spec.setCut(ctx, false, direction{from.Name, to.Name})
}

// Partition cuts the management network between the hosts of one side and all
// others, in both directions at once. The operator's seat reaches all of them.
func (l *Lab) Partition(ctx context.Context, side ...*Host) error {
	l.Mark("partition of " + names(side))
	return l.spec.setCut(ctx, true, l.across(side)...)
}

// HealCuts ends all that [Lab.Partition] and [Lab.CutOneWay] did.
func (l *Lab) HealCuts(ctx context.Context) error {
	l.Mark("cuts healed")
	return l.spec.nft(ctx, "flush set bridge lab cut\n")
}

func (l *Lab) across(side []*Host) []direction {
	var ways []direction
	for _, a := range side {
		for _, b := range l.hosts {
			if !slices.Contains(side, b) {
				ways = append(ways, direction{a.Name, b.Name}, direction{b.Name, a.Name})
			}
		}
	}
	return ways
}

func names(hosts []*Host) string {
	var all []string
	for _, h := range hosts {
		all = append(all, h.Name)
	}
	return strings.Join(all, ", ")
}

// SwitchOff ends the switch of the management network: no host has a carrier on
// it, and the operator's seat has none either.
func (l *Lab) SwitchOff() error {
	l.Mark("switch off")
	return setLinks(l.spec.netnsPath(switchNS), false, l.mgmtPorts()...)
}

// SwitchOn ends [Lab.SwitchOff]; a host that was unplugged by itself is plugged
// in too.
func (l *Lab) SwitchOn(ctx context.Context) error {
	l.Mark("switch on")
	errs := []error{setLinks(l.spec.netnsPath(switchNS), true, l.mgmtPorts()...), l.spec.waitLeg(ctx, operatorNS, mgmt)}
	for _, h := range l.hosts {
		errs = append(errs, l.spec.waitLeg(ctx, h.Name, mgmt))
	}
	return errors.Join(errs...)
}

func (l *Lab) mgmtPorts() []string {
	ports := []string{port(operatorNS, mgmt)}
	for _, h := range l.hosts {
		ports = append(ports, port(h.Name, mgmt))
	}
	return ports
}

// programsFile is where a host's init finds its programs at power-on.
func (s *spec) programsFile(host string) string {
	return filepath.Join(s.hostDir(host), "programs.json")
}

func (s *spec) savePrograms(host string, programs []Program) error {
	if err := checkPrograms(programs); err != nil {
		return fmt.Errorf("programs of %s: %w", host, err)
	}
	return writeJSON(s.programsFile(host), programs)
}

func (s *spec) loadPrograms(host string) ([]Program, error) {
	var programs []Program
	if err := readJSON(s.programsFile(host), &programs); err != nil {
		return nil, fmt.Errorf("read programs: %w", err)
	}
	return programs, nil
}
