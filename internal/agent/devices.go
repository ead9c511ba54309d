package agent

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/haven-ha/haven"
	"github.com/haven-ha/haven/fencing"
	"github.com/haven-ha/haven/internal/client"
	"github.com/haven-ha/haven/internal/ledger"
	"github.com/haven-ha/haven/internal/notify"
	"github.com/haven-ha/haven/internal/obs"
)

// deviceTests keeps the latest test of each fence device.
type deviceTests struct {
	mu   sync.Mutex
	last map[string]deviceTest // by key; as many as there are devices
}

// deviceTest is how the latest test of a device ended.
type deviceTest struct {
	host    haven.HostID
	reading fencing.Reading
	failure fencing.Failure
	detail  string
	at      time.Time // when it ended
	since   time.Time // when it began to be so
}

// maxDetail bounds what is kept of an error, in bytes.
const maxDetail = 600

// note takes in a test. It returns the one before, and whether there was one.
func (d *deviceTests) note(r fencing.TestResult, now time.Time) (is, was deviceTest, known bool) {
	err := r.Err
	if err == nil {
		err = r.Weak
	}
	is = deviceTest{host: r.Host, reading: r.Reading, failure: fencing.FailureOf(err), at: now, since: now}
	if err != nil {
		is.detail = strings.ToValidUTF8(err.Error()[:min(len(err.Error()), maxDetail)], "")
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if was, known = d.last[r.Key]; known && was.failure == is.failure {
		is.since = was.since
	}
	if d.last == nil {
		d.last = map[string]deviceTest{}
	}
	d.last[r.Key] = is
	return is, was, known
}

func (d *deviceTests) get(key string) (deviceTest, bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	t, ok := d.last[key]
	return t, ok
}

// tested takes in the test of a device. Every voter tests all of them; the master
// tells of one that fails, that fails in another way, or that works again, and a
// new master tells what it finds.
func (a *Agent) tested(ctx context.Context, r fencing.TestResult) {
	is, was, known := a.devices.note(r, time.Now())
	if r.Err == nil {
		a.power.take(r.Host, r.Key, r.Reading)
	}
	if is.failure != fencing.FailureNone {
		a.log.Log(ctx, a.quiet.level("test/"+r.Key+"/"+string(is.failure)), "fence device failed its test", "host", r.Host, "device", r.Key, "kind", is.failure, "error", is.detail)
	}
	if !a.isMaster() || is.failure == fencing.FailureNone && (!known || was.failure == fencing.FailureNone) {
		return
	}
	e := notify.Event{Kind: notify.KindDeviceBad, Host: r.Host}
	about := is
	if is.failure != fencing.FailureNone {
		e.Text = fmt.Sprintf("fence device %s of %s fails its test, %s: %s", r.Key, r.Host, is.failure, is.detail)
		if advice := is.failure.Advice(); advice != "" {
			e.Do = strings.ReplaceAll(advice, "{host}", string(r.Host)) + ". Then: haven fence test " + string(r.Host)
		}
	} else {
		about = was
		e.Kind, e.Text = notify.KindDeviceGood, fmt.Sprintf("fence device %s of %s works again", r.Key, r.Host)
	}
	e.ID = notify.NewID(e.Kind, string(r.Host), r.Key, string(about.failure), about.since.UTC().Format("20060102T1504Z"))
	a.notify(e)
}

// viewDevices shows the latest test of each of a host's fence devices.
func (a *Agent) viewDevices(id haven.HostID, known ledger.PowerTrust, now time.Time) []client.DeviceWord {
	var words []client.DeviceWord
	for l, level := range a.d.Fences[id] {
		for _, dev := range level {
			w := client.DeviceWord{Device: dev.Name, Level: l + 1, Power: haven.PowerUnknown}
			if t, ok := a.devices.get(dev.Key); ok {
				w.Power, w.GUID, w.Via = cmp.Or(t.reading.State, haven.PowerUnknown), string(t.reading.GUID), t.reading.Via
				w.Failed, w.Detail = string(t.failure), t.detail
				w.Tested, w.Since, w.Age = t.at, t.since, client.MillisOf(now.Sub(t.at))
				w.Took = client.MillisOf(t.reading.Finish.Sub(t.reading.Start))
			}
			a.wordTrust(&w, id, dev, known, now)
			words = append(words, w)
		}
	}
	return words
}

// wordTrust says of a device whether its off would be a proof, and what to do when
// something is wrong with it.
func (a *Agent) wordTrust(w *client.DeviceWord, id haven.HostID, dev FenceDevice, known ledger.PowerTrust, now time.Time) {
	w.Trusted, w.Why = a.power.vouches(id, dev.Key, known.Doubted(), now)
	i := slices.IndexFunc(known.Doubts, func(d ledger.DeviceDoubt) bool { return d.Device == dev.Key })
	if i >= 0 && w.Failed == "" {
		w.Failed, w.Detail = string(fencing.FailureIdentity), known.Doubts[i].Why
	}
	w.Advice = strings.ReplaceAll(fencing.Failure(w.Failed).Advice(), "{host}", string(id))
}

// ledgerTrust is what the ledger has about a host's devices.
func (a *Agent) ledgerTrust(host haven.HostID) (known ledger.PowerTrust) {
	a.ledger.View(func(s *ledger.State, _ ledger.Position) {
		if h := s.Hosts[host]; h != nil {
			known = h.Power
		}
	})
	return known
}

// countDevices shows the latest tests as metrics. The labels come from the
// configuration.
func (a *Agent) countDevices(m *obs.Metrics) {
	each := func(emit func(host, device string, t deviceTest)) {
		for _, host := range a.cfg.HostIDs() {
			for _, dev := range slices.Concat(a.d.Fences[host]...) {
				if t, ok := a.devices.get(dev.Key); ok {
					emit(string(host), dev.Name, t)
				}
			}
		}
	}
	m.GaugesFunc("fence_device_ok", "1 when a fence device passed its latest test, 0 when it failed it.", []string{"host", "device"}, func(emit func(float64, ...string)) {
		each(func(host, device string, t deviceTest) {
			ok := 0.0
			if t.failure == fencing.FailureNone {
				ok = 1
			}
			emit(ok, host, device)
		})
	})
	m.GaugesFunc("fence_device_test_age_seconds", "Time since a fence device was tested.", []string{"host", "device"}, func(emit func(float64, ...string)) {
		each(func(host, device string, t deviceTest) { emit(time.Since(t.at).Seconds(), host, device) })
	})
}

// doubts finds the devices that seem to be another host's, by what they and the
// hosts say of themselves. What an operator accepted is not doubted.
func (a *Agent) doubts(s *ledger.State) map[haven.HostID][]ledger.DeviceDoubt {
	var stations []fencing.Station
	guids := map[string]fencing.GUID{}
	for _, id := range s.HostIDs() {
		h := s.Hosts[id]
		for i, key := range a.deviceKeys(id) {
			guid := a.power.guid(key)
			if guid == "" && i == 0 {
				guid = fencing.GUID(h.Power.GUID)
			}
			guids[key] = guid
			accepted := guid != "" && slices.Contains(h.Power.Accepted, string(guid))
			stations = append(stations, fencing.Station{Host: id, Key: key, GUID: guid, UUID: h.UUID, Accepted: accepted})
		}
		if len(a.deviceKeys(id)) == 0 && h.UUID != "" {
			stations = append(stations, fencing.Station{Host: id, UUID: h.UUID})
		}
	}
	found := fencing.Identify(stations)
	out := map[haven.HostID][]ledger.DeviceDoubt{}
	for _, id := range s.HostIDs() {
		h := s.Hosts[id]
		for _, key := range a.deviceKeys(id) {
			guid := guids[key]
			before := slices.IndexFunc(h.Power.Doubts, func(d ledger.DeviceDoubt) bool { return d.Device == key })
			is, doubted := found[key]
			switch {
			case a.power.shared[key] != "":
				// No operator's word helps: what is meant for the one would hit the other.
				out[id] = append(out[id], ledger.DeviceDoubt{Device: key, Why: a.power.shared[key] + "; correct the configuration"})
			case doubted:
				out[id] = append(out[id], ledger.DeviceDoubt{Device: key, GUID: string(guid), Why: is.Why, Twin: is.Twin})
			case before >= 0 && (a.power.unseen(key) || a.stands(h.Power.Doubts[before], guid)):
				out[id] = append(out[id], h.Power.Doubts[before])
			}
		}
	}
	return out
}

// stands says whether what an earlier master found stands, because this one has not
// read yet what it rests on. What the ledger remembers of a device that was not met
// yet says nothing against it (P7).
func (a *Agent) stands(before ledger.DeviceDoubt, guid fencing.GUID) bool {
	return before.Twin != "" && before.GUID == string(guid) && a.power.unseen(before.Twin)
}

// wrongDevice says why a host's devices are not told anything: what the ledger knows
// of them, or what they said of themselves a moment ago and the ledger does not know
// yet.
func (a *Agent) wrongDevice(host haven.HostID) (why string) {
	a.ledger.View(func(s *ledger.State, _ ledger.Position) {
		h := s.Hosts[host]
		if h == nil {
			return
		}
		if why = h.Power.Blocked(); why == "" {
			why = ledger.PowerTrust{Doubts: a.doubts(s)[host]}.Blocked()
		}
	})
	return why
}

// meeting is the driver of a device whose identity is noted with each answer, also
// during a fence: the command that follows may be meant for another board (P2).
type meeting struct {
	fencing.Driver
	met func(fencing.GUID)
}

func (d meeting) Power(ctx context.Context) (fencing.Reading, error) {
	r, err := d.Driver.Power(ctx)
	if err == nil {
		d.met(r.GUID)
	}
	return r, err
}

func (d meeting) Light(ctx context.Context, length time.Duration, permit fencing.Permit) error {
	return fencing.Light(ctx, d.Driver, length, permit)
}

// meet notes which device answered.
func (p *power) meet(key string, guid fencing.GUID) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if t := p.trust[key]; t != nil {
		t.Meet(guid)
	}
}

// doubtLessons are what the ledger does not know yet of devices that seem to be
// other hosts'.
func (a *Agent) doubtLessons(s *ledger.State, doubts map[haven.HostID][]ledger.DeviceDoubt) []ledger.Command {
	var cmds []ledger.Command
	for _, id := range s.HostIDs() {
		if h := s.Hosts[id]; !slices.Equal(doubts[id], h.Power.Doubts) {
			cmds = append(cmds, ledger.DoubtDevices{Host: id, Doubts: doubts[id], Cleared: h.Power.Cleared})
		}
	}
	return cmds
}

// unseen says of a configured device that it was not read yet, or gave no GUID.
func (p *power) unseen(key string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	t := p.trust[key]
	return t != nil && t.Seen() == ""
}

// guid is the identity that a device gave last, or is empty.
func (p *power) guid(key string) fencing.GUID {
	p.mu.Lock()
	defer p.mu.Unlock()
	if t := p.trust[key]; t != nil {
		return t.Seen()
	}
	return ""
}
