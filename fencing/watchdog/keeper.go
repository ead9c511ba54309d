// Package watchdog is the host's side of the proof by time: it pets a watchdog
// device only while the host has shown life to the cluster, so that whoever knows
// when that was knows when the host was reset at the latest.
//
//   - Finder and Device are a thin driver of /dev/watchdog.
//   - Keeper decides; it is pure.
//   - Record and File hand the armed device over to the agent's next process.
package watchdog

import (
	"fmt"
	"slices"
	"time"

	"github.com/haven-ha/haven"
)

// Terms are those on which a device is kept.
type Terms struct {
	Device string
	// Timeout is the device's own (D). Silence is how long after the last life it
	// is still petted (T).
	Timeout, Silence time.Duration
}

// Bound is what a host may promise on these terms: from its last life to its reset.
//
// The last look that allows a pet comes within Silence of the last life. The pet
// itself can be late by a stall that the device survives, of less than Timeout. The
// kernel takes the close of a device for a pet, so a process that is ended, as late
// again, gives one more. Then the device counts its own Timeout.
func Bound(t Terms) time.Duration {
	b := t.Silence + 3*t.Timeout
	return (b + time.Millisecond - 1).Truncate(time.Millisecond)
}

// Times of a Keeper.
const (
	// forgetStore is how long after its last completed write a store is still
	// declared.
	forgetStore = time.Minute
	// retryOpen is the pause after a device that is off did not open; retrySoon the
	// one while it counts down.
	retryOpen = 10 * time.Second
	retrySoon = 100 * time.Millisecond
	// MinTimeout is the least timeout of a device that leaves room for the pets.
	MinTimeout = 2 * time.Second
)

// Action is what is to be done with the device.
type Action string

// The actions. Each is over, well or not, before the next step.
const (
	Nothing    Action = ""
	Open       Action = "open"
	SetTimeout Action = "set-timeout"
	Pet        Action = "pet"
	Stop       Action = "stop" // close by magic
)

// Heard is the answer of a master to one of this host's reports.
type Heard struct {
	// Sent is a time before the report was made, by the boot-time clock. Asked is
	// what it said.
	Sent  time.Duration
	Asked haven.Watchdog
	// Verified is how long before its answer the master began to verify that it
	// leads; negative when it did not.
	Verified time.Duration
	// Holds is what the ledger holds for this boot.
	Holds haven.Watchdog
}

// Wrote is a write of a beat that completed.
type Wrote struct {
	Store string
	Start time.Duration // by the boot-time clock, at the latest when the write began
	Said  time.Duration // the beat's word on the watchdog
}

// Done is how the last action ended.
type Done struct {
	Action  Action
	Timeout time.Duration // the device's own after Open and SetTimeout; 0 when it is unknown
	Err     error
}

// Input is what happened since the last step.
type Input struct {
	Heard []Heard
	Wrote []Wrote
	Done  Done
	// Disarm wants the device stopped, or not used: a clean stop, a shutdown.
	Disarm bool
	// Saved is the newest version of the record that is in the file.
	Saved uint64
	// Alone says that the process that left the record is gone with all its files.
	Alone bool
}

// State is how the watchdog stands.
type State string

// The states.
const (
	Off       State = "off"        // nothing is armed
	Armed     State = "armed"      // it runs and is petted
	Silent    State = "silent"     // it runs and is not petted: no life
	Disarming State = "disarming"  // it runs until the cluster knows that it will not
	Orphan    State = "left-armed" // it runs, and is not open here
)

// Output is what is to be done, and what is to be told.
type Output struct {
	Do     Action
	Device string // of Open
	// TakeOver says that the device runs already.
	TakeOver bool
	Timeout  time.Duration // of SetTimeout
	// Declare is for the next reports, Beat for the next beats.
	Declare haven.Watchdog
	Beat    time.Duration
	// Record must be in the file before anything that needs its Version is done.
	Record  Record
	Version uint64
	// Next is when to step again at the latest.
	Next time.Duration

	State State
	// Agreed says that the last answer of a master showed what is declared.
	Agreed bool
	// Life is the last life, if there was any.
	Life time.Duration
	// Resets is when the device fires at the latest unless life comes back; only
	// in the states silent and left-armed.
	Resets time.Duration
	// Trouble is what keeps the watchdog from being used, or from being petted.
	Trouble string
}

