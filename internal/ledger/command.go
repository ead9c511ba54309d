package ledger

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/haven-ha/haven"
)

// ErrRejected is returned when a command does not fit the state. The state is
// unchanged. A command that was applied before is not rejected.
var ErrRejected = errors.New("command rejected by the ledger")

func reject(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrRejected, fmt.Sprintf(format, args...))
}

// Command is one change of the ledger. All times in commands are stamps for
// people made by the master; no transition compares them with a clock.
type Command interface {
	kind() string
	apply(s *State, at Position) error
}

// Position is where in the replicated log a command stands.
type Position struct {
	Index uint64
	Term  uint64 // Raft term of the log entry
}

// Found names the cluster and raises the generation. Only a bootstrap or a
// restore by a named operator proposes it.
type Found struct {
	Cluster    string    `json:"cluster"`
	Generation uint64    `json:"generation"`
	By         string    `json:"by"`
	At         time.Time `json:"at"`
}

// RegisterHost records the boot and agent state with which a host takes part.
// A boot other than the recorded one ends the recorded one.
type RegisterHost struct {
	Host        haven.HostID      `json:"host"`
	Role        haven.Role        `json:"role"`
	Address     string            `json:"address"`
	Boot        haven.BootID      `json:"boot"`
	State       haven.StateID     `json:"state"`
	Incarnation haven.Incarnation `json:"incarnation"`
	// UUID is the system's own, or empty when it is not known.
	UUID string    `json:"uuid,omitempty"`
	At   time.Time `json:"at"`
}

// ReleaseHost says, by an operator's name, that a host need not be waited for
// after the generation was raised.
type ReleaseHost struct {
	Host haven.HostID `json:"host"`
	By   string       `json:"by"`
	At   time.Time    `json:"at"`
}

// LearnPower records what was learnt about a host's BMC.
type LearnPower struct {
	Host     haven.HostID `json:"host"`
	GUID     string       `json:"guid,omitempty"`
	Distrust string       `json:"distrust,omitempty"`
	// By is the operator who clears the distrust, and Clears the how-many-eth
	// time that is for this host.
	By     string    `json:"by,omitempty"`
	Reason string    `json:"reason,omitempty"`
	At     time.Time `json:"at,omitzero"`
	Clears uint64    `json:"clears,omitempty"`
}

// SetArmed switches recovery on or off.
type SetArmed struct {
	Armed  bool      `json:"armed"`
	Now    bool      `json:"now,omitempty"` // when disarming: nothing is finished first
	By     string    `json:"by"`
	Reason string    `json:"reason,omitempty"`
	At     time.Time `json:"at"`
}

// ProtectVM puts a VM under protection, or records its changed definition. The
// owner must have said, in its present boot, that it runs it.
type ProtectVM struct {
	VM         haven.VMID   `json:"vm"`
	Name       string       `json:"name"`
	Host       haven.HostID `json:"host"`
	Boot       haven.BootID `json:"boot"`
	MemoryMiB  uint64       `json:"memory_mib"`
	VCPUs      int          `json:"vcpus"`
	Definition Definition   `json:"definition"`
}

// ForgetVM ends the protection of a VM that its user undefined at its owner.
type ForgetVM struct {
	VM    haven.VMID  `json:"vm"`
	Epoch haven.Epoch `json:"epoch"`
}

// ObserveVM records what the owner says: that a user stopped the VM, that it
// runs after all, or that it is in migration.
type ObserveVM struct {
	VM        haven.VMID   `json:"vm"`
	Epoch     haven.Epoch  `json:"epoch"`
	Host      haven.HostID `json:"host"`
	Boot      haven.BootID `json:"boot"`
	Desired   Desired      `json:"desired"`
	Migrating bool         `json:"migrating"`
}

// MoveVM records that a VM runs on another host than its owner, which says that
// it is gone there: a live migration, or a start by hand.
type MoveVM struct {
	VM    haven.VMID   `json:"vm"`
	Epoch haven.Epoch  `json:"epoch"` // the present one; the move makes the next
	Host  haven.HostID `json:"host"`
	Boot  haven.BootID `json:"boot"`
	// Absent is the word of every other host that may have the VM.
	Absent []Absence `json:"absent"`
}

