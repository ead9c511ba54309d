package email

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"io"
	"log/slog"
	"math/big"
	"mime"
	"mime/quotedprintable"
	"net"
	"net/mail"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/haven-ha/haven"
	"github.com/haven-ha/haven/internal/netx"
	"github.com/haven-ha/haven/internal/notify"
)

const password = "mail-secret-4c"

func blocked() notify.Message {
	return notify.Message{Count: 3, Number: 1, Dropped: 2, Event: notify.Event{
		ID: "fence-blocked/i1/kvm-03", Kind: "fence-blocked", Severity: notify.Critical, Cluster: "prod-a", By: "kvm-01", Host: "kvm-03", Incident: "i1",
		Time: time.Date(2026, 11, 22, 5, 0, 0, 0, time.UTC), Text: "no device proved it off: über", Do: "haven fence confirm kvm-03", Reminder: true,
	}}
}

// authority makes a certificate for 127.0.0.1 and mail.test, and a pool with it.
func authority(t *testing.T) (tls.Certificate, *x509.CertPool) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "mail"}, NotBefore: time.Unix(0, 0), NotAfter: time.Date(2100, 1, 1, 0, 0, 0, 0, time.UTC),
		DNSNames: []string{"mail.test"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, c, c, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	parsed, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(parsed)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, pool
}

func config(addr string, roots *x509.CertPool) Config {
	return Config{
		Net: netx.Real{}, Addr: addr, Mode: StartTLS, Roots: roots, Auth: AuthAuto, Username: "haven",
		Password: func() (string, error) { return password, nil }, Self: "kvm-01.test",
		From: "haven@example.org", To: []string{"ops@example.org", "night@example.org"}, Log: slog.New(slog.DiscardHandler),
	}
}

