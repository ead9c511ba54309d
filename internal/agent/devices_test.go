package agent

import (
	"errors"
	"fmt"
	"log/slog"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/haven-ha/haven"
	"github.com/haven-ha/haven/fencing"
	"github.com/haven-ha/haven/fencing/ipmi"
	"github.com/haven-ha/haven/fencing/ipmi/ipmitest"
	"github.com/haven-ha/haven/internal/config"
	"github.com/haven-ha/haven/internal/ledger"
	"github.com/haven-ha/haven/internal/netx"
	"github.com/haven-ha/haven/internal/notify"
	"github.com/haven-ha/haven/internal/obs"
)

// Each kind of failure is one news, with what to do about it; and what the boards
// are told shows that nothing was switched to find it out.
func TestWeakAccountIsFound(t *testing.T) {
	b, err := ipmitest.Start("127.0.0.1:0", ipmitest.Config{Accounts: []ipmitest.Account{
		{Name: "haven", Password: "s3cret", Privilege: ipmitest.Operator}, {Name: "viewer", Password: "s3cret", Privilege: ipmitest.User},
	}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = b.Close() })
	user, password := "haven", "s3cret"
	driver := func() fencing.Driver {
		d, err := ipmi.New(ipmi.Config{
			Net: netx.Real{}, Address: b.Addr(), Username: user, PacketTimeout: 50 * time.Millisecond, Attempts: 2,
			Password: func() (string, error) { return password, nil },
		})
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	a, n := telling()
	a.cfg = &config.Config{Hosts: map[haven.HostID]config.Host{"kvm-03": {ID: "kvm-03"}}}
	a.d.Fences = map[haven.HostID][][]FenceDevice{"kvm-03": {{{Name: "bmc", Key: "k", Address: "k"}}}}
	a.power, a.ledger = newPower(a.d.Fences), ledger.NewStore()
	a.reign.Store(&mastery{})
	m := obs.NewMetrics()
	a.countDevices(m)
	for _, tt := range []struct {
		name           string
		user, password string
		faults         func(*ipmitest.Faults)
		want           fencing.Failure
		kind, do       string // of the news; none when nothing changed
	}{
		{name: "sound", user: "haven", password: "s3cret"},
		{name: "wrong password", user: "haven", password: "wr0ng-pw", want: fencing.FailureAuth, kind: notify.KindDeviceBad, do: "password"},
		{name: "weak", user: "viewer", password: "s3cret", want: fencing.FailurePrivilege, kind: notify.KindDeviceBad, do: "OPERATOR"},
		{name: "sessions taken", user: "haven", password: "s3cret", faults: func(f *ipmitest.Faults) { f.RefuseSessions = true }, want: fencing.FailureBusy, kind: notify.KindDeviceBad, do: "session"},
		{name: "dead", user: "haven", password: "s3cret", faults: func(f *ipmitest.Faults) { f.Dead = true }, want: fencing.FailureUnreachable, kind: notify.KindDeviceBad, do: "address"},
		{name: "sound again", user: "haven", password: "s3cret", faults: func(f *ipmitest.Faults) { *f = ipmitest.Faults{} }, kind: notify.KindDeviceGood},
	} {
		t.Run(tt.name, func(t *testing.T) {
			user, password, n.events = tt.user, tt.password, nil
			if tt.faults != nil {
				b.SetFaults(func(f *ipmitest.Faults) { *f = ipmitest.Faults{}; tt.faults(f) })
			}
			a.tested(t.Context(), fencing.TestDevice(t.Context(), fencing.Device{Host: "kvm-03", Key: "k", Driver: driver()}, true))
			w := a.viewDevices("kvm-03", ledger.PowerTrust{}, time.Now())[0]
			if w.Failed != string(tt.want) || w.Tested.IsZero() || (tt.want == "") != (w.Power == haven.PowerOn) || (tt.want == "") != (w.Advice == "") {
				t.Errorf("%+v", w)
			}
			if strings.Contains(w.Detail, tt.password) && tt.want != "" {
				t.Errorf("the password is told: %s", w.Detail)
			}
			switch {
			case tt.kind == "" && len(n.events) > 0:
				t.Errorf("told %+v", n.events)
			case tt.kind != "" && (len(n.events) != 1 || n.events[0].Kind != tt.kind || !strings.Contains(n.events[0].Do, tt.do)):
				t.Errorf("told %+v, want %s with %q", n.events, tt.kind, tt.do)
			}
			page := httptest.NewRecorder()
			m.Handler().ServeHTTP(page, httptest.NewRequestWithContext(t.Context(), "GET", "/metrics", nil))
			ok := map[bool]int{true: 1}[tt.want == ""]
			for _, want := range []string{fmt.Sprintf(`haven_fence_device_ok{device="bmc",host="kvm-03"} %d`, ok), `haven_fence_device_test_age_seconds{device="bmc",host="kvm-03"} `} {
				if !strings.Contains(page.Body.String(), want) {
					t.Errorf("%s is not shown", want)
				}
			}
		})
	}
	if cmds := b.Commands(); len(cmds) > 0 {
		t.Errorf("the board was told %v", cmds)
	}
}

// A board that says another identity than its host, or the same as another host's
// board, is recorded as doubted; a master that has not read the boards yet keeps
// what the one before it found; and what an operator accepted is not doubted again.
func TestWrongBoardIsDoubted(t *testing.T) {
	const uuidA, uuidB = "a1234567-89ab-cdef-a123-456789abcd01", "b1234567-89ab-cdef-a123-456789abcd02"
	const guidA, guidB = "a123456789abcdefa123456789abcd01", "02cdab89674523a1efcdab89674523b1"
	fences := map[haven.HostID][][]FenceDevice{"a": {{{Name: "bmc", Key: "ka", Address: "ka"}}}, "b": {{{Name: "bmc", Key: "kb", Address: "kb"}}}}
	master := func() *Agent {
		return &Agent{d: Deps{Fences: fences}, cfg: &config.Config{}, power: newPower(fences), log: slog.New(slog.DiscardHandler)}
	}
	read := func(a *Agent, host haven.HostID, key, guid string) {
		a.power.take(host, key, fencing.Reading{State: haven.PowerOn, GUID: fencing.GUID(guid), Start: time.Now(), Finish: time.Now()})
	}
	s := ledger.New("c")
	learn := func(a *Agent) string {
		t.Helper()
		for _, c := range a.doubtLessons(s, a.doubts(s)) {
			if err := s.Apply(c, ledger.Position{}); err != nil {
				t.Fatal(err)
			}
		}
		if more := a.doubtLessons(s, a.doubts(s)); len(more) > 0 {
			t.Fatalf("it never ends: %+v", more)
		}
		return s.Hosts["a"].Power.Blocked() + " | " + s.Hosts["b"].Power.Blocked()
	}
	register := func(host haven.HostID, uuid string) {
		if err := s.Apply(ledger.RegisterHost{Host: host, Boot: haven.BootID(host) + "1", State: "s", Incarnation: 1, UUID: uuid}, ledger.Position{}); err != nil {
			t.Fatal(err)
		}
	}
	want := func(got string, parts ...string) {
		t.Helper()
		if len(parts) == 0 && got != " | " {
			t.Errorf("doubts: %s", got)
		}
		for _, part := range parts {
			if !strings.Contains(got, part) {
				t.Errorf("doubts: %s, want %q", got, part)
			}
		}
	}
	register("a", "")
	register("b", "")
	m1 := master()
	want(learn(m1)) // nothing was read, nothing is known
	read(m1, "a", "ka", guidB)
	want(learn(m1)) // a's firmware says nothing
	read(m1, "b", "kb", guidB)
	want(learn(m1), "also that of device kb of b", "also that of device ka of a")
	want(learn(master()), "also that of device kb of b", "also that of device ka of a") // it read nothing yet
	register("a", uuidA)
	register("b", uuidB)
	want(learn(m1), "is the UUID "+uuidB+" of b |") // b's is b's own, in another order of bytes
	if s.Hosts["b"].Power.Blocked() != "" {
		t.Errorf("b is doubted: %s", s.Hosts["b"].Power.Blocked())
	}
	read(m1, "a", "ka", guidA) // the address was corrected
	want(learn(m1))
	const odd = "00112233445566778899aabbccddeeff"
	read(m1, "a", "ka", odd)
	want(learn(m1), "its GUID "+odd+" is not the UUID "+uuidA+" of a")
	if err := s.Apply(ledger.LearnPower{Host: "a", By: "maria", Clears: 1, At: time.Now()}, ledger.Position{}); err != nil {
		t.Fatal(err)
	}
	want(learn(m1))
	m2 := master()
	read(m2, "a", "ka", odd)
	want(learn(m2)) // accepted, whoever is master
	read(m2, "a", "ka", guidB)
	want(learn(m2), "is the UUID "+uuidB)
	// The ledger remembers what a's board was when it was the right one. A master
	// that has not met the one that answers now takes nothing back (P7).
	if err := s.Apply(ledger.LearnPower{Host: "a", GUID: guidA}, ledger.Position{}); err != nil {
		t.Fatal(err)
	}
	want(learn(master()), "is the UUID "+uuidB)
}

// Two hosts' devices give one GUID, and nothing is known of the hosts. When an
// operator says that a's is a's own, b's is not b's: what is meant for b would power
// a off (P2). It may be that both are right, when he says so of both.
func TestAcceptedTwin(t *testing.T) {
	fences := map[haven.HostID][][]FenceDevice{"a": {{{Name: "bmc", Key: "ka", Address: "ka"}}}, "b": {{{Name: "bmc", Key: "kb", Address: "kb"}}}}
	a := &Agent{d: Deps{Fences: fences}, cfg: &config.Config{}, power: newPower(fences), ledger: ledger.NewStore()}
	s := ledger.New("c")
	apply := func(c ledger.Command) {
		t.Helper()
		if err := s.Apply(c, ledger.Position{}); err != nil {
			t.Fatal(err)
		}
	}
	for _, id := range []haven.HostID{"a", "b"} {
		apply(ledger.RegisterHost{Host: id, Boot: haven.BootID(id) + "1", State: "s", Incarnation: 1})
		a.power.take(id, "k"+string(id), fencing.Reading{State: haven.PowerOn, GUID: "00112233445566778899aabbccddeeff", Start: time.Now(), Finish: time.Now()})
	}
	for _, tt := range []struct {
		accept haven.HostID
		a, b   bool // doubted
	}{{"", true, true}, {"a", false, true}, {"b", false, false}} {
		if tt.accept != "" {
			apply(ledger.LearnPower{Host: tt.accept, By: "maria", Clears: 1, At: time.Now()})
		}
		for _, c := range a.doubtLessons(s, a.doubts(s)) {
			apply(c)
		}
		if got := s.Hosts["a"].Power.Blocked(); (got != "") != tt.a {
			t.Errorf("accepted %q: a: %q", tt.accept, got)
		}
		if got := s.Hosts["b"].Power.Blocked(); (got != "") != tt.b {
			t.Errorf("accepted %q: b: %q", tt.accept, got)
		}
	}
}

// A device that is configured for two hosts is nobody's: what is meant for the one
// would hit the other.
func TestSharedAddressBlocksFencing(t *testing.T) {
	fences := map[haven.HostID][][]FenceDevice{"a": {{{Key: "ka", Address: "x"}}}, "b": {{{Key: "kb", Address: "x"}}}, "c": {{{Key: "kc", Address: "y"}}}}
	a := &Agent{d: Deps{Fences: fences}, cfg: &config.Config{}, power: newPower(fences)}
	s := ledger.New("c")
	for _, host := range []haven.HostID{"a", "b", "c"} {
		if err := s.Apply(ledger.RegisterHost{Host: host, Boot: "b", State: "s", Incarnation: 1}, ledger.Position{}); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range a.doubtLessons(s, a.doubts(s)) {
		if err := s.Apply(c, ledger.Position{}); err != nil {
			t.Fatal(err)
		}
	}
	for host, want := range map[haven.HostID]string{"a": "also configured for b", "b": "also configured for a", "c": ""} {
		if got := s.Hosts[host].Power.Blocked(); !strings.Contains(got, want) || (want == "") != (got == "") {
			t.Errorf("%s: %q", host, got)
		}
	}
}

// The firmware's UUID is read where there is one, and nothing else is taken for one.
func TestSystemUUID(t *testing.T) {
	dir := t.TempDir()
	for text, want := range map[string]string{"A1234567-89AB-CDEF-A123-456789ABCD01\n": "a1234567-89ab-cdef-a123-456789abcd01", "Not Settable\n": "", "": ""} {
		path := filepath.Join(dir, "uuid")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if got := systemUUID(path); got != want {
			t.Errorf("%q: %q", text, got)
		}
	}
	if got := systemUUID(filepath.Join(dir, "absent")); got != "" {
		t.Errorf("absent: %q", got)
	}
}

// A weak account is news although the board was read: the reading counts.
func TestWeakButReadable(t *testing.T) {
	a, n := telling()
	a.power = newPower(map[haven.HostID][][]FenceDevice{"h": {{{Name: "bmc", Key: "k", Address: "k"}}}})
	a.reign.Store(&mastery{})
	now := time.Now()
	a.tested(t.Context(), fencing.TestResult{
		Host: "h", Key: "k", Reading: fencing.Reading{State: haven.PowerOn, Start: now, Finish: now},
		Weak: fmt.Errorf("%w: role ReadOnly", fencing.ErrPrivilege),
	})
	if is, _ := a.devices.get("k"); is.failure != fencing.FailurePrivilege || is.reading.State != haven.PowerOn {
		t.Errorf("%+v", is)
	}
	if len(n.events) != 1 || !strings.Contains(n.events[0].Text, "privilege") || a.power.path("h", now).State != "on" {
		t.Errorf("%+v, %+v", n.events, a.power.path("h", now))
	}
	if errors.Is(fencing.ErrUnreachable, fencing.ErrPrivilege) {
		t.Error("kinds are mixed up")
	}
}
