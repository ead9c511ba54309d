package agent

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"html"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/haven-ha/haven"
	"github.com/haven-ha/haven/fencing/command"
	"github.com/haven-ha/haven/fencing/ipmi"
	"github.com/haven-ha/haven/fencing/ipmi/ipmitest"
	"github.com/haven-ha/haven/fencing/redfish"
	"github.com/haven-ha/haven/internal/netx"
	"github.com/haven-ha/haven/internal/notify"
	"github.com/haven-ha/haven/internal/notify/email"
	"github.com/haven-ha/haven/internal/notify/snmp"
	"github.com/haven-ha/haven/internal/notify/webhook"
)

// echo is what the other side says back: the secret in every way that it may be
// written. The search knows nothing of how drivers take it out.
type echo struct {
	mu    sync.Mutex
	forms []string
}

func (e *echo) set(secret string) {
	inJSON, _ := json.Marshal(secret)
	e.mu.Lock()
	defer e.mu.Unlock()
	e.forms = []string{
		secret, url.QueryEscape(secret), url.PathEscape(secret), string(inJSON[1 : len(inJSON)-1]), html.EscapeString(secret),
		"'" + strings.ReplaceAll(secret, "'", `'\''`) + "'", strconv.Quote(secret), hex.EncodeToString([]byte(secret)), fmt.Sprintf("%X", secret),
		base64.StdEncoding.EncodeToString([]byte(secret)), base64.RawURLEncoding.EncodeToString([]byte(secret)),
		base64.StdEncoding.EncodeToString([]byte("\x00haven\x00" + secret)), base64.StdEncoding.EncodeToString([]byte("haven:" + secret)),
	}
}

func (e *echo) all() []string {
	e.mu.Lock()
	defer e.mu.Unlock()
	return slices.Clone(e.forms)
}

// TestNoErrorTellsASecret: whatever a board, a program, a mail server, a manager or
// a web server answers, no error of any driver tells the secret, in any form, as
// text or as the log writes it.
func TestNoErrorTellsASecret(t *testing.T) {
	var e echo
	drivers := map[string]func(ctx context.Context, secret string) []error{
		"ipmi": failingBoard(t), "redfish": echoingRedfish(t, &e), "fence agent": echoingProgram(t, &e),
		"mail": echoingMail(t, &e), "web hook": echoingHook(t, &e), "snmp": echoingManager(t, &e),
	}
	names := []string{"ipmi", "redfish", "fence agent", "mail", "web hook", "snmp"}
	failed := map[string]int{}
	rapid.Check(t, func(t *rapid.T) {
		secret := rapid.StringMatching(`[!-~]{8,20}`).Draw(t, "secret")
		e.set(secret)
		name := names[0]
		names = append(names[1:], name) // In turn, so that few draws see all of them.
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		for _, err := range drivers[name](ctx, secret) {
			if err == nil {
				t.Fatalf("%s: no error", name)
			}
			failed[name]++
			var log bytes.Buffer
			slog.New(slog.NewJSONHandler(&log, nil)).Error("failed", "error", err)
			slog.New(slog.NewTextHandler(&log, nil)).Error("failed", "error", err)
			told := fmt.Sprintf("%v\n%+v\n%q\n%s", err, err, err, log.String())
			for _, f := range e.all() {
				if strings.Contains(told, f) && !strings.Contains("[redacted]", f) {
					t.Fatalf("%s tells %q: %s", name, f, told)
				}
			}
		}
	})
	for name := range drivers {
		if failed[name] == 0 {
			t.Errorf("%s was not tried", name)
		}
	}
}

func always(secret string) func() (string, error) {
	return func() (string, error) { return secret, nil }
}

