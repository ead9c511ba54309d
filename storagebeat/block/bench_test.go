package block

import (
	"fmt"
	"testing"

	haven "github.com/haven-ha/haven"
	"github.com/haven-ha/haven/storagebeat"
)

// What one interval of an agent costs in its child process, on a device that
// answers at once: one write and one reading of everybody, with 16 of 64 slots used.
func BenchmarkInterval(b *testing.B) {
	path := newDevice(b, testSize)
	id := made(b, path)
	s := open(b, path)
	host := func(i int) haven.HostID { return haven.HostID(fmt.Sprintf("kvm-%02d", i)) }
	for i := 1; i <= 16; i++ {
		write(b, s, beat(b, id, host(i), storagebeat.WriterAgent, uint16(i), 1))
		write(b, s, beat(b, id, host(i), storagebeat.WriterHelper, uint16(i), 1))
	}
	raw := beat(b, id, host(1), storagebeat.WriterAgent, 1, 2)
	for b.Loop() {
		write(b, s, raw)
		if got := len(slotsOf(b, s)); got != 32 {
			b.Fatal(got)
		}
	}
}
