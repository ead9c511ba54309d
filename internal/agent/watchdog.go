package agent

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/haven-ha/haven"
	"github.com/haven-ha/haven/fencing/watchdog"
	"github.com/haven-ha/haven/internal/client"
	"github.com/haven-ha/haven/internal/notify"
	"github.com/haven-ha/haven/storagebeat"
)

// Watchdog is this host's watchdog device, and on which terms it is armed.
type Watchdog struct {
	// Terms are nil when none is configured. Then it is only disarmed, if an earlier
	// process of this boot left it armed.
	Terms *watchdog.Terms
	// Open opens a device, which starts or pets it.
	Open func(device string, takeOver bool) (WatchdogDevice, error)
	// Left is what an earlier process of this boot left, and Save keeps what this one
	// leaves; it is called by one goroutine.
	Left watchdog.Record
	Save func(watchdog.Record) error
	// Self names this process; Gone says whether another one has ended.
	Self watchdog.Record
	Gone func(pid int, started uint64) bool
}

// WatchdogDevice is an open device. It is used by one goroutine.
type WatchdogDevice interface {
	SetTimeout(t time.Duration) (time.Duration, error)
	Timeout() (time.Duration, error)
	Pet() error
	// MagicClose stops it, Close leaves it running.
	MagicClose() error
	Close() error
}

// dog keeps the watchdog. One goroutine, which waits for nothing but its turn,
// pets it; another one keeps the record and tells people. The methods of a nil dog
// are those of a host without one.
type dog struct {
	d        Watchdog
	host     haven.HostID
	boottime func() time.Duration
	keeper   *watchdog.Keeper

	wake   chan struct{} // something came in
	news   chan struct{} // there is a new output
	told   func()        // what reports say is new
	device WatchdogDevice

	out atomic.Pointer[watchdog.Output]
	// stepped is when that was, by the boot-time clock.
	stepped atomic.Int64
	// held is set while this host resets itself: then it is to end, be it by the dog.
	held atomic.Bool

	mu      sync.Mutex
	in      watchdog.Input
	changed chan struct{} // closed at each new output
}

// maxWatchdogNews bounds what may wait for the petting goroutine: what is left out
// is life that was not shown.
const maxWatchdogNews = 256

func newWatchdog(d *Watchdog, host haven.HostID, boottime func() time.Duration, told func()) *dog {
	if d == nil {
		return nil
	}
	k := &dog{
		d: *d, host: host, boottime: boottime, told: told, keeper: watchdog.NewKeeper(boottime(), d.Terms, d.Self, d.Left),
		wake: make(chan struct{}, 1), news: make(chan struct{}, 1), changed: make(chan struct{}),
	}
	k.publish(k.keeper.Step(boottime(), watchdog.Input{}))
	return k
}

// runWatchdog keeps the watchdog until the returned function is called, which waits
// for the end. An agent that takes its time to end is still petted, while the last
// life is young enough: its host must not be reset for that (P4).
func (a *Agent) runWatchdog(ctx context.Context) (end func()) {
	if a.dog == nil {
		return func() {}
	}
	ctx, stop := context.WithCancel(context.WithoutCancel(ctx))
	var both sync.WaitGroup
	both.Go(func() { a.dog.pet(ctx) })
	both.Go(func() { a.attendWatchdog(ctx) })
	return func() { stop(); both.Wait() }
}

// give puts something in for the petting goroutine.
func (k *dog) give(put func(in *watchdog.Input)) {
	k.mu.Lock()
	put(&k.in)
	if n := len(k.in.Heard); n > maxWatchdogNews {
		k.in.Heard = k.in.Heard[n-maxWatchdogNews:]
	}
	if n := len(k.in.Wrote); n > maxWatchdogNews {
		k.in.Wrote = k.in.Wrote[n-maxWatchdogNews:]
	}
	k.mu.Unlock()
	select {
	case k.wake <- struct{}{}:
	default:
	}
}

func (k *dog) take() watchdog.Input {
	k.mu.Lock()
	defer k.mu.Unlock()
	in := k.in
	k.in.Heard, k.in.Wrote = nil, nil
	return in
}

func (k *dog) publish(out watchdog.Output) {
	was := k.out.Swap(&out)
	k.stepped.Store(int64(k.boottime()))
	k.mu.Lock()
	close(k.changed)
	k.changed = make(chan struct{})
	k.mu.Unlock()
	select {
	case k.news <- struct{}{}:
	default:
	}
	if was != nil && !was.Declare.Equal(out.Declare) {
		k.told()
	}
}

// dogStuckAfter is how long one action of the device may take before people are told:
// the petting goroutine steps every second. A driver may wait for a board.
const dogStuckAfter = 4 * time.Second

// stuck says for how long the device has not come back from what was asked of it; 0
// while it does.
func (k *dog) stuck() time.Duration {
	if since := k.boottime() - time.Duration(k.stepped.Load()); since > dogStuckAfter {
		return since
	}
	return 0
}

