package agent

import (
	"context"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/haven-ha/haven"
	"github.com/haven-ha/haven/detector"
	"github.com/haven-ha/haven/fencing"
	"github.com/haven-ha/haven/internal/client"
	"github.com/haven-ha/haven/internal/ledger"
)

// power keeps what is known of all hosts' BMCs.
type power struct {
	gate *fencing.Gate

	mu       sync.Mutex
	trust    map[string]*fencing.Trust // by device key
	readings map[haven.HostID][]reading
	session  uint64
	reading  map[haven.HostID]bool // a reading for suspicion is under way
	boots    map[haven.HostID]boot // that readings are about
	cleared  map[haven.HostID]uint64
	lived    map[haven.HostID]time.Time // its last sign of life that was told
	mates    map[string][]string        // the other devices of a device's level, by key
	busy     map[haven.HostID]bool      // something is being done to its power
	storage  map[string]bool            // devices whose off is no word about power, by key
	shared   map[string]string          // why a device is configured for two hosts, by key
}

// boot is a host's present boot and since when this agent has known of it; the
// zero time for the first one. Unread says that nothing was asked of its BMC
// since.
type boot struct {
	id     haven.BootID
	since  time.Time
	unread bool
}

type reading struct {
	fencing.Reading
	device  string
	session uint64
}

// maxReadings bounds the readings kept for one host: ten seconds' worth at the
// shortest gap, for two devices.
const maxReadings = 64

func newPower(fences map[haven.HostID][][]FenceDevice) *power {
	p := &power{
		gate: fencing.NewGate(), trust: map[string]*fencing.Trust{},
		readings: map[haven.HostID][]reading{}, reading: map[haven.HostID]bool{},
		boots: map[haven.HostID]boot{}, cleared: map[haven.HostID]uint64{}, lived: map[haven.HostID]time.Time{}, mates: levelMates(fences),
		busy: map[haven.HostID]bool{}, storage: map[string]bool{},
	}
	var stations []fencing.Station
	for host, ladder := range fences {
		for _, d := range slices.Concat(ladder...) {
			if p.trust[d.Key] == nil {
				p.trust[d.Key] = new(fencing.Trust)
			}
			p.storage[d.Key] = d.Storage
			stations = append(stations, fencing.Station{Host: host, Key: d.Key, Address: d.Address})
		}
	}
	p.shared = fencing.CrossCheck(stations)
	for key, why := range p.shared {
		p.trust[key].Conflict(why)
	}
	return p
}

// booted drops what was read before a new boot registered. It was about the old
// one: an off proves nothing about the new boot, and its life is no sign that
// the BMC lied.
func (p *power) booted(host haven.HostID, id haven.BootID, now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	old := p.boots[host]
	switch {
	case id == "" || old.id == id:
	case old.id == "":
		p.boots[host] = boot{id: id}
	default:
		p.boots[host] = boot{id, now, true}
		delete(p.readings, host)
	}
}

// unread says, once for each new boot, that the host's power is to be read: the
// next background reading may be a minute away, and a BMC that said on while
// the host lives is one to trust.
func (p *power) unread(host haven.HostID) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	b := p.boots[host]
	was := b.unread
	b.unread = false
	if was {
		p.boots[host] = b
	}
	return was
}

// take records a reading that succeeded.
func (p *power) take(host haven.HostID, key string, r fencing.Reading) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if r.Start.Before(p.boots[host].since) {
		return // see booted
	}
	if p.storage[key] {
		// Its on shows that it is the host's; its off is no proof that the host is off,
		// and no lie about one that lives on.
		if t := p.trust[key]; t != nil && r.State == haven.PowerOn {
			t.Read(r)
		}
		return
	}
	p.session++
	own := reading{r, key, p.session}
	p.readings[host] = append(p.readings[host], own)
	if over := len(p.readings[host]) - maxReadings; over > 0 {
		p.readings[host] = slices.Clone(p.readings[host][over:])
	}
	// One power supply of two that is off, while the host lives, is no lie.
	if t := p.trust[key]; t != nil && (r.State != haven.PowerOff || p.missingMate(p.readings[host], own) == "") {
		t.Read(r)
	}
}

// alive tells all devices of a host that it showed life. Signs come on several
// paths; an older one than was told already is no news.
func (p *power) alive(host haven.HostID, keys []string, boot haven.BootID, at time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(keys) == 0 || !at.After(p.lived[host]) {
		return
	}
	p.lived[host] = at
	for _, key := range keys {
		p.trust[key].Alive(boot, at)
	}
}

// record tells a host's first device what the ledger knows of it. When an
// operator cleared a distrust since the last time, what this agent holds against
// the host's devices is dropped.
func (p *power) record(host haven.HostID, keys []string, trust ledger.PowerTrust) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if trust.Cleared > p.cleared[host] {
		for _, key := range keys {
			p.trust[key].Clear()
		}
		p.cleared[host] = trust.Cleared
	}
	if len(keys) > 0 {
		p.trust[keys[0]].Record(fencing.GUID(trust.GUID))
	}
}

// learned returns what is worth recording about a host's BMC: the GUID of its
// first device, and why any of its devices is distrusted.
func (p *power) learned(keys []string) (guid fencing.GUID, distrust string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for i, key := range keys {
		if g, ok := p.trust[key].Learned(); ok && i == 0 {
			guid = g
		}
		if why := p.trust[key].Distrusted(); why != "" {
			distrust = why
		}
	}
	return guid, distrust
}

