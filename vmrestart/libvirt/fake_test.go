package libvirt

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	lv "github.com/digitalocean/go-libvirt"

	"github.com/haven-ha/haven"
)

// Procedures of the remote protocol that the fake knows (remote_protocol.x).
const (
	procOpen         = 1
	procXML          = 14
	procLookup       = 24
	procSetAutostart = 29
	procAuthList     = 66
	procIsActive     = 150
	procSaved        = 183
	procCreate       = 196
	procState        = 212
	procUndefine     = 231
	procDestroy      = 234
	procShutdown     = 258
	procList         = 273
	procJob          = 298
	procRegister     = 316
	procStats        = 344
	procDefine       = 350
)

// fakeDomain is a domain of the fake.
type fakeDomain struct {
	name          string
	uuid          [16]byte
	xml           string
	active        bool
	state, reason int32
	persistent    bool
	autostart     bool
	saved         bool
	job           int32 // operation; 0 is none
}

func (d *fakeDomain) id() int32 {
	if d.active {
		return 7
	}
	return -1
}

// fakeLibvirtd speaks libvirt's wire protocol over a socket, and can be told to
// misbehave: hooks run before a procedure is answered and may block.
type fakeLibvirtd struct {
	t      *testing.T
	socket string
	ln     net.Listener

	mu       sync.Mutex
	domains  []*fakeDomain
	errors   map[uint32]lv.Error // answers of procedures that fail
	hooks    map[uint32]func()
	raw      map[uint32][]byte // answers that are not well-formed
	conns    map[net.Conn]bool
	opened   int
	inFlight int
	most     int // calls in flight at once, at most
	noStats  bool
	calls    map[uint32]int
	flags    map[uint32]uint32 // last flags of undefine
	serving  sync.WaitGroup
}

func newFake(t *testing.T, domains ...*fakeDomain) *fakeLibvirtd {
	t.Helper()
	dir, err := os.MkdirTemp("", "hv") // t.TempDir is too long for a socket's name.
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	f := &fakeLibvirtd{
		t: t, socket: filepath.Join(dir, "s"), domains: domains,
		errors: map[uint32]lv.Error{}, hooks: map[uint32]func(){}, raw: map[uint32][]byte{},
		conns: map[net.Conn]bool{}, calls: map[uint32]int{}, flags: map[uint32]uint32{},
	}
	f.listen()
	t.Cleanup(f.stop)
	return f
}

func (f *fakeLibvirtd) listen() {
	ln, err := net.Listen("unix", f.socket)
	if err != nil {
		f.t.Fatal(err)
	}
	f.ln = ln
	f.serving.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			f.mu.Lock()
			f.conns[c] = true
			f.opened++
			f.mu.Unlock()
			f.serving.Add(1)
			go f.serve(c)
		}
	})
}

// stop ends the listener and all connections, as the daemon's death would.
func (f *fakeLibvirtd) stop() {
	_ = f.ln.Close()
	f.cut()
	f.serving.Wait()
}

func (f *fakeLibvirtd) cut() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for c := range f.conns {
		_ = c.Close()
	}
}

// hang makes a procedure block until the returned function is called.
func (f *fakeLibvirtd) hang(proc uint32) (entered <-chan struct{}, release func()) {
	gate, in := make(chan struct{}), make(chan struct{}, 100)
	f.mu.Lock()
	f.hooks[proc] = func() { in <- struct{}{}; <-gate }
	f.mu.Unlock()
	release = sync.OnceFunc(func() {
		f.mu.Lock()
		delete(f.hooks, proc)
		f.mu.Unlock()
		close(gate)
	})
	f.t.Cleanup(release)
	return in, release
}

func (f *fakeLibvirtd) fail(proc uint32, code lv.ErrorNumber, message string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.errors[proc] = lv.Error{Code: uint32(code), Message: message}
}

func (f *fakeLibvirtd) count(proc uint32) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.calls[proc]
}

func (f *fakeLibvirtd) serve(c net.Conn) {
	defer f.serving.Done()
	defer func() {
		f.mu.Lock()
		delete(f.conns, c)
		f.mu.Unlock()
		_ = c.Close()
	}()
	for {
		var head [headerLen]byte
		if _, err := io.ReadFull(c, head[:]); err != nil {
			return
		}
		args := make([]byte, binary.BigEndian.Uint32(head[:])-headerLen)
		if _, err := io.ReadFull(c, args); err != nil {
			return
		}
		proc := binary.BigEndian.Uint32(head[12:])
		f.mu.Lock()
		f.calls[proc]++
		f.inFlight++
		f.most = max(f.most, f.inFlight)
		hook := f.hooks[proc]
		f.mu.Unlock()
		if hook != nil {
			hook()
		}
		f.mu.Lock()
		status, reply := f.answer(proc, args)
		raw := f.raw[proc]
		f.inFlight--
		f.mu.Unlock()
		if raw != nil {
			_, _ = c.Write(raw)
			continue
		}
		if _, err := c.Write(packet(head, 1, status, reply)); err != nil {
			return
		}
	}
}