// Keeper decides about one host's watchdog in one boot. It belongs to one
// goroutine.
type Keeper struct {
	want    *Terms // nil: none is configured
	record  Record // as it should be in the file
	version uint64 // of the record
	saved   uint64 // what is in the file
	begun   time.Duration

	life   time.Duration
	alive  bool                     // there was life
	stores map[string]time.Duration // the last completed write to each
	says   map[string]bool          // whether that beat said that the watchdog is armed

	// The record names the process before this one until that is known to be gone.
	self    Record
	alone   bool
	mine    uint64        // the version that names this one
	opening uint64        // not 0: the version that must be saved before a device that is off is opened
	open    bool          // it is open here
	asked   time.Duration // the timeout that was asked of it here
	lastPet time.Duration

	// record.Standing is all that the ledger may hold. resolved says that the last
	// answer showed exactly what is asked for, which is asked since declaredAt.
	declaredAt time.Duration
	resolved   bool
	pending    haven.Watchdog // asked for as soon as the version pendingAt is saved
	pendingAt  uint64         // 0: nothing is pending

	disarming  bool
	disarmedAt time.Duration // since when beats say so
	told       bool          // a beat that says so was written where the cluster looks

	retryAt time.Duration
	failure string // of the last action
	refused string // why this device will never do
}

// NewKeeper starts from what an earlier process of this boot left, if any. Of self
// only the names of the boot and the process count. A nil want means that the
// configuration has no watchdog.
func NewKeeper(now time.Duration, want *Terms, self, left Record) *Keeper {
	k := &Keeper{want: want, record: left, version: 1, begun: now, declaredAt: now, stores: map[string]time.Duration{}, says: map[string]bool{}}
	k.self, k.record.Boot = self, self.Boot
	if left.Armed {
		k.life, k.alive = left.Life, true
		if want != nil && want.Device == left.Device {
			k.record.Silence = want.Silence
		}
	}
	return k
}

// Step takes in what happened and says what is to be done now.
func (k *Keeper) Step(now time.Duration, in Input) Output {
	k.saved = max(k.saved, in.Saved)
	k.finish(now, in.Done)
	k.leave(now, in.Disarm)
	for _, h := range in.Heard {
		k.hear(h)
	}
	for _, w := range in.Wrote {
		k.wrote(w)
	}
	k.declare(now)
	if in.Alone && !k.alone {
		k.alone, k.record.PID, k.record.Started = true, k.self.PID, k.self.Started
		k.changed()
		k.mine = k.version
	}
	out := Output{Do: Nothing, Next: now + time.Second}
	k.act(now, &out)
	k.describe(now, &out)
	return out
}

// changed notes that the record is not what is in the file.
func (k *Keeper) changed() { k.version++ }

// finish takes in how the last action ended.
func (k *Keeper) finish(now time.Duration, d Done) {
	if d.Action == Nothing {
		return
	}
	if d.Action == Stop { // the device is closed, well or not
		k.open = false
	}
	if d.Err != nil {
		k.failed(now, d)
		return
	}
	k.failure = ""
	switch d.Action {
	case Open, SetTimeout:
		k.opening, k.open = 0, true
		if d.Action == SetTimeout {
			k.record.Asked = k.asked
			k.changed()
		}
		if d.Timeout > 0 && d.Timeout != k.record.Timeout {
			k.record.Timeout = d.Timeout
			k.changed()
		}
		k.lastPet = now
	case Pet:
		k.lastPet = now
	case Stop:
		k.record.Armed = false
		k.changed()
	case Nothing:
	}
	if w := k.want; d.Action == SetTimeout && w != nil && (d.Timeout < MinTimeout || d.Timeout > 2*w.Timeout) {
		k.refused = fmt.Sprintf("%s has a timeout of %s where %s was asked for", w.Device, d.Timeout, w.Timeout)
	}
}

