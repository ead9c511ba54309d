package isolation

import (
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/haven-ha/haven"
)

// moment is one call of Step.
type moment struct {
	at time.Time
	in Input
}

// dumb is the rule once more, read off the whole history each time.
func dumb(history []moment, window time.Duration) State {
	last := history[len(history)-1]
	now, in := last.at, last.in
	seen := func(i Input) bool { return i.Direct || i.Majority == haven.Yes }
	if seen(in) || in.Gossip {
		return Connected
	}
	doubt := now
	begin := len(history) - 1
	for begin >= 0 && !seen(history[begin].in) {
		doubt = history[begin].at
		begin--
	}
	if in.Unusable != "" || len(in.Addresses) == 0 {
		if now.Sub(doubt) < window {
			return Alone
		}
		return Isolated
	}
	all, some := true, false
	for _, addr := range in.Addresses {
		var pings []Ping
		for i := begin + 1; i < len(history); i++ {
			// An address that was taken off the list is asked anew.
			if !slices.Contains(history[i].in.Addresses, addr) {
				pings = nil
				continue
			}
			for _, p := range history[i].in.Pings {
				if p.Address == addr && !p.Started.Before(doubt) {
					pings = append(pings, p)
				}
			}
		}
		if len(pings) == 0 || now.Sub(pings[len(pings)-1].Ended) >= window {
			all = false
			continue
		}
		silent := time.Time{}
		for i, p := range pings {
			if p.Result == haven.Yes && now.Sub(p.Ended) < window {
				return Partitioned
			}
			if i == 0 {
				silent = p.Started
			}
			if p.Result == haven.Unknown {
				silent = p.Ended
			}
		}
		if pings[len(pings)-1].Result == haven.Unknown {
			some = true
		} else if now.Sub(silent) < window {
			all = false
		}
	}
	if some || all || now.Sub(doubt) >= 2*window {
		return Isolated
	}
	return Alone
}

// TestAgainstTheDumbTwin (P4, P5): whatever happens in whatever order, the machine
// and the history agree; and nobody calls itself isolated who sees somebody, or
// whose isolation address answered within the window.
func TestAgainstTheDumbTwin(t *testing.T) {
	seen := map[State]int{}
	rapid.Check(t, func(t *rapid.T) {
		var m Machine
		now := time.Unix(1e9, 0)
		var history []moment
		addresses := []string{"gw-1", "gw-2"}
		mood := rapid.SampledFrom([]haven.Tri{haven.Yes, haven.No, haven.No, haven.Unknown})
		var out Output
		for range rapid.IntRange(1, 40).Draw(t, "steps") {
			now = now.Add(time.Duration(rapid.IntRange(0, 4).Draw(t, "half seconds")) * 500 * time.Millisecond)
			if rapid.IntRange(0, 19).Draw(t, "other addresses") == 0 {
				addresses = rapid.SampledFrom([][]string{nil, {"gw-1"}, {"gw-2"}, {"gw-1", "gw-2"}}).Draw(t, "addresses")
			}
			in := Input{
				Addresses: addresses, Majority: rapid.SampledFrom([]haven.Tri{haven.No, haven.No, haven.No, haven.No, haven.Yes}).Draw(t, "majority"),
				Gossip: rapid.IntRange(0, 9).Draw(t, "gossip") == 0, Direct: rapid.IntRange(0, 9).Draw(t, "direct") == 0,
			}
			if rapid.IntRange(0, 29).Draw(t, "unusable") == 0 {
				in.Unusable = "no permission"
			}
			for _, addr := range []string{"gw-1", "gw-2"} {
				if rapid.Bool().Draw(t, "ping ended") {
					started := now.Add(-time.Duration(rapid.IntRange(0, 2).Draw(t, "ping took")) * 500 * time.Millisecond)
					in.Pings = append(in.Pings, Ping{Address: addr, Started: started, Ended: now, Result: mood.Draw(t, "result")})
				}
			}
			history = append(history, moment{now, in})
			before := out
			out = m.Step(now, in)
			if want := dumb(history, DefaultWindow); out.State != want {
				t.Fatalf("%s (%s), the twin says %s", out.State, out.Why, want)
			}
			if (out.State == before.State) != out.Since.Equal(before.Since) && !before.Since.Equal(now) {
				t.Fatalf("%s since %s, before %s since %s", out.State, out.Since, before.State, before.Since)
			}
			if out.State == Isolated && (in.Direct || in.Gossip || in.Majority == haven.Yes) {
				t.Fatal("isolated, and sees somebody")
			}
			if out.Why == "" || out.Ask && (in.Direct || len(in.Addresses) == 0) {
				t.Fatalf("%+v", out)
			}
			seen[out.State]++
		}
	})
	for _, s := range []State{Connected, Alone, Partitioned, Isolated} {
		if seen[s] == 0 {
			t.Errorf("%s never came out", s)
		}
	}
}

