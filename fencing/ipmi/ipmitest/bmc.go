// Package ipmitest is a board that speaks IPMI 2.0 over UDP inside the
// process: for tests, benchmarks and the demo. The protocol is that of
// go-ipmi's server; the chassis and the faults are ours.
package ipmitest

import (
	"context"
	"fmt"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/bougou/go-ipmi/pkg/bmc"
	"github.com/bougou/go-ipmi/pkg/hal"
	"github.com/bougou/go-ipmi/pkg/hal/mock"
	"github.com/bougou/go-ipmi/pkg/rmcpplus"
	"github.com/bougou/go-ipmi/pkg/server"
	"github.com/bougou/go-ipmi/pkg/types"

	"github.com/haven-ha/haven"
)

// Privilege is what a user may do.
type Privilege uint8

// The privileges.
const (
	User     Privilege = 2 // read
	Operator Privilege = 3 // read and control
	Admin    Privilege = 4
)

// Account is one user of a board.
type Account struct {
	Name, Password string
	Privilege      Privilege
}

// Config describes a board.
type Config struct {
	Accounts []Account
	// GUID is the system GUID in the order of the wire.
	GUID [16]byte
	// Suites are the cipher suites it speaks, of 3 and 17; by default both.
	Suites []int
	// KG is the BMC key for two-key logins, or nil.
	KG []byte
	// Off starts it with the chassis off.
	Off bool
	// OnPower is called when an accepted command changes the chassis, before
	// the command is answered. An error keeps the state and fails the command.
	OnPower func(on bool) error
	// OnIdentify is called when the identify light is asked for.
	OnIdentify func()
}

// Faults is what is wrong with a board. The zero value is a sound one.
type Faults struct {
	// Dead answers nothing.
	Dead bool
	// Delay holds each answer back.
	Delay time.Duration
	// Lose drops so many of the next answers.
	Lose int
	// LoseCommandReply carries out power commands and never answers them.
	LoseCommandReply bool
	// Stuck makes the status say this, whatever is true.
	Stuck haven.PowerState
	// Lag makes the status tell a change so much later.
	Lag time.Duration
	// Ignore makes so many of the next power commands be accepted without effect.
	Ignore int
	// RejectOff refuses to switch off what is off, with code D5h.
	RejectOff bool
	// RefuseSessions says that there is no room for a session.
	RefuseSessions bool
	// StatusBusy fails the status with "node busy".
	StatusBusy bool
	// Rewrite, if set, replaces each outgoing datagram by any number of
	// others: a forger between the board and its clients. It is called from
	// several goroutines.
	Rewrite func(datagram []byte) [][]byte
}

// BMC is a running board.
type BMC struct {
	cfg  Config
	sock net.PacketConn
	wg   sync.WaitGroup

	mu       sync.Mutex
	faults   Faults
	on       bool
	was      bool // the state before the last change
	changed  time.Time
	commands []string
	logins   int
	guid     [16]byte
	conn     *conn
	srv      *server.Server
	closed   bool
	done     chan struct{}
}

// inboundMax bounds the datagrams that wait for the board.
const inboundMax = 64

// Start runs a board on the UDP address, such as "127.0.0.1:0".
func Start(addr string, cfg Config) (*BMC, error) {
	sock, err := net.ListenPacket("udp", addr)
	if err != nil {
		return nil, fmt.Errorf("listen for IPMI: %w", err)
	}
	return Serve(sock, cfg)
}

// Serve runs a board on a socket, which is closed with it.
func Serve(sock net.PacketConn, cfg Config) (*BMC, error) {
	if len(cfg.Suites) == 0 {
		cfg.Suites = []int{3, 17}
	}
	b := &BMC{cfg: cfg, sock: sock, on: !cfg.Off, was: !cfg.Off, guid: cfg.GUID, done: make(chan struct{})}
	if err := b.boot(); err != nil {
		_ = sock.Close()
		return nil, err
	}
	b.wg.Go(b.receive)
	return b, nil
}

// boot starts the firmware: no sessions, present GUID.
func (b *BMC) boot() error {
	b.mu.Lock()
	guid, accounts := b.guid, b.cfg.Accounts
	b.mu.Unlock()
	board, err := b.board(guid, accounts)
	if err != nil {
		return err
	}
	c := &conn{b: b, in: make(chan datagram, inboundMax), closed: make(chan struct{})}
	suites := make([]types.CipherSuiteID, 0, len(b.cfg.Suites))
	for _, s := range b.cfg.Suites {
		suites = append(suites, types.CipherSuiteID(s))
	}
	srv := server.NewServer(board, c, server.WithCipherSuites(suites))
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return net.ErrClosed
	}
	b.conn, b.srv = c, srv
	b.wg.Go(func() { _ = srv.Serve(context.Background()) })
	return nil
}

