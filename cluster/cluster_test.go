package cluster

import (
	"bytes"
	"context"
	"crypto/aes"
	"crypto/cipher"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/memberlist"

	"github.com/haven-ha/haven"
	"github.com/haven-ha/haven/internal/netx"
)

var testKey = Key(bytes.Repeat([]byte{7}, 32))

// agent is one running Cluster of a test.
type agent struct {
	*Cluster
	id     haven.HostID
	cancel context.CancelFunc
	done   chan struct{}
	seen   []Event // everything that came, if somebody reads
}

// lab is a simulated cluster of hosts h1, h2 and so on, at 10.0.0.1, 10.0.0.2 and so on.
type lab struct {
	t      *testing.T
	net    *simNet
	peers  map[haven.HostID]netip.AddrPort
	agents []*agent
}

func hostName(i int) haven.HostID     { return haven.HostID(fmt.Sprintf("h%d", i)) }
func hostAddr(i int) netip.AddrPort   { return netip.MustParseAddrPort(fmt.Sprintf("10.0.0.%d:7946", i)) }
func isHost(a netip.Addr, i int) bool { return a == hostAddr(i).Addr() }

func newLab(t *testing.T, n int) *lab {
	l := &lab{t: t, net: newSimNet(), peers: make(map[haven.HostID]netip.AddrPort)}
	for i := 1; i <= n; i++ {
		l.peers[hostName(i)] = hostAddr(i)
	}
	return l
}

func (l *lab) config(i int) Config {
	return Config{
		Cluster: "lab", Host: hostName(i), Bind: hostAddr(i), Keys: []Key{testKey}, Peers: l.peers,
		Meta: Meta{Boot: haven.BootID(fmt.Sprintf("boot-%d", i)), APIPort: 7947},
		Net:  simHost{l.net, hostAddr(i).Addr()}, Log: slog.New(slog.DiscardHandler),
	}
}

// start runs an agent whose events are read and kept.
func (l *lab) start(cfg Config) *agent {
	a := l.startUnread(cfg)
	go func() {
		for e := range a.Events() {
			a.seen = append(a.seen, e)
		}
	}()
	return a
}

func (l *lab) startUnread(cfg Config) *agent {
	l.t.Helper()
	c, err := New(cfg)
	if err != nil {
		l.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(l.t.Context())
	a := &agent{Cluster: c, id: cfg.Host, cancel: cancel, done: make(chan struct{})}
	go func() {
		defer close(a.done)
		if err := c.Run(ctx); err != nil {
			l.t.Errorf("%s: %v", a.id, err)
		}
	}()
	l.agents = append(l.agents, a)
	return a
}

func (l *lab) startAll() {
	for i := 1; i <= len(l.peers); i++ {
		l.start(l.config(i))
	}
}

// kill stops an agent without a word.
func (a *agent) kill() { a.cancel(); <-a.done }

func (l *lab) stop() {
	for _, a := range l.agents {
		a.kill()
	}
	// A probe of memberlist's that is under way ends by its own timeout, and
	// the bubble's time stands still once the test is over.
	time.Sleep(time.Minute)
}

func (a *agent) member(id haven.HostID) Member {
	for _, m := range a.Members() {
		if m.Host == id {
			return m
		}
	}
	return Member{}
}

// kinds lists the kinds of events about one member since the last call.
func (a *agent) kinds(id haven.HostID) string {
	synctest.Wait()
	var out []string
	for _, e := range a.seen {
		if e.Member.Host == id {
			out = append(out, string(e.Kind))
		}
	}
	a.seen = nil
	return strings.Join(out, " ")
}

// waitFor lets virtual time pass until ok, and returns how much did.
func waitFor(t *testing.T, limit time.Duration, what string, ok func() bool) time.Duration {
	t.Helper()
	start := time.Now()
	for !ok() {
		if time.Since(start) > limit {
			t.Fatalf("%s: not within %v", what, limit)
		}
		time.Sleep(50 * time.Millisecond)
	}
	return time.Since(start)
}

func (l *lab) allSee(state State, id haven.HostID) func() bool {
	return func() bool {
		for _, a := range l.agents {
			select {
			case <-a.done:
				continue
			default:
			}
			if a.id != id && a.member(id).State != state {
				return false
			}
		}
		return true
	}
}

func (l *lab) complete() bool {
	for id := range l.peers {
		if !l.allSee(StateAlive, id)() {
			return false
		}
	}
	return true
}

func inBubble(t *testing.T, n int, f func(t *testing.T, l *lab)) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, n)
		defer l.stop()
		f(t, l)
	})
}

