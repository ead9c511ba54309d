package fencing_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

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
