package ipmi_test

import (
	"context"
	"errors"
	"log/slog"
	"sync/atomic"
	"testing"
	"time"

	"github.com/haven-ha/haven"
	"github.com/haven-ha/haven/fencing"
	"github.com/haven-ha/haven/fencing/ipmi/ipmitest"
)

// quickPolicy is the default one with less patience, so that the cases that
// end in nothing end soon.
func quickPolicy() fencing.Policy {
	p := fencing.DefaultPolicy()
	p.Resend, p.Sends, p.Settle, p.Total = 600*time.Millisecond, 3, time.Second, 15*time.Second
	p.RetryMax = 500 * time.Millisecond
	return p
}

// The whole way over the wire: what is proved off is off, unless the board
// itself lies; and a board that cannot be believed proves nothing.
func TestFenceOverTheWire(t *testing.T) {
	tests := []struct {
		name   string
		off    bool
		config func(*ipmitest.Config)
		faults func(*ipmitest.Faults)
		proved bool
		sent   int // at least
	}{
		{name: "sound", proved: true, sent: 1},
		{name: "off already", off: true, proved: true},
		{name: "off already and refuses to be switched off", off: true, faults: func(f *ipmitest.Faults) { f.RejectOff = true }, proved: true},
		{name: "status lags", faults: func(f *ipmitest.Faults) { f.Lag = 1500 * time.Millisecond }, proved: true, sent: 1},
		{name: "first command ignored", faults: func(f *ipmitest.Faults) { f.Ignore = 1 }, proved: true, sent: 2},
		{name: "status stuck at on", faults: func(f *ipmitest.Faults) { f.Stuck = haven.PowerOn }, sent: 3},
		{name: "all commands ignored", faults: func(f *ipmitest.Faults) { f.Ignore = 99 }, sent: 3},
		{name: "dead", faults: func(f *ipmitest.Faults) { f.Dead = true }},
		{name: "status busy for ever", faults: func(f *ipmitest.Faults) { f.StatusBusy = true }, sent: 3},
		{name: "no session free", faults: func(f *ipmitest.Faults) { f.RefuseSessions = true }},
		{name: "every thirteenth answer lost", faults: func(f *ipmitest.Faults) {
			var n atomic.Int32
			f.Rewrite = func(p []byte) [][]byte {
				if n.Add(1)%13 == 0 {
					return nil
				}
				return [][]byte{p}
			}
		}, proved: true, sent: 1},
		{name: "chassis relay fails", config: func(c *ipmitest.Config) { c.OnPower = func(bool) error { return errors.New("stuck") } }, sent: 3},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			b := board(t, func(c *ipmitest.Config) {
				c.Off = tt.off
				if tt.config != nil {
					tt.config(c)
				}
			})
			if tt.faults != nil {
				b.SetFaults(tt.faults)
			}
			d := driver(t, b.Addr(), hasty)
			p := quickPolicy()
			if tt.name == "dead" || tt.name == "no session free" {
				p.Total = 2500 * time.Millisecond
			}
			out, err := fencing.Execute(t.Context(), fencing.NewGate().Fence(d.Address(), d), p, nil, slog.New(slog.DiscardHandler))
			if err != nil || out.Proved != tt.proved || out.Sent < tt.sent || (tt.sent == 0 && out.Sent != 0) {
				t.Errorf("%v, %v\n%q", out, err, out.Steps)
			}
			if out.Proved && b.On() {
				t.Error("P2: proved off, and it is on")
			}
		})
	}
}

// What is read early is a proof only of a device that is known.
func TestEarlyReadingOverTheWire(t *testing.T) {
	b := board(t, nil)
	d := driver(t, b.Addr(), nil)
	trust := &fencing.Trust{}
	trust.Alive("boot", time.Now())
	trust.Read(wantPower(t, d, haven.PowerOn))
	id, ok := trust.Learned()
	if !ok {
		t.Fatal("nothing learned")
	}
	trust.Record(id)
	b.SetPower(false) // the power is cut
	judge := func() fencing.OffVerdict {
		early := fencing.NewOffProof(time.Now(), fencing.DefaultPolicy())
		for range 2 {
			time.Sleep(time.Until(early.NextReading(time.Now())))
			early.Step(d.Power(context.WithoutCancel(t.Context())))
		}
		return early.Verdict(time.Now(), trust)
	}
	if v := judge(); !v.Proved {
		t.Errorf("%+v", v)
	}
	if err := b.SetGUID([16]byte{0xbb}); err != nil {
		t.Fatal(err)
	}
	if v := judge(); v.Proved || !v.Off {
		t.Errorf("another board: %+v", v)
	}
}

func BenchmarkReading(b *testing.B) {
	bmc := board(b, nil)
	d := driver(b, bmc.Addr(), nil)
	for b.Loop() {
		if _, err := d.Power(context.Background()); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkOffToProof is the time from the decision to fence to the proof, on
// a board that obeys at once: read, off, and two readings 300 ms apart.
func BenchmarkOffToProof(b *testing.B) {
	bmc := board(b, nil)
	d := driver(b, bmc.Addr(), nil)
	for b.Loop() {
		bmc.SetPower(true)
		out, err := fencing.Execute(context.Background(), d, fencing.DefaultPolicy(), nil, slog.New(slog.DiscardHandler))
		if err != nil || !out.Proved {
			b.Fatal(out, err)
		}
	}
}