// pet is the goroutine that has the device.
func (k *dog) pet(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	var done watchdog.Done
	alone := false
	for ctx.Err() == nil || done.Action != watchdog.Nothing {
		in := k.take()
		in.Done = done
		// Before the clock is read: what is gone by then pets no more.
		alone = alone || k.d.Left.PID == 0 || k.d.Gone(k.d.Left.PID, k.d.Left.Started)
		in.Alone = alone
		now := k.boottime()
		out := k.keeper.Step(now, in)
		k.publish(out)
		if done = (watchdog.Done{}); ctx.Err() == nil {
			done = k.act(out)
		}
		if done.Action != watchdog.Nothing {
			continue
		}
		timer.Reset(max(out.Next-now, time.Millisecond))
		select {
		case <-ctx.Done():
		case <-timer.C:
		case <-k.wake:
		}
	}
	if k.device != nil {
		_ = k.device.Close() // it goes on, for the next process
	}
}

// act does what a step asked for.
func (k *dog) act(out watchdog.Output) (done watchdog.Done) {
	done.Action = out.Do
	switch out.Do {
	case watchdog.Nothing:
	case watchdog.Open:
		if k.device, done.Err = k.d.Open(out.Device, out.TakeOver); done.Err == nil {
			done.Timeout, _ = k.device.Timeout() // 0: what is known stays
		}
	case watchdog.SetTimeout:
		done.Timeout, done.Err = k.device.SetTimeout(out.Timeout)
	case watchdog.Pet:
		if done.Err = errResetting; !k.held.Load() {
			done.Err = k.device.Pet()
		}
	case watchdog.Stop:
		done.Err = k.device.MagicClose()
		k.device = nil
	}
	return done
}

// wrote notes a completed beat.
func (k *dog) wrote(start time.Duration, b storagebeat.Beat) {
	k.give(func(in *watchdog.Input) {
		in.Wrote = append(in.Wrote, watchdog.Wrote{Store: b.Store.String(), Start: start, Said: b.Watchdog})
	})
}

// heard notes a master's answer to a report. Sent is a time before it was made.
func (k *dog) heard(sent time.Duration, asked haven.Watchdog, ack client.Ack) {
	if k == nil {
		return
	}
	k.give(func(in *watchdog.Input) {
		in.Heard = append(in.Heard, watchdog.Heard{Sent: sent, Asked: asked, Verified: ack.Verified.Duration(), Holds: ack.Watchdog})
	})
}

// declared is what reports say.
func (k *dog) declared() haven.Watchdog {
	if k == nil {
		return haven.Watchdog{}
	}
	return k.out.Load().Declare
}

// inBeat is what beats say.
func (k *dog) inBeat() time.Duration {
	if k == nil {
		return 0
	}
	return k.out.Load().Beat
}

// disarm has the device stopped, or takes that back. It does not wait.
func (k *dog) disarm(wanted bool) {
	if k != nil {
		k.give(func(in *watchdog.Input) { in.Disarm = wanted })
	}
}

// disarmLimit is how long a leave waits for the device to be stopped: for a report
// and its entry in the ledger, or for a beat.
const disarmLimit = 3 * time.Second

// disarmed waits until the device is stopped. The error says when it fires.
func (k *dog) disarmed(ctx context.Context) error {
	if k == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, disarmLimit)
	defer cancel()
	for {
		k.mu.Lock()
		changed := k.changed
		k.mu.Unlock()
		out := k.out.Load()
		if out.State == watchdog.Off {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			left := out.Record.Timeout // the end of this process is its last pet
			if out.State == watchdog.Silent || out.State == watchdog.Orphan {
				left = max(0, out.Resets-k.boottime())
			}
			return fmt.Errorf("the watchdog is still armed, since neither the ledger nor a store has the word that it will not be: this host is RESET in %s unless an agent runs here by then: %w",
				left.Round(time.Second), ctx.Err())
		}
	}
}

// attendWatchdog keeps the record in its file, and tells what goes wrong.
func (a *Agent) attendWatchdog(ctx context.Context) {
	k := a.dog
	var saved watchdog.Record
	var version uint64
	var last watchdog.Output
	var failing error
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	hangs := 0 // looks at a device that did not come back; after one, this process may have stood still
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			since := k.stuck()
			if hangs++; since == 0 {
				hangs = 0
			}
			if hangs == 2 {
				last.Trouble = stuckText(since) // The next output ends it.
				a.watchdogTrouble(fmt.Sprintf("the watchdog of %s: %s; its host is RESET when that lasts", a.d.Host, last.Trouble))
			}
			continue
		case <-k.news:
		}
		hangs = 0
		out := *k.out.Load()
		if out.Version != version || out.Life-saved.Life >= time.Second/2 {
			err := k.d.Save(out.Record)
			if err == nil {
				saved, version = out.Record, out.Version
				k.give(func(in *watchdog.Input) { in.Saved = version })
			} else if failing == nil {
				a.watchdogTrouble(fmt.Sprintf("the watchdog of %s is not armed, or not as it should be: %v", a.d.Host, err))
			}
			failing = err
		}
		a.tellWatchdog(&last, out)
	}
}

