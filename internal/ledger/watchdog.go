package ledger

import (
	"slices"
	"time"

	"github.com/haven-ha/haven"
)

// Limits of what a host promises about its watchdog.
const (
	MaxWatchdogBound  = time.Hour
	MaxWatchdogStores = 64
)

// DeclareWatchdog records what a host promises about its watchdog in its present
// boot, as one of its reports asked. The host disarms, or goes beyond what it
// promised before, only when it was told that the ledger has it. So an older
// report must never undo what a newer one asked for.
type DeclareWatchdog struct {
	Host        haven.HostID      `json:"host"`
	Boot        haven.BootID      `json:"boot"`
	State       haven.StateID     `json:"state"`
	Incarnation haven.Incarnation `json:"incarnation"`
	// Number is that of the report among those of this incarnation.
	Number   uint64         `json:"number"`
	Watchdog haven.Watchdog `json:"watchdog,omitzero"`
}

func (DeclareWatchdog) kind() string { return "declare-watchdog" }

func (c DeclareWatchdog) apply(s *State, _ Position) error {
	if err := s.present(c.Host, c.Boot); err != nil {
		return err
	}
	h, w := s.Hosts[c.Host], c.Watchdog
	switch {
	case h.Role == haven.RoleWitness:
		return reject("host %s is a witness: it has no VMs to be reset for", c.Host)
	case h.State != c.State || h.Incarnation != c.Incarnation:
		return reject("host %s is registered as incarnation %d of agent state %s", c.Host, h.Incarnation, h.State)
	case c.Number < h.WatchdogAsked || c.Number == h.WatchdogAsked && !w.Equal(h.Watchdog):
		return reject("report %d of host %s asked already, this is %d", h.WatchdogAsked, c.Host, c.Number)
	case w.Bound < 0 || w.Bound > MaxWatchdogBound:
		return reject("a watchdog that resets after %s", w.Bound)
	case w.Armed() && len(w.Stores) == 0:
		return reject("a watchdog without a store whose beats show life")
	case !w.Armed() && len(w.Stores) > 0:
		return reject("stores of a watchdog that is not armed")
	case len(w.Stores) > MaxWatchdogStores || slices.Contains(w.Stores, ""):
		return reject("%d stores of a watchdog, or one without a name", len(w.Stores))
	case !slices.IsSorted(w.Stores) || len(slices.Compact(slices.Clone(w.Stores))) != len(w.Stores):
		return reject("stores of a watchdog that are not sorted, or name one twice")
	}
	h.Watchdog, h.WatchdogAsked = w, c.Number
	return nil
}

// unwatch takes a host's registration into account: a new boot has armed nothing,
// and another life of the agent counts its reports from the beginning.
func (h *Host) unwatch(c RegisterHost) {
	if h.Boot != c.Boot || c.Role == haven.RoleWitness {
		h.Watchdog = haven.Watchdog{}
	}
	if h.Boot != c.Boot || h.State != c.State || h.Incarnation != c.Incarnation {
		h.WatchdogAsked = 0
	}
}
