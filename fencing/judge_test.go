package fencing_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/haven-ha/haven"
	"github.com/haven-ha/haven/fencing"
)

var t0 = time.Unix(1_000_000, 0)

func at(s float64) time.Time {
	return t0.Add(time.Duration(s * float64(time.Second)).Round(time.Microsecond))
}

func reading(state haven.PowerState, start float64, guid fencing.GUID) fencing.Reading {
	return fencing.Reading{State: state, GUID: guid, Start: at(start), Finish: at(start + 0.01)}
}

func TestGUID(t *testing.T) {
	wire := [16]byte{0x33, 0x22, 0x11, 0x00, 0x55, 0x44, 0x77, 0x66, 0x88, 0x99, 0xaa, 0xbb, 0xcc, 0xdd, 0xee, 0xff}
	reversed := wire
	slices.Reverse(reversed[:])
	tests := []struct {
		name string
		guid fencing.GUID
		uuid string
		want haven.Tri
	}{
		{"SMBIOS order", fencing.NewGUID(wire), "00112233-4455-6677-8899-AABBCCDDEEFF", haven.Yes},
		{"as is", fencing.NewGUID(wire), "33221100-5544-7766-8899-aabbccddeeff", haven.Yes},
		{"IPMI order", fencing.NewGUID(reversed), "33221100-5544-7766-8899-aabbccddeeff", haven.Yes},
		{"another host", fencing.NewGUID(wire), "00112233-4455-6677-8899-aabbccddeefe", haven.No},
		{"no GUID", "", "00112233-4455-6677-8899-aabbccddeeff", haven.Unknown},
		{"zeros are no GUID", fencing.NewGUID([16]byte{}), "00000000-0000-0000-0000-000000000000", haven.Unknown},
		{"ones are no GUID", fencing.NewGUID([16]byte(slices.Repeat([]byte{0xff}, 16))), "ffffffff-ffff-ffff-ffff-ffffffffffff", haven.Unknown},
		{"no UUID", fencing.NewGUID(wire), "", haven.Unknown},
		{"not a UUID", fencing.NewGUID(wire), "Not Settable", haven.Unknown},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := tt.guid.MatchesUUID(tt.uuid); got != tt.want {
				t.Errorf("%s", got)
			}
		})
	}
}

// trusted returns a device that is known by its GUID.
func trusted() *fencing.Trust {
	t := &fencing.Trust{}
	t.Record("aa")
	return t
}

func TestOffProof(t *testing.T) {
	type look struct {
		at    float64
		state haven.PowerState
		guid  fencing.GUID
		err   error
	}
	const on, off = haven.PowerOn, haven.PowerOff
	tests := []struct {
		name   string
		looks  []look
		now    float64
		trust  *fencing.Trust
		proved bool
		why    string
	}{
		{name: "nothing read", now: 1, why: "not read"},
		{name: "two looks", looks: []look{{0, off, "aa", nil}, {0.4, off, "aa", nil}}, now: 0.5, proved: true, why: "recorded"},
		{name: "one look", looks: []look{{0, off, "aa", nil}}, now: 0.5, why: "1 of 2"},
		{name: "too close together", looks: []look{{0, off, "aa", nil}, {0.2, off, "aa", nil}}, now: 0.5, why: "1 of 2"},
		{name: "the third is far enough", looks: []look{{0, off, "aa", nil}, {0.2, off, "aa", nil}, {0.4, off, "aa", nil}}, now: 0.5, proved: true},
		{name: "on between", looks: []look{{0, off, "aa", nil}, {0.4, on, "aa", nil}, {0.8, off, "aa", nil}}, now: 0.9, why: "1 of 2"},
		{name: "on at last", looks: []look{{0, off, "aa", nil}, {0.4, off, "aa", nil}, {0.8, on, "aa", nil}}, now: 0.9, why: "power on"},
		{name: "an error is no off", looks: []look{{0, off, "aa", nil}, {0.4, "", "", errors.New("x")}}, now: 0.9, why: "1 of 2"},
		{name: "errors only", looks: []look{{0, "", "", errors.New("no route")}}, now: 0.9, why: "no route"},
		{name: "unknown is no off", looks: []look{{0, off, "aa", nil}, {0.4, haven.PowerUnknown, "aa", nil}}, now: 0.9, why: "1 of 2"},
		{name: "begun before the suspicion", looks: []look{{-0.1, off, "aa", nil}, {0.4, off, "aa", nil}}, now: 0.9, why: "1 of 2"},
		{name: "another device", looks: []look{{0, off, "aa", nil}, {0.4, off, "bb", nil}}, now: 0.9, why: "not the recorded"},
		{name: "too far apart", looks: []look{{0, off, "aa", nil}, {11, off, "aa", nil}}, now: 11.1, why: "1 of 2"},
		{name: "not fresh any more", looks: []look{{0, off, "aa", nil}, {0.4, off, "aa", nil}}, now: 11, why: "old"},
		{name: "not trusted", looks: []look{{0, off, "aa", nil}, {0.4, off, "aa", nil}}, now: 0.5, trust: &fencing.Trust{}, why: "not trusted"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			o := fencing.NewOffProof(at(0), fencing.DefaultPolicy())
			for _, l := range tt.looks {
				o.Step(reading(l.state, l.at, l.guid), l.err)
			}
			trust := tt.trust
			if trust == nil {
				trust = trusted()
			}
			v := o.Verdict(at(tt.now), trust)
			if v.Proved != tt.proved || !strings.Contains(v.Why, tt.why) {
				t.Errorf("verdict %+v, want proved %v, %q", v, tt.proved, tt.why)
			}
		})
	}
}

