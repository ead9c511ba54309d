// Package world is the world outside the agents, in memory: machines with power,
// VM managers with VMs, and the truth about which VM runs where. The simulator
// and the demo put real agents into it.
//
// The truth is not what any agent believes. A VM that runs on two powered
// machines at once is recorded as a violation of P1 the moment it happens.
package world

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/xml"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/haven-ha/haven"
	"github.com/haven-ha/haven/vmrestart"
)

// World holds all machines.
type World struct {
	mu         sync.Mutex
	machines   map[haven.HostID]*Machine
	violations []string
	starts     map[haven.VMID]int
	observe    func(Event)
	boots      int
}

// Kind says what an event is about.
type Kind string

// The kinds of events.
const (
	PowerOn   Kind = "power-on"
	PowerOff  Kind = "power-off"
	VMRuns    Kind = "vm-runs"   // it executes on the machine from now on
	VMEnds    Kind = "vm-ends"   // it does not any more, though the machine goes on
	VMMoves   Kind = "vm-moves"  // a migration begins, switches over or fails
	SetAside  Kind = "set-aside" // a definition was taken off the machine
	Broken    Kind = "P1-broken" // a VM executes on two machines
	Autostart Kind = "autostart" // a VM's flag was changed by its VM manager
)

// How says who made a VM run.
type How string

// The ways in which a VM comes to run.
const (
	ByUser      How = "by its user"
	ByOrder     How = "by order"
	ByAutostart How = "by its own autostart"
	ByMigration How = "by migration"
)

// Event is something that really happened.
type Event struct {
	Kind    Kind
	Machine haven.HostID
	Boot    haven.BootID
	VM      haven.VMID
	How     How
	Text    string // for people
}

// New makes an empty world. The function is told what happens; it may be nil.
func New(onEvent func(string)) *World {
	return Observed(func(e Event) {
		if onEvent != nil {
			onEvent(e.Text)
		}
	})
}

// Observed makes an empty world. The function is told of everything that really
// happens to VMs and power. It is called with the world locked and must not
// call back.
func Observed(observe func(Event)) *World {
	return &World{machines: map[haven.HostID]*Machine{}, starts: map[haven.VMID]int{}, observe: observe}
}

func (m *Machine) tell(kind Kind, v *vm, how How, format string, args ...any) {
	e := Event{Kind: kind, Machine: m.id, Boot: m.boot, How: how, Text: fmt.Sprintf(format, args...)}
	if v != nil {
		e.VM = v.info.ID
	}
	m.w.observe(e)
}

// Machine is one hypervisor.
type Machine struct {
	w    *World
	id   haven.HostID
	on   bool
	boot haven.BootID
	vms  map[haven.VMID]*vm
	load haven.HostLoad
	// hung holds calls to the VM manager until it is closed; nil while it answers.
	hung chan struct{}
	// startTakes is how long the VM manager needs for a start.
	startTakes time.Duration
	// refuses makes starts fail; see Deaf and Stuck for the others.
	refuses     error
	deaf, stuck bool
	aside       []haven.VMID
	hints       chan struct{}
}

type vm struct {
	info haven.VMInfo
	xml  []byte
}

// Add adds a machine, powered off.
func (w *World) Add(id haven.HostID, memoryMiB uint64) *Machine {
	w.mu.Lock()
	defer w.mu.Unlock()
	m := &Machine{
		w: w, id: id, vms: map[haven.VMID]*vm{}, load: haven.HostLoad{MemoryMiB: memoryMiB, CPUs: 16},
		startTakes: 300 * time.Millisecond, hints: make(chan struct{}, 1),
	}
	w.machines[id] = m
	return m
}

// PowerOn boots a machine. Its definitions survived, nothing runs; VMs with
// autostart start by themselves, as a VM manager would do it.
func (m *Machine) PowerOn() haven.BootID {
	m.w.mu.Lock()
	defer m.w.mu.Unlock()
	if m.on {
		return m.boot
	}
	m.w.boots++
	m.on, m.hung = true, nil
	m.boot = haven.BootID(fmt.Sprintf("boot-%s-%d", m.id, m.w.boots))
	m.tell(PowerOn, nil, "", "%s powers on, %s", m.id, m.boot)
	for _, id := range slices.Sorted(maps.Keys(m.vms)) {
		if v := m.vms[id]; v.info.Autostart {
			m.run(v, ByAutostart)
		}
	}
	return m.boot
}

