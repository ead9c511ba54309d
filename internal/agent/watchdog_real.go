package agent

import (
	"fmt"

	"github.com/haven-ha/haven"
	"github.com/haven-ha/haven/fencing/watchdog"
)

// handoverFile is where the agent's next process finds what this one left armed. It
// is in memory, and its directory outlives the agent: RuntimeDirectoryPreserve in
// the unit.
const handoverFile = "/run/haven/watchdog"

// openWatchdog makes this host's watchdog; nil when none is configured and none
// was left armed. The device itself stays closed: opening it starts it.
func (r Real) openWatchdog(boot haven.BootID) (*Watchdog, error) {
	host, _ := r.Config.Host(r.Host)
	w := host.Fencing.Watchdog
	file := watchdog.File(handoverFile)
	left, err := file.Load(boot)
	if err != nil {
		// Then nothing is opened before the ledger holds no promise of this boot.
		r.Log.Error("what an earlier process may have left of the watchdog is not known", "error", err)
	}
	if w.Device == "" && !left.Armed {
		return nil, nil
	}
	pid, started, err := watchdog.Process()
	if err != nil {
		return nil, fmt.Errorf("find out when this process started: %w", err)
	}
	finder := watchdog.Finder{AllowSoft: w.AllowSoftdog}
	d := &Watchdog{
		Open: func(device string, takeOver bool) (WatchdogDevice, error) {
			dev, err := finder.Open(device, takeOver)
			if err != nil {
				return nil, err
			}
			return dev, nil
		},
		Left: left, Save: file.Save, Self: watchdog.Record{Boot: boot, PID: pid, Started: started}, Gone: watchdog.Gone,
	}
	if w.Device != "" {
		d.Terms = &watchdog.Terms{Device: w.Device, Timeout: w.Timeout, Silence: w.Silence}
	}
	return d, nil
}