// The first reading stays the first: a host that is read many times is not
// proved ever later, and probes after it go on counting.
func TestOffProofKeepsItsFirstReading(t *testing.T) {
	o := fencing.NewOffProof(at(0), fencing.DefaultPolicy())
	for i := range 100 {
		start := float64(i) * 0.5
		if next := o.NextReading(at(start)); next.After(at(start)) {
			t.Fatalf("next reading at %s", next)
		}
		o.Step(reading(haven.PowerOff, start, "aa"), nil)
		if next := o.NextReading(at(start + 0.01)); !next.Equal(at(start + 0.31)) {
			t.Fatalf("next reading at %s", next)
		}
	}
	if v := o.Verdict(at(50), trusted()); !v.Proved || !v.First.Start.Equal(at(0)) || !v.Last.Start.Equal(at(49.5)) {
		t.Errorf("%+v", v)
	}
}

// P2: whatever is read, in whatever order and with whatever gaps, a proof has
// two clean readings behind it, by the judgement of the dumb twin.
func TestOffProofAgainstTwin(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := fencing.DefaultPolicy()
		o := fencing.NewOffProof(at(0), p)
		now := 0.0
		var told []fencing.Reading
		trust := &fencing.Trust{}
		trust.Alive("boot", at(-1))
		trust.Read(reading(haven.PowerOn, -1, ""))
		for range rapid.IntRange(0, 12).Draw(t, "readings") {
			now += rapid.SampledFrom([]float64{0.1, 0.29, 0.31, 0.5, 5, 11}).Draw(t, "pause")
			state := rapid.SampledFrom([]haven.PowerState{haven.PowerOff, haven.PowerOff, haven.PowerOn, haven.PowerUnknown}).Draw(t, "state")
			r := reading(state, now, rapid.SampledFrom([]fencing.GUID{"aa", "aa", "aa", "", "bb"}).Draw(t, "guid"))
			if rapid.IntRange(0, 5).Draw(t, "fails") == 0 {
				o.Step(r, errors.New("fails"))
				continue
			}
			o.Step(r, nil)
			told = append(told, r)
		}
		v := o.Verdict(at(now+0.02), trust)
		if v.Proved && !provedByHand(told, p.Gap, p.Window) {
			t.Fatalf("proved from %v", told)
		}
		if len(told) > 0 && told[len(told)-1].State == haven.PowerOn && (v.Proved || v.Off) {
			t.Fatalf("proved although on was read last: %v", told)
		}
	})
}