// PowerOff cuts a machine's power: everything on it ends.
func (m *Machine) PowerOff() {
	m.w.mu.Lock()
	defer m.w.mu.Unlock()
	if !m.on {
		return
	}
	m.tell(PowerOff, nil, "", "%s loses its power", m.id)
	m.on = false
	m.boot = ""
	if m.hung != nil {
		close(m.hung)
		m.hung = nil
	}
	for id, v := range m.vms {
		if !v.info.Persistent {
			delete(m.vms, id)
			continue
		}
		v.info.State, v.info.Reason = haven.VMShutOff, "unknown"
	}
}

// On says whether the machine has power, and in which boot it is.
func (m *Machine) On() (bool, haven.BootID) {
	m.w.mu.Lock()
	defer m.w.mu.Unlock()
	return m.on, m.boot
}

// Hang makes the VM manager hang, or lets it go on.
func (m *Machine) Hang(hung bool) {
	m.w.mu.Lock()
	defer m.w.mu.Unlock()
	switch {
	case hung && m.hung == nil:
		m.hung = make(chan struct{})
	case !hung && m.hung != nil:
		close(m.hung)
		m.hung = nil
	}
}

// Refuse makes starts fail with an error, or succeed again.
func (m *Machine) Refuse(err error) {
	m.w.mu.Lock()
	defer m.w.mu.Unlock()
	m.refuses = err
}

// StartTakes sets how long a start takes.
func (m *Machine) StartTakes(d time.Duration) {
	m.w.mu.Lock()
	defer m.w.mu.Unlock()
	m.startTakes = d
}

// UserStart defines and starts a VM, as its user would.
func (m *Machine) UserStart(xml []byte) (haven.VMID, error) {
	m.w.mu.Lock()
	defer m.w.mu.Unlock()
	v, err := parse(xml)
	if err != nil {
		return "", err
	}
	if !m.on {
		return "", errors.New("machine is off")
	}
	if old := m.vms[v.info.ID]; old != nil && old.info.State.Present() {
		return v.info.ID, nil
	}
	m.vms[v.info.ID] = v
	m.run(v, ByUser)
	return v.info.ID, nil
}

// UserStop shuts a VM down, as its user would; crashed says that it died.
func (m *Machine) UserStop(id haven.VMID, crashed bool) {
	m.w.mu.Lock()
	defer m.w.mu.Unlock()
	v := m.vms[id]
	if !m.on || v == nil || !v.info.State.Present() {
		return
	}
	v.info.State, v.info.Reason = haven.VMShutOff, "shutdown"
	if crashed {
		v.info.State, v.info.Reason = haven.VMCrashed, "crashed"
	}
	m.tell(VMEnds, v, "", "%s ends on %s (%s)", v.info.Name, m.id, v.info.Reason)
	m.hint()
}

// Autostart sets a VM's autostart flag, as its user would.
func (m *Machine) Autostart(id haven.VMID, on bool) {
	m.w.mu.Lock()
	defer m.w.mu.Unlock()
	if v := m.vms[id]; v != nil {
		v.info.Autostart = on
	}
}

// run starts a VM and checks the truth. The world is locked.
func (m *Machine) run(v *vm, how How) {
	v.info.State, v.info.Reason = haven.VMRunning, "booted"
	m.w.starts[v.info.ID]++
	m.tell(VMRuns, v, how, "%s runs on %s, %s", v.info.Name, m.id, how)
	m.checkTwice(v)
	m.hint()
}

// checkTwice records it when a VM executes on two machines.
func (m *Machine) checkTwice(v *vm) {
	if at := m.w.where(v.info.ID, executes); len(at) > 1 {
		text := fmt.Sprintf("P1 broken: %s runs on %v", v.info.Name, at)
		m.w.violations = append(m.w.violations, text)
		m.tell(Broken, v, "", "%s", text)
	}
}