// FreeVM records that the owner's agent says that a VM is gone though its user
// wants it to run. By says how it came to be: by itself, which is
// FreedByGone or empty, or by a configured response.
type FreeVM struct {
	VM     haven.VMID   `json:"vm"`
	Epoch  haven.Epoch  `json:"epoch"`
	Host   haven.HostID `json:"host"`
	Boot   haven.BootID `json:"boot"`
	By     FreedBy      `json:"by,omitempty"`
	Detail string       `json:"detail"`
	At     time.Time    `json:"at"`
}

// HoldVM records why a VM is not started, or that nothing holds it any more.
type HoldVM struct {
	VM    haven.VMID  `json:"vm"`
	Epoch haven.Epoch `json:"epoch"`
	Hold  haven.Hold  `json:"hold"`
}

// CommitOrder gives a freed VM a new owner and a new epoch (P1).
type CommitOrder struct {
	Order  haven.Order `json:"order"`
	Absent []Absence   `json:"absent"`
	At     time.Time   `json:"at"`
}

// ReportOrder records what became of an order.
type ReportOrder struct {
	Report haven.OrderReport `json:"report"`
	Host   haven.HostID      `json:"host"` // that speaks
	At     time.Time         `json:"at"`
}

// OpenIncident begins the record of a host's trouble.
type OpenIncident struct {
	ID      haven.IncidentID `json:"id"`
	Host    haven.HostID     `json:"host"`
	Boot    haven.BootID     `json:"boot"`
	Verdict haven.Verdict    `json:"verdict"`
	// SuspectedAt is when the first path fell silent, by the master's clock.
	SuspectedAt time.Time `json:"suspected_at,omitzero"`
	Entry       Entry     `json:"entry"`
}

// NoteIncident adds to an incident: a step forward, a verdict, a hold, or just
// a line. The step never goes back, save from confirmed to suspected.
type NoteIncident struct {
	ID      haven.IncidentID `json:"id"`
	Step    haven.Step       `json:"step"` // empty: stays
	Verdict haven.Verdict    `json:"verdict,omitempty"`
	Hold    *haven.Hold      `json:"hold,omitempty"` // nil: stays; empty: nothing holds it
	// Response is what is begun on the host itself; empty: stays.
	Response string `json:"response,omitempty"`
	Entry    Entry  `json:"entry"` // What empty: no line
}

// BeginFence records a power command before it is sent.
type BeginFence struct {
	ID      haven.IncidentID `json:"id"`
	Attempt FenceAttempt     `json:"attempt"`
	// Manual says that the host, once fenced, waits for an operator's release.
	Manual bool `json:"manual,omitempty"`
}

// EndFence records that a fence attempt is over.
type EndFence struct {
	ID     haven.IncidentID `json:"id"`
	N      int              `json:"n"`
	Proved bool             `json:"proved"`
	Detail string           `json:"detail"`
	At     time.Time        `json:"at"`
}

// ProveDead records a proof: the host's boot is over and its VMs are free.
type ProveDead struct {
	ID    haven.IncidentID `json:"id"`
	Proof haven.Proof      `json:"proof"`
	Entry Entry            `json:"entry"`
	// Manual says that the host waits for an operator's release.
	Manual bool `json:"manual,omitempty"`
	// Force says that an operator gave the proof although something showed life, or
	// may have: nobody looked.
	Force bool `json:"force,omitempty"`
}

// CloseIncident ends an incident.
type CloseIncident struct {
	ID      haven.IncidentID `json:"id"`
	Outcome string           `json:"outcome"`
	Entry   Entry            `json:"entry"`
}

func (Found) kind() string           { return "found" }
func (RegisterHost) kind() string    { return "register-host" }
func (ReleaseHost) kind() string     { return "release-host" }
func (LearnPower) kind() string      { return "learn-power" }
func (SetArmed) kind() string        { return "set-armed" }
func (SetMaintenance) kind() string  { return "set-maintenance" }
func (RecordDecisions) kind() string { return "record-decisions" }
func (ProtectVM) kind() string       { return "protect-vm" }
func (ForgetVM) kind() string        { return "forget-vm" }
func (ObserveVM) kind() string       { return "observe-vm" }
func (MoveVM) kind() string          { return "move-vm" }
func (FreeVM) kind() string          { return "free-vm" }
func (HoldVM) kind() string          { return "hold-vm" }
func (CommitOrder) kind() string     { return "commit-order" }
func (ReportOrder) kind() string     { return "report-order" }
func (OpenIncident) kind() string    { return "open-incident" }
func (NoteIncident) kind() string    { return "note-incident" }
func (BeginFence) kind() string      { return "begin-fence" }
func (EndFence) kind() string        { return "end-fence" }
func (ProveDead) kind() string       { return "prove-dead" }
func (CloseIncident) kind() string   { return "close-incident" }