func TestTrust(t *testing.T) {
	const boot = haven.BootID("boot-1")
	on := func(s float64, g fencing.GUID) fencing.Reading { return reading(haven.PowerOn, s, g) }
	off := func(s float64, g fencing.GUID) fencing.Reading { return reading(haven.PowerOff, s, g) }
	lives := func(tr *fencing.Trust, b haven.BootID, from, to float64) {
		for s := from; s <= to; s += 0.5 {
			tr.Alive(b, at(s))
		}
	}
	tests := []struct {
		name   string
		do     func(*fencing.Trust)
		first  float64 // when off was first read
		guid   fencing.GUID
		want   bool
		why    string
		sticky bool
	}{
		{name: "knows nothing", do: func(*fencing.Trust) {}, why: "no recorded GUID"},
		{name: "GUID is the recorded one", do: func(tr *fencing.Trust) { tr.Record("aa") }, guid: "aa", want: true},
		{name: "GUID is another one", do: func(tr *fencing.Trust) { tr.Record("aa"); tr.Read(on(0, "bb")) }, guid: "bb", why: "GUID was", sticky: true},
		{name: "GUID of the off is another one", do: func(tr *fencing.Trust) { tr.Record("aa") }, guid: "bb", why: "not the recorded"},
		{name: "said on while the host lived", do: func(tr *fencing.Trust) { tr.Alive(boot, at(0)); tr.Read(on(1, "")) }, first: 600, want: true},
		{name: "that is more than ten minutes ago", do: func(tr *fencing.Trust) { tr.Alive(boot, at(0)); tr.Read(on(1, "")) }, first: 602, why: "too long ago"},
		{name: "said on when nothing was heard of the host", do: func(tr *fencing.Trust) { tr.Alive(boot, at(0)); tr.Read(on(11, "")) }, first: 20, why: "never said on"},
		{name: "said on, and its first sign of life came then", do: func(tr *fencing.Trust) { tr.Read(on(1, "")); tr.Alive(boot, at(4)) }, first: 20, want: true},
		{name: "said on, and a sign of life came late", do: func(tr *fencing.Trust) { tr.Read(on(1, "")); tr.Alive(boot, at(12)) }, first: 20, why: "never said on"},
		{name: "said on, then off, and a sign of life came then", do: func(tr *fencing.Trust) {
			tr.Read(on(1, ""))
			tr.Read(off(2, ""))
			tr.Alive(boot, at(4))
		}, first: 20, why: "never said on"},
		{name: "said on, then another device answered", do: func(tr *fencing.Trust) { tr.Alive(boot, at(0)); tr.Read(on(1, "aa")) }, first: 20, guid: "bb", why: "changed"},
		{name: "said off about a live host", do: func(tr *fencing.Trust) {
			tr.Record("aa")
			lives(tr, boot, 0, 10)
			tr.Read(off(10, "aa"))
			lives(tr, boot, 10.5, 20)
		}, first: 30, guid: "aa", why: "still lived", sticky: true},
		{name: "said off about a live host, then on", do: func(tr *fencing.Trust) {
			tr.Record("aa")
			lives(tr, boot, 0, 10)
			tr.Read(off(10, "aa"))
			tr.Read(on(11, "aa"))
			lives(tr, boot, 11, 20)
		}, first: 30, guid: "aa", why: "still lived", sticky: true},
		{name: "the host died as it was read", do: func(tr *fencing.Trust) {
			tr.Record("aa")
			lives(tr, boot, 0, 10)
			tr.Read(off(10, "aa"))
			tr.Alive(boot, at(10.2)) // was on its way
		}, first: 10, guid: "aa", want: true},
		{name: "what it left in buffers comes late, in one burst", do: func(tr *fencing.Trust) {
			tr.Record("aa")
			lives(tr, boot, 0, 10)
			tr.Read(off(10, "aa"))
			for i := range 50 {
				tr.Alive(boot, at(40+float64(i)/1000))
			}
		}, first: 10, guid: "aa", want: true},
		{name: "it was off and booted again", do: func(tr *fencing.Trust) {
			tr.Record("aa")
			lives(tr, boot, 0, 10)
			tr.Read(off(11, "aa"))
			tr.Read(on(60, "aa"))
			lives(tr, "boot-2", 100, 200)
		}, first: 300, guid: "aa", want: true},
		{name: "configuration conflict", do: func(tr *fencing.Trust) { tr.Record("aa"); tr.Conflict("shared address") }, guid: "aa", why: "shared address"},
		{name: "conflict solved", do: func(tr *fencing.Trust) { tr.Record("aa"); tr.Conflict("shared address"); tr.Conflict("") }, guid: "aa", want: true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			tr := &fencing.Trust{}
			tt.do(tr)
			got, why := tr.Judge(at(tt.first), tt.guid)
			if got != tt.want || !strings.Contains(why, tt.why) || why == "" {
				t.Errorf("Judge() = %v, %q; want %v, %q", got, why, tt.want, tt.why)
			}
			if (tr.Distrusted() != "") != tt.sticky {
				t.Errorf("Distrusted() = %q", tr.Distrusted())
			}
			if tt.sticky {
				lives(tr, "boot-9", 1000, 1100)
				tr.Read(on(1100, tt.guid))
				if ok, _ := tr.Judge(at(1101), tt.guid); ok {
					t.Error("distrust wore off")
				}
				tr.Clear()
				if ok, why := tr.Judge(at(1101), tt.guid); !ok {
					t.Error("an operator's clearing did not help: ", why)
				}
			}
		})
	}
}