func sender(t *testing.T, c Config) *Sender {
	t.Helper()
	s, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// taken is what the real server prints.
type taken struct {
	From, Data, User, Helo string
	To                     []string
	TLS                    bool
}

// realServer starts Debian's aiosmtpd.
func realServer(t *testing.T, mode string) (addr string, roots *x509.CertPool, mails <-chan taken) {
	t.Helper()
	const python = "/usr/bin/python3"
	if exec.CommandContext(t.Context(), python, "-c", "import aiosmtpd").Run() != nil {
		if inLab {
			t.Fatal("python3-aiosmtpd is not installed, and this is the lab")
		}
		t.Skip("no real mail server: Debian's python3-aiosmtpd is not installed; it is in test/lab/packages.txt")
	}
	cert, roots := authority(t)
	dir := t.TempDir()
	key, err := x509.MarshalPKCS8PrivateKey(cert.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	for name, block := range map[string]*pem.Block{"cert": {Type: "CERTIFICATE", Bytes: cert.Certificate[0]}, "key": {Type: "PRIVATE KEY", Bytes: key}} {
		if err := os.WriteFile(filepath.Join(dir, name), pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	probe, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := probe.Addr().(*net.TCPAddr).Port
	if err := probe.Close(); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), python, "testdata/server.py", mode, filepath.Join(dir, "cert"), filepath.Join(dir, "key"), strconv.Itoa(port))
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	var complaints bytes.Buffer
	cmd.Stderr = &complaints
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	lines.Buffer(nil, 1<<20)
	t.Cleanup(func() {
		_ = in.Close() // It ends when nobody talks to it any more.
		_ = cmd.Wait()
	})
	if !lines.Scan() || lines.Text() != "ready" {
		t.Fatalf("the server says %q %s", lines.Text(), complaints.String())
	}
	got := make(chan taken, 10)
	go func() {
		for lines.Scan() {
			var m taken
			if json.Unmarshal(lines.Bytes(), &m) == nil {
				got <- m
			}
		}
		close(got)
	}()
	return net.JoinHostPort("127.0.0.1", strconv.Itoa(port)), roots, got
}

// A real server takes mails over TLS in each way, and refuses a wrong password
// (row 19).
func TestRealServer(t *testing.T) {
	for _, tt := range []struct {
		name, server string
		change       func(*Config)
	}{
		{"STARTTLS and PLAIN", "starttls", func(*Config) {}},
		{"STARTTLS and LOGIN, as the server wants", "login", func(*Config) {}},
		{"STARTTLS and LOGIN, as configured", "starttls", func(c *Config) { c.Auth = AuthLogin }},
		{"TLS", "tls", func(c *Config) { c.Mode = TLS }},
		{"another name", "starttls", func(c *Config) { c.ServerName = "mail.test" }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			addr, roots, mails := realServer(t, tt.server)
			c := config(addr, roots)
			tt.change(&c)
			if err := sender(t, c).Send(t.Context(), blocked()); err != nil {
				t.Fatal(err)
			}
			got := <-mails
			if got.From != c.From || !slices.Equal(got.To, c.To) || !got.TLS || got.User != "haven" || got.Helo != "kvm-01.test" {
				t.Errorf("%+v", got)
			}
			m := parsed(t, []byte(got.Data))
			if m.subject != "[prod-a] critical: fence-blocked kvm-03 (reminder)" || !strings.Contains(m.body, "no device proved it off: über") || !strings.Contains(m.body, "haven fence confirm kvm-03") {
				t.Errorf("%+v", m)
			}

			c.Password = func() (string, error) { return "wrong-secret-1", nil }
			err := sender(t, c).Send(t.Context(), blocked())
			if err == nil || !strings.Contains(err.Error(), "authenticate as haven") || strings.Contains(err.Error(), "wrong-secret-1") {
				t.Errorf("wrong password: %v", err)
			}
			c.Password, c.Roots = func() (string, error) { t.Error("the password was asked for although TLS failed"); return "", nil }, x509.NewCertPool()
			c.Username = ""
			if err := sender(t, c).Send(t.Context(), blocked()); err == nil || !strings.Contains(err.Error(), "certificate") {
				t.Errorf("a stranger's certificate: %v", err)
			}
		})
	}
}

type read struct {
	header  mail.Header
	subject string
	body    string
}

func parsed(t interface{ Fatal(...any) }, text []byte) read {
	m, err := mail.ReadMessage(bytes.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	subject, err := new(mime.WordDecoder).DecodeHeader(m.Header.Get("Subject"))
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(quotedprintable.NewReader(m.Body))
	if err != nil {
		t.Fatal(err)
	}
	return read{m.Header, subject, string(body)}
}

// script is a strict server on one connection: it hangs, or answers something
// else, at one step.
type script struct {
	cert  tls.Certificate
	at    string // the step: greeting, EHLO, STARTTLS, handshake, AUTH, MAIL, RCPT, DATA, end
	say   string // instead of the usual; empty: nothing, for ever
	noTLS bool   // do not offer STARTTLS

	heard []string // commands, in order
	mail  []byte
}

func (s *script) DialContext(context.Context, string, string) (net.Conn, error) {
	ours, theirs := net.Pipe()
	go func() {
		defer func() { _ = ours.Close() }()
		s.serve(ours)
	}()
	return theirs, nil
}

// answer writes the reply of a step; false when the server hangs there, and its
// client has gone.
func (s *script) answer(c net.Conn, step, usual string) bool {
	if s.at == step {
		if s.say == "" {
			_, _ = io.Copy(io.Discard, c)
			return false
		}
		usual = s.say
	}
	_, err := io.WriteString(c, usual+"\r\n")
	return err == nil
}

func (s *script) serve(c net.Conn) {
	if !s.answer(c, "greeting", "220 mail.test") {
		return
	}
	r := bufio.NewReader(c)
	secure := false
	for {
		l, err := r.ReadString('\n')
		if err != nil {
			return
		}
		l = strings.TrimRight(l, "\r\n")
		s.heard = append(s.heard, l)
		verb, _, _ := strings.Cut(l, " ")
		var ok bool
		switch verb {
		case "EHLO":
			offer := "250-mail.test\r\n250 STARTTLS"
			if secure || s.noTLS {
				offer = "250-mail.test\r\n250 AUTH PLAIN LOGIN"
			}
			ok = s.answer(c, "EHLO", offer)
		case "STARTTLS":
			if ok = s.answer(c, "STARTTLS", "220 go on"); ok && s.at == "handshake" {
				_, _ = io.Copy(io.Discard, c)
				return
			}
			t := tls.Server(c, &tls.Config{Certificates: []tls.Certificate{s.cert}})
			if t.Handshake() != nil {
				return
			}
			c, r, secure = t, bufio.NewReader(t), true
		case "AUTH":
			ok = s.answer(c, "AUTH", "235 welcome")
		case "MAIL":
			ok = s.answer(c, "MAIL", "250 ok")
		case "RCPT":
			step := "RCPT"
			if strings.Contains(l, "night@") {
				step = "second RCPT"
			}
			ok = s.answer(c, step, "250 ok")
		case "DATA":
			if ok = s.answer(c, "DATA", "354 go on"); !ok || s.at == "DATA" {
				continue
			}
			for !bytes.HasSuffix(s.mail, []byte("\r\n.\r\n")) {
				b, err := r.ReadByte()
				if err != nil {
					return
				}
				s.mail = append(s.mail, b)
			}
			ok = s.answer(c, "end", "250 taken")
		case "QUIT":
			ok = s.answer(c, "QUIT", "221 bye")
		default:
			ok = s.answer(c, "", "500 what?")
		}
		if !ok {
			return
		}
	}
}

// A server that hangs at any step is left when the time is over (P8): the error
// says where, and nothing that follows was sent.
func TestServerHangs(t *testing.T) {
	for _, step := range []string{"greeting", "EHLO", "STARTTLS", "handshake", "AUTH", "MAIL", "RCPT", "DATA", "end"} {
		t.Run(step, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				cert, roots := authority(t)
				s := &script{cert: cert, at: step}
				c := config("127.0.0.1:25", roots)
				c.Net = s
				ctx, cancel := context.WithTimeout(t.Context(), 45*time.Second)
				defer cancel()
				begun := time.Now()
				err := sender(t, c).Send(ctx, blocked())
				if took := time.Since(begun); err == nil || took != 45*time.Second {
					t.Errorf("after %s: %v", took, err)
				}
				synctest.Wait()
			})
		})
	}
	t.Run("QUIT", func(t *testing.T) { // The mail is with the server: how it says good-bye changes nothing.
		synctest.Test(t, func(t *testing.T) {
			cert, roots := authority(t)
			c := config("127.0.0.1:25", roots)
			c.Net = &script{cert: cert, at: "QUIT"}
			ctx, cancel := context.WithTimeout(t.Context(), 45*time.Second)
			defer cancel()
			if err := sender(t, c).Send(ctx, blocked()); err != nil {
				t.Error(err)
			}
		})
	})
}

