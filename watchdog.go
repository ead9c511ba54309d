package haven

import (
	"slices"
	"time"
)

// Watchdog is what a host promises about its armed watchdog: when it has shown
// no life for Bound, the watchdog has reset it. Life is a report that a verified
// master acknowledged, counted from its sending, or a completed write of a beat to
// one of Stores, counted from its start. The zero value promises nothing.
type Watchdog struct {
	// Bound spans everything from the last life to the reset, the watchdog's own
	// timeout included. 0: no watchdog is armed.
	Bound time.Duration `json:"bound_ns,omitempty"`
	// Stores are the identities of the stores whose writes count, sorted.
	Stores []string `json:"stores,omitempty"`
}

// Armed says whether anything is promised.
func (w Watchdog) Armed() bool { return w.Bound > 0 }

// Equal says whether two promises are the same.
func (w Watchdog) Equal(o Watchdog) bool {
	return w.Bound == o.Bound && slices.Equal(w.Stores, o.Stores)
}