func TestTrustLearnsTheGUIDOfALiveHost(t *testing.T) {
	tr := &fencing.Trust{}
	tr.Read(reading(haven.PowerOn, 0, "aa"))
	if g, ok := tr.Learned(); ok {
		t.Errorf("learned %q of a host that was not heard of", g)
	}
	tr.Alive("boot", at(20))
	if g, ok := tr.Learned(); ok {
		t.Errorf("learned %q of a host that was heard of long after", g)
	}
	tr.Read(reading(haven.PowerOff, 21, "aa"))
	if g, ok := tr.Learned(); ok {
		t.Errorf("learned %q from an off", g)
	}
	tr.Read(reading(haven.PowerOn, 22, "aa"))
	if g, ok := tr.Learned(); !ok || g != "aa" {
		t.Errorf("Learned() = %q, %v", g, ok)
	}
	tr.Record("aa")
	if _, ok := tr.Learned(); ok {
		t.Error("learned again what is recorded")
	}
}

func TestCrossCheck(t *testing.T) {
	const u1, u2 = "00112233-4455-6677-8899-aabbccddee01", "00112233-4455-6677-8899-aabbccddee02"
	g1 := fencing.GUID(strings.ReplaceAll(u1, "-", ""))
	got := fencing.CrossCheck([]fencing.Station{
		{Host: "a", Key: "a/bmc", Address: "10.0.0.1:623", GUID: g1, UUID: u1},
		{Host: "b", Key: "b/bmc", Address: "10.0.0.2:623", GUID: g1, UUID: u2}, // answers as a's
		{Host: "c", Key: "c/bmc", Address: "10.0.0.3:623", GUID: "cc"},
		{Host: "d", Key: "d/bmc", Address: "10.0.0.3:623"},
		{Host: "e", Key: "e/bmc", Address: "10.0.0.5:623"},
		{Host: "e", Key: "e/pdu", Address: "10.0.0.5:623"}, // the same host: its own affair
		{Host: "f", Key: "f/bmc", Address: "10.0.0.6:623"},
	})
	for key, want := range map[string]string{"a/bmc": "GUID", "b/bmc": "GUID", "c/bmc": "configured for d", "d/bmc": "configured for c", "e/bmc": "", "e/pdu": "", "f/bmc": ""} {
		if (got[key] == "") != (want == "") || !strings.Contains(got[key], want) {
			t.Errorf("%s: %q, want %q", key, got[key], want)
		}
	}
	alone := fencing.CrossCheck([]fencing.Station{
		{Host: "b", Key: "b/bmc", Address: "10.0.0.2:623", GUID: g1, UUID: u2},
		{Host: "a", Key: "a/bmc", Address: "10.0.0.1:623", UUID: u1},
	})
	if !strings.Contains(alone["b/bmc"], "UUID of a") || alone["a/bmc"] != "" {
		t.Errorf("%v", alone)
	}
}