func packet(head [headerLen]byte, kind, status uint32, body []byte) []byte {
	binary.BigEndian.PutUint32(head[:], uint32(headerLen+len(body)))
	binary.BigEndian.PutUint32(head[16:], kind)
	binary.BigEndian.PutUint32(head[24:], status)
	return append(head[:], body...)
}

// event sends a lifecycle event to every connection.
func (f *fakeLibvirtd) event(d *fakeDomain) {
	var head [headerLen]byte
	for i, w := range []uint32{0, remoteProgram, 1, procLifecycleEv} {
		binary.BigEndian.PutUint32(head[4*i:], w)
	}
	body := putDomain(put32(nil, 1), d)
	body = put32(put32(body, 2), 0)
	f.mu.Lock()
	defer f.mu.Unlock()
	for c := range f.conns {
		_, _ = c.Write(packet(head, typeMessage, 0, body))
	}
}

func put32(b []byte, v uint32) []byte { return binary.BigEndian.AppendUint32(b, v) }

func putString(b []byte, s string) []byte {
	b = append(put32(b, uint32(len(s))), s...)
	for len(b)%4 != 0 {
		b = append(b, 0)
	}
	return b
}

func putDomain(b []byte, d *fakeDomain) []byte {
	b = append(putString(b, d.name), d.uuid[:]...)
	return put32(b, uint32(d.id()))
}

// getDomain reads a domain argument, and returns what follows it.
func (f *fakeLibvirtd) getDomain(args []byte) (*fakeDomain, []byte) {
	n := (binary.BigEndian.Uint32(args) + 3) &^ 3
	args = args[4+n:]
	return f.find([16]byte(args[:16])), args[20:]
}

func (f *fakeLibvirtd) find(uuid [16]byte) *fakeDomain {
	for _, d := range f.domains {
		if d.uuid == uuid {
			return d
		}
	}
	return nil
}

// answer runs one procedure, with the lock held.
func (f *fakeLibvirtd) answer(proc uint32, args []byte) (status uint32, reply []byte) {
	if e, ok := f.errors[proc]; ok {
		return f.refuse(lv.ErrorNumber(e.Code), e.Message)
	}
	switch proc {
	case procAuthList:
		return 0, put32(put32(nil, 1), 0)
	case procOpen:
		return 0, nil
	case procRegister:
		return 0, put32(nil, 1)
	case procList:
		return 0, f.list(binary.BigEndian.Uint32(args[4:]))
	case procStats:
		return f.stats()
	case procLookup:
		if d := f.find([16]byte(args[:16])); d != nil {
			return 0, putDomain(nil, d)
		}
		return f.refuse(lv.ErrNoDomain, "Domain not found")
	case procDefine:
		return f.define(args)
	}
	d, rest := f.getDomain(args)
	if d == nil {
		return f.refuse(lv.ErrNoDomain, "Domain not found")
	}
	return f.domainCall(proc, d, rest)
}

func (f *fakeLibvirtd) domainCall(proc uint32, d *fakeDomain, rest []byte) (uint32, []byte) {
	yes := func(b bool) (uint32, []byte) {
		if b {
			return 0, put32(nil, 1)
		}
		return 0, put32(nil, 0)
	}
	switch proc {
	case procXML:
		return 0, putString(nil, d.xml)
	case procIsActive:
		return yes(d.active)
	case procSaved:
		return yes(d.saved)
	case procState:
		return 0, put32(put32(nil, uint32(d.state)), uint32(d.reason))
	case procSetAutostart:
		d.autostart = rest[3] != 0
		return 0, nil
	case procUndefine:
		f.flags[proc] = binary.BigEndian.Uint32(rest)
		f.domains = slices.DeleteFunc(f.domains, func(o *fakeDomain) bool { return o == d })
		return 0, nil
	case procDestroy:
		d.active, d.state, d.reason = false, int32(lv.DomainShutoff), int32(lv.DomainShutoffDestroyed)
		return 0, nil
	case procShutdown:
		f.flags[proc] = binary.BigEndian.Uint32(rest)
		return 0, nil // a guest that takes its time
	case procCreate:
		if d.active {
			return f.refuse(lv.ErrOperationInvalid, "Requested operation is not valid: domain is already running")
		}
		d.active, d.state, d.reason = true, int32(lv.DomainRunning), int32(lv.DomainRunningBooted)
		return 0, putDomain(nil, d)
	case procJob:
		if d.job == 0 {
			return 0, put32(put32(nil, uint32(lv.DomainJobNone)), 0)
		}
		b := put32(put32(nil, uint32(lv.DomainJobUnbounded)), 1)
		return 0, put32(put32(putString(b, "operation"), 1), uint32(d.job))
	}
	return f.refuse(lv.ErrNoSupport, "unknown to the fake")
}