func (b *BMC) board(guid [16]byte, accounts []Account) (*bmc.BMC, error) {
	sim := mock.New()
	h := &board{HAL: sim, chassis: &chassis{ChassisHAL: sim.Chassis(), b: b}}
	info := bmc.DeviceInfo{DeviceID: 0x20, FirmwareMajor: 1, IPMIVersion: 0x20}
	m := bmc.New(info, guid, h, bmc.WithKG(b.cfg.KG))
	for i, a := range accounts {
		u, err := m.Users.Add(uint8(i+2), a.Name)
		if err != nil {
			return nil, fmt.Errorf("add account %q: %w", a.Name, err)
		}
		u.SetPassword([]byte(a.Password))
		u.Enabled = true
		u.ChannelAccess[1] = bmc.UserChannelAccess{MaxPrivilege: bmc.PrivilegeLevel(a.Privilege), Enabled: true}
	}
	return m, nil
}

// Addr is the address it listens on.
func (b *BMC) Addr() string { return b.sock.LocalAddr().String() }

// Restart loses all sessions, as firmware does that restarts. The chassis
// keeps its state.
func (b *BMC) Restart() error {
	b.mu.Lock()
	srv := b.srv
	b.mu.Unlock()
	_ = srv.Close()
	return b.boot()
}

// SetGUID restarts it as a board with another GUID.
func (b *BMC) SetGUID(guid [16]byte) error {
	b.mu.Lock()
	b.guid = guid
	b.mu.Unlock()
	return b.Restart()
}

// SetPassword changes the password of an account. Its sessions end.
func (b *BMC) SetPassword(account, password string) error {
	b.mu.Lock()
	accounts := slices.Clone(b.cfg.Accounts)
	for i := range accounts {
		if accounts[i].Name == account {
			accounts[i].Password = password
		}
	}
	b.cfg.Accounts = accounts
	b.mu.Unlock()
	return b.Restart()
}

// SetFaults changes what is wrong with it.
func (b *BMC) SetFaults(change func(*Faults)) {
	b.mu.Lock()
	defer b.mu.Unlock()
	change(&b.faults)
}

// SetPower changes the chassis from outside, as a power button or a failing
// supply does. OnPower is not called.
func (b *BMC) SetPower(on bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.set(on)
}

// On tells the true state of the chassis.
func (b *BMC) On() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.on
}

// Commands returns the power commands it got, in order, ignored ones too.
func (b *BMC) Commands() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return append([]string(nil), b.commands...)
}

// Logins returns how many sessions were asked for.
func (b *BMC) Logins() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.logins
}

// Close stops it and waits for its goroutines. It may be called again.
func (b *BMC) Close() error {
	b.mu.Lock()
	if b.closed {
		b.mu.Unlock()
		return nil
	}
	b.closed = true
	srv := b.srv
	close(b.done)
	b.mu.Unlock()
	_ = b.sock.Close()
	_ = srv.Close()
	b.wg.Wait()
	return nil
}

func (b *BMC) set(on bool) {
	if b.on != on {
		b.was, b.on, b.changed = b.on, on, time.Now()
	}
}

// receive hands datagrams to the firmware.
func (b *BMC) receive() {
	buf := make([]byte, 4096)
	for {
		n, from, err := b.sock.ReadFrom(buf)
		select {
		case <-b.done:
			return
		default:
		}
		if err != nil {
			continue // a client's port went away: not ours to end on
		}
		data := append([]byte(nil), buf[:n]...)
		b.mu.Lock()
		c, dead, refuse := b.conn, b.faults.Dead, b.faults.RefuseSessions
		opening := payloadType(data) == types.PayloadTypeRmcpOpenSessionRequest
		if opening {
			b.logins++
		}
		b.mu.Unlock()
		switch {
		case dead:
		case opening && refuse:
			b.refuse(data, from)
		default:
			select {
			case c.in <- datagram{data, from}:
			default: // a board that is flooded drops
			}
		}
	}
}

func payloadType(p []byte) types.PayloadType {
	if len(p) < 16 || p[4] != 0x06 {
		return types.PayloadTypeIPMI
	}
	return types.PayloadType(p[5] & 0x3f)
}