func TestLimit(t *testing.T) {
	rec := func(host string, s float64) fencing.FenceRecord {
		return fencing.FenceRecord{Host: haven.HostID(host), Incident: haven.IncidentID("i-" + host), At: at(s)}
	}
	const hour = 3600
	limit := fencing.DefaultLimit()
	tests := []struct {
		name    string
		limit   fencing.Limit
		history []fencing.FenceRecord
		now     float64
		allowed bool
		used    int
		until   float64
	}{
		{name: "nothing yet", limit: limit, allowed: true},
		{name: "two", limit: limit, history: []fencing.FenceRecord{rec("a", 0), rec("b", 1)}, now: 2, allowed: true, used: 2},
		{name: "three", limit: limit, history: []fencing.FenceRecord{rec("a", 0), rec("b", 1), rec("c", 2)}, now: 3, used: 3, until: hour},
		{name: "a moment before the window ends", limit: limit, history: []fencing.FenceRecord{rec("a", 0), rec("b", 1), rec("c", 2)}, now: hour - 0.001, used: 3, until: hour},
		{name: "the window ends", limit: limit, history: []fencing.FenceRecord{rec("a", 0), rec("b", 1), rec("c", 2)}, now: hour, allowed: true, used: 2},
		{name: "more than allowed", limit: limit, history: []fencing.FenceRecord{rec("a", 0), rec("b", 1), rec("c", 2), rec("d", 3)}, now: 4, used: 4, until: hour + 1},
		{name: "dated in the future", limit: limit, history: []fencing.FenceRecord{rec("a", 7200), rec("b", 7201), rec("c", 7202)}, now: 0, used: 3, until: 7200 + hour},
		{name: "one clock runs an hour behind", limit: limit, history: []fencing.FenceRecord{rec("a", 3500), rec("b", 0), rec("c", 1)}, now: 3700, used: 3, until: 3500 + hour},
		{name: "recorded twice", limit: limit, history: []fencing.FenceRecord{rec("a", 0), rec("a", 1), rec("b", 2)}, now: 3, allowed: true, used: 2},
		{name: "resumed by the next master", limit: limit, history: []fencing.FenceRecord{rec("a", 0), rec("b", 1), rec("x", 2)}, now: 3, allowed: true, used: 3},
		{name: "count 0 is never", limit: fencing.Limit{Count: 0, Window: time.Hour}, now: 3},
		{name: "count 0 stops a resumed one too", limit: fencing.Limit{Count: 0, Window: time.Hour}, history: []fencing.FenceRecord{rec("x", 0)}, now: 3, used: 1},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			a := tt.limit.Allow(at(tt.now), tt.history, "i-x", "x")
			var until time.Time
			if tt.until != 0 {
				until = at(tt.until)
			}
			if a.Allowed != tt.allowed || a.Used != tt.used || !a.Until.Equal(until) || a.Why == "" {
				t.Errorf("%+v, want allowed %v, used %d, until %s", a, tt.allowed, tt.used, until)
			}
		})
	}
	for _, bad := range []fencing.Limit{{Count: -1, Window: time.Hour}, {Count: 3, Window: time.Second}} {
		if bad.Validate() == nil {
			t.Errorf("%+v was accepted", bad)
		}
	}
	if limit.Validate() != nil || (fencing.Limit{Count: 0, Window: time.Hour}).Validate() != nil {
		t.Error("sound limits were refused")
	}
}

// P6: whatever clocks do, no window of the true time holds more power-downs
// than the cap when every master's clock is right; and "until" is kept.
func TestLimitHolds(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		limit := fencing.Limit{Count: rapid.IntRange(0, 4).Draw(t, "count"), Window: time.Hour}
		var history []fencing.FenceRecord
		var done []float64
		now := 0.0
		for i := range 40 {
			now += rapid.Float64Range(0, 1800).Draw(t, "pause")
			host := haven.HostID(fmt.Sprint("h", i))
			a := limit.Allow(at(now), history, haven.IncidentID(host), host)
			if !a.Allowed {
				if limit.Count > 0 && (limit.Allow(a.Until.Add(-time.Microsecond), history, "i", "h").Allowed || !limit.Allow(a.Until, history, "i", "h").Allowed) {
					t.Fatalf("until %s is not when it ends", a.Until)
				}
				continue
			}
			history = append(history, fencing.FenceRecord{Host: host, Incident: haven.IncidentID(host), At: at(now)})
			done = append(done, now)
		}
		for i := limit.Count; i < len(done); i++ {
			if at(done[i]).Sub(at(done[i-limit.Count])) < limit.Window {
				t.Fatalf("%d power-downs within the window: %v", limit.Count+1, done)
			}
		}
	})
}