func TestDeathIsSeen(t *testing.T) {
	inBubble(t, 5, func(t *testing.T, l *lab) {
		l.startAll()
		waitFor(t, 5*time.Second, "five find each other", l.complete)
		a := l.agents[0]
		m := a.member("h3")
		if !m.Trusted() || m.Meta.Boot != "boot-3" || m.Meta.APIPort != 7947 || m.Addr != hostAddr(3) {
			t.Errorf("h3 shows as %+v", m)
		}
		a.kinds("h3")
		l.net.set(func() { l.net.cut = func(from, to netip.Addr) bool { return isHost(from, 3) || isHost(to, 3) } })
		took := waitFor(t, 20*time.Second, "h3 is seen dead", func() bool { return a.member("h3").State == StateDead })
		// Nobody may be called dead in less than the time of suspicion: 4 s and a probe.
		if took < 4*time.Second {
			t.Errorf("dead after %v", took)
		}
		if got := a.kinds("h3"); got != "died" {
			t.Errorf("events %q, want one death", got)
		}
		// memberlist forgets the dead after 30 s; the table does not.
		time.Sleep(10 * time.Minute)
		if m := a.member("h3"); m.State != StateDead || m.Age < 10*time.Minute || m.Meta.Boot != "boot-3" || m.Leave != "" {
			t.Errorf("ten minutes later h3 shows as %+v", m)
		}
		if h := a.Health(); h.Alive != 4 || h.Configured != 5 || h.Alone || h.Unjoined["h3"] == "" {
			t.Errorf("health %+v", h)
		}
	})
}

// memberlist alone never heals this: each half has forgotten the other.
func TestPartitionOfTwoMinutesHeals(t *testing.T) {
	inBubble(t, 5, func(t *testing.T, l *lab) {
		l.startAll()
		waitFor(t, 5*time.Second, "join", l.complete)
		left := func(a netip.Addr) bool { return isHost(a, 1) || isHost(a, 2) }
		l.net.set(func() { l.net.cut = func(from, to netip.Addr) bool { return left(from) != left(to) } })
		time.Sleep(2 * time.Minute)
		for _, a := range l.agents {
			if h := a.Health(); h.Alive != map[bool]int{true: 2, false: 3}[left(l.peers[a.id].Addr())] {
				t.Errorf("%s counts %d alive in the partition", a.id, h.Alive)
			}
		}
		l.net.set(func() { l.net.cut = nil })
		// One round of rejoining, and gossip to spread it.
		waitFor(t, 15*time.Second, "both halves merge", l.complete)
	})
}

func TestOneCutOffAloneComesBack(t *testing.T) {
	inBubble(t, 4, func(t *testing.T, l *lab) {
		l.startAll()
		waitFor(t, 5*time.Second, "join", l.complete)
		l.net.set(func() { l.net.cut = func(from, to netip.Addr) bool { return isHost(from, 4) || isHost(to, 4) } })
		waitFor(t, time.Minute, "h4 is alone", func() bool { return l.agents[3].Health().Alone })
		time.Sleep(time.Minute)
		l.net.set(func() { l.net.cut = nil })
		waitFor(t, 5*time.Second, "h4 sees somebody", func() bool { return !l.agents[3].Health().Alone })
		waitFor(t, 10*time.Second, "all see all", l.complete)
	})
}

