//go:build race

package flight

import (
	"os"
	"runtime"
	"testing"
)

const underRace = true

// TestMain leaves one processor to the tests. In Go 1.26 all timers of a synctest
// bubble share one context of the race detector, which is used without a lock when
// goroutines look at timer channels at the same moment: with hundreds of goroutines
// the detector crashes now and then (SIGSEGV below runtime.(*timer).maybeRunChan).
func TestMain(m *testing.M) {
	runtime.GOMAXPROCS(1)
	os.Exit(m.Run())
}