// What a server refuses is told apart, and after a refusal nothing more is sent.
// A password leaves only over TLS.
func TestServerRefuses(t *testing.T) {
	for _, tt := range []struct {
		name    string
		server  script
		change  func(*Config)
		want    string // in the error; empty for success
		forGood bool
		last    string // the last command that the server heard, but for QUIT
	}{
		{"no STARTTLS", script{noTLS: true}, nil, "no STARTTLS", false, "EHLO kvm-01.test"},
		{"STARTTLS refused", script{at: "STARTTLS", say: "454 not now"}, nil, "STARTTLS: 454", false, "STARTTLS"},
		{"password echoed", script{at: "AUTH", say: "535 no " + password + " here"}, nil, "[redacted]", false, ""},
		{"sender refused", script{at: "MAIL", say: "550 no"}, nil, "MAIL FROM haven@example.org", false, "MAIL FROM:<haven@example.org>"},
		{"all recipients refused", script{at: "RCPT", say: "450 later"}, func(c *Config) { c.To = c.To[:1] }, "RCPT TO ops@example.org", false, "RCPT TO:<ops@example.org>"},
		{"one recipient refused", script{at: "second RCPT", say: "550 unknown"}, nil, "", false, "DATA"},
		{"mail refused for good", script{at: "end", say: "554 spam"}, nil, "DATA: 554", true, "DATA"},
		{"mail refused for now", script{at: "end", say: "451 later"}, nil, "DATA: 451", false, "DATA"},
		{"no TLS by name", script{noTLS: true}, func(c *Config) { c.Mode, c.Username = Plain, "" }, "", false, "DATA"},
		{"no password although none is wanted in the clear", script{}, func(c *Config) { c.Mode, c.Username = Plain, "" }, "", false, "DATA"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			cert, roots := authority(t)
			tt.server.cert = cert
			c := config("127.0.0.1:25", roots)
			c.Net = &tt.server
			if tt.change != nil {
				tt.change(&c)
			}
			err := sender(t, c).Send(t.Context(), blocked())
			if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
				t.Fatalf("%v, want %q", err, tt.want)
			}
			if err != nil && strings.Contains(err.Error(), password) {
				t.Errorf("the password is in %v", err)
			}
			if e, _ := errors.AsType[*notify.Error](err); (e != nil && e.ForGood) != tt.forGood {
				t.Errorf("for good: %#v", err)
			}
			heard := slices.DeleteFunc(tt.server.heard, func(l string) bool { return l == "QUIT" })
			if tt.last != "" && (len(heard) == 0 || heard[len(heard)-1] != tt.last) {
				t.Errorf("it heard %q", heard)
			}
			coded := base64.StdEncoding.EncodeToString([]byte("\x00haven\x00" + password))
			for _, l := range heard {
				if c.Mode == Plain && (strings.Contains(l, coded) || strings.HasPrefix(l, "AUTH")) {
					t.Errorf("a password went out in the clear: %q", l)
				}
			}
		})
	}
}