func TestLeaveSaysWhy(t *testing.T) {
	for _, reason := range []haven.LeaveReason{haven.LeaveStopped, haven.LeaveShutdown} {
		t.Run(string(reason), func(t *testing.T) {
			inBubble(t, 16, func(t *testing.T, l *lab) {
				l.startAll()
				waitFor(t, 20*time.Second, "join", l.complete)
				for _, a := range l.agents {
					a.kinds("h7")
				}
				leaver := l.agents[6]
				start := time.Now()
				if err := leaver.Leave(t.Context(), reason); err != nil {
					t.Error(err)
				}
				if d := time.Since(start); d > 2*tellTimeout {
					t.Errorf("leaving took %v", d)
				}
				if err := leaver.Leave(t.Context(), haven.LeaveUninstall); err != nil {
					t.Errorf("second leave: %v", err)
				}
				if err := leaver.SetMeta(Meta{}); err == nil {
					t.Error("meta was taken after the leave")
				}
				leaver.kill()
				waitFor(t, 3*time.Second, "all see h7 left", l.allSee(StateLeft, "h7"))
				for _, a := range l.agents {
					if a == leaver {
						continue
					}
					if m := a.member("h7"); m.Leave != reason {
						t.Errorf("%s sees reason %q", a.id, m.Leave)
					}
					if got := a.kinds("h7"); got != "updated left" {
						t.Errorf("%s saw events %q", a.id, got)
					}
				}
				// A new session of the same agent has not left.
				l.start(l.config(7))
				waitFor(t, 10*time.Second, "h7 is back", l.allSee(StateAlive, "h7"))
				for _, a := range l.agents {
					if m := a.member("h7"); a != leaver && m.Leave != "" {
						t.Errorf("%s still shows reason %q", a.id, m.Leave)
					}
				}
			})
		})
	}
}

// The reason must not depend on the datagrams that carry the meta: all of them are
// lost here, and those that carry the leave are not.
func TestLeaveReasonSurvivesLoss(t *testing.T) {
	inBubble(t, 8, func(t *testing.T, l *lab) {
		l.startAll()
		waitFor(t, 20*time.Second, "join", l.complete)
		leaver := l.agents[1]
		l.net.set(func() {
			// memberlist calls the meta sent when it packs its last datagram, and
			// the leave goes on before that is written: it is lost too, by losing
			// all of the instant in which the leaver comes to see itself as left.
			l.net.lose = func(from, _ netip.Addr) bool {
				m := leaver.member("h2")
				return isHost(from, 2) && (m.State != StateLeft || m.Age == 0)
			}
		})
		_ = leaver.Leave(t.Context(), haven.LeaveShutdown)
		leaver.kill()
		waitFor(t, 30*time.Second, "all see h2 left", l.allSee(StateLeft, "h2"))
		for _, a := range l.agents {
			if m := a.member("h2"); a != leaver && (m.Leave != haven.LeaveShutdown || m.Meta.Leave != haven.LeaveNone) {
				t.Errorf("%s sees reason %q, by meta %q", a.id, m.Leave, m.Meta.Leave)
			}
		}
	})
}

// memberlist's timers of suspicion go on after it was shut down, and would find
// everybody dead.
func TestAfterCloseTheViewStandsStill(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, l *lab) {
		l.startAll()
		waitFor(t, 5*time.Second, "join", l.complete)
		l.net.set(func() { l.net.cut = func(from, to netip.Addr) bool { return isHost(from, 1) || isHost(to, 1) } })
		time.Sleep(4 * time.Second)
		l.agents[0].kill()
		time.Sleep(time.Minute)
		for _, m := range l.agents[0].Members() {
			if m.State != StateAlive {
				t.Errorf("%s became %s after the close", m.Host, m.State)
			}
		}
	})
}

func TestLeaveIsBoundedWhenNobodyAnswers(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, l *lab) {
		l.startAll()
		waitFor(t, 5*time.Second, "join", l.complete)
		l.net.set(func() { l.net.cut = func(from, to netip.Addr) bool { return isHost(from, 1) || isHost(to, 1) } })
		start := time.Now()
		_ = l.agents[0].Leave(t.Context(), haven.LeaveStopped)
		if d := time.Since(start); d > 2*tellTimeout+100*time.Millisecond {
			t.Errorf("leaving took %v", d)
		}
		start = time.Now()
		l.agents[0].kill()
		if d := time.Since(start); d > 3*DefaultTiming().StreamTimeout {
			t.Errorf("closing took %v", d)
		}
		if err := l.agents[0].Leave(t.Context(), haven.LeaveStopped); err == nil {
			t.Error("a closed cluster was left")
		}
		if err := l.agents[0].Close(); err != nil {
			t.Errorf("second close: %v", err)
		}
	})
}

