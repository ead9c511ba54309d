package sim

import (
	"reflect"
	"time"
	"unsafe"

	"github.com/haven-ha/haven/internal/agent"
)

// answerLeft answers whoever still waits for a verification of a Raft that was
// shut down. Raft 1.8 leaves them waiting for ever when its main loop hung on
// the disk before and never comes back to them. A real process exits; here the
// bubble could not end. There is no door to this queue, hence the reflection.
func answerLeft(a *agent.Agent, after time.Duration) {
	pass(after)
	raft := field(field(reflect.ValueOf(a).Elem(), "election").Elem(), "raft").Elem()
	questions := field(raft, "verifyCh")
	for {
		q, ok := questions.TryRecv()
		if !ok {
			return
		}
		answer := field(q.Elem(), "errCh")
		if !answer.IsNil() {
			answer.TrySend(reflect.ValueOf(errGone))
		}
	}
}

// field reaches a field of a struct whether or not it is exported.
func field(v reflect.Value, name string) reflect.Value {
	f := v.FieldByName(name)
	return reflect.NewAt(f.Type(), unsafe.Pointer(f.UnsafeAddr())).Elem()
}