func stuckText(since time.Duration) string {
	return fmt.Sprintf("its device has not come back for %s, and is not petted", since.Round(time.Second))
}

// tellWatchdog tells what changed.
func (a *Agent) tellWatchdog(last *watchdog.Output, out watchdog.Output) {
	if out.State != last.State {
		a.log.Info("watchdog", "state", out.State, "device", out.Record.Device, "timeout", out.Record.Timeout, "silence", out.Record.Silence)
	}
	silent := func(s watchdog.State) bool { return s == watchdog.Silent || s == watchdog.Orphan }
	left := max(0, out.Resets-a.d.Boottime()).Round(time.Second)
	switch {
	case out.State == watchdog.Silent && last.State != watchdog.Silent:
		a.watchdogTrouble(fmt.Sprintf("%s has shown no life to the cluster for %s: its watchdog is not petted and RESETS it in %s, unless a master answers or a beat is written",
			a.d.Host, (a.d.Boottime() - out.Life).Round(time.Second), left))
	case out.State == watchdog.Orphan && last.State != watchdog.Orphan:
		a.log.Warn("an earlier process left the watchdog armed; it is taken over when there is life", "resets_in", left)
	case out.Trouble != "" && out.Trouble != last.Trouble:
		a.watchdogTrouble(fmt.Sprintf("the watchdog of %s: %s", a.d.Host, out.Trouble))
	case out.Trouble == "" && !silent(out.State) && (last.Trouble != "" || last.State == watchdog.Silent):
		a.log.Info("the watchdog is in order", "state", out.State)
		a.notify(notify.Event{
			Kind: notify.KindWatchdogWorks, Host: a.d.Host, Text: fmt.Sprintf("the watchdog of %s is in order (%s)", a.d.Host, out.State),
			ID: notify.NewID(notify.KindWatchdogWorks, string(a.d.Host), time.Now().UTC().Format(time.RFC3339)),
		})
	}
	*last = out
}

func (a *Agent) watchdogTrouble(text string) {
	a.log.Error("watchdog trouble", "trouble", text)
	a.notify(notify.Event{
		Kind: notify.KindWatchdogTrouble, Host: a.d.Host, Text: text,
		ID: notify.NewID(notify.KindWatchdogTrouble, string(a.d.Host), time.Now().UTC().Format(time.RFC3339)),
	})
}

// viewWatchdog is what people see of it; nil when none is configured or left.
func (a *Agent) viewWatchdog() *client.WatchdogView {
	if a.dog == nil {
		return nil
	}
	out := a.dog.out.Load()
	now := a.d.Boottime()
	v := &client.WatchdogView{State: string(out.State), Device: out.Record.Device, Declared: out.Record.Declared, Agreed: out.Agreed, Why: out.Trouble}
	if since := a.dog.stuck(); since > 0 {
		v.Why = stuckText(since)
	}
	if out.Life > 0 {
		v.LifeAge = client.MillisOf(now - out.Life)
	}
	if out.Resets > 0 {
		v.ResetsIn = client.MillisOf(max(0, out.Resets-now))
	}
	return v
}

// watchdogSentence is what is wrong with the watchdog; empty when nothing is.
func watchdogSentence(host haven.HostID, v *client.WatchdogView) string {
	switch {
	case v == nil:
		return ""
	case v.ResetsIn > 0:
		return fmt.Sprintf("This host, %s, shows the cluster no life: its watchdog RESETS it in %s.", host, v.ResetsIn.Duration().Round(time.Second))
	case v.Why != "":
		return fmt.Sprintf("The watchdog of this host, %s, is %s: %s.", host, v.State, v.Why)
	}
	return ""
}

// measureWatchdog puts it among the metrics.
func (a *Agent) measureWatchdog() {
	if a.dog == nil {
		return
	}
	a.d.Metrics.GaugeFunc("watchdog_armed", "1 while the host's watchdog is armed and petted.", func() float64 {
		if s := a.dog.out.Load().State; a.dog.stuck() == 0 && (s == watchdog.Armed || s == watchdog.Disarming) {
			return 1
		}
		return 0
	})
	a.d.Metrics.GaugeFunc("watchdog_life_age_seconds", "Age of the host's last life, as its watchdog counts it; -1 when there was none.", func() float64 {
		out := a.dog.out.Load()
		if out.Life == 0 {
			return -1
		}
		return (a.d.Boottime() - out.Life).Seconds()
	})
}
