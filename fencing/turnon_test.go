package fencing_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/haven-ha/haven"
	"github.com/haven-ha/haven/fencing"
)

// A host is switched on by all its devices, and not more than once when they obey.
func TestTurnOn(t *testing.T) {
	for _, tt := range []struct {
		name   string
		a, b   faultRates
		on     bool // already
		permit error
		ok     bool
		sent   int // in all
	}{
		{name: "both obey", a: faultRates{effect: 2 * time.Second}, b: faultRates{effect: 3 * time.Second}, ok: true, sent: 2},
		{name: "it is on already", on: true, ok: true},
		{name: "one never answers", a: faultRates{}, b: faultRates{hang: 1}, ok: true, sent: 1},
		{name: "one has no effect", a: faultRates{}, b: faultRates{ignore: 1}, sent: 7},
		{name: "nobody answers", a: faultRates{hang: 1}, b: faultRates{fail: 1}},
		{name: "not permitted", permit: errors.New("maintenance")},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				gate := fencing.NewGate()
				a, b := newFake(1, tt.on, tt.a), newFake(2, tt.on, tt.b)
				ctx, cancel := context.WithTimeout(t.Context(), 55*time.Second)
				defer cancel()
				begin := time.Now()
				detail, err := fencing.TurnOn(ctx, [][]fencing.Rung{{rungOf("a", a, gate)}, {rungOf("b", b, gate)}}, func(context.Context) error { return tt.permit })
				if (err == nil) != tt.ok || detail == "" {
					t.Errorf("%q, %v", detail, err)
				}
				if got := a.sent + b.sent; got != tt.sent {
					t.Errorf("%d commands, want %d: %s", got, tt.sent, detail)
				}
				if took := time.Since(begin); took > time.Minute+fencing.DefaultPolicy().Session {
					t.Errorf("it took %s", took)
				}
				if tt.permit != nil && !errors.Is(err, fencing.ErrNotPermitted) {
					t.Errorf("not permitted: %v", err)
				}
			})
		})
	}
}

// lampFake is a device with a light, which notes what it is told.
type lampFake struct {
	*fake
	lights []time.Duration
	blinks int
	err    error
}

func (f *lampFake) Set(ctx context.Context, a haven.FenceAction, permit fencing.Permit) error {
	if err := permit.Check(ctx); err != nil {
		return err
	}
	f.blinks++
	return nil
}

func (f *lampFake) Light(ctx context.Context, length time.Duration, permit fencing.Permit) error {
	if err := permit.Check(ctx); err != nil {
		return err
	}
	if f.err == nil {
		f.lights = append(f.lights, length)
	}
	return f.err
}

// A light is timed and put out by the devices that can; without a length each does
// what it does by itself.
func TestBlink(t *testing.T) {
	length := func(d time.Duration) *time.Duration { return &d }
	no := errors.New("another leads")
	for _, tt := range []struct {
		name   string
		length *time.Duration
		lamps  []error // of each lamp; the last device has none
		permit error
		is     error
		detail string
		lights []time.Duration // of the first lamp
		blinks int
	}{
		{name: "no length", lamps: []error{nil}, lights: []time.Duration{fencing.BlinkFor}, detail: "lamp-0: blinks; plain: blinks"},
		{name: "no length, and it cannot be told one", lamps: []error{fencing.ErrUnsupported}, detail: "lamp-0: blinks; plain: blinks", blinks: 1},
		{name: "no length, and it does not answer", lamps: []error{fencing.ErrUnreachable}, detail: "lamp-0: device does not answer; plain: blinks"},
		{name: "for a time", length: length(30 * time.Second), lamps: []error{nil, nil}, lights: []time.Duration{30 * time.Second}, detail: "lamp-0: blinks for 30s; lamp-1: blinks for 30s; plain: not supported by the device: the driver neither times a light nor puts it out"},
		{name: "out", length: length(0), lamps: []error{nil}, lights: []time.Duration{0}, detail: "lamp-0: is put out; plain: not supported by the device: the driver neither times a light nor puts it out"},
		{name: "no device can", length: length(time.Second), is: fencing.ErrUnsupported, detail: "plain: not supported by the device: the driver neither times a light nor puts it out"},
		{name: "the one that could does not answer", length: length(0), lamps: []error{fencing.ErrUnreachable}, is: fencing.ErrUnreachable, detail: "lamp-0: device does not answer; plain: not supported by the device: the driver neither times a light nor puts it out"},
		{name: "not permitted", length: length(0), lamps: []error{nil}, permit: no, is: no, detail: "lamp-0: power command not permitted: another leads; plain: not supported by the device: the driver neither times a light nor puts it out"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			gate := fencing.NewGate()
			var level []fencing.Rung
			var first *lampFake
			for i, err := range tt.lamps {
				f := &lampFake{fake: newFake(1, true, faultRates{}), err: err}
				if i == 0 {
					first = f
				}
				r := rungOf(fmt.Sprintf("lamp-%d", i), f.fake, gate)
				r.Driver = gate.Fence(r.Name, f)
				level = append(level, r)
			}
			level = append(level, rungOf("plain", newFake(2, true, faultRates{}), gate))
			detail, err := fencing.Blink(t.Context(), [][]fencing.Rung{level}, tt.length, func(context.Context) error { return tt.permit })
			if detail != tt.detail || !errors.Is(err, tt.is) {
				t.Errorf("%q, %v", detail, err)
			}
			if first != nil && (!slices.Equal(first.lights, tt.lights) || first.blinks != tt.blinks) {
				t.Errorf("lights %v, blinks %d", first.lights, first.blinks)
			}
		})
	}
}