// A host may come back with another address once it was dead for a while. Until
// the configuration says so too it is a stranger.
func TestReclaimWithNewAddress(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, l *lab) {
		// memberlist is told to remember the dead for long: it must not have to
		// forget h3 before it lets it back in.
		timing := DefaultTiming()
		timing.GossipToTheDead = time.Hour
		for i := 1; i <= 3; i++ {
			cfg := l.config(i)
			cfg.Timing = timing
			l.start(cfg)
		}
		waitFor(t, 5*time.Second, "join", l.complete)
		l.agents[2].kill()
		moved := netip.MustParseAddrPort("10.0.0.33:7946")
		cfg := l.config(3)
		cfg.Bind, cfg.Net = moved, simHost{l.net, moved.Addr()}
		cfg.Peers = map[haven.HostID]netip.AddrPort{"h1": hostAddr(1), "h2": hostAddr(2), "h3": moved}
		a := l.agents[0]
		a.kinds("h3")
		l.start(cfg)
		waitFor(t, 2*time.Minute, "h3 is seen at its new address", func() bool {
			return a.member("h3").Addr == moved && a.member("h3").State == StateAlive
		})
		if m := a.member("h3"); m.Stranger != StrangerAddress || m.Trusted() {
			t.Errorf("the moved host shows as %+v", m)
		}
		if got := a.kinds("h3"); !strings.Contains(got, "stranger") || strings.Contains(got, "joined") {
			t.Errorf("events %q", got)
		}
		if err := a.SetPeers(cfg.Peers); err != nil {
			t.Fatal(err)
		}
		if m := a.member("h3"); m.Stranger != StrangerNone || !m.Trusted() {
			t.Errorf("after the change of the configuration it shows as %+v", m)
		}
		if h := a.Health(); h.Alive != 3 {
			t.Errorf("health %+v", h)
		}
	})
}

func TestNameConflict(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, l *lab) {
		l.startAll()
		waitFor(t, 5*time.Second, "join", l.complete)
		l.agents[0].kinds("h2")
		cfg := l.config(2)
		other := netip.MustParseAddrPort("10.0.0.22:7946")
		cfg.Bind, cfg.Net, cfg.Meta.Boot = other, simHost{l.net, other.Addr()}, "boot-x"
		cfg.Peers = map[haven.HostID]netip.AddrPort{"h1": hostAddr(1), "h2": other, "h3": hostAddr(3)}
		l.start(cfg)
		a := l.agents[0]
		waitFor(t, 30*time.Second, "the conflict shows", func() bool { return a.member("h2").Conflicts > 0 })
		time.Sleep(20 * time.Second)
		m := a.member("h2")
		if m.Addr != hostAddr(2) || m.Meta.Boot != "boot-2" {
			t.Errorf("the second claim took the name: %+v", m)
		}
		if got := strings.Count(a.kinds("h2"), "conflict"); got != 1 {
			t.Errorf("%d conflict events in 20 s, want 1", got)
		}
	})
}

func TestMetaIsAnnounced(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, l *lab) {
		l.startAll()
		waitFor(t, 5*time.Second, "join", l.complete)
		time.Sleep(10 * time.Second)
		l.agents[0].kinds("h2")
		m := Meta{Boot: "boot-2", Master: "h1", Ledger: true, Generation: 1}
		for term := range uint64(1000) {
			m.MasterTerm = haven.Term{Generation: 1, Term: term}
			if err := l.agents[1].SetMeta(m); err != nil {
				t.Fatal(err)
			}
			time.Sleep(5 * time.Millisecond)
		}
		waitFor(t, 3*time.Second, "the newest meta is seen", func() bool { return l.agents[0].member("h2").Meta.MasterTerm.Term == 999 })
		if got := strings.Count(l.agents[0].kinds("h2"), "updated"); got > 12 {
			t.Errorf("1000 changes within 5 s made %d announcements", got)
		}
		if err := l.agents[1].SetMeta(Meta{Boot: "bad boot"}); err == nil {
			t.Error("a meta that cannot be told was taken")
		}
	})
}

func TestRestartShows(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, l *lab) {
		l.startAll()
		waitFor(t, 5*time.Second, "join", l.complete)
		before := l.agents[0].member("h2").Meta.Session
		l.agents[1].kill()
		l.start(l.config(2))
		waitFor(t, 10*time.Second, "the new session is seen", func() bool { return l.agents[0].member("h2").Meta.Session != before })
		if m := l.agents[0].member("h2"); m.State != StateAlive {
			t.Errorf("after a quick restart it is %s", m.State)
		}
	})
}