func (k *Keeper) failed(now time.Duration, d Done) {
	k.failure, k.retryAt = d.Err.Error(), now+retrySoon
	switch {
	case d.Action == Open && k.opening > 0: // it was off before
		k.retryAt = now + retryOpen
		k.opening, k.record.Armed = 0, false
		k.changed()
	case d.Action == SetTimeout && len(k.record.Standing) == 0:
		k.refused = k.failure
	}
}

// leave begins or ends a disarming. A longer timeout is a new arming too: what the
// device makes of it is known only afterwards.
func (k *Keeper) leave(now time.Duration, wanted bool) {
	r := &k.record
	wanted = wanted || k.want == nil || k.refused != "" || r.Armed && (r.Device != k.want.Device || r.Asked < k.want.Timeout)
	if wanted && !k.disarming {
		k.disarmedAt, k.told = now, false
	}
	k.disarming = wanted
	if wanted && k.opening > 0 {
		k.opening, r.Armed = 0, false
		k.changed()
	}
}

// hear takes in a master's answer.
func (k *Keeper) hear(h Heard) {
	if h.Verified >= 0 {
		k.lived(h.Sent - h.Verified)
	}
	r := &k.record
	current := h.Sent >= k.declaredAt && h.Asked.Equal(r.Declared)
	switch {
	case current && h.Holds.Equal(r.Declared) && k.pendingAt == 0:
		if k.resolved && len(r.Standing) <= 1 {
			break
		}
		k.resolved, r.Standing = true, nil
		if r.Declared.Armed() {
			r.Standing = []haven.Watchdog{r.Declared}
		}
		k.changed()
	case h.Holds.Armed():
		// It binds, also when nobody here remembers it.
		k.binds(h.Holds)
	}
	if current && !h.Holds.Equal(r.Declared) {
		k.resolved = false
	}
}

// binds adds a promise to those that the ledger may hold.
func (k *Keeper) binds(w haven.Watchdog) {
	if !slices.ContainsFunc(k.record.Standing, w.Equal) {
		k.record.Standing = append(slices.Clone(k.record.Standing), w)
		k.changed()
	}
}

// wrote takes in a completed beat.
func (k *Keeper) wrote(w Wrote) {
	if w.Start >= k.stores[w.Store] {
		k.stores[w.Store], k.says[w.Store] = w.Start, w.Said > 0
	}
	if !k.counts(w.Store) {
		return
	}
	k.lived(w.Start)
	if k.disarming && w.Said == 0 && w.Start >= k.disarmedAt && len(k.record.Standing) > 0 {
		k.told = true
	}
}

// counts says whether a write to the store is life: it must be so in all that the
// ledger may hold.
func (k *Keeper) counts(store string) bool {
	return !slices.ContainsFunc(k.record.Standing, func(s haven.Watchdog) bool { return !slices.Contains(s.Stores, store) })
}

func (k *Keeper) lived(at time.Duration) {
	if !k.alive || at > k.life {
		k.life, k.alive = at, true
	}
}

// silence is for how long after the last life the device is petted: as configured,
// and never so long that a promise would be broken.
func (k *Keeper) silence() time.Duration {
	t := k.record.Silence
	for _, s := range k.record.Standing {
		t = min(t, s.Bound-Bound(Terms{Timeout: k.record.Timeout}))
	}
	return t
}

func (k *Keeper) fresh(now time.Duration) bool { return k.alive && now-k.life < k.silence() }

// declare decides what to ask the ledger for. What binds is on the record before
// it is asked for.
func (k *Keeper) declare(now time.Duration) {
	ask := func(w haven.Watchdog) {
		k.record.Declared, k.declaredAt, k.resolved, k.pendingAt = w, now, false, 0
		k.changed()
	}
	next := k.promise(now)
	switch {
	case !next.Armed():
		if k.record.Declared.Armed() || k.pendingAt > 0 {
			ask(next)
		}
	case k.pendingAt > 0:
		if k.saved >= k.pendingAt {
			ask(k.pending)
		}
	case !next.Equal(k.record.Declared) && (k.resolved || !k.record.Declared.Armed()):
		k.binds(next)
		k.pending, k.pendingAt = next, k.version
	}
}