func (f *fakeLibvirtd) list(flags uint32) []byte {
	want := func(d *fakeDomain) bool {
		for _, c := range []struct {
			flag lv.ConnectListAllDomainsFlags
			has  bool
		}{
			{lv.ConnectListDomainsActive, d.active},
			{lv.ConnectListDomainsPersistent, d.persistent},
			{lv.ConnectListDomainsAutostart, d.autostart},
			{lv.ConnectListDomainsManagedsave, d.saved},
		} {
			if flags&uint32(c.flag) != 0 && !c.has {
				return false
			}
		}
		states := flags & uint32(lv.ConnectListDomainsRunning|lv.ConnectListDomainsPaused)
		return states == 0 ||
			states&uint32(lv.ConnectListDomainsRunning) != 0 && d.state == int32(lv.DomainRunning) ||
			states&uint32(lv.ConnectListDomainsPaused) != 0 && d.state == int32(lv.DomainPaused)
	}
	var body []byte
	n := uint32(0)
	for _, d := range f.domains {
		if want(d) {
			body = putDomain(body, d)
			n++
		}
	}
	return put32(append(put32(nil, n), body...), n)
}

func (f *fakeLibvirtd) stats() (uint32, []byte) {
	if f.noStats {
		return f.refuse(lv.ErrNoSupport, "this function is not supported by the connection driver")
	}
	b := put32(nil, uint32(len(f.domains)))
	for _, d := range f.domains {
		b = put32(putDomain(b, d), 2)
		b = put32(put32(putString(b, "state.state"), 1), uint32(d.state))
		b = put32(put32(putString(b, "state.reason"), 1), uint32(d.reason))
	}
	return 0, b
}

func (f *fakeLibvirtd) define(args []byte) (uint32, []byte) {
	n := binary.BigEndian.Uint32(args)
	xml := string(args[4 : 4+n])
	p, err := Parse([]byte(xml))
	if err != nil {
		return f.refuse(lv.ErrXMLError, err.Error())
	}
	d := f.find(uuidOf(p.ID))
	if d == nil {
		d = &fakeDomain{uuid: uuidOf(p.ID), state: int32(lv.DomainShutoff)}
		f.domains = append(f.domains, d)
	}
	d.name, d.xml, d.persistent = p.Name, xml, true
	return 0, putDomain(nil, d)
}

func (f *fakeLibvirtd) refuse(code lv.ErrorNumber, message string) (uint32, []byte) {
	b := put32(put32(put32(nil, uint32(code)), 10), 1)
	b = put32(putString(b, message), 2)
	return 1, append(b, make([]byte, 28)...)
}

func uuidOf(id haven.VMID) (u [16]byte) {
	b, _ := hex.DecodeString(strings.ReplaceAll(string(id), "-", ""))
	copy(u[:], b)
	return u
}

// vmNumber makes the n-th id of a test, and a definition for it.
func vmNumber(n int) haven.VMID {
	return haven.VMID(fmt.Sprintf("%08d-2222-4333-8444-555555555555", n))
}

func testXML(n int) string {
	return fmt.Sprintf(`<domain type='qemu'><name>vm%d</name><uuid>%s</uuid><memory unit='KiB'>%d</memory><vcpu>2</vcpu><os><type>hvm</type></os></domain>`,
		n, vmNumber(n), 65536+1)
}

// shutOff makes a persistent domain that is not running.
func shutOff(n int) *fakeDomain {
	return &fakeDomain{
		name: fmt.Sprintf("vm%d", n), uuid: uuidOf(vmNumber(n)), xml: testXML(n),
		state: int32(lv.DomainShutoff), reason: int32(lv.DomainShutoffDestroyed), persistent: true,
	}
}

func running(n int) *fakeDomain {
	d := shutOff(n)
	d.active, d.state, d.reason = true, int32(lv.DomainRunning), int32(lv.DomainRunningBooted)
	return d
}