// A consumer that does not read must not make the protocol wait, and must learn
// that it missed something.
func TestSlowConsumerGetsResync(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, l *lab) {
		slow := l.startUnread(l.config(1))
		l.start(l.config(2))
		l.start(l.config(3))
		waitFor(t, 5*time.Second, "join", l.complete)
		for term := range uint64(maxEvents + 100) {
			_ = l.agents[1].SetMeta(Meta{Boot: "boot-2", MasterTerm: haven.Term{Term: term}})
			time.Sleep(time.Second)
		}
		if m := slow.member("h2"); m.State != StateAlive || m.Meta.MasterTerm.Term < maxEvents {
			t.Errorf("the protocol waited for its consumer: %+v", m)
		}
		if slow.Health().Drops[DropEvent] == 0 {
			t.Error("the loss was not counted")
		}
		resync := 0
		for range 10 {
			select {
			case e := <-slow.Events():
				if e.Kind == EventResync {
					resync++
				}
			case <-time.After(time.Second):
			}
		}
		if resync != 1 {
			t.Errorf("%d resync events among the first, want 1", resync)
		}
		go func() {
			for range slow.Events() {
			}
		}()
	})
}

// Another key, another label and no encryption at all are not heard.
func TestOutsidersAreNotHeard(t *testing.T) {
	tests := []struct {
		name   string
		change func(*Config)
		drop   string
	}{
		{"another key", func(c *Config) { c.Keys = []Key{bytes.Repeat([]byte{8}, 32)} }, DropSecret},
		{"another cluster", func(c *Config) { c.Cluster = "other" }, DropLabel},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			inBubble(t, 3, func(t *testing.T, l *lab) {
				l.start(l.config(1))
				l.start(l.config(2))
				cfg := l.config(3)
				tt.change(&cfg)
				outsider := l.start(cfg)
				time.Sleep(time.Minute)
				for _, a := range l.agents[:2] {
					if m := a.member("h3"); m.State != StateUnknown {
						t.Errorf("%s let the outsider in: %+v", a.id, m)
					}
				}
				if h := outsider.Health(); !h.Alone {
					t.Errorf("the outsider sees members: %+v", h)
				}
				// It is heard of only in the counters: by its streams, and, were it to
				// send any, its packets.
				if _, err := (simHost{l.net, hostAddr(3).Addr()}).bindAndSend(outsider, hostAddr(1)); err != nil {
					t.Fatal(err)
				}
				time.Sleep(time.Second)
				if n := l.agents[0].Health().Drops[tt.drop]; n < 2 {
					t.Errorf("drops %v, want %s", l.agents[0].Health().Drops, tt.drop)
				}
			})
		})
	}
}

// bindAndSend makes an agent send a packet to whom it does not know.
func (h simHost) bindAndSend(a *agent, to netip.AddrPort) (int, error) {
	return 0, a.list.SendToAddress(memberlist.Address{Addr: to.String()}, []byte("hello"))
}

// A peer that has the key may say anything. None of it may crash, or look like
// a configured host in good order.
func TestHostilePeerWithTheKey(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, l *lab) {
		l.start(l.config(1))
		l.start(l.config(2))
		waitFor(t, 5*time.Second, "join", func() bool { return !l.agents[0].Health().Alone })
		metas := map[string][]byte{
			"h3": []byte("garbage"), "empty": nil, "long": bytes.Repeat([]byte{1}, 512), "newer": {99, 1, 2}, "bad name \x1b[2J": metaOf(1, ""),
		}
		i := 100
		for name, meta := range metas {
			i++
			h := l.net.host(fmt.Sprintf("10.0.0.%d", i))
			l.raw(h, name, meta)
		}
		time.Sleep(20 * time.Second)
		for _, a := range l.agents[:2] {
			if m := a.member("h2"); a.id != "h2" && !m.Trusted() {
				t.Errorf("an honest member suffers: %+v", m)
			}
			for _, m := range a.Members() {
				if _, ok := metas[string(m.Host)]; ok && (m.Trusted() || m.Stranger == StrangerNone || m.MetaError == "") {
					t.Errorf("hostile member is taken for good: %+v", m)
				}
				if strings.Contains(string(m.Host), "\x1b") {
					t.Errorf("an escape sequence got into a name: %q", m.Host)
				}
			}
			if a.Health().Drops[DropMember] == 0 {
				t.Errorf("%s counted no refused member: %v", a.id, a.Health().Drops)
			}
		}
		// Raw octets at the sockets, with and without a proper label.
		h := l.net.host("10.0.0.200")
		pc, err := h.ListenPacket("udp", "10.0.0.200:1")
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = pc.Close() }()
		to, _ := netx.UDPAddr(hostAddr(1).String())
		label := []byte("\xf4\x03lab")
		for n := 1; n < 4000; n += 13 {
			_, _ = pc.WriteTo(append(bytes.Clone(label), bytes.Repeat([]byte{byte(n)}, n)...), to)
			_, _ = pc.WriteTo(bytes.Repeat([]byte{byte(n)}, n), to)
			time.Sleep(5 * time.Millisecond)
		}
		if d := l.agents[0].Health().Drops; d[DropPacket] == 0 || d[DropSecret] == 0 || d[DropLabel] == 0 {
			t.Errorf("drops %v, want some of long packets, of bad secrets and of bad labels", d)
		}
		if !l.agents[0].member("h2").Trusted() {
			t.Error("garbage disturbed the members")
		}
	})
}