// promise is what the ledger should hold.
func (k *Keeper) promise(now time.Duration) haven.Watchdog {
	r := &k.record
	switch {
	case k.disarming || !r.Armed || k.opening > 0:
		return haven.Watchdog{}
	case !k.open || !k.settled():
		return r.Declared
	}
	var stores []string
	for id, at := range k.stores {
		// One whose last beat is from before the arming would contradict the promise.
		if now-at <= forgetStore && (k.says[id] || slices.Contains(r.Declared.Stores, id)) {
			stores = append(stores, id)
		}
	}
	if now-k.begun <= forgetStore || len(stores) == 0 {
		stores = append(stores, r.Declared.Stores...)
	}
	slices.Sort(stores)
	stores = slices.Compact(stores)
	if len(stores) == 0 {
		return haven.Watchdog{}
	}
	return haven.Watchdog{Bound: Bound(Terms{Timeout: r.Timeout, Silence: r.Silence}), Stores: stores}
}

// settled says whether the device has the timeout that is wanted, or what it makes
// of it.
func (k *Keeper) settled() bool {
	return k.record.Timeout == k.want.Timeout || k.asked == k.want.Timeout
}

// act decides about the device.
func (k *Keeper) act(now time.Duration, out *Output) {
	r := &k.record
	switch {
	case now < k.retryAt:
		out.Next = min(out.Next, k.retryAt)
	case !r.Armed || k.opening > 0:
		if !k.disarming {
			k.arm(now, out)
		}
	case !k.open: // it counts down
		if k.ready() && k.fresh(now) {
			out.Do, out.Device, out.TakeOver = Open, r.Device, true
		}
		out.Next = now + retrySoon
	case k.disarming && (len(r.Standing) == 0 || k.told):
		out.Do = Stop
	case !k.fresh(now):
		out.Next = now + retrySoon
	case !k.disarming && !k.settled():
		out.Do, out.Timeout = SetTimeout, k.want.Timeout
		k.asked = k.want.Timeout
	default:
		pause := min(r.Timeout/4, time.Second)
		if now-k.lastPet >= pause {
			out.Do = Pet
		}
		out.Next = max(now+pause/4, k.lastPet+pause)
	}
}

// ready says that no other process can pet the device any more, and that the next
// one will wait for the end of this one.
func (k *Keeper) ready() bool { return k.alone && k.saved >= k.mine }

// arm opens a device that is off. Nothing may be declared of it then, not even by
// mistake.
func (k *Keeper) arm(now time.Duration, out *Output) {
	r := &k.record
	if !k.ready() || !k.resolved || r.Declared.Armed() || len(r.Standing) > 0 || len(k.stores) == 0 || !k.alive || now-k.life >= k.want.Silence {
		return
	}
	if k.opening == 0 {
		r.Armed, r.Device, r.Asked, r.Timeout, r.Silence = true, k.want.Device, k.want.Timeout, k.want.Timeout, k.want.Silence
		k.changed()
		k.opening = k.version
	}
	if k.saved >= k.opening {
		out.Do, out.Device = Open, r.Device
	}
}

// describe says how things stand.
func (k *Keeper) describe(now time.Duration, out *Output) {
	r := &k.record
	r.Life = k.life
	out.Record, out.Version, out.Declare, out.Agreed, out.Life = *r, k.version, r.Declared, k.resolved, k.life
	out.Trouble = k.refused
	if out.Trouble == "" {
		out.Trouble = k.failure
	}
	bound := Bound(Terms{Timeout: r.Timeout, Silence: r.Silence})
	if r.Armed && k.opening == 0 && !k.disarming {
		out.Beat = bound
	}
	switch {
	case !r.Armed || k.opening > 0:
		out.State = Off
	case !k.open:
		out.State, out.Resets = Orphan, k.life+bound
	case !k.fresh(now):
		out.State, out.Resets = Silent, k.lastPet+r.Timeout
	case k.disarming:
		out.State = Disarming
	default:
		out.State = Armed
	}
}
