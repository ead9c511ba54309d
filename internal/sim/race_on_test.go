//go:build race

package sim_test

import (
	"os"
	"runtime"
	"testing"
)

// underRace says that the race detector runs, which makes everything about ten
// times as slow: samples are smaller then.
const underRace = true

// TestMain leaves one processor to the tests. In Go 1.26 all timers of a synctest
// bubble share one context of the race detector, which is used without a lock when
// goroutines look at timer channels at the same moment: with hundreds of goroutines
// the detector crashes now and then (SIGSEGV below runtime.(*timer).maybeRunChan).
func TestMain(m *testing.M) {
	runtime.GOMAXPROCS(1)
	os.Exit(m.Run())
}
