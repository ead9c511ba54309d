// Package webhook sends notifications as signed JSON documents to an HTTP server.
package webhook

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/haven-ha/haven/internal/notify"
	"github.com/haven-ha/haven/internal/redact"
)

// Dialer opens connections; netx.Stack is one.
type Dialer interface {
	DialContext(ctx context.Context, network, addr string) (net.Conn, error)
}

// Config is one web hook.
type Config struct {
	Net Dialer
	// URL is where to post to, https or http. It may hold a secret, and is read
	// for each message.
	URL func() (string, error)
	// Secret is the key of the signature, read for each message; nil for none.
	Secret func() (string, error)
	Roots  *x509.CertPool // nil for the system's
	// Now is the clock of the signature; nil for time.Now.
	Now func() time.Time
}

// The headers of a request. The signature is "v1=" and the HMAC-SHA256, in hex,
// of the time stamp, a full stop and the body.
const (
	HeaderTimestamp = "Haven-Timestamp" // seconds since 1970
	HeaderSignature = "Haven-Signature"
	HeaderEvent     = "Haven-Event" // the event's id
)

// Document is what is posted. Fields are only ever added to a version.
type Document struct {
	Version int `json:"version"` // 1
	notify.Event
	Severity string `json:"severity"`
	// Number tells sendings of one event apart; Count is how often it was told
	// since the last; Dropped is how many events were not sent.
	Number  int                `json:"number"`
	Count   int                `json:"count"`
	Dropped int                `json:"dropped,omitempty"`
	Summary []notify.KindCount `json:"summary,omitempty"`
	First   []Named            `json:"first,omitempty"`
}

// Named is one event of a summary.
type Named struct {
	notify.Event
	Severity string `json:"severity"`
}

// Sender posts messages. It keeps no connection.
type Sender struct {
	cfg    Config
	client *http.Client
}

// New makes a sender. It does not connect.
func New(cfg Config) *Sender {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	return &Sender{cfg: cfg, client: &http.Client{
		// A redirect could lead the signed event anywhere.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Transport: &http.Transport{
			DialContext: cfg.Net.DialContext, DisableKeepAlives: true, MaxResponseHeaderBytes: 16 << 10,
			TLSClientConfig: &tls.Config{RootCAs: cfg.Roots, MinVersion: tls.VersionTLS12},
		},
	}}
}

// maxAfter bounds how long a server may ask to be left alone.
const maxAfter = 10 * time.Minute

// Send posts one message. Any status of 2xx is a success.
func (s *Sender) Send(ctx context.Context, m notify.Message) error {
	req, secrets, err := s.request(ctx, m)
	if err != nil {
		return blotted(err, secrets)
	}
	return blotted(s.post(req), secrets)
}

// post sends the request and judges the answer.
func (s *Sender) post(req *http.Request) error {
	answer, err := s.client.Do(req)
	if err != nil {
		// The error of the client names the URL, which may be a secret.
		if e, ok := errors.AsType[*url.Error](err); ok {
			err = e.Err
		}
		return fmt.Errorf("post to %s: %w", req.URL.Host, err)
	}
	defer func() { _ = answer.Body.Close() }()                      // nothing more is wanted of it
	_, _ = io.Copy(io.Discard, io.LimitReader(answer.Body, 64<<10)) // the status says it all
	if answer.StatusCode/100 == 2 {
		return nil
	}
	e := &notify.Error{Err: fmt.Errorf("post to %s: the server answers %d %s", req.URL.Host, answer.StatusCode, http.StatusText(answer.StatusCode))}
	switch answer.StatusCode {
	case http.StatusBadRequest, http.StatusRequestEntityTooLarge, http.StatusUnprocessableEntity:
		e.ForGood = true // It is about this message.
	case http.StatusTooManyRequests, http.StatusServiceUnavailable:
		e.After = retryAfter(answer.Header.Get("Retry-After"), s.cfg.Now())
	}
	if answer.StatusCode/100 == 3 {
		e.Err = fmt.Errorf("%w; redirects are not followed", e.Err)
	}
	return e
}

// request makes the request, and lists what no error may tell: the URL, where it
// leads on the server, and the key.
func (s *Sender) request(ctx context.Context, m notify.Message) (req *http.Request, secrets []string, err error) {
	where, err := s.cfg.URL()
	if err != nil {
		return nil, nil, fmt.Errorf("read URL: %w", err)
	}
	secrets = append(secrets, where)
	if err := CheckURL(where); err != nil {
		return nil, secrets, err
	}
	body, err := json.Marshal(document(m))
	if err != nil {
		return nil, secrets, &notify.Error{Err: fmt.Errorf("encode event: %w", err), ForGood: true}
	}
	if req, err = http.NewRequestWithContext(ctx, http.MethodPost, where, bytes.NewReader(body)); err != nil {
		return nil, secrets, errors.New("the URL cannot be used")
	}
	if at := req.URL.RequestURI(); at != "/" {
		secrets = append(secrets, at, req.URL.Path)
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("User-Agent", "haven")
	req.Header.Set(HeaderEvent, m.ID)
	if s.cfg.Secret != nil {
		secret, err := s.cfg.Secret()
		if err != nil {
			return nil, secrets, fmt.Errorf("read secret: %w", err)
		}
		secrets = append(secrets, secret)
		stamp := strconv.FormatInt(s.cfg.Now().Unix(), 10)
		req.Header.Set(HeaderTimestamp, stamp)
		req.Header.Set(HeaderSignature, Sign(secret, stamp, body))
	}
	return req, secrets, nil
}

// blotted takes secrets out of an error. What is known of them to be in one is
// taken out before; this is for what is not known.
func blotted(err error, secrets []string) error {
	if err == nil || !redact.Holds(err.Error(), secrets...) {
		return err
	}
	e, _ := errors.AsType[*notify.Error](err)
	if e == nil {
		e = &notify.Error{}
	}
	return &notify.Error{Err: errors.New(redact.Text(err.Error(), secrets...)), After: e.After, ForGood: e.ForGood}
}

func document(m notify.Message) Document {
	d := Document{Version: 1, Event: m.Event, Severity: m.Severity.String(), Number: m.Number, Count: m.Count, Dropped: m.Dropped, Summary: m.Summary}
	for _, e := range m.First {
		d.First = append(d.First, Named{e, e.Severity.String()})
	}
	return d
}

// Sign makes a signature.
func Sign(secret, stamp string, body []byte) string {
	mac := hmac.New(sha256.New, []byte(secret))
	mac.Write([]byte(stamp + "."))
	mac.Write(body)
	return "v1=" + hex.EncodeToString(mac.Sum(nil))
}

// CheckURL says whether a URL can be posted to. Its error does not repeat it.
func CheckURL(text string) error {
	u, err := url.Parse(text)
	if err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Hostname() == "" || u.User != nil || u.Fragment != "" {
		return errors.New("it is not a URL that begins with https:// or http:// and has no user name in it")
	}
	return nil
}

// retryAfter reads the header in both its forms, and bounds it.
func retryAfter(text string, now time.Time) time.Duration {
	var d time.Duration
	if n, err := strconv.Atoi(text); err == nil {
		d = time.Duration(min(n, int(maxAfter/time.Second))) * time.Second
	} else if at, err := http.ParseTime(text); err == nil {
		d = at.Sub(now)
	}
	return max(0, min(d, maxAfter))
}