func failingBoard(t *testing.T) func(context.Context, string) []error {
	b, err := ipmitest.Start("127.0.0.1:0", ipmitest.Config{Accounts: []ipmitest.Account{{Name: "haven", Password: "quite-another", Privilege: ipmitest.Operator}}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = b.Close() })
	return func(ctx context.Context, secret string) []error {
		b.SetFaults(func(f *ipmitest.Faults) { *f = ipmitest.Faults{} })
		d, err := ipmi.New(ipmi.Config{
			Net: netx.Real{}, Address: b.Addr(), Username: "haven", Password: always(secret), PacketTimeout: 20 * time.Millisecond, Attempts: 1, Timeout: time.Second,
			KG: func() ([]byte, error) { return []byte(secret), nil },
		})
		if err != nil {
			return []error{fmt.Errorf("not made: %w", err)}
		}
		_, refused := d.Power(ctx)
		b.SetFaults(func(f *ipmitest.Faults) {
			f.Rewrite = func(p []byte) [][]byte { return [][]byte{append([]byte(secret), p...), []byte(secret)} }
		})
		return []error{refused, d.Set(ctx, haven.ActionOff, nil)}
	}
}

func echoingRedfish(t *testing.T, e *echo) func(context.Context, string) []error {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var info []map[string]string
		for i, f := range e.all() {
			w.Header().Set(fmt.Sprintf("X-%d", i), f)
			info = append(info, map[string]string{"MessageId": f, "Message": f}, map[string]string{"MessageId": "Base.1.0." + f})
		}
		w.Header().Set("Location", "/"+url.PathEscape(e.all()[0]))
		w.WriteHeader(map[string]int{http.MethodPost: 401, http.MethodGet: 500}[r.Method])
		_ = json.NewEncoder(w).Encode(map[string]any{"error": map[string]any{"code": e.all()[0], "@Message.ExtendedInfo": info}})
	}))
	t.Cleanup(s.Close)
	return func(ctx context.Context, secret string) (errs []error) {
		for _, login := range []redfish.Login{redfish.LoginSession, redfish.LoginBasic} {
			d, err := redfish.New(redfish.Config{Net: netx.Real{}, Address: s.Listener.Addr().String(), Username: "haven", Password: always(secret), Plain: true, Login: login, Timeout: 2 * time.Second})
			if err == nil {
				_, err = d.Power(ctx)
			}
			errs = append(errs, err)
		}
		return errs
	}
}

func echoingProgram(t *testing.T, e *echo) func(context.Context, string) []error {
	dir := t.TempDir()
	said, program := filepath.Join(dir, "said"), filepath.Join(dir, "agent")
	if err := os.WriteFile(program, []byte("#!/bin/sh\ncat; cat "+said+" >&2; exit 1\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	return func(ctx context.Context, secret string) (errs []error) {
		for _, f := range e.all() { // One at a time: an error tells only the end of what is said.
			if err := os.WriteFile(said, []byte(f), 0o600); err != nil {
				return []error{nil}
			}
			d, err := command.New(command.Config{
				Style: command.StyleAgent, Program: program, Username: "haven", Password: always(secret), PasswordFile: said,
				Launcher: []string{"/bin/sh", "-c", `printf . >&4; exec "$@" 3<&- 4>&-`, "sh"},
			})
			if err == nil {
				_, err = d.Power(ctx)
			}
			errs = append(errs, err)
		}
		return errs
	}
}

func echoingMail(t *testing.T, e *echo) func(context.Context, string) []error {
	self := httptest.NewUnstartedServer(nil)
	self.StartTLS()
	t.Cleanup(self.Close)
	roots := x509.NewCertPool()
	roots.AddCert(self.Certificate())
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: self.TLS.Certificates})
	if err != nil {
		t.Fatal(err)
	}
	var serving sync.WaitGroup
	t.Cleanup(func() { _ = l.Close(); serving.Wait() })
	serving.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			serving.Go(func() { refuseMail(conn, e) })
		}
	})
	return func(ctx context.Context, secret string) []error {
		s, err := email.New(email.Config{
			Net: netx.Real{}, Addr: l.Addr().String(), Mode: email.TLS, Roots: roots, Username: "haven", Password: always(secret),
			Self: "kvm-01", From: "a@example.org", To: []string{"b@example.org"}, Log: slog.New(slog.DiscardHandler),
		})
		if err == nil {
			err = s.Send(ctx, notify.Message{Event: notify.Event{ID: "x", Kind: notify.KindTest, Severity: notify.Info, Text: "x"}})
		}
		return []error{err}
	}
}