func (b *BMC) refuse(data []byte, from net.Addr) {
	var req rmcpplus.OpenSessionRequest
	if req.Unpack(data[16:]) != nil {
		return
	}
	res := rmcpplus.OpenSessionResponse{
		MessageTag:             req.MessageTag,
		RmcpStatusCode:         types.RmcpStatusCodeNoResToCreateSess,
		RemoteConsoleSessionID: req.RemoteConsoleSessionID,
	}
	payload := res.Pack()
	head := []byte{6, 0, 0xff, 7, 6, uint8(types.PayloadTypeRmcpOpenSessionResponse), 0, 0, 0, 0, 0, 0, 0, 0, uint8(len(payload)), 0}
	b.send(append(head, payload...), from)
}

// send sends an answer as the faults would have it.
func (b *BMC) send(data []byte, to net.Addr) {
	b.mu.Lock()
	f := b.faults
	lose := f.Lose > 0
	if lose {
		b.faults.Lose--
	}
	if f.Dead || lose || b.closed {
		b.mu.Unlock()
		return
	}
	b.wg.Add(1) // under the mutex: Close waits for it
	b.mu.Unlock()
	out := [][]byte{append([]byte(nil), data...)}
	if f.Rewrite != nil {
		out = f.Rewrite(out[0])
	}
	if f.Delay == 0 {
		defer b.wg.Done()
		b.write(out, to)
		return
	}
	go func() {
		defer b.wg.Done()
		t := time.NewTimer(f.Delay)
		defer t.Stop()
		select {
		case <-t.C:
			b.write(out, to)
		case <-b.done:
		}
	}()
}

func (b *BMC) write(out [][]byte, to net.Addr) {
	for _, p := range out {
		_, _ = b.sock.WriteTo(p, to)
	}
}

type datagram struct {
	data []byte
	from net.Addr
}

// conn is the firmware's end of the socket; it ends with the firmware while
// the socket lives on.
type conn struct {
	b      *BMC
	in     chan datagram
	once   sync.Once
	closed chan struct{}
}

func (c *conn) ReadFrom(buf []byte) (int, net.Addr, error) {
	select {
	case d := <-c.in:
		return copy(buf, d.data), d.from, nil
	case <-c.closed:
		return 0, nil, net.ErrClosed
	}
}

func (c *conn) WriteTo(data []byte, to net.Addr) (int, error) {
	select {
	case <-c.closed:
	default:
		c.b.send(data, to)
	}
	return len(data), nil
}

func (c *conn) Close() error {
	c.once.Do(func() { close(c.closed) })
	return nil
}

type board struct {
	*mock.HAL
	chassis hal.ChassisHAL
}

func (b *board) Chassis() hal.ChassisHAL { return b.chassis }

type chassis struct {
	hal.ChassisHAL
	b *BMC
}

func (c *chassis) PowerState(context.Context) (bool, error) {
	b := c.b
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case b.faults.StatusBusy:
		return false, types.CodeNodeBusy
	case b.faults.Stuck == haven.PowerOn:
		return true, nil
	case b.faults.Stuck == haven.PowerOff:
		return false, nil
	case time.Since(b.changed) < b.faults.Lag:
		return b.was, nil
	}
	return b.on, nil
}

func (c *chassis) SetPower(_ context.Context, on bool) error {
	word := "off"
	if on {
		word = "on"
	}
	return c.do(word, on)
}

// do carries a command out, which is noted by its word.
func (c *chassis) do(word string, on bool) error {
	b := c.b
	b.mu.Lock()
	b.commands = append(b.commands, word)
	reject := !on && !b.on && b.faults.RejectOff
	ignore := b.faults.Ignore > 0
	if ignore {
		b.faults.Ignore--
	}
	if b.faults.LoseCommandReply {
		b.faults.Lose++ // the next answer is the one to this command
	}
	hook := b.cfg.OnPower
	change := b.on != on
	b.mu.Unlock()
	switch {
	case reject:
		return types.CodeNotSupported
	case ignore:
		return nil
	case hook != nil && change:
		// It may take long, and may look at the board: no mutex is held.
		if err := hook(on); err != nil {
			return err
		}
	}
	b.SetPower(on)
	return nil
}

func (c *chassis) PowerCycle(context.Context) error { return c.do("cycle", true) }

func (c *chassis) ColdReset(context.Context) error { return c.do("reset", true) }

// WarmReset is what the server calls for a soft shutdown.
func (c *chassis) WarmReset(context.Context) error { return c.do("soft", false) }

func (c *chassis) Identify(_ context.Context, seconds uint8) error {
	b := c.b
	word := "blink"
	switch seconds {
	case 15: // what is asked for when no time is
	case 0:
		word = "dark"
	default:
		word = fmt.Sprintf("blink %d s", seconds)
	}
	b.mu.Lock()
	b.commands = append(b.commands, word)
	b.mu.Unlock()
	if b.cfg.OnIdentify != nil {
		b.cfg.OnIdentify()
	}
	return nil
}
