// Package simnet is a network in memory for whole clusters inside a
// testing/synctest bubble: machines with processes, packets and streams, and
// every way in which a network fails: latency, jitter, loss and cuts in each
// direction by itself, machines without power, frozen ones, killed processes.
//
// It keeps rules without which a bubble stands still for ever or a seed cannot
// be told from another: no mutex is held over a wait, a write never waits, one
// goroutine delivers everything in the order of time, and the fate of each
// packet is drawn from the seed, the two machines and a counter of this pair.
package simnet

import (
	"container/heap"
	"net/netip"
	"sync"
	"time"
)

// Link is how one direction between two machines behaves.
type Link struct {
	Latency time.Duration // from one machine to the other
	Jitter  time.Duration // up to this much more
	Loss    float64       // share of packets that are lost, 0 to 1
	Cut     bool          // nothing arrives
}

// Times of streams.
const (
	retransmitFirst = 200 * time.Millisecond
	retransmitLast  = 8 * time.Second
	// giveUpAfter is how long a stream lives without an acknowledgement.
	giveUpAfter = 2 * time.Minute
	// window is what a stream sends without an acknowledgement.
	window = 64 << 10
	// maxBuffered bounds what one end of a stream keeps. An end that would keep
	// more is reset: a test that needs more has lost a reader.
	maxBuffered = 32 << 20
	// maxQueued bounds the packets that wait for one socket or one frozen machine.
	maxQueued = 1024
	// localLatency is that within one machine.
	localLatency = 20 * time.Microsecond
)

// Net connects machines.
type Net struct {
	seed  uint64
	start time.Time
	wake  chan struct{}
	stop  chan struct{}
	ended chan struct{}
	once  sync.Once

	mu       sync.Mutex
	standard Link
	machines map[netip.Addr]*Machine
	routes   map[route]*direction
	queue    events
	seq      uint64
	next     time.Duration // when the dispatcher wakes up; negative: not by time
}

type route struct{ from, to netip.Addr }

// direction is the state of one direction between two machines.
type direction struct {
	link  *Link // nil: the standard one
	key   uint64
	count uint64
}

// New makes a network and starts its dispatcher. It must be called in the
// bubble in which the network is used; Close must be called before it ends.
func New(seed uint64, standard Link) *Net {
	n := &Net{
		seed: seed, standard: standard, start: time.Now(), next: -1,
		wake: make(chan struct{}, 1), stop: make(chan struct{}), ended: make(chan struct{}),
		machines: map[netip.Addr]*Machine{}, routes: map[route]*direction{},
	}
	go n.dispatch()
	return n
}

// Close ends the dispatcher. Nothing is delivered any more.
func (n *Net) Close() {
	n.once.Do(func() { close(n.stop) })
	<-n.ended
}

// Now is the time since the network was made.
func (n *Net) Now() time.Duration { return time.Since(n.start) }

// Add makes a machine, without power.
func (n *Net) Add(addr netip.Addr) *Machine {
	n.mu.Lock()
	defer n.mu.Unlock()
	m := &Machine{n: n, addr: addr, procs: map[*Process]struct{}{}, streams: map[int]*Listener{}, packets: map[int]*PacketConn{}, port: 32768}
	n.machines[addr] = m
	return m
}

// Set changes one direction; nil makes it standard again.
func (n *Net) Set(from, to netip.Addr, link *Link) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.direction(from, to).link = link
}

// Cut takes one direction away, or gives it back, and leaves its other
// properties.
func (n *Net) Cut(from, to netip.Addr, cut bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	d := n.direction(from, to)
	l := n.linkOf(d)
	l.Cut = cut
	d.link = &l
}

// Heal makes every direction standard again.
func (n *Net) Heal() {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, d := range n.routes {
		d.link = nil
	}
}

// Talks says whether two machines can exchange packets right now: both have
// power and are not frozen, and neither direction is cut.
func (n *Net) Talks(a, b netip.Addr) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	if !n.awake(a) || !n.awake(b) {
		return false
	}
	return a == b || !n.linkOf(n.direction(a, b)).Cut && !n.linkOf(n.direction(b, a)).Cut
}

