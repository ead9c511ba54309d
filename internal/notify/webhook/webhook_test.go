package webhook

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/haven-ha/haven/internal/netx"
	"github.com/haven-ha/haven/internal/notify"
)

const secretText = "hook-secret-7f"

var now = time.Date(2026, 11, 22, 5, 0, 0, 0, time.UTC)

func blocked() notify.Message {
	return notify.Message{Count: 3, Number: 1, Event: notify.Event{
		ID: "fence-blocked/i1/kvm-03", Kind: "fence-blocked", Severity: notify.Critical, Cluster: "prod-a", By: "kvm-01", Host: "kvm-03", Incident: "i1",
		Time: now, Text: "no device proved \"kvm-03\" off", Do: "haven fence confirm kvm-03", Reminder: true,
	}}
}

func to(url string) *Sender {
	return New(Config{
		Net: netx.Real{}, URL: func() (string, error) { return url, nil }, Secret: func() (string, error) { return secretText, nil },
		Now: func() time.Time { return now },
	})
}

// What is posted is signed over time and body, as a receiver that follows the
// documentation checks it.
func TestPosted(t *testing.T) {
	var req *http.Request
	var body []byte
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		req = r
		body, _ = io.ReadAll(r.Body)
		w.WriteHeader(http.StatusAccepted)
	}))
	defer srv.Close()
	if err := to(srv.URL+"/hook?token=x").Send(t.Context(), blocked()); err != nil {
		t.Fatal(err)
	}
	mac := hmac.New(sha256.New, []byte(secretText))
	mac.Write([]byte("1795323600." + string(body)))
	if req.Method != http.MethodPost || req.Header.Get("Content-Type") != "application/json" || req.Header.Get("Haven-Timestamp") != "1795323600" ||
		req.Header.Get("Haven-Signature") != "v1="+hex.EncodeToString(mac.Sum(nil)) || req.Header.Get("Haven-Event") != "fence-blocked/i1/kvm-03" {
		t.Errorf("%s %v", req.Method, req.Header)
	}
	var got, want map[string]any
	if err := json.Unmarshal(body, &got); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal([]byte(`{"version":1,"id":"fence-blocked/i1/kvm-03","kind":"fence-blocked","severity":"critical","cluster":"prod-a","by":"kvm-01",
		"host":"kvm-03","incident":"i1","time":"2026-11-22T05:00:00Z","text":"no device proved \"kvm-03\" off","do":"haven fence confirm kvm-03","reminder":true,"number":1,"count":3}`), &want); err != nil {
		t.Fatal(err)
	}
	for key := range want {
		if got[key] != want[key] {
			t.Errorf("%s is %v, want %v", key, got[key], want[key])
		}
	}
	if len(got) != len(want) {
		t.Errorf("got %s", body)
	}
}

func TestAnswers(t *testing.T) {
	for _, tt := range []struct {
		name    string
		status  int
		after   string
		want    time.Duration
		forGood bool
	}{
		{"broken", 500, "", 0, false},
		{"busy", 503, "120", 2 * time.Minute, false},
		{"too many", 429, "Sun, 22 Nov 2026 05:01:00 GMT", time.Minute, false},
		{"bounded", 429, "864000", 10 * time.Minute, false},
		{"in the past", 429, "Sun, 22 Nov 2026 04:01:00 GMT", 0, false},
		{"nonsense", 429, "soon", 0, false},
		{"negative", 503, "-5", 0, false},
		{"not found today", 404, "", 0, false},
		{"not understood", 400, "", 0, true},
		{"too large", 413, "", 0, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Retry-After", tt.after)
				w.WriteHeader(tt.status)
			}))
			defer srv.Close()
			err := to(srv.URL).Send(t.Context(), blocked())
			e, ok := errors.AsType[*notify.Error](err)
			if !ok || e.After != tt.want || e.ForGood != tt.forGood {
				t.Errorf("%#v", err)
			}
		})
	}
}

func TestRedirectIsNotFollowed(t *testing.T) {
	followed := false
	elsewhere := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { followed = true }))
	defer elsewhere.Close()
	srv := httptest.NewServer(http.RedirectHandler(elsewhere.URL, http.StatusTemporaryRedirect))
	defer srv.Close()
	err := to(srv.URL).Send(t.Context(), blocked())
	if err == nil || followed || !strings.Contains(err.Error(), "307") {
		t.Errorf("followed %v, %v", followed, err)
	}
}

func TestCertificates(t *testing.T) {
	srv := httptest.NewTLSServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	defer srv.Close()
	srv.Config.ErrorLog = nil
	roots := x509.NewCertPool()
	roots.AddCert(srv.Certificate())
	known := New(Config{Net: netx.Real{}, URL: func() (string, error) { return srv.URL, nil }, Roots: roots})
	if err := known.Send(t.Context(), blocked()); err != nil {
		t.Errorf("with its CA: %v", err)
	}
	if err := to(srv.URL).Send(t.Context(), blocked()); err == nil || !strings.Contains(err.Error(), "certificate") {
		t.Errorf("without: %v", err)
	}
}

// A server that takes the request and never answers, or answers for ever, is left
// when the context ends (P8). No secret is in any error: the URL's neither.
func TestHangs(t *testing.T) {
	for _, tt := range []struct {
		name  string
		serve func(net.Conn)
	}{
		{"says nothing", func(net.Conn) {}},
		{"half a header", func(c net.Conn) { _, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nX-") }},
		{"half a body", func(c net.Conn) { _, _ = io.WriteString(c, "HTTP/1.1 500 X\r\nContent-Length: 100\r\n\r\nabc") }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = l.Close() }()
			ctx, cancel := context.WithCancel(t.Context())
			go func() {
				c, err := l.Accept()
				if err != nil {
					return
				}
				_, _ = c.Read(make([]byte, 4096))
				tt.serve(c)
				cancel()
				<-t.Context().Done()
				_ = c.Close()
			}()
			err = to("http://"+l.Addr().String()+"/T0KEN").Send(ctx, blocked())
			if err == nil || strings.Contains(err.Error(), "T0KEN") {
				t.Errorf("%v", err)
			}
		})
	}
	dead := to("http://127.0.0.1:1/T0KEN").Send(t.Context(), blocked())
	if dead == nil || strings.Contains(dead.Error(), "T0KEN") {
		t.Errorf("nobody there: %v", dead)
	}
}

func TestCheckURL(t *testing.T) {
	for url, ok := range map[string]bool{
		"https://hooks.example.org/a/b?c=d": true, "http://10.0.0.1:8080": true, "https://user:pw@example.org/": false,
		"ftp://example.org": false, "https://": false, "example.org": false, "https://a b": false, "https://example.org/#x": false, "": false,
	} {
		if err := CheckURL(url); (err == nil) != ok || err != nil && strings.Contains(err.Error(), "pw") {
			t.Errorf("%q: %v", url, err)
		}
	}
}
