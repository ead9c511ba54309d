package redfish

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/haven-ha/haven"
	"github.com/haven-ha/haven/fencing"
	"github.com/haven-ha/haven/internal/netx"
)

// canned is a network whose every connection says the same bytes.
type canned struct {
	netx.Stack
	answer []byte
}

func (c canned) DialContext(context.Context, string, string) (net.Conn, error) {
	return &cannedConn{answer: bytes.NewReader(c.answer)}, nil
}

type cannedConn struct {
	net.Conn
	answer *bytes.Reader
}

func (c *cannedConn) Read(p []byte) (int, error)    { return c.answer.Read(p) }
func (c *cannedConn) Write(p []byte) (int, error)   { return len(p), nil }
func (c *cannedConn) Close() error                  { return nil }
func (c *cannedConn) SetDeadline(t time.Time) error { return nil }

// plainly reads a body with a dumb second reader: off is a property of exactly
// that name with exactly that value.
func plainly(body []byte) (any, bool) {
	var m map[string]any
	if json.Unmarshal(body, &m) != nil {
		return nil, false
	}
	state, ok := m["PowerState"]
	return state, ok
}

// FuzzSystem: whatever a board sends as its system, only On and Off are states.
func FuzzSystem(f *testing.F) {
	for _, s := range []string{
		`{"@odata.type":"#ComputerSystem.v1_13_0.ComputerSystem","PowerState":"Off","UUID":"a1234567-89ab-cdef-a123-456789abcd01"}`,
		`{"@odata.type":"#ComputerSystem.v1_13_0.ComputerSystem","PowerState":"PoweringOff","powerstate":"Off"}`,
		`{"@odata.type":"#ComputerSystem.v1_13_0.ComputerSystem","powerState":"Off"}`,
		`{"@odata.type":"#ComputerSystem.v1_13_0.ComputerSystem","PowerState":null,"IndicatorLED":"Lit","Actions":{"#ComputerSystem.Reset":{"target":"/redfish/v1/x"}}}`,
		`{"@odata.type":"#Chassis.v1_13_0.Chassis","PowerState":"Off"}`, `null`, `[]`, `{"PowerState":{"Off":1}}`, `"Off"`, ``,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		sys := &system{path: root}
		a := &answer{body: body}
		err := a.decode(sys)
		if err == nil {
			err = sys.check()
		}
		if err != nil {
			if !errors.Is(err, fencing.ErrBusy) && !errors.Is(err, fencing.ErrUnsupported) && !errors.Is(err, fencing.ErrNoState) {
				t.Errorf("err = %v", err)
			}
			return
		}
		state, err := sys.power()
		want, ok := plainly(body)
		if ok && want == "Off" != (state == haven.PowerOff) || !ok && state != haven.PowerUnknown || ok && want == "On" != (state == haven.PowerOn) {
			t.Errorf("%s: %s, %v; the plain reader has %v, %v", body, state, err, want, ok)
		}
		if (err == nil) == (state == haven.PowerUnknown) {
			t.Errorf("%s with error %v", state, err)
		}
		if p, err := localPath(sys.Actions.Reset.Target); err == nil && !strings.HasPrefix(p, root) {
			t.Errorf("path %q", p)
		}
		_, _ = sys.light.blinking(), sys.light.dark()
		_ = a.task()
		for _, id := range messageIDs(body, "secret") {
			if !idForm.MatchString(id) || strings.Contains(id, "secret") {
				t.Errorf("message id %q", id)
			}
		}
	})
}

// FuzzAnswer: whatever bytes come back, a call ends, and says off only where the
// answer's body does.
func FuzzAnswer(f *testing.F) {
	off := `{"@odata.type":"#ComputerSystem.v1_13_0.ComputerSystem","PowerState":"Off"}`
	for _, s := range []string{
		"HTTP/1.1 200 OK\r\nContent-Length: 75\r\n\r\n" + off,
		"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + off,
		"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n" + off,
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4b\r\n" + off + "\r\n0\r\n\r\n",
		"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 503 no\r\nRetry-After: 0\r\nContent-Length: 0\r\n\r\n",
		"HTTP/1.1 307 x\r\nLocation: /redfish/v1/Systems/2\r\nContent-Length: 0\r\n\r\n",
		"HTTP/1.1 401 no\r\nContent-Length: 0\r\n\r\n", "HTTP/1.1 200 OK\r\n", "", "\r\n\r\n", "HTTP/1.1 101 x\r\n\r\n",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		d, err := New(Config{
			Net: canned{answer: data}, Address: "127.0.0.1", Username: "u", Login: LoginBasic, Plain: true, System: root + "/Systems/1",
			Password: func() (string, error) { return "p", nil }, Timeout: time.Second,
		})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		r, err := d.Power(ctx)
		if (err == nil) == (r.State == haven.PowerUnknown) {
			t.Errorf("%s with error %v", r.State, err)
		}
		if r.State == haven.PowerOff && !bytes.Contains(data, []byte("Off")) && !bytes.Contains(data, []byte(`\u`)) && !bytes.Contains(data, []byte("chunked")) {
			t.Errorf("off from %q", data)
		}
	})
}

