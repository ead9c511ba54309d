package haven

import (
	"cmp"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Policy says how one VM is treated. A field with its zero value says nothing:
// what counts then is the other source, and at last the default, see
// MergePolicies. A list that is empty but not nil says "none", and so takes back
// what a source of lower precedence said.
type Policy struct {
	Priority Priority `json:"priority,omitempty"`
	// AllowedHosts are the only hosts it may run on; none means all.
	AllowedHosts []HostID `json:"allowed_hosts,omitzero"`
	// PreferredHosts are tried before others, all alike.
	PreferredHosts []HostID     `json:"preferred_hosts,omitzero"`
	Groups         []Group      `json:"groups,omitzero"`
	StartAfter     []StartAfter `json:"start_after,omitzero"`
	// RestartsInPlace is how often in an hour it is started again where it
	// failed, before another host is tried: 0 to 100.
	RestartsInPlace *int              `json:"restarts_in_place,omitzero"`
	StorageLost     StorageLostPolicy `json:"storage_lost,omitempty"`
	Isolation       IsolationPolicy   `json:"isolation,omitempty"`
	IOError         IOErrorPolicy     `json:"io_error,omitempty"`
}

// Priority orders VMs that wait for a start.
type Priority string

// The priorities.
const (
	PriorityHighest Priority = "highest"
	PriorityHigh    Priority = "high"
	PriorityMedium  Priority = "medium"
	PriorityLow     Priority = "low"
	PriorityLowest  Priority = "lowest"
	PriorityOff     Priority = "off" // Haven does not start it
)

// Priorities lists all priorities, the first to start first.
func Priorities() []Priority {
	return []Priority{PriorityHighest, PriorityHigh, PriorityMedium, PriorityLow, PriorityLowest, PriorityOff}
}

// Rank is the place of a priority among Priorities, from 0. No word ranks as the
// default, a word that is not known last.
func (p Priority) Rank() int {
	if i := slices.Index(Priorities(), cmp.Or(p, DefaultPriority)); i >= 0 {
		return i
	}
	return len(Priorities())
}

// GroupRule says what holds among the VMs of a group.
type GroupRule string

// The rules of groups.
const (
	KeepTogether GroupRule = "keep-together" // all on one host
	KeepApart    GroupRule = "keep-apart"    // no two on one host
)

// GroupStrength says what a group's rule is worth.
type GroupStrength string

// The strengths of rules.
const (
	GroupStrict    GroupStrength = "strict"    // a VM rather stays down than that the rule is broken
	GroupPreferred GroupStrength = "preferred" // a VM rather runs than that the rule is kept
)

// Group is a VM's membership in a group. All VMs that name a group must say the
// same of it.
type Group struct {
	Name     string        `json:"name"` // 1 to 63 of A-Z a-z 0-9 . _ -
	Rule     GroupRule     `json:"rule"`
	Strength GroupStrength `json:"strength,omitempty"` // empty: preferred
}

// StartAfter makes a VM's start wait for another VM.
type StartAfter struct {
	VM    string    `json:"vm"`              // name or UUID
	Ready Readiness `json:"ready,omitempty"` // empty: running
	// TimeoutS is for how many seconds it is waited at most, from when the other
	// VM may start: 1 to 86400; 0 is DefaultStartTimeoutS.
	TimeoutS int `json:"timeout_s,omitempty"`
}

// Timeout is TimeoutS with the default in place.
func (a StartAfter) Timeout() int { return cmp.Or(a.TimeoutS, DefaultStartTimeoutS) }

// Readiness is the condition under which a VM that others wait for counts as
// ready: "running", "guest-agent", "tcp:PORT" or "delay:SECONDS".
type Readiness string

// The kinds of readiness.
const (
	ReadyRunning Readiness = "running"     // it executes
	ReadyAgent   Readiness = "guest-agent" // its guest agent answers
	ReadyTCP     Readiness = "tcp"         // a TCP port of it takes connections; followed by ":" and the port
	ReadyDelay   Readiness = "delay"       // it has run for a while; followed by ":" and seconds
)

// ReadinessKinds lists the kinds of readiness.
func ReadinessKinds() []Readiness {
	return []Readiness{ReadyRunning, ReadyAgent, ReadyTCP, ReadyDelay}
}

// Parse splits the condition into its kind and its number, which is the port of
// ReadyTCP, the seconds of ReadyDelay, and 0 otherwise. No word is ReadyRunning.
func (r Readiness) Parse() (kind Readiness, n int, err error) {
	name, number, has := strings.Cut(string(cmp.Or(r, ReadyRunning)), ":")
	limit := map[Readiness]int{ReadyTCP: 65535, ReadyDelay: maxDelayS}[Readiness(name)]
	n, bad := strconv.Atoi(number)
	switch kind = Readiness(name); {
	case !slices.Contains(ReadinessKinds(), kind) || !has && limit > 0:
		return "", 0, fmt.Errorf("%q is not one of running, guest-agent, tcp:PORT, delay:SECONDS", string(r))
	case limit == 0 && has:
		return "", 0, fmt.Errorf("%q: %s takes no number", string(r), kind)
	case limit > 0 && (bad != nil || n < 1 || n > limit || strconv.Itoa(n) != number):
		return "", 0, fmt.Errorf("%q: %s takes a number from 1 to %d", string(r), kind, limit)
	}
	return kind, n, nil
}

// StorageLostPolicy says what is done with a VM whose host lost its storage.
type StorageLostPolicy string

// The answers to lost storage. No word leaves it to the host's configuration.
const (
	StorageLostReport  StorageLostPolicy = "report"
	StorageLostRestart StorageLostPolicy = "restart-elsewhere"
)

// IsolationPolicy says what an isolated host does with a VM.
type IsolationPolicy string

// The answers to isolation. No word leaves it to the host's configuration.
const (
	IsolationLeave    IsolationPolicy = "leave"
	IsolationShutdown IsolationPolicy = "shutdown"
	IsolationPowerOff IsolationPolicy = "power-off"
)

// IOErrorPolicy says what is done with a VM that is paused on an I/O error.
type IOErrorPolicy string

// The answers to a pause on an I/O error.
const (
	IOErrorReport  IOErrorPolicy = "report"  // only that
	IOErrorResume  IOErrorPolicy = "resume"  // when its storage is back
	IOErrorRestart IOErrorPolicy = "restart" // elsewhere, after the old one is proved gone
)

// What holds when no source says anything.
const (
	DefaultPriority        = PriorityMedium
	DefaultRestartsInPlace = 3
	DefaultStartTimeoutS   = 600 // as long as vSphere HA waits for a dependency
	DefaultIOError         = IOErrorReport
	DefaultGroupStrength   = GroupPreferred
)

// The limits of a policy.
const (
	MaxPolicyHosts      = 256
	MaxPolicyGroups     = 32
	MaxPolicyStartAfter = 64

	maxRestartsInPlace = 100
	maxStartTimeoutS   = 24 * 60 * 60
	maxDelayS          = 60 * 60
	maxVMName          = 255
)

var groupPattern = regexp.MustCompile(`^[A-Za-z0-9._-]{1,63}$`)

// Validate returns all that is wrong with the policy, each error with the place
// as it is written in JSON, such as start_after[0].ready.
func (p Policy) Validate() error {
	var errs []error
	wrong := func(place, format string, args ...any) {
		errs = append(errs, fmt.Errorf("%s: %w", place, fmt.Errorf(format, args...)))
	}
	word(wrong, "priority", p.Priority, Priorities()...)
	word(wrong, "storage_lost", p.StorageLost, StorageLostReport, StorageLostRestart)
	word(wrong, "isolation", p.Isolation, IsolationLeave, IsolationShutdown, IsolationPowerOff)
	word(wrong, "io_error", p.IOError, IOErrorReport, IOErrorResume, IOErrorRestart)
	if n := p.RestartsInPlace; n != nil && (*n < 0 || *n > maxRestartsInPlace) {
		wrong("restarts_in_place", "%d is not from 0 to %d", *n, maxRestartsInPlace)
	}
	checkHosts(wrong, "allowed_hosts", p.AllowedHosts)
	checkHosts(wrong, "preferred_hosts", p.PreferredHosts)
	for i, h := range p.PreferredHosts {
		if len(p.AllowedHosts) > 0 && !slices.Contains(p.AllowedHosts, h) {
			wrong(fmt.Sprintf("preferred_hosts[%d]", i), "%s is not among the allowed hosts", h)
		}
	}
	p.checkGroups(wrong)
	p.checkStartAfter(wrong)
	return errors.Join(errs...)
}

type complain func(place, format string, args ...any)

func word[T ~string](wrong complain, place string, got T, known ...T) {
	if got == "" || slices.Contains(known, got) {
		return
	}
	names := make([]string, len(known))
	for i, k := range known {
		names[i] = string(k)
	}
	wrong(place, "%q is not one of %s", string(got), strings.Join(names, ", "))
}

func checkHosts(wrong complain, place string, hosts []HostID) {
	if len(hosts) > MaxPolicyHosts {
		wrong(place, "%d hosts, at most %d are taken", len(hosts), MaxPolicyHosts)
		return
	}
	for i, h := range hosts {
		at := fmt.Sprintf("%s[%d]", place, i)
		if _, err := ParseHostID(string(h)); err != nil {
			wrong(at, "%w", err)
		} else if slices.Contains(hosts[:i], h) {
			wrong(at, "%s is named twice", h)
		}
	}
}

func (p Policy) checkGroups(wrong complain) {
	if len(p.Groups) > MaxPolicyGroups {
		wrong("groups", "%d groups, at most %d are taken", len(p.Groups), MaxPolicyGroups)
		return
	}
	for i, g := range p.Groups {
		at := fmt.Sprintf("groups[%d]", i)
		if !groupPattern.MatchString(g.Name) {
			wrong(at+".name", "%q: want 1 to 63 of A-Z, a-z, 0-9, '.', '_' and '-'", g.Name)
		} else if slices.ContainsFunc(p.Groups[:i], func(o Group) bool { return o.Name == g.Name }) {
			wrong(at+".name", "%s is named twice", g.Name)
		}
		if g.Rule == "" {
			wrong(at+".rule", "is missing: %s or %s", KeepTogether, KeepApart)
		}
		word(wrong, at+".rule", g.Rule, KeepTogether, KeepApart)
		word(wrong, at+".strength", g.Strength, GroupStrict, GroupPreferred)
	}
}

func (p Policy) checkStartAfter(wrong complain) {
	if len(p.StartAfter) > MaxPolicyStartAfter {
		wrong("start_after", "%d VMs, at most %d are taken", len(p.StartAfter), MaxPolicyStartAfter)
		return
	}
	for i, a := range p.StartAfter {
		at := fmt.Sprintf("start_after[%d]", i)
		if complaint := vmNameComplaint(a.VM); complaint != "" {
			wrong(at+".vm", "%q %s", a.VM, complaint)
		} else if slices.ContainsFunc(p.StartAfter[:i], func(o StartAfter) bool { return o.VM == a.VM }) {
			wrong(at+".vm", "%s is named twice", a.VM)
		}
		kind, n, err := a.Ready.Parse()
		if err != nil {
			wrong(at+".ready", "%w", err)
		}
		if a.TimeoutS < 0 || a.TimeoutS > maxStartTimeoutS {
			wrong(at+".timeout_s", "%d is not from 1 to %d", a.TimeoutS, maxStartTimeoutS)
		} else if kind == ReadyDelay && n > a.Timeout() {
			wrong(at+".timeout_s", "%d s are over before the delay of %d s is", a.Timeout(), n)
		}
	}
}

// vmNameComplaint says what is wrong with the name or UUID of a VM.
func vmNameComplaint(s string) string {
	switch {
	case s == "":
		return "is empty"
	case len(s) > maxVMName:
		return fmt.Sprintf("is longer than %d bytes", maxVMName)
	case !utf8.ValidString(s) || strings.ContainsFunc(s, unicode.IsControl):
		return "has characters that no VM name has"
	case strings.TrimSpace(s) != s:
		return "begins or ends with a blank"
	}
	return ""
}

// PolicySource is where a value of a VM's policy comes from.
type PolicySource string

// The sources of a policy, the weakest first.
const (
	PolicyDefault  PolicySource = "default"
	PolicyMetadata PolicySource = "metadata" // the haven element in the VM's definition
	PolicyLedger   PolicySource = "ledger"   // what an operator set through Haven
)

// EffectivePolicy is what counts for a VM, and why.
type EffectivePolicy struct {
	Policy
	// From tells for each field, by its name in JSON, where it comes from.
	From map[string]PolicySource `json:"from"`
}

// MergePolicies takes each field from the ledger if that says something about
// it, else from the metadata, else the default. Lists are taken whole. A
// preferred host that the other source does not allow is left out: a preference
// is no reason to refuse a policy. The result shares no memory with either. For
// Isolation and StorageLost the default is no word: the host's configuration counts.
func MergePolicies(metadata, ledger Policy) EffectivePolicy {
	e := EffectivePolicy{From: map[string]PolicySource{}}
	from := func(field string, inLedger, inMetadata bool) (src *Policy) {
		switch {
		case inLedger:
			e.From[field] = PolicyLedger
			return &ledger
		case inMetadata:
			e.From[field] = PolicyMetadata
			return &metadata
		}
		e.From[field] = PolicyDefault
		return &Policy{}
	}
	m, l := &metadata, &ledger
	e.Priority = cmp.Or(from("priority", l.Priority != "", m.Priority != "").Priority, DefaultPriority)
	e.AllowedHosts = slices.Clone(from("allowed_hosts", l.AllowedHosts != nil, m.AllowedHosts != nil).AllowedHosts)
	e.PreferredHosts = slices.Clone(from("preferred_hosts", l.PreferredHosts != nil, m.PreferredHosts != nil).PreferredHosts)
	e.Groups = slices.Clone(from("groups", l.Groups != nil, m.Groups != nil).Groups)
	e.StartAfter = slices.Clone(from("start_after", l.StartAfter != nil, m.StartAfter != nil).StartAfter)
	restarts := DefaultRestartsInPlace
	if n := from("restarts_in_place", l.RestartsInPlace != nil, m.RestartsInPlace != nil).RestartsInPlace; n != nil {
		restarts = *n
	}
	e.RestartsInPlace = &restarts
	e.StorageLost = from("storage_lost", l.StorageLost != "", m.StorageLost != "").StorageLost
	e.Isolation = from("isolation", l.Isolation != "", m.Isolation != "").Isolation
	e.IOError = cmp.Or(from("io_error", l.IOError != "", m.IOError != "").IOError, DefaultIOError)
	if len(e.AllowedHosts) > 0 {
		e.PreferredHosts = slices.DeleteFunc(e.PreferredHosts, func(h HostID) bool { return !slices.Contains(e.AllowedHosts, h) })
	}
	for i := range e.Groups {
		e.Groups[i].Strength = cmp.Or(e.Groups[i].Strength, DefaultGroupStrength)
	}
	for i := range e.StartAfter {
		e.StartAfter[i].Ready = cmp.Or(e.StartAfter[i].Ready, ReadyRunning)
		e.StartAfter[i].TimeoutS = e.StartAfter[i].Timeout()
	}
	return e
}