// raw runs a plain memberlist with the cluster's key that joins h1.
func (l *lab) raw(h simHost, name string, meta []byte) {
	l.t.Helper()
	at := netip.AddrPortFrom(h.addr, 7946)
	tr, err := newTransport(Config{Net: h, Bind: at, Advertise: at, OnDrop: func(string) {}})
	if err != nil {
		l.t.Fatal(err)
	}
	cfg := memberlist.DefaultLANConfig()
	cfg.Name, cfg.Label, cfg.SecretKey, cfg.Transport = name, "lab", testKey, tr
	cfg.EnableCompression, cfg.LogOutput, cfg.Delegate = false, bytes.NewBuffer(nil), rawMeta(meta)
	m, err := memberlist.Create(cfg)
	if err != nil {
		l.t.Fatal(err)
	}
	_, _ = m.Join([]string{hostAddr(1).String()})
	_ = m.SendReliable(&memberlist.Node{Name: "h1", Addr: hostAddr(1).Addr().AsSlice(), Port: 7946}, []byte("L\x01garbage"))
	time.AfterFunc(15*time.Second, func() { _ = m.Shutdown() })
}

type rawMeta []byte

func (r rawMeta) NodeMeta(int) []byte           { return r }
func (rawMeta) NotifyMsg([]byte)                {}
func (rawMeta) GetBroadcasts(int, int) [][]byte { return nil }
func (rawMeta) LocalState(bool) []byte          { return nil }
func (rawMeta) MergeRemoteState([]byte, bool)   {}

// The counts of Health come from the library's log texts. h3 hears everything
// and is not heard for a while, and then somebody with the key calls it dead.
func TestSuspicionOfSelfIsCounted(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, l *lab) {
		l.startAll()
		waitFor(t, 5*time.Second, "join", l.complete)
		l.net.set(func() { l.net.cut = func(from, _ netip.Addr) bool { return isHost(from, 3) } })
		time.Sleep(3 * time.Second)
		l.net.set(func() { l.net.cut = nil })
		h3 := l.agents[2]
		waitFor(t, 10*time.Second, "h3 learns that it was suspected", func() bool { return h3.Health().Suspected > 0 })
		if h := h3.Health(); h.CalledDead > 0 {
			t.Errorf("health %+v: nobody called h3 dead", h)
		}
		time.Sleep(10 * time.Second)
		evil := l.net.host("10.0.0.200")
		pc, err := evil.ListenPacket("udp", "10.0.0.200:1")
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = pc.Close() }()
		for i := 1; i <= 3; i++ {
			to, _ := netx.UDPAddr(hostAddr(i).String())
			_, _ = pc.WriteTo(forgedDeath("h3", 100), to)
		}
		waitFor(t, 5*time.Second, "h3 hears that it is dead", func() bool { return h3.Health().CalledDead > 0 })
		waitFor(t, 20*time.Second, "h3 refutes it", l.complete)
		for _, a := range l.agents[:2] {
			if h := a.Health(); h.CalledDead > 0 {
				t.Errorf("%s counts what happened to h3: %+v", a.id, h)
			}
			if m := a.member("h3"); m.Leave != "" {
				t.Errorf("a forged leave gave a reason: %+v", m)
			}
		}
	})
}