func TestAnswersThatAreNone(t *testing.T) {
	tests := []struct {
		name, answer string
		want         error
	}{
		{"nothing", "", fencing.ErrUnreachable},
		{"no HTTP", "SSH-2.0-OpenSSH_9.2\r\n", fencing.ErrUnreachable},
		{"endless head", "HTTP/1.1 200 OK\r\nX: " + strings.Repeat("x", 1<<20), fencing.ErrUnsupported},
		{"endless heads", strings.Repeat("HTTP/1.1 100 Continue\r\n\r\n", 100), fencing.ErrUnsupported},
		{"endless body", "HTTP/1.1 200 OK\r\n\r\n" + strings.Repeat("x", 3<<20), fencing.ErrUnsupported},
		{"endless chunks", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + strings.Repeat("1\r\nx\r\n", 1<<19), fencing.ErrUnsupported},
		{"half a head", "HTTP/1.1 200 OK\r\nContent-Le", fencing.ErrUnreachable},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			d, err := New(Config{
				Net: canned{answer: []byte(tt.answer)}, Address: "127.0.0.1", Username: "u", Login: LoginBasic, Plain: true,
				Password: func() (string, error) { return "p", nil },
			})
			if err != nil {
				t.Fatal(err)
			}
			if r, err := d.Power(t.Context()); !errors.Is(err, tt.want) || r.State != haven.PowerUnknown {
				t.Errorf("%v, %v; want %v", r, err, tt.want)
			}
		})
	}
}

// Of what a board says only the ids of its messages are told, and none with a
// secret in it.
func TestMessageIDs(t *testing.T) {
	body := `{"error":{"code":"Base.1.8.GeneralError","@Message.ExtendedInfo":[{"MessageId":"X.hunter2","Message":"hunter2"},{"MessageId":"Base.1.8.Told"},
		{"MessageId":"with blanks"},{"MessageId":"` + strings.Repeat("x", 100) + `"}]},"@Message.ExtendedInfo":[{"MessageId":"Other.1.Id"}]}`
	if got := strings.Join(messageIDs([]byte(body), "hunter2", ""), " "); got != "Base.1.8.Told Other.1.Id Base.1.8.GeneralError" {
		t.Errorf("got %q", got)
	}
}

func TestFailure(t *testing.T) {
	tests := []struct {
		name            string
		status          int
		ids             []string
		reset, loggedIn bool
		want            error
	}{
		{"login refused", 401, nil, false, false, fencing.ErrAuth},
		{"login refused, HPE", 400, []string{"iLO.2.15.UnauthorizedLoginAttempt"}, false, false, fencing.ErrAuth},
		{"session lost", 401, nil, false, true, fencing.ErrBusy},
		{"privilege", 403, nil, true, true, fencing.ErrPrivilege},
		{"sessions taken, Dell", 503, []string{"IDRAC.2.4.RAC0218"}, false, false, fencing.ErrBusy},
		{"sessions taken, OpenBMC", 400, []string{"Base.1.13.0.SessionLimitExceeded"}, false, false, fencing.ErrBusy},
		{"off already, without a word", 400, nil, true, true, fencing.ErrRejected},
		{"off already, conflict", 409, nil, true, true, fencing.ErrRejected},
		{"in use", 409, []string{"Base.1.8.ResourceInUse"}, true, true, fencing.ErrBusy},
		{"not such a parameter", 400, []string{"Base.1.8.ActionParameterNotSupported"}, true, true, fencing.ErrUnsupported},
		{"bad request to read", 400, nil, false, true, fencing.ErrUnsupported},
		{"not there", 404, nil, false, true, fencing.ErrUnsupported},
		{"version wanted", 428, nil, false, true, errCondition},
		{"other version", 412, nil, false, true, errCondition},
		{"too many", 429, nil, false, true, fencing.ErrBusy},
		{"internal", 500, nil, true, true, fencing.ErrBusy},
		{"not built", 501, nil, true, true, fencing.ErrUnsupported},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if err := failure(tt.status, tt.ids, tt.reset, tt.loggedIn); !errors.Is(err, tt.want) {
				t.Errorf("%v; want %v", err, tt.want)
			}
		})
	}
}
