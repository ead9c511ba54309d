package libvirt

import (
	"strconv"

	lv "github.com/digitalocean/go-libvirt"

	"github.com/haven-ha/haven"
)

// stateOf translates libvirt's state and reason (libvirt-domain.h). A state
// that this table does not know is unknown, and so counts as present.
func stateOf(s lv.DomainState, reason int32, active bool) (haven.VMState, string) {
	switch s {
	case lv.DomainRunning, lv.DomainBlocked:
		return haven.VMRunning, word(reason, "", "booted", "migrated", "restored", "from-snapshot", "unpaused",
			"migration-cancelled", "save-cancelled", "wakeup", "crashed", "postcopy", "postcopy-failed")
	case lv.DomainPaused:
		return haven.VMPaused, word(reason, "", "user", "migration", "save", "dump", "io-error", "watchdog",
			"from-snapshot", "shutting-down", "snapshot", "crashed", "starting-up", "postcopy", "postcopy-failed", "api-error")
	case lv.DomainPmsuspended:
		return haven.VMPaused, "pm-suspended"
	case lv.DomainShutdown:
		return haven.VMStopping, word(reason, "", "user")
	case lv.DomainShutoff:
		return haven.VMShutOff, word(reason, "", "shutdown", "destroyed", "crashed", "migrated", "saved", "failed",
			"from-snapshot", "daemon")
	case lv.DomainCrashed:
		if active {
			// Kept for a look by on_crash=preserve: its process is still there.
			return haven.VMPaused, "crashed"
		}
		return haven.VMCrashed, word(reason, "", "panicked")
	default:
		return haven.VMUnknown, "state " + strconv.Itoa(int(s))
	}
}

func word(i int32, words ...string) string {
	if i >= 0 && int(i) < len(words) {
		return words[i]
	}
	return "reason " + strconv.Itoa(int(i))
}
