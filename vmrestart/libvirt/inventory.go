package libvirt

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	lv "github.com/digitalocean/go-libvirt"

	"github.com/haven-ha/haven"
)

// definitionFlags are those with which libvirt itself copies a persistent
// definition to another host when it migrates one: the next boot's definition,
// not this one's; with its secrets, or a console would come up without its
// password; and in the form that another host's libvirt is meant to read.
const definitionFlags = lv.DomainXMLInactive | lv.DomainXMLSecure | lv.DomainXMLMigratable

// definition is what the inventory keeps of a definition between two polls.
type definition struct {
	sha    string
	memory uint64
	vcpus  int
	from   int // Client.defsFrom when it was read
	read   time.Time
}

// Inventory says what is on the host: all domains of libvirtd, and all VM
// processes. Everything in it was read after the call began. It is Complete
// only when both were read whole; otherwise Why tells what is missing, and what
// could be read is there all the same. The error is not nil only when nothing
// could be read at all.
func (c *Client) Inventory(ctx context.Context) (haven.Inventory, error) {
	inv := haven.Inventory{Host: c.opts.Host, Boot: c.opts.Boot}
	// The table of processes is read last: a domain that is shut off at this
	// moment may still have a process, never the other way round.
	vms, domErr := call(ctx, c.inventory, "inventory", c.domains)
	ids, procErr := c.procs.scan(c.scanContext(ctx))
	inv.VMs, inv.Processes = vms, ids
	if domErr != nil {
		domErr = failed("read domains", domErr)
	}
	err := errors.Join(domErr, procErr)
	inv.Complete = err == nil
	if err != nil {
		inv.Why = strings.ReplaceAll(err.Error(), "\n", "; ")
	}
	if domErr != nil && procErr != nil {
		return inv, err
	}
	return inv, nil
}

// scanContext leaves the process table a moment even when libvirtd used up the
// caller's time: "a process is there" is worth having then most of all.
func (c *Client) scanContext(ctx context.Context) context.Context {
	if ctx.Err() == nil {
		return ctx
	}
	late, cancel := context.WithTimeout(c.base, 250*time.Millisecond)
	context.AfterFunc(late, cancel) // It ends by itself, soon.
	return late
}

// Running lists the names of running and paused domains, sorted. It is one
// request and needs no more than libvirtd's read-only socket.
func (c *Client) Running(ctx context.Context) ([]string, error) {
	names, err := call(ctx, c.inventory, "list running domains", func(_ context.Context, l *lv.Libvirt) ([]string, error) {
		doms, _, err := l.ConnectListAllDomains(1, lv.ConnectListDomainsActive|lv.ConnectListDomainsRunning|lv.ConnectListDomainsPaused)
		names := make([]string, 0, len(doms))
		for _, d := range doms {
			names = append(names, d.Name)
		}
		slices.Sort(names)
		return names, err
	})
	return names, failed("list running domains", err)
}

// domains reads all domains with a handful of requests, and one more for each
// active domain (is it migrating?) and for each definition that needs a look.
func (c *Client) domains(ctx context.Context, l *lv.Libvirt) ([]haven.VMInfo, error) {
	all, _, err := l.ConnectListAllDomains(1, 0)
	if err != nil {
		return nil, fmt.Errorf("list domains: %w", err)
	}
	var sets [3]map[lv.UUID]bool
	for i, f := range []lv.ConnectListAllDomainsFlags{lv.ConnectListDomainsPersistent, lv.ConnectListDomainsAutostart, lv.ConnectListDomainsManagedsave} {
		if sets[i], err = domainSet(l, f); err != nil {
			return nil, err
		}
	}
	c.forgetDefinitions(all)
	stats := bulkStates(l)
	vms := make([]haven.VMInfo, 0, len(all))
	jobCtx, cancel := context.WithTimeout(ctx, jobLimit)
	defer cancel()
	for _, d := range all {
		if ctx.Err() != nil {
			return nil, fmt.Errorf("%w: gave up after %d of %d domains", haven.ErrUnavailable, len(vms), len(all))
		}
		vm := haven.VMInfo{
			ID: vmID(d.UUID), Name: d.Name,
			Persistent: sets[0][d.UUID], Autostart: sets[1][d.UUID], ManagedSave: sets[2][d.UUID],
		}
		found, err := describeState(l, d, stats, &vm)
		if err != nil {
			return nil, err
		}
		if !found {
			continue
		}
		if d.ID != -1 && vm.State.Present() && vm.State != haven.VMUnknown {
			c.describeJob(jobCtx, d, &vm)
		}
		if err := c.describeDefinition(l, d, &vm); err != nil {
			return nil, err
		}
		vms = append(vms, vm)
	}
	slices.SortFunc(vms, func(a, b haven.VMInfo) int { return cmp.Compare(a.ID, b.ID) })
	return vms, nil
}

