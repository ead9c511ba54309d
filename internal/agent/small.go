package agent

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/haven-ha/haven"
	"github.com/haven-ha/haven/fencing"
	"github.com/haven-ha/haven/internal/config"
	"github.com/haven-ha/haven/internal/obs"
	"github.com/haven-ha/haven/internal/recovery"
	"github.com/haven-ha/haven/vmrestart"
)

// Times of the recovery machine that nobody needs to configure.
const (
	reportTroubleAfter = 3 * time.Second  // shorter ones are blips
	returnAfter        = 5 * time.Second  // of health, before an incident ends
	absenceAge         = 2 * time.Second  // of a host's word that it does not have a VM
	orderUnknownAfter  = 10 * time.Second // at a host that does not answer
)

func (a *Agent) recoveryConfig() recovery.Config {
	rc := recovery.Config{
		Action: a.cfg.Fencing.Action, Actions: map[haven.HostID]haven.FenceAction{}, Devices: map[haven.HostID]bool{},
		Cap:         fencing.Limit{Count: a.cfg.Fencing.Limit.Count, Window: a.cfg.Fencing.Limit.Window},
		HostCap:     fencing.Limit{Count: a.cfg.Fencing.Limit.PerHost.Count, Window: a.cfg.Fencing.Limit.PerHost.Window},
		ReportAfter: reportTroubleAfter, ReturnAfter: returnAfter, AbsenceAge: absenceAge, UnknownAfter: orderUnknownAfter,
		Limits:     vmrestart.PlanLimits{StartsPerHost: a.cfg.Restart.MaxStartsInFlight},
		ReserveMiB: uint64(a.cfg.Restart.MemoryReserveMiB), ProtectAll: a.cfg.Restart.Protect == "all",
		HoldAlarmAfter: a.cfg.Holds.AlarmAfter, HoldAlarmEvery: a.cfg.Holds.RepeatEvery,
		HostCaps: map[haven.HostID]fencing.Limit{}, ManualRelease: map[haven.HostID]bool{},
		StopsIsolated: map[haven.HostID]bool{}, StopsStorageLost: map[haven.HostID]bool{}, StorageLostDelay: a.cfg.Response.StorageLost.Delay,
	}
	for _, id := range a.cfg.HostIDs() {
		h, _ := a.cfg.Host(id)
		rc.Actions[id] = h.Fencing.Action
		rc.Devices[id] = len(a.d.Fences[id]) > 0 || h.Fencing.PoisonPill
		rc.HostCaps[id] = fencing.Limit{Count: h.Fencing.Limit.Count, Window: h.Fencing.Limit.Window}
		rc.ManualRelease[id] = a.manualRelease(id)
		rc.StopsIsolated[id] = h.Response.Isolation != config.IsolationLeave
		rc.StopsStorageLost[id] = h.Response.StorageLost == config.StorageLostRestart
	}
	return rc
}

// manualRelease says whether a host, once it was fenced, waits for an operator.
func (a *Agent) manualRelease(id haven.HostID) bool {
	h, _ := a.cfg.Host(id)
	return h.Fencing.Release == config.ReleaseManual
}

// loopWatch tells whether the judge loop keeps its own time: an agent that was
// stopped for a while must not judge others by what it did not hear (P6).
type loopWatch struct {
	mu     sync.Mutex
	next   time.Time
	lagged time.Time
}

// loopLag is how late a turn may be, and loopCalm for how long the loop must
// have been in time to be trusted again.
const (
	loopLag  = 500 * time.Millisecond
	loopCalm = 2 * time.Second
)

func (l *loopWatch) due(at time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.next = at
}

func (l *loopWatch) turned(begun, ended time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.next.IsZero() && begun.Sub(l.next) > loopLag || ended.Sub(begun) > loopLag {
		l.lagged = ended
	}
}

func (l *loopWatch) ok() haven.Tri {
	l.mu.Lock()
	defer l.mu.Unlock()
	return haven.TriOf(l.lagged.IsZero() || time.Since(l.lagged) > loopCalm)
}

// quiet logs what repeats once a minute for each key.
type quiet struct {
	mu   sync.Mutex
	last map[string]time.Time
}

// maxQuiet bounds the keys that are remembered.
const maxQuiet = 4096

func newQuiet() *quiet { return &quiet{last: map[string]time.Time{}} }

// level is Warn for what is news and Debug for what was said within a minute.
func (q *quiet) level(key string) slog.Level {
	q.mu.Lock()
	defer q.mu.Unlock()
	now := time.Now()
	if last, told := q.last[key]; told && now.Sub(last) < time.Minute {
		return slog.LevelDebug
	}
	if len(q.last) >= maxQuiet {
		clear(q.last)
	}
	q.last[key] = now
	return slog.LevelWarn
}

// metrics are the agent's own.
type metrics struct {
	verdicts *obs.Counter
	notices  *obs.Counter
}

func newMetrics(m *obs.Metrics) *metrics {
	return &metrics{
		verdicts: m.Counter("verdicts_total", "Changes of verdict, by the new verdict.", "verdict"),
		notices:  m.Counter("notices_total", "What the recovery told people, by kind.", "kind"),
	}
}

// tellPeople logs what operators should hear of, and notifies them.
func (a *Agent) tellPeople(n recovery.Notice) {
	a.metrics.notices.Inc(n.Kind)
	level := slog.LevelInfo
	if n.Alarm {
		level = slog.LevelWarn
	}
	a.log.Log(context.Background(), level, "notice", "kind", n.Kind, "host", n.Host, "vm", n.VM, "incident", n.Incident, "text", n.Text)
	a.notify(a.noticeEvent(n))
}