// forgedDeath is a gossip packet, as whoever has the key can make one, that says
// on behalf of a host that it has left.
func forgedDeath(host string, incarnation byte) []byte {
	msg := []byte{5, 0x83} // dead, a map of three
	for _, kv := range [][2][]byte{
		{[]byte("Incarnation"), {incarnation}},
		{[]byte("Node"), append([]byte{0xa0 | byte(len(host))}, host...)},
		{[]byte("From"), append([]byte{0xa0 | byte(len(host))}, host...)},
	} {
		msg = append(append(append(msg, 0xa0|byte(len(kv[0]))), kv[0]...), kv[1]...)
	}
	block, _ := aes.NewCipher(testKey)
	gcm, _ := cipher.NewGCM(block)
	out := append([]byte("\xf4\x03lab\x01"), make([]byte, gcm.NonceSize())...)
	return gcm.Seal(out, make([]byte, gcm.NonceSize()), msg, []byte("lab"))
}

func TestKeyRotation(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, l *lab) {
		l.startAll()
		waitFor(t, 5*time.Second, "join", l.complete)
		fresh := Key(bytes.Repeat([]byte{9}, 16))
		for _, a := range l.agents {
			if err := a.InstallKey(fresh); err != nil {
				t.Fatal(err)
			}
		}
		for _, a := range l.agents {
			if err := a.UseKey(fresh.ID()); err != nil {
				t.Fatal(err)
			}
			time.Sleep(10 * time.Second)
		}
		for _, a := range l.agents {
			if err := a.RemoveKey(fresh.ID()); err == nil {
				t.Error("the key in use was removed")
			}
			if err := a.RemoveKey(testKey.ID()); err != nil {
				t.Error(err)
			}
			if got := fmt.Sprint(a.Keys()); got != fmt.Sprint([]KeyInfo{{fresh.ID(), true}}) {
				t.Errorf("keys %s", got)
			}
		}
		time.Sleep(time.Minute)
		for _, a := range l.agents {
			if h := a.Health(); h.Alive != 3 || h.Suspected+h.CalledDead > 0 || h.Drops[DropSecret] > 0 {
				t.Errorf("the rotation was felt: %+v", h)
			}
		}
		a := l.agents[0]
		if err := a.UseKey(testKey.ID()); err == nil {
			t.Error("a removed key can be used")
		}
		if err := a.RemoveKey(testKey.ID()); err != nil {
			t.Errorf("removing what is gone: %v", err)
		}
		if err := a.InstallKey(Key("short")); err == nil {
			t.Error("a short key was installed")
		}
		one, two, three := Key(bytes.Repeat([]byte{1}, 16)), Key(bytes.Repeat([]byte{2}, 24)), Key(bytes.Repeat([]byte{3}, 32))
		if a.InstallKey(one) != nil || a.InstallKey(two) != nil || a.InstallKey(two) != nil {
			t.Error("two more keys must fit")
		}
		if err := a.InstallKey(three); err == nil {
			t.Error("a fourth key fits")
		}
		if err := a.RemoveKey(one.ID()); err != nil {
			t.Error(err)
		}
		if got := fmt.Sprint(a.Keys()); got != fmt.Sprint([]KeyInfo{{fresh.ID(), true}, {two.ID(), false}}) {
			t.Errorf("keys %s", got)
		}
	})
}

// Twenty hosts are off and swallow every connection attempt: the joins of one
// round are bounded, and never pile up.
func TestJoinsDoNotPileUp(t *testing.T) {
	inBubble(t, 40, func(t *testing.T, l *lab) {
		l.net.set(func() {
			l.net.cut = func(from, to netip.Addr) bool { return max(from.As4()[3], to.As4()[3]) > 2 }
		})
		a := l.start(l.config(1))
		for range 600 {
			time.Sleep(100 * time.Millisecond)
			a.mu.Lock()
			n := len(a.joining)
			a.mu.Unlock()
			if n > maxJobs {
				t.Fatalf("%d joins at once", n)
			}
		}
		if h := a.Health(); len(h.Unjoined) != 39 || !h.Alone {
			t.Errorf("health %+v", h)
		}
		l.start(l.config(2))
		waitFor(t, 30*time.Second, "the one that lives is found", func() bool { return a.member("h2").State == StateAlive })
	})
}