func domainSet(l *lv.Libvirt, flag lv.ConnectListAllDomainsFlags) (map[lv.UUID]bool, error) {
	doms, _, err := l.ConnectListAllDomains(1, flag)
	if err != nil {
		return nil, fmt.Errorf("list domains: %w", err)
	}
	set := make(map[lv.UUID]bool, len(doms))
	for _, d := range doms {
		set[d.UUID] = true
	}
	return set, nil
}

type stateReason struct{ state, reason int32 }

// bulkStates asks for all states in one request, which never waits for a
// domain's job. What is missing in the answer (not every driver can do it) is
// asked for one by one.
func bulkStates(l *lv.Libvirt) map[lv.UUID]stateReason {
	records, err := l.ConnectGetAllDomainStats(nil, uint32(lv.DomainStatsState), 0)
	if err != nil {
		return nil
	}
	states := make(map[lv.UUID]stateReason, len(records))
	for _, r := range records {
		var s stateReason
		var has int
		for _, p := range r.Params {
			v, ok := p.Value.I.(int32)
			if !ok {
				continue
			}
			switch p.Field {
			case "state.state":
				s.state = v
				has++
			case "state.reason":
				s.reason = v
				has++
			}
		}
		if has == 2 {
			states[r.Dom.UUID] = s
		}
	}
	return states
}

// describeState fills in the state. It reports false when the domain has gone
// meanwhile.
func describeState(l *lv.Libvirt, d lv.Domain, known map[lv.UUID]stateReason, vm *haven.VMInfo) (bool, error) {
	s, ok := known[d.UUID]
	if !ok {
		var err error
		s.state, s.reason, err = l.DomainGetState(d, 0)
		switch {
		case lv.IsNotFound(err):
			return false, nil
		case err != nil && !fromLibvirt(err):
			return false, fmt.Errorf("read state of %s: %w", d.Name, err)
		case err != nil:
			vm.State, vm.Reason = haven.VMUnknown, err.Error()
			return true, nil
		}
	}
	vm.State, vm.Reason = stateOf(lv.DomainState(s.state), s.reason, d.ID != -1)
	return true, nil
}

// jobLimit bounds what one inventory waits for queries of jobs, in all. A
// domain without a job answers at once; one that is migrating asks its QEMU,
// which may hang, and libvirtd with it.
const jobLimit = 500 * time.Millisecond

// describeJob tells a domain that is migrating from one that runs or is paused.
// A domain whose job is not told in time is unknown: it is there, and may be on
// its way to another host. It is not asked again before it has answered.
func (c *Client) describeJob(ctx context.Context, d lv.Domain, vm *haven.VMInfo) {
	op, err := c.jobOf(ctx, d)
	switch {
	case err != nil:
		vm.State, vm.Reason = haven.VMUnknown, "its job was not told"
	case op == lv.DomainJobOperationStrMigrationIn:
		vm.State = haven.VMIncoming
	case op == lv.DomainJobOperationStrMigrationOut:
		vm.State = haven.VMMigrating
	case vm.State == haven.VMPaused && vm.Reason == "migration":
		// A migration without a job has lost one of its ends; of which kind
		// this end is cannot be told, and it may still become the VM.
		vm.State = haven.VMIncoming
	}
}

// jobOf returns what job the domain is in. Drivers without jobs have none.
func (c *Client) jobOf(ctx context.Context, d lv.Domain) (lv.DomainJobOperation, error) {
	c.mu.Lock()
	_, asked := c.asking[d.UUID]
	c.asking[d.UUID] = struct{}{}
	c.mu.Unlock()
	if asked {
		return 0, errTimeout
	}
	return callThen(ctx, c.jobs, "read job of "+d.Name, func(_ context.Context, l *lv.Libvirt) (lv.DomainJobOperation, error) {
		return jobOperation(l, d)
	}, func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		delete(c.asking, d.UUID)
	})
}

func jobOperation(l *lv.Libvirt, d lv.Domain) (lv.DomainJobOperation, error) {
	kind, params, err := l.DomainGetJobStats(d, 0)
	switch {
	case err != nil && fromLibvirt(err):
		return 0, nil // It has ended, or nobody can tell; its state was read.
	case err != nil:
		return 0, err
	case lv.DomainJobType(kind) == lv.DomainJobNone:
		return 0, nil
	}
	for _, p := range params {
		if v, ok := p.Value.I.(int32); ok && p.Field == "operation" {
			return lv.DomainJobOperation(v), nil
		}
	}
	return 0, nil
}

