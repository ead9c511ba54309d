package sim

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/haven-ha/haven"
	"github.com/haven-ha/haven/internal/ledger"
)

// What says what an event is.
type What string

// The events beside those of the world, which keep their own words.
const (
	Fault      What = "fault"       // something was broken
	Heal       What = "heal"        // and mended again
	User       What = "user"        // somebody did something to a VM
	AgentUp    What = "agent-up"    // an agent's process begins
	AgentDown  What = "agent-down"  // and ends, however that came
	BMCOff     What = "bmc-off"     // a BMC took a power-off command
	BMCOn      What = "bmc-on"      // a power-on command
	BMCBlinks  What = "bmc-blinks"  // a command to blink
	DogFired   What = "watchdog"    // a machine's watchdog resets it
	PillObeyed What = "pill"        // a machine resets itself because of a pill
	BMCReadOff What = "bmc-reads"   // a BMC answered that power is off
	OrderSaved What = "order-saved" // an agent has an order on its disk
	StartCall  What = "start-call"  // an agent asks its VM manager for a start
	Commit     What = "commit"      // a command was applied by the first agent that did
	Said       What = "log"         // an agent's log
	Violated   What = "VIOLATION"   // the checker found a broken promise
)

// Event is one line of the transcript.
type Event struct {
	At      time.Duration
	What    What
	Host    haven.HostID // about whom
	By      haven.HostID // who did it, where that is somebody else
	Boot    haven.BootID
	VM      haven.VMID
	Order   haven.Order
	Index   uint64         // of a commit: of its log entry
	Command ledger.Command // of a commit
	Refused error          // of a commit: the ledger did not take it
	Text    string
}

func (e Event) String() string {
	by := ""
	if e.By != "" && e.By != e.Host {
		by = " by " + string(e.By)
	}
	return fmt.Sprintf("%9.3f  %-11s  %-8s  %s%s", e.At.Seconds(), e.What, e.Host, e.Text, by)
}

// transcript keeps what happened. The oldest lines of the log are dropped when
// there are too many; other events are not.
type transcript struct {
	mu     sync.Mutex
	events []Event
	logs   int
}

// maxLogs bounds the lines of agents' logs that are kept.
const maxLogs = 20000

func (t *transcript) add(e Event) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if e.What == Said {
		if t.logs++; t.logs > maxLogs {
			return
		}
	}
	t.events = append(t.events, e)
}

// String writes the transcript, with or without the agents' logs.
func (t *transcript) text(logs bool) string {
	t.mu.Lock()
	defer t.mu.Unlock()
	var b strings.Builder
	for _, e := range t.events {
		if e.What != Said || logs {
			b.WriteString(e.String())
			b.WriteByte('\n')
		}
	}
	return b.String()
}

// logHandler turns an agent's log into events.
type logHandler struct {
	c     *Cluster
	host  haven.HostID
	level slog.Level
	attrs string
}

func (h logHandler) Enabled(_ context.Context, l slog.Level) bool { return l >= h.level }

func (h logHandler) Handle(_ context.Context, r slog.Record) error {
	var b strings.Builder
	b.WriteString(r.Level.String()[:1] + " " + r.Message + h.attrs)
	r.Attrs(func(a slog.Attr) bool {
		b.WriteString(attrText(a))
		return true
	})
	text := strings.ReplaceAll(b.String(), "\n", " / ")
	if len(text) > 600 {
		text = text[:600] + "…"
	}
	h.c.trace.add(Event{At: h.c.Now(), What: Said, Host: h.host, Text: text})
	return nil
}

func attrText(a slog.Attr) string { return fmt.Sprintf(" %s=%v", a.Key, a.Value) }

func (h logHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	for _, a := range attrs {
		h.attrs += attrText(a)
	}
	return h
}

func (h logHandler) WithGroup(string) slog.Handler { return h }

// describe renders a command for a line.
func describe(cmd ledger.Command) string {
	text := ledger.Kind(cmd)
	switch c := cmd.(type) {
	case ledger.RegisterHost:
		text += fmt.Sprintf(" %s %s %s.%d", c.Host, c.Boot, c.State, c.Incarnation)
	case ledger.OpenIncident:
		text += fmt.Sprintf(" %s: %s", c.ID, c.Entry.What)
	case ledger.NoteIncident:
		hold := ""
		if c.Hold != nil {
			hold = " hold=" + c.Hold.Reason
		}
		text += fmt.Sprintf(" %s step=%s verdict=%s%s: %s", c.ID, c.Step, c.Verdict, hold, c.Entry.What)
	case ledger.BeginFence:
		text += fmt.Sprintf(" %s #%d of term %s", c.ID, c.Attempt.N, c.Attempt.Term)
	case ledger.EndFence:
		text += fmt.Sprintf(" %s #%d proved=%t %s", c.ID, c.N, c.Proved, c.Detail)
	case ledger.BeginOn:
		text += fmt.Sprintf(" %s of term %s", c.ID, c.On.Term)
	case ledger.EndOn:
		text += fmt.Sprintf(" %s failed=%t %s", c.ID, c.Failed, c.Detail)
	case ledger.ProveDead:
		text += fmt.Sprintf(" %s: %s %s %s: %s", c.ID, c.Proof.Kind, c.Proof.Host, c.Proof.Boot, c.Proof.Detail)
	case ledger.CloseIncident:
		text += fmt.Sprintf(" %s: %s", c.ID, c.Outcome)
	case ledger.ProtectVM:
		text += fmt.Sprintf(" %s at %s", c.Name, c.Host)
	case ledger.ObserveVM:
		text += fmt.Sprintf(" %s is %s at %s, migrating=%t", shortVM(c.VM), c.Desired, c.Host, c.Migrating)
	case ledger.ForgetVM:
		text += " " + shortVM(c.VM)
	case ledger.FreeVM:
		text += fmt.Sprintf(" %s at %s: %s", shortVM(c.VM), c.Host, c.Detail)
	case ledger.MoveVM:
		text += fmt.Sprintf(" %s to %s", shortVM(c.VM), c.Host)
	case ledger.HoldVM:
		text += fmt.Sprintf(" %s %s: %s", shortVM(c.VM), c.Hold.Reason, c.Hold.Detail)
	case ledger.CommitOrder:
		text += fmt.Sprintf(" %s epoch %d to %s, term %s", c.Order.Name, c.Order.Epoch, c.Order.Target, c.Order.Term)
	case ledger.ReportOrder:
		text += fmt.Sprintf(" %s epoch %d by %s: %s %s", shortVM(c.Report.VM), c.Report.Epoch, c.Host, c.Report.Status, c.Report.Detail)
	case ledger.DeclareWatchdog:
		text += fmt.Sprintf(" %s %s: %s, stores %v", c.Host, c.Boot, c.Watchdog.Bound, c.Watchdog.Stores)
	case ledger.LearnPower:
		text += fmt.Sprintf(" %s guid=%s distrust=%s by=%s", c.Host, c.GUID, c.Distrust, c.By)
	}
	return text
}

// shortVM names a simulated VM as people do.
func shortVM(id haven.VMID) string {
	n := strings.TrimLeft(string(id[max(0, len(id)-12):]), "0")
	return "vm" + n
}