// executes says whether a VM can write to its disks. One that arrives cannot
// yet, and one that was handed over cannot any more.
func executes(info haven.VMInfo) bool {
	handed := info.State == haven.VMPaused && info.Reason == handedOver
	return info.State.Present() && info.State != haven.VMIncoming && !handed
}

// handedOver is the reason of a VM that waits, paused, for the end of its own
// migration.
const handedOver = "migration"

func (m *Machine) hint() {
	select {
	case m.hints <- struct{}{}:
	default:
	}
}

// where lists the machines with power on which a VM is as asked.
func (w *World) where(id haven.VMID, is func(haven.VMInfo) bool) []haven.HostID {
	var at []haven.HostID
	for _, host := range slices.Sorted(maps.Keys(w.machines)) {
		m := w.machines[host]
		if v := m.vms[id]; m.on && v != nil && is(v.info) {
			at = append(at, host)
		}
	}
	return at
}

// RunsOn tells where a VM really is: running, paused, or on its way from or to.
func (w *World) RunsOn(id haven.VMID) []haven.HostID {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.where(id, func(info haven.VMInfo) bool { return info.State.Present() })
}

// Writers tells which machines run a VM that has a disk.
func (w *World) Writers(path string) (hosts []haven.HostID) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for host, m := range w.machines {
		for _, v := range m.vms {
			if v.info.State != haven.VMRunning && v.info.State != haven.VMMigrating {
				continue
			}
			if paths, err := DiskPaths(v.xml); err == nil && slices.Contains(paths, path) {
				hosts = append(hosts, host)
			}
		}
	}
	slices.Sort(hosts)
	return hosts
}

// Starts tells how often a VM was started.
func (w *World) Starts(id haven.VMID) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.starts[id]
}

// Violations lists every time that P1 was broken.
func (w *World) Violations() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.violations)
}

// Migrate moves a running VM to another machine, live. It returns when that is
// over: after transfer both machines switch, and for the time of handover the
// source still has the VM, paused. The VM lives on at one end whatever dies.
func (w *World) Migrate(id haven.VMID, from, to *Machine, transfer, handover time.Duration) error {
	src, dst, err := w.beginMove(id, from, to)
	if err != nil {
		return err
	}
	time.Sleep(transfer) //nolint:forbidigo // the machines do this by themselves
	if err := w.switchOver(src, dst, from, to); err != nil {
		return err
	}
	time.Sleep(handover) //nolint:forbidigo // likewise
	w.mu.Lock()
	defer w.mu.Unlock()
	if from.vms[id] == src && src.info.State == haven.VMPaused && src.info.Reason == handedOver {
		src.info.State, src.info.Reason = haven.VMShutOff, "migrated"
		from.hint()
	}
	return nil
}

func (w *World) beginMove(id haven.VMID, from, to *Machine) (src, dst *vm, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	src = from.vms[id]
	old := to.vms[id]
	switch {
	case !from.on || !to.on || from.hung != nil || to.hung != nil:
		return nil, nil, errors.New("a machine does not answer")
	case src == nil || src.info.State != haven.VMRunning:
		return nil, nil, errors.New("it does not run there")
	case old != nil && old.info.State.Present():
		return nil, nil, errors.New("it is at the target already")
	}
	copied := *src
	dst = &copied
	src.info.State, src.info.Reason = haven.VMMigrating, ""
	dst.info.State, dst.info.Reason, dst.info.Autostart = haven.VMIncoming, "", false
	to.vms[id] = dst
	from.tell(VMMoves, src, "", "%s begins to move from %s to %s", src.info.Name, from.id, to.id)
	from.hint()
	to.hint()
	return src, dst, nil
}