// describeDefinition fills in what the definition says, reading it when there
// was a hint since the last time, or when that was long ago.
func (c *Client) describeDefinition(l *lv.Libvirt, d lv.Domain, vm *haven.VMInfo) error {
	c.mu.Lock()
	def, ok := c.defs[d.UUID]
	from := c.defsFrom
	c.mu.Unlock()
	if !ok || def.from != from || time.Since(def.read) > c.opts.DefinitionAge {
		xml, err := l.DomainGetXMLDesc(d, definitionFlags)
		if err != nil && !fromLibvirt(err) {
			return fmt.Errorf("read definition of %s: %w", d.Name, err)
		}
		if err != nil {
			return nil // The empty checksum says so.
		}
		def = definition{sha: DefinitionSHA([]byte(xml)), from: from, read: time.Now()}
		if p, err := Parse([]byte(xml)); err == nil {
			def.memory, def.vcpus = p.MemoryMiB, p.VCPUs
		} else {
			c.opts.Log.Warn("definition cannot be read", "vm", vm.ID, "name", d.Name, "error", err)
		}
		c.mu.Lock()
		c.defs[d.UUID] = def
		c.mu.Unlock()
	}
	vm.DefinitionSHA, vm.MemoryMiB, vm.VCPUs = def.sha, def.memory, def.vcpus
	return nil
}

func (c *Client) forgetDefinitions(all []lv.Domain) {
	there := make(map[lv.UUID]bool, len(all))
	for _, d := range all {
		there[d.UUID] = true
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for id := range c.defs {
		if !there[id] {
			delete(c.defs, id)
		}
	}
}

// DefinitionSHA is the checksum by which inventories and orders name a definition.
func DefinitionSHA(xml []byte) string {
	sum := sha256.Sum256(xml)
	return hex.EncodeToString(sum[:])
}

// Definition returns the definition that the VM's next boot will use, exactly
// as libvirt gives it. It holds the VM's console passwords, if it has any.
func (c *Client) Definition(ctx context.Context, id haven.VMID) ([]byte, error) {
	xml, err := call(ctx, c.probe, "read definition of "+string(id), func(_ context.Context, l *lv.Libvirt) (string, error) {
		d, err := lookup(l, id)
		if err != nil {
			return "", err
		}
		return l.DomainGetXMLDesc(d, definitionFlags)
	})
	if err != nil {
		return nil, failed("read definition", err)
	}
	return []byte(xml), nil
}

// Gone says whether the VM is gone from this host (P1): Yes when libvirt says
// that it is shut off, or does not know it, and no process with its UUID
// remains; No when one of them shows it. Otherwise it is Unknown, and the error
// tells why.
func (c *Client) Gone(ctx context.Context, id haven.VMID) (haven.Tri, error) {
	const op = "find out whether the VM is gone"
	c.mu.Lock()
	_, starting := c.starting[id]
	c.mu.Unlock()
	if starting {
		return haven.Unknown, &Error{Op: op, Kind: ErrOutcomeUnknown, Err: errors.New("a start of it has not ended")}
	}
	state, domErr := call(ctx, c.probe, "read state of "+string(id), func(_ context.Context, l *lv.Libvirt) (haven.VMState, error) {
		d, err := lookup(l, id)
		if lv.IsNotFound(err) {
			return haven.VMShutOff, nil
		}
		if err != nil {
			return haven.VMUnknown, err
		}
		s, r, err := l.DomainGetState(d, 0)
		if lv.IsNotFound(err) {
			return haven.VMShutOff, nil
		}
		if err != nil {
			return haven.VMUnknown, err
		}
		state, _ := stateOf(lv.DomainState(s), r, d.ID != -1)
		return state, nil
	})
	ids, procErr := c.procs.scan(c.scanContext(ctx))
	if domErr != nil {
		state = haven.VMUnknown
	}
	_, process := slices.BinarySearch(ids, id)
	switch {
	case process, state.Present() && state != haven.VMUnknown:
		return haven.No, nil
	case domErr != nil || procErr != nil:
		return haven.Unknown, &Error{Op: op, Kind: haven.ErrUnavailable, Err: errors.Join(domErr, procErr)}
	case state == haven.VMUnknown:
		return haven.Unknown, &Error{Op: op, Kind: ErrFailed, Err: errors.New("libvirt names no state")}
	}
	return haven.Yes, nil
}

func lookup(l *lv.Libvirt, id haven.VMID) (lv.Domain, error) {
	var u lv.UUID
	b, err := hex.DecodeString(strings.ReplaceAll(string(id), "-", ""))
	if err != nil || len(b) != len(u) {
		return lv.Domain{}, &Error{Op: "look up VM", Kind: haven.ErrNotFound, Err: fmt.Errorf("id %q is no UUID", id)}
	}
	copy(u[:], b)
	return l.DomainLookupByUUID(u)
}

func vmID(u lv.UUID) haven.VMID {
	h := hex.EncodeToString(u[:])
	return haven.VMID(h[:8] + "-" + h[8:12] + "-" + h[12:16] + "-" + h[16:20] + "-" + h[20:])
}