func TestStep(t *testing.T) {
	start := time.Unix(1e9, 0)
	cut := Input{Majority: haven.No, Addresses: []string{"gw"}}
	// each is one step a second later, with the result of a ping that began a
	// second before.
	type step struct {
		result haven.Tri
		ping   bool
		change func(*Input)
		want   State
	}
	no, yes, unknown := step{result: haven.No, ping: true}, step{result: haven.Yes, ping: true}, step{result: haven.Unknown, ping: true}
	want := func(s step, w State) step { s.want = w; return s }
	with := func(s step, f func(*Input)) step { s.change = f; return s }
	silent := step{}
	// lasting is one step for each state that is wanted.
	lasting := func(f func(*Input), states ...State) (all []step) {
		for _, w := range states {
			all = append(all, want(with(silent, f), w))
		}
		return all
	}
	tests := []struct {
		name  string
		steps []step
		why   string
	}{
		{"somebody reports", []step{want(with(no, func(i *Input) { i.Direct = true }), Connected)}, "others answer"},
		{"gossip still has others", []step{want(with(no, func(i *Input) { i.Gossip = true }), Connected)}, "gossip"},
		{"the last of three, two proved dead", []step{want(with(silent, func(i *Input) { i.Majority = haven.Yes }), Connected)}, "majority"},
		{"isolated after the window", []step{want(silent, Alone), want(no, Alone), want(no, Alone), want(no, Isolated)}, "no isolation address answered for 3s: gw"},
		{"the gateway answers", []step{want(silent, Alone), want(yes, Partitioned)}, "gw answers"},
		{"its last answer counts for the window", []step{want(silent, Alone), want(yes, Partitioned), want(no, Partitioned), want(no, Partitioned), want(no, Isolated)}, ""},
		{"pings that began before the doubt do not count", []step{want(with(no, func(i *Input) { i.Direct = true }), Connected), want(yes, Alone)}, ""},
		{"gossip's delay was used", []step{
			want(with(silent, func(i *Input) { i.Gossip = true }), Connected), want(with(no, func(i *Input) { i.Gossip = true }), Connected),
			want(with(no, func(i *Input) { i.Gossip = true }), Connected), want(no, Isolated),
		}, ""},
		{"no permission: the old rule", lasting(func(i *Input) { i.Unusable = "no permission" }, Alone, Alone, Alone, Isolated), "no permission"},
		{"no gateway: the old rule", lasting(func(i *Input) { i.Addresses = nil }, Alone, Alone, Alone, Isolated), "no isolation address to ask"},
		{"one that cannot be asked: the old rule", []step{want(silent, Alone), want(unknown, Isolated)}, "cannot be asked: gw"},
		{"pings that never end", []step{want(silent, Alone), want(silent, Alone), want(silent, Alone), want(silent, Alone), want(silent, Alone), want(silent, Alone), want(silent, Isolated)}, "does not end"},
		{"another address answers", []step{
			want(with(silent, func(i *Input) { i.Addresses = []string{"gw", "gw-2"} }), Alone),
			want(with(no, func(i *Input) {
				i.Addresses = []string{"gw", "gw-2"}
				i.Pings = append(i.Pings, Ping{Address: "gw-2", Started: i.Pings[0].Started, Ended: i.Pings[0].Ended, Result: haven.Yes})
			}), Partitioned),
		}, "gw-2 answers"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var m Machine
			var out Output
			for i, s := range tt.steps {
				now := start.Add(time.Duration(i) * time.Second)
				in := cut
				if s.ping {
					in.Pings = []Ping{{Address: "gw", Started: now.Add(-time.Second), Ended: now, Result: s.result}}
				}
				if s.change != nil {
					s.change(&in)
				}
				if out = m.Step(now, in); out.State != s.want {
					t.Fatalf("step %d: %s (%s), want %s", i, out.State, out.Why, s.want)
				}
			}
			if !strings.Contains(out.Why, tt.why) {
				t.Errorf("why: %q, want %q", out.Why, tt.why)
			}
		})
	}
}