// refuseMail refuses the login, with every form in the words.
func refuseMail(conn net.Conn, e *echo) {
	defer func() { _ = conn.Close() }()
	_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
	_, _ = io.WriteString(conn, "220 here\r\n")
	for r := bufio.NewReader(conn); ; {
		line, err := r.ReadString('\n')
		switch {
		case err != nil:
			return
		case strings.HasPrefix(line, "EHLO"):
			_, _ = io.WriteString(conn, "250-here\r\n250 AUTH PLAIN\r\n")
		case strings.HasPrefix(line, "AUTH"):
			for _, f := range e.all() {
				_, _ = io.WriteString(conn, "535-"+f+"\r\n")
			}
			_, _ = io.WriteString(conn, "535 "+line)
		default:
			_, _ = io.WriteString(conn, "221 bye\r\n")
			return
		}
	}
}

func echoingHook(t *testing.T, e *echo) func(context.Context, string) []error {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		for i, f := range e.all() {
			w.Header().Set(fmt.Sprintf("X-%d", i), f)
		}
		w.Header().Set("Location", r.URL.String())
		w.Header().Set("Retry-After", e.all()[0])
		status, _ := strconv.Atoi(r.URL.Query().Get("status"))
		w.WriteHeader(status)
		_, _ = fmt.Fprintln(w, e.all(), r.URL, r.Header)
	}))
	t.Cleanup(s.Close)
	return func(ctx context.Context, secret string) (errs []error) {
		bad := "http://127.0.0.1:1/" + url.PathEscape(secret)
		where := []string{bad, "http://" + secret, "http://haven:" + url.QueryEscape(secret) + "@127.0.0.1:1/"}
		for _, status := range []int{302, 400, 401, 429, 500} {
			where = append(where, fmt.Sprintf("%s/%s?status=%d", s.URL, url.PathEscape(secret), status))
		}
		for _, u := range where {
			h := webhook.New(webhook.Config{Net: netx.Real{}, URL: always(u), Secret: always(secret)})
			errs = append(errs, h.Send(ctx, notify.Message{Event: notify.Event{ID: "x", Kind: notify.KindTest}}))
		}
		return errs
	}
}

func echoingManager(t *testing.T, e *echo) func(context.Context, string) []error {
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var serving sync.WaitGroup
	t.Cleanup(func() { _ = conn.Close(); serving.Wait() })
	serving.Go(func() {
		for buf := make([]byte, 4096); ; {
			n, from, err := conn.ReadFrom(buf)
			if err != nil {
				return
			}
			_, _ = conn.WriteTo(buf[:n], from) // The question itself, and then what is no answer.
			_, _ = conn.WriteTo([]byte(strings.Join(e.all(), " ")), from)
		}
	})
	return func(ctx context.Context, secret string) (errs []error) {
		for _, v := range []snmp.Version{snmp.V2c, snmp.V3} {
			s, err := snmp.New(snmp.Config{
				Addr: conn.LocalAddr().String(), Version: v, Inform: true, Community: always(secret), Username: "haven", Auth: "sha256", Privacy: "aes128",
				AuthSecret: always(secret), PrivacyPass: always(secret), Host: "kvm-01", Boots: 1, Started: time.Now(),
			})
			if err == nil {
				ctx, cancel := context.WithTimeout(ctx, 100*time.Millisecond)
				err = s.Send(ctx, notify.Message{Event: notify.Event{ID: "x", Kind: notify.KindTest}})
				cancel()
			}
			errs = append(errs, err)
		}
		return errs
	}
}