// Kind names a command for logs and transcripts.
func Kind(c Command) string { return c.kind() }

type envelope struct {
	Kind string          `json:"kind"`
	Body json.RawMessage `json:"body"`
}

// Encode writes commands as the data of one log entry. They are applied in
// order; one that is rejected does not stop the others.
func Encode(cmds ...Command) ([]byte, error) {
	env := make([]envelope, len(cmds))
	for i, c := range cmds {
		body, err := json.Marshal(c)
		if err != nil {
			return nil, fmt.Errorf("encode command %s: %w", c.kind(), err)
		}
		env[i] = envelope{c.kind(), body}
	}
	return json.Marshal(env)
}

// Decode reads what Encode wrote. It refuses unknown commands and fields, so
// that an old agent stops rather than diverges.
func Decode(data []byte) ([]Command, error) {
	var env []envelope
	if err := strictly(bytes.NewReader(data), &env); err != nil {
		return nil, fmt.Errorf("decode log entry: %w", err)
	}
	if env == nil {
		return nil, errors.New("decode log entry: no list of commands")
	}
	cmds := make([]Command, len(env))
	for i, e := range env {
		c, err := decodeOne(e)
		if err != nil {
			return nil, fmt.Errorf("decode command %d of log entry: %w", i+1, err)
		}
		cmds[i] = c
	}
	return cmds, nil
}

func decodeOne(e envelope) (Command, error) {
	switch e.Kind {
	case "found":
		return body[Found](e)
	case "register-host":
		return body[RegisterHost](e)
	case "release-host":
		return body[ReleaseHost](e)
	case "learn-power":
		return body[LearnPower](e)
	case "declare-watchdog":
		return body[DeclareWatchdog](e)
	case "set-armed":
		return body[SetArmed](e)
	case "set-maintenance":
		return body[SetMaintenance](e)
	case "record-decisions":
		return body[RecordDecisions](e)
	case "protect-vm":
		return body[ProtectVM](e)
	case "forget-vm":
		return body[ForgetVM](e)
	case "observe-vm":
		return body[ObserveVM](e)
	case "move-vm":
		return body[MoveVM](e)
	case "free-vm":
		return body[FreeVM](e)
	case "hold-vm":
		return body[HoldVM](e)
	case "commit-order":
		return body[CommitOrder](e)
	case "report-order":
		return body[ReportOrder](e)
	case "open-incident":
		return body[OpenIncident](e)
	case "note-incident":
		return body[NoteIncident](e)
	case "begin-fence":
		return body[BeginFence](e)
	case "end-fence":
		return body[EndFence](e)
	case "record-act":
		return body[RecordAct](e)
	case "release-fenced":
		return body[ReleaseFenced](e)
	case "doubt-devices":
		return body[DoubtDevices](e)
	case "begin-on":
		return body[BeginOn](e)
	case "end-on":
		return body[EndOn](e)
	case "prove-dead":
		return body[ProveDead](e)
	case "close-incident":
		return body[CloseIncident](e)
	}
	return nil, fmt.Errorf("unknown command %q", e.Kind)
}

func body[C Command](e envelope) (Command, error) {
	var c C
	if len(e.Body) == 0 || string(e.Body) == "null" {
		return nil, fmt.Errorf("%s: no body", e.Kind)
	}
	if err := strictly(bytes.NewReader(e.Body), &c); err != nil {
		return nil, fmt.Errorf("%s: %w", e.Kind, err)
	}
	return c, nil
}

// strictly reads one JSON value, all fields of which must be known, up to the
// end of the input.
func strictly(r io.Reader, into any) error {
	d := json.NewDecoder(r)
	d.DisallowUnknownFields()
	if err := d.Decode(into); err != nil {
		return err
	}
	switch _, err := d.Token(); {
	case errors.Is(err, io.EOF):
		return nil
	case err != nil:
		return fmt.Errorf("after the end: %w", err)
	}
	return errors.New("another value comes after the end")
}