func TestCloseWithoutRun(t *testing.T) {
	inBubble(t, 2, func(t *testing.T, l *lab) {
		c, err := New(l.config(1))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := New(l.config(1)); err == nil {
			t.Error("two agents share a socket")
		}
		if err := c.Close(); err != nil {
			t.Error(err)
		}
		again, err := New(l.config(1))
		if err != nil {
			t.Fatalf("the sockets are still taken: %v", err)
		}
		if err := again.Close(); err != nil {
			t.Error(err)
		}
	})
}

// The same on real sockets.
func TestLoopback(t *testing.T) {
	pid := os.Getpid()
	addr := func(i int) netip.AddrPort {
		return netip.MustParseAddrPort(fmt.Sprintf("127.%d.%d.%d:17946", 1+pid>>8&127, pid&255, i))
	}
	peers := map[haven.HostID]netip.AddrPort{"h1": addr(1), "h2": addr(2), "h3": addr(3)}
	l := &lab{t: t, peers: peers}
	for i := 1; i <= 3; i++ {
		cfg := l.config(i)
		cfg.Bind, cfg.Net, cfg.Timing = addr(i), netx.Real{}, DefaultTiming()
		cfg.Timing.ProbeInterval, cfg.Timing.ProbeTimeout = 250*time.Millisecond, 100*time.Millisecond
		l.startUnread(cfg)
	}
	next := func(a *agent, id haven.HostID, kind EventKind) Member {
		t.Helper()
		limit := time.After(30 * time.Second)
		for {
			select {
			case e := <-a.Events():
				if e.Kind == kind && e.Member.Host == id {
					return e.Member
				}
			case <-limit:
				t.Fatalf("no event %s about %s", kind, id)
			}
		}
	}
	a, b, c := l.agents[0], l.agents[1], l.agents[2]
	next(b, "h1", EventJoined) // Before it knows anybody, an agent can tell nobody that it leaves.
	if m := next(a, "h2", EventJoined); m.Addr != addr(2) || m.Meta.Boot != "boot-2" {
		t.Errorf("joined %+v", m)
	}
	if err := b.Leave(t.Context(), haven.LeaveShutdown); err != nil {
		t.Error(err)
	}
	if m := next(a, "h2", EventLeft); m.Leave != haven.LeaveShutdown {
		t.Errorf("left %+v", m)
	}
	b.kill()
	c.kill()
	next(a, "h3", EventDied)
	a.kill()
}

// SetKeys is the rotation by one file: behind the old key, before it, without it.
// A first key that is new is refused and changes nothing, or one agent alone would
// talk in a key that nobody has.
func TestSetKeys(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, l *lab) {
		l.startAll()
		waitFor(t, 5*time.Second, "join", l.complete)
		fresh := Key(bytes.Repeat([]byte{9}, 16))
		for _, bad := range [][]Key{nil, {fresh}, {fresh, testKey}, {testKey, []byte("short")}, {testKey, fresh, bytes.Repeat([]byte{1}, 16), bytes.Repeat([]byte{2}, 16)}} {
			if changed, err := l.agents[0].SetKeys(bad); err == nil || changed {
				t.Errorf("%v: %v, %v", bad, changed, err)
			}
		}
		for _, step := range [][]Key{{testKey}, {testKey, fresh}, {fresh, testKey}, {fresh}} {
			for _, a := range l.agents {
				before := fmt.Sprint(a.Keys())
				changed, err := a.SetKeys(step)
				var want []KeyInfo
				for i, k := range step {
					want = append(want, KeyInfo{k.ID(), i == 0})
				}
				if got := fmt.Sprint(a.Keys()); err != nil || got != fmt.Sprint(want) || changed != (before != got) {
					t.Errorf("%v: keys %s, changed %v, %v", step, got, changed, err)
				}
				time.Sleep(5 * time.Second)
			}
		}
		time.Sleep(time.Minute)
		for _, a := range l.agents {
			if h := a.Health(); h.Alive != 3 || h.Suspected+h.CalledDead > 0 || h.Drops[DropSecret] > 0 {
				t.Errorf("the rotation was felt: %+v", h)
			}
		}
	})
}