// trusted says whether an off of the device, first read then, may be a proof.
func (p *power) trusted(key string, first fencing.Reading, ledgerDistrust string) (bool, string) {
	if ledgerDistrust != "" {
		return false, ledgerDistrust
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	t := p.trust[key]
	if t == nil {
		return false, "the device is not configured"
	}
	return t.Judge(first.Start, first.GUID)
}

// vouches says whether an off that a device of the host said now, as the board
// that it was last, would be trusted.
func (p *power) vouches(host haven.HostID, key, ledgerDistrust string, now time.Time) (bool, string) {
	next := fencing.Reading{Start: now}
	p.mu.Lock()
	for _, r := range p.readings[host] {
		if r.device == key {
			next.GUID = r.GUID
		}
	}
	p.mu.Unlock()
	return p.trusted(key, next, ledgerDistrust)
}

// detectorReadings renders the readings of one host, oldest first.
func (p *power) detectorReadings(host, by haven.HostID, since time.Time, ledger ledger.PowerTrust, at func(time.Time) time.Duration) []detector.PowerReading {
	p.mu.Lock()
	all := slices.Clone(p.readings[host])
	p.mu.Unlock()
	firstOff := map[string]fencing.Reading{}
	var out []detector.PowerReading
	for _, r := range all {
		if r.State != haven.PowerOff {
			delete(firstOff, r.device)
		} else if _, ok := firstOff[r.device]; !ok {
			firstOff[r.device] = r.Reading
		}
		if r.Finish.Before(since) {
			continue
		}
		d := detector.PowerReading{
			Device: r.device, Session: r.session, By: by, State: r.State, Started: at(r.Start), Finished: at(r.Finish),
		}
		if r.Via != "" {
			d.By = r.Via
		}
		first, off := firstOff[r.device]
		if !off {
			first = r.Reading
		}
		d.Trusted, d.Why = p.trusted(r.device, first, ledger.Doubted())
		if d.Trusted && off && len(p.mates[r.device]) > 0 {
			d.Trusted, d.Why = p.withMates(all, r, ledger.Doubted())
		}
		if ledger.GUID != "" && r.GUID != "" {
			d.GUID = haven.TriOf(string(r.GUID) == ledger.GUID)
		}
		out = append(out, d)
	}
	return out
}

// allDevices lists the devices of all hosts.
func (a *Agent) allDevices() []FenceDevice {
	var all []FenceDevice
	for _, ladder := range a.d.Fences {
		all = append(all, slices.Concat(ladder...)...)
	}
	return all
}

// deviceKeys lists the devices of a host.
func (a *Agent) deviceKeys(host haven.HostID) []string {
	var keys []string
	for _, d := range slices.Concat(a.d.Fences[host]...) {
		keys = append(keys, d.Key)
	}
	return keys
}

// readPower reads the power state of a suspect's devices once each, in sessions
// of their own. It never sends a command.
func (a *Agent) readPower(ctx context.Context, host haven.HostID) {
	devices := slices.Concat(a.d.Fences[host]...)
	if len(devices) == 0 || !a.power.begin(host) {
		return
	}
	a.owned.Go(func() {
		defer a.kick()
		defer a.power.end(host)
		var wg sync.WaitGroup
		for _, d := range devices {
			wg.Go(func() {
				ctx, cancel := context.WithTimeout(ctx, d.session())
				defer cancel()
				r, err := a.power.gate.Read(d.Key, d.Driver).Power(ctx)
				if err != nil {
					a.log.Log(ctx, a.quiet.level("power/"+d.Key), "power state could not be read", "host", host, "device", d.Name, "error", err)
					return
				}
				a.power.take(host, d.Key, r)
			})
		}
		wg.Wait()
	})
}

func (p *power) begin(host haven.HostID) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.reading[host] {
		return false
	}
	p.reading[host] = true
	return true
}

func (p *power) end(host haven.HostID) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.reading, host)
}

// testDevices looks at every device now and then while this agent votes, so
// that a new master knows already whom to trust.
func (a *Agent) testDevices(ctx context.Context) {
	policy := fencing.DefaultTestPolicy()
	policy.Spread = 2 * time.Second
	for _, d := range a.allDevices() {
		policy.Limit = max(policy.Limit, d.session())
	}
	if a.cfg.Fencing.CheckInterval > 0 {
		policy.Every = a.cfg.Fencing.CheckInterval
	}
	t := &fencing.Tester{
		Policy: policy, Random: rand.Float64, Log: a.log, Again: a.reloaded,
		Devices: func() []fencing.Device {
			if !a.votes() {
				return nil
			}
			var all []fencing.Device
			for host, ladder := range a.d.Fences {
				for _, d := range slices.Concat(ladder...) {
					all = append(all, fencing.Device{Host: host, Key: d.Key, Driver: a.power.gate.Read(d.Key, d.Driver)})
				}
			}
			return all
		},
		Report: func(r fencing.TestResult) { a.tested(ctx, r) },
	}
	if err := t.Run(ctx); err != nil && ctx.Err() == nil {
		a.log.Error("tests of fence devices ended", "error", err)
	}
}

// saysOff says whether the latest reading of any device of a host is off.
func (p *power) saysOff(host haven.HostID) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	last := map[string]haven.PowerState{}
	for _, r := range p.readings[host] {
		last[r.device] = r.State
	}
	for _, state := range last {
		if state == haven.PowerOff {
			return true
		}
	}
	return false
}

// path shows the latest reading of a host's power for people.
func (p *power) path(host haven.HostID, now time.Time) client.PathView {
	p.mu.Lock()
	defer p.mu.Unlock()
	all := p.readings[host]
	if len(all) == 0 {
		return client.PathView{State: string(haven.PowerUnknown), Why: "not read yet"}
	}
	r := all[len(all)-1]
	return client.PathView{State: string(r.State), Age: client.MillisOf(now.Sub(r.Finish)), Why: r.device}
}