func (n *Net) awake(a netip.Addr) bool {
	m := n.machines[a]
	return m != nil && m.power && !m.frozen
}

// After runs f when d has passed. It runs on the dispatcher and must not wait.
func (n *Net) After(d time.Duration, f func()) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.push(n.Now()+d, false, f)
}

// event is something that happens at a time. Most events need the network
// locked.
type event struct {
	at     time.Duration
	seq    uint64
	locked bool
	do     func()
}

type events []event

func (q events) Len() int { return len(q) }
func (q events) Less(i, j int) bool {
	return q[i].at < q[j].at || q[i].at == q[j].at && q[i].seq < q[j].seq
}
func (q events) Swap(i, j int) { q[i], q[j] = q[j], q[i] }

// Push is for container/heap.
func (q *events) Push(x any) { *q = append(*q, x.(event)) }

// Pop is for container/heap.
func (q *events) Pop() any {
	old := *q
	last := old[len(old)-1]
	old[len(old)-1] = event{}
	*q = old[:len(old)-1]
	return last
}

func (n *Net) push(at time.Duration, locked bool, do func()) {
	n.seq++
	heap.Push(&n.queue, event{at, n.seq, locked, do})
	if n.next < 0 || at < n.next {
		n.next = at
		select {
		case n.wake <- struct{}{}:
		default:
		}
	}
}

// later is push for the network's own events, from a delay.
func (n *Net) later(d time.Duration, do func()) { n.push(n.Now()+d, true, do) }

func (n *Net) dispatch() {
	defer close(n.ended)
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		if n.deliver(timer) {
			continue
		}
		select {
		case <-timer.C:
		case <-n.wake:
		case <-n.stop:
			return
		}
	}
}

// deliver lets the next event happen if its time has come, or sets the timer.
func (n *Net) deliver(timer *time.Timer) bool {
	n.mu.Lock()
	now := n.Now()
	if len(n.queue) == 0 || n.queue[0].at > now {
		n.next = -1
		pause := 24 * time.Hour
		if len(n.queue) > 0 {
			n.next = n.queue[0].at
			pause = n.next - now
		}
		timer.Reset(pause)
		n.mu.Unlock()
		return false
	}
	e := heap.Pop(&n.queue).(event)
	if e.locked {
		e.do()
		n.mu.Unlock()
		return true
	}
	n.mu.Unlock()
	e.do()
	return true
}

// mix is the finaliser of splitmix64.
func mix(x uint64) uint64 {
	x += 0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

func (n *Net) direction(from, to netip.Addr) *direction {
	d := n.routes[route{from, to}]
	if d == nil {
		key := mix(n.seed)
		for _, a := range [...]netip.Addr{from, to} {
			for _, b := range a.AsSlice() {
				key = mix(key ^ uint64(b))
			}
		}
		d = &direction{key: key}
		n.routes[route{from, to}] = d
	}
	return d
}

// draw returns a number in [0, 1). It depends on nothing but the seed, the
// direction and how many were drawn of it.
func (d *direction) draw() float64 {
	d.count++
	return float64(mix(d.key^mix(d.count))>>11) / (1 << 53)
}

func (n *Net) linkOf(d *direction) Link {
	if d.link != nil {
		return *d.link
	}
	return n.standard
}

// transmit decides what becomes of a packet: how long it takes, or that it is
// lost.
func (n *Net) transmit(from, to netip.Addr) (time.Duration, bool) {
	if from == to {
		return localLatency, true
	}
	d := n.direction(from, to)
	l := n.linkOf(d)
	if l.Cut || l.Loss > 0 && d.draw() < l.Loss {
		return 0, false
	}
	delay := l.Latency
	if l.Jitter > 0 {
		delay += time.Duration(d.draw() * float64(l.Jitter))
	}
	return delay, true
}