// switchOver lets the VM go on at the target, or where it is still alive.
func (w *World) switchOver(src, dst *vm, from, to *Machine) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	id := src.info.ID
	// A machine that lost its power lost the process with it.
	leaves := from.on && from.vms[id] == src && src.info.State == haven.VMMigrating
	arrives := to.on && to.vms[id] == dst && dst.info.State == haven.VMIncoming
	defer from.hint()
	defer to.hint()
	switch {
	case leaves && arrives && from.hung == nil && to.hung == nil:
		src.info.State, src.info.Reason = haven.VMPaused, handedOver
		dst.info.State, dst.info.Reason = haven.VMRunning, "migrated"
		to.tell(VMRuns, dst, ByMigration, "%s runs on %s, %s", dst.info.Name, to.id, ByMigration)
		to.checkTwice(dst)
		return nil
	case arrives:
		delete(to.vms, id)
	}
	if leaves {
		src.info.State, src.info.Reason = haven.VMRunning, "migration-failed"
	}
	from.tell(VMMoves, src, "", "%s does not move from %s to %s", src.info.Name, from.id, to.id)
	return errors.New("migration failed")
}

// domain is the little of a domain's XML that this world understands.
type domain struct {
	XMLName xml.Name `xml:"domain"`
	Name    string   `xml:"name"`
	UUID    string   `xml:"uuid"`
	Memory  uint64   `xml:"memory"`
	VCPU    int      `xml:"vcpu"`
	Disks   []struct {
		Source struct {
			File string `xml:"file,attr"`
		} `xml:"source"`
	} `xml:"devices>disk"`
}

func parse(data []byte) (*vm, error) {
	var d domain
	if err := xml.Unmarshal(data, &d); err != nil {
		return nil, fmt.Errorf("parse definition: %w", err)
	}
	id, err := haven.ParseVMID(d.UUID)
	if err != nil {
		return nil, fmt.Errorf("parse definition: %w", err)
	}
	sum := sha256.Sum256(data)
	return &vm{xml: slices.Clone(data), info: haven.VMInfo{
		ID: id, Name: d.Name, State: haven.VMShutOff, Persistent: true, MemoryMiB: d.Memory, VCPUs: max(1, d.VCPU),
		DefinitionSHA: hex.EncodeToString(sum[:]),
	}}, nil
}

// XML makes a definition that this world understands.
func XML(id haven.VMID, name string, memoryMiB uint64) []byte {
	return fmt.Appendf(nil, "<domain type='world'><name>%s</name><uuid>%s</uuid><memory unit='MiB'>%d</memory><vcpu>1</vcpu>"+
		"<devices><disk><source file='/shared/%s.img'/></disk></devices></domain>", name, id, memoryMiB, name)
}

// Hypervisor is a machine's VM manager, as one boot of it can be reached. When
// the power goes, calls of that boot fail and change nothing any more.
type Hypervisor struct {
	m    *Machine
	boot haven.BootID
}

// Hypervisor returns the VM manager of the present boot.
func (m *Machine) Hypervisor() *Hypervisor {
	m.w.mu.Lock()
	defer m.w.mu.Unlock()
	return &Hypervisor{m, m.boot}
}

var errPowerless = errors.New("the machine has no power")

// enter waits until the VM manager answers, and returns with the world locked.
func (h *Hypervisor) enter(ctx context.Context) error {
	for {
		h.m.w.mu.Lock()
		if !h.m.on || h.m.boot != h.boot {
			h.m.w.mu.Unlock()
			return errPowerless
		}
		hung := h.m.hung
		if hung == nil {
			return nil
		}
		h.m.w.mu.Unlock()
		select {
		case <-hung:
		case <-ctx.Done():
			return fmt.Errorf("VM manager: %w", ctx.Err())
		}
	}
}

// Inventory lists the machine's VMs.
func (h *Hypervisor) Inventory(ctx context.Context) (haven.Inventory, error) {
	if err := h.enter(ctx); err != nil {
		return haven.Inventory{Why: err.Error()}, err
	}
	defer h.m.w.mu.Unlock()
	inv := haven.Inventory{Host: h.m.id, Boot: h.boot, Complete: true}
	for _, id := range slices.Sorted(maps.Keys(h.m.vms)) {
		v := h.m.vms[id]
		inv.VMs = append(inv.VMs, v.info)
		if v.info.State.Present() {
			inv.Processes = append(inv.Processes, id)
		}
	}
	return inv, nil
}