// Nothing of an event can become a header, a command or the end of a mail.
func TestInjectionIsImpossible(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		evil := func(label string) string {
			return rapid.SampledFrom([]string{"", "a\r\nBcc: x@evil.test\r\n\r\nbody", "\n.\nQUIT\n", "\r\n.\r\nMAIL FROM:<x>", "x\x00\x01\u2028y", "ü€𝄞", "=?utf-8?q?x?="}).Draw(t, label) +
				rapid.String().Draw(t, label+"'")
		}
		m := notify.Message{Count: 2, Event: notify.Event{
			ID: evil("id"), Kind: evil("kind"), Severity: notify.Critical, Cluster: evil("cluster"), By: haven.HostID(evil("by")), Host: haven.HostID(evil("host")),
			VM: haven.VMID(evil("vm")), Incident: haven.IncidentID(evil("incident")), Text: evil("text"), Do: evil("do"), Time: time.Unix(1795323600, 0),
		}}
		s, err := New(Config{Addr: "127.0.0.1:25", Mode: StartTLS, Self: "a", From: "haven@example.org", To: []string{"ops@example.org", "b@example.org"}})
		if err != nil {
			t.Fatal(err)
		}
		text, err := s.compose(m)
		if err != nil {
			t.Fatal(err)
		}
		got := parsed(t, text)
		want := []string{"Auto-Submitted", "Content-Transfer-Encoding", "Content-Type", "Date", "From", "In-Reply-To", "Message-Id", "Mime-Version", "References", "Subject", "To", "X-Haven-Event", "X-Haven-Severity"}
		var names []string
		for name, values := range got.header {
			names = append(names, name)
			if len(values) != 1 {
				t.Fatalf("%s: %q", name, values)
			}
		}
		if slices.Sort(names); !slices.Equal(names, want) {
			t.Fatalf("headers %q", names)
		}
		for line := range strings.SplitSeq(string(text), "\r\n") {
			if len(line) > 998 || strings.ContainsAny(line, "\r\n") {
				t.Fatalf("line %q", line)
			}
		}
	})
}

// An incident is one thread; the same event is the same mail from whichever agent,
// and a reminder another.
func TestThreads(t *testing.T) {
	s := sender(t, config("127.0.0.1:25", nil))
	ids := func(change func(*notify.Message)) (id, thread string) {
		m := blocked()
		change(&m)
		text, err := s.compose(m)
		if err != nil {
			t.Fatal(err)
		}
		h := parsed(t, text).header
		if h.Get("In-Reply-To") != h.Get("References") {
			t.Errorf("%v", h)
		}
		return h.Get("Message-Id"), h.Get("References")
	}
	id, thread := ids(func(*notify.Message) {})
	again, _ := ids(func(m *notify.Message) { m.By, m.Text = "kvm-02", "in other words" })
	reminder, sameThread := ids(func(m *notify.Message) { m.Number++ })
	other, alsoSame := ids(func(m *notify.Message) { m.ID = "incident-closed/i1" })
	_, otherThread := ids(func(m *notify.Message) { m.Incident = "i2" })
	_, otherCluster := ids(func(m *notify.Message) { m.Cluster = "prod-b" })
	if id != again || id == reminder || id == other || thread != sameThread || thread != alsoSame || thread == otherThread || thread == otherCluster || !strings.HasSuffix(id, "@example.org>") {
		t.Errorf("%s %s %s %s in %s %s %s %s %s", id, again, reminder, other, thread, sameThread, alsoSame, otherThread, otherCluster)
	}
}

func TestConfigurationsThatCannotWork(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(*Config)
	}{
		{"password in the clear", func(c *Config) { c.Mode = Plain }},
		{"no password", func(c *Config) { c.Password = nil }},
		{"nobody", func(c *Config) { c.To = nil }},
		{"name beside the address", func(c *Config) { c.From = "Haven <haven@example.org>" }},
		{"two lines", func(c *Config) { c.To = []string{"a@example.org\r\nRCPT TO:<b@example.org>"} }},
		{"not ASCII", func(c *Config) { c.To = []string{"ä@example.org"} }},
		{"no port", func(c *Config) { c.Addr = "mail.test" }},
		{"broken template", func(c *Config) { c.Subject = "{{.Host" }},
		{"unknown field", func(c *Config) { c.Body = "{{.Hots}}" }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := config("127.0.0.1:25", nil)
			tt.change(&c)
			if _, err := New(c); err == nil {
				t.Error("it was taken")
			}
		})
	}
}

func TestSummaryAndTemplates(t *testing.T) {
	c := config("127.0.0.1:25", nil)
	c.Subject, c.Body = "{{.Kind}}\n{{.Host}} {{.Count}}", "{{range $i, $x := .}}{{end}}{{.Summary}}"
	m := blocked()
	m.Summary, m.First = []notify.KindCount{{Kind: "vm-started", Count: 12}}, []notify.Event{blocked().Event}
	text, err := sender(t, c).compose(m)
	if err != nil {
		t.Fatal(err)
	}
	got := parsed(t, text)
	if got.subject != "fence-blocked kvm-03 3" || !strings.Contains(got.body, "    12  vm-started") || !strings.Contains(got.body, "critical fence-blocked: no device proved it off") {
		t.Errorf("%+v", got)
	}
}