// Definition returns a VM's definition.
func (h *Hypervisor) Definition(ctx context.Context, id haven.VMID) ([]byte, error) {
	if err := h.enter(ctx); err != nil {
		return nil, err
	}
	defer h.m.w.mu.Unlock()
	v := h.m.vms[id]
	if v == nil {
		return nil, haven.ErrNotFound
	}
	return slices.Clone(v.xml), nil
}

// Start starts a VM. A caller that gives up while the VM manager hangs does not
// stop the start: it happens when the VM manager goes on.
func (h *Hypervisor) Start(ctx context.Context, id haven.VMID, xml []byte) (vmrestart.Outcome, error) {
	v, err := parse(xml)
	if err != nil || v.info.ID != id {
		return vmrestart.Failed, errors.Join(err, fmt.Errorf("definition is not that of %s", id))
	}
	h.m.w.mu.Lock()
	takes := h.m.startTakes
	h.m.w.mu.Unlock()
	ended := make(chan error, 1)
	go func() { ended <- h.start(v, takes) }()
	select {
	case err := <-ended:
		switch {
		case err == nil:
			return vmrestart.Started, nil
		case errors.Is(err, errPowerless):
			return vmrestart.Unclear, err
		}
		return vmrestart.Failed, err
	case <-ctx.Done():
		return vmrestart.Unclear, ctx.Err()
	}
}

// start does what the VM manager does by itself once it was asked.
func (h *Hypervisor) start(v *vm, takes time.Duration) error {
	<-time.After(takes)
	if err := h.enter(context.Background()); err != nil {
		return err
	}
	defer h.m.w.mu.Unlock()
	if h.m.refuses != nil {
		return h.m.refuses
	}
	if old := h.m.vms[v.info.ID]; old != nil {
		if old.info.State.Present() {
			return nil
		}
		v.info.Autostart = old.info.Autostart
	}
	h.m.vms[v.info.ID] = v
	h.m.run(v, ByOrder)
	return nil
}

// Disks lists a definition's disks.
func (h *Hypervisor) Disks(data []byte) ([]string, error) { return DiskPaths(data) }

// DiskPaths lists a definition's disks.
func DiskPaths(data []byte) ([]string, error) {
	var d domain
	if err := xml.Unmarshal(data, &d); err != nil {
		return nil, err
	}
	var paths []string
	for _, disk := range d.Disks {
		paths = append(paths, disk.Source.File)
	}
	return paths, nil
}

// Load says what the machine has left.
func (h *Hypervisor) Load(inv haven.Inventory) (haven.HostLoad, error) {
	h.m.w.mu.Lock()
	load := h.m.load
	h.m.w.mu.Unlock()
	used := uint64(0)
	for _, info := range inv.VMs {
		if info.State.Present() {
			used += info.MemoryMiB
			load.VCPUsRunning += info.VCPUs
		}
	}
	load.MemoryFreeMiB = load.MemoryMiB - min(used, load.MemoryMiB)
	return load, nil
}

// SetAutostart changes a VM's autostart flag.
func (h *Hypervisor) SetAutostart(ctx context.Context, id haven.VMID, on bool) error {
	if err := h.enter(ctx); err != nil {
		return err
	}
	defer h.m.w.mu.Unlock()
	if v := h.m.vms[id]; v != nil {
		v.info.Autostart = on
		h.m.tell(Autostart, v, "", "autostart of %s on %s is set to %t", v.info.Name, h.m.id, on)
	}
	return nil
}

// SetAside removes a definition that does not run.
func (h *Hypervisor) SetAside(ctx context.Context, id haven.VMID) error {
	if err := h.enter(ctx); err != nil {
		return err
	}
	defer h.m.w.mu.Unlock()
	v := h.m.vms[id]
	if v == nil {
		return nil
	}
	if v.info.State.Present() {
		return errors.New("it is active")
	}
	delete(h.m.vms, id)
	h.m.aside = append(h.m.aside, id)
	h.m.tell(SetAside, v, "", "definition of %s is set aside on %s", v.info.Name, h.m.id)
	return nil
}

// Hints tells that something changed.
func (h *Hypervisor) Hints() <-chan struct{} { return h.m.hints }

// Run does nothing: this VM manager needs no care.
func (h *Hypervisor) Run(ctx context.Context) { <-ctx.Done() }
