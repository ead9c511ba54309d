package redfish

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/haven-ha/haven/fencing"
)

const (
	bodyMax   = 1 << 20
	headerMax = 64 << 10
	// goodbyePart is how long, after the end of a call, the answer to a login that
	// is under way is waited for, and then as long again the deletion may take.
	goodbyePart = 1500 * time.Millisecond
	// redirectsMax and busyMax bound how often one request is sent again.
	redirectsMax = 3
	busyMax      = 2
	// retryAfterMax is the longest pause that a board may ask for within a call.
	// One that asks for more is busy; the caller has its own pauses.
	retryAfterMax  = 5 * time.Second
	sessionsPath   = root + "/SessionService/Sessions"
	interimMax     = 5
	tokenMax       = 4096
	retryAfterName = "Retry-After"
)

// session is one connection to the board and, on it, one session. It is used by
// one goroutine, and starts none that outlives a request.
type session struct {
	d        *Driver
	password string

	token    string // of the session, or empty
	location string // of the session, for its deletion

	conn   net.Conn
	wire   *io.LimitedReader
	reader *bufio.Reader
	used   bool // the connection has carried an answer
}

// request is one HTTP request.
type request struct {
	method, path string
	body         any
	ifMatch      string
	login        bool // its body is the credentials: no other authentication
	command      bool // the permit is asked right before it leaves, each time
	reset        bool // a power command
	permit       fencing.Permit
}

// answer is one HTTP answer with a success status.
type answer struct {
	status int
	header http.Header
	etag   string
	body   []byte
}

// open logs in. With basic authentication there is nothing to do.
func (s *session) open(ctx context.Context) error {
	if s.d.cfg.Login == LoginBasic {
		return nil
	}
	res, err := s.request(ctx, request{
		method: http.MethodPost, path: sessionsPath, login: true,
		body: map[string]string{"UserName": s.d.cfg.Username, "Password": s.password},
	})
	if err != nil {
		return fmt.Errorf("log in: %w", err)
	}
	s.token = res.header.Get("X-Auth-Token")
	if s.location, err = localPath(res.header.Get("Location")); err != nil {
		var l link
		_ = json.Unmarshal(res.body, &l)
		s.location, err = localPath(l.ID)
	}
	if s.token == "" || len(s.token) > tokenMax || err != nil {
		return fmt.Errorf("log in: %w: it gave no session; basic authentication may work", fencing.ErrUnsupported)
	}
	return ctx.Err()
}

// logout deletes the session. It has its own time, for it comes after errors and
// timeouts too; what it cannot do the board's own timeout does.
func (s *session) logout(ctx context.Context) {
	if s.token == "" || s.location == "" {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), goodbyePart)
	defer cancel()
	_, _ = s.request(ctx, request{method: http.MethodDelete, path: s.location})
}

// onlySystem finds the path of the board's only system.
func (s *session) onlySystem(ctx context.Context) (string, error) {
	res, err := s.request(ctx, request{method: http.MethodGet, path: root + "/Systems"})
	if err != nil {
		return "", fmt.Errorf("list the systems: %w", err)
	}
	var c collection
	if err := res.decode(&c); err != nil {
		return "", fmt.Errorf("list the systems: %w", err)
	}
	return c.only()
}

// request sends a request and takes its answer. A request is sent again when the
// board closed an idle connection, names another path on itself, or asks for a
// short pause; the permit is asked anew each time.
func (s *session) request(ctx context.Context, q request) (*answer, error) {
	var body []byte
	if q.body != nil {
		var err error
		if body, err = json.Marshal(q.body); err != nil {
			return nil, fmt.Errorf("write request: %w", err)
		}
	}
	for redirects, busies, idles := 0, 0, 0; ; {
		res, err := s.exchange(ctx, q, body)
		if errors.Is(err, errIdle) && idles == 0 {
			idles++
			continue
		}
		if errors.Is(err, fencing.ErrNotPermitted) && idles > 0 {
			// A refusal would say that nothing went out, and nobody knows.
			return nil, fmt.Errorf("%w, and there is no permission to send it again: %s", errIdle, err.Error())
		}
		if err != nil {
			return nil, err
		}
		switch {
		case res.status >= 200 && res.status < 300:
			return res, nil
		case res.status >= 300 && res.status < 400:
			if q.path, err = s.redirect(q, res); err != nil {
				return nil, err
			}
			if redirects++; redirects > redirectsMax {
				return nil, fmt.Errorf("%w: it redirects for ever", fencing.ErrUnsupported)
			}
			continue
		}
		err = failure(res.status, messageIDs(res.body, s.password, s.token), q.reset, s.token != "" && !q.login)
		if pause, ok := retryAfter(res.header); ok && errors.Is(err, fencing.ErrBusy) && busies < busyMax && sleep(ctx, pause) {
			busies++
			continue
		}
		return nil, err
	}
}

// redirect returns the path that a redirection leads to. It must be on the same
// address and must keep the method: what was meant for this board, a password or
// a power command, goes to no other.
func (s *session) redirect(q request, res *answer) (string, error) {
	keeps := res.status == http.StatusTemporaryRedirect || res.status == http.StatusPermanentRedirect || q.method == http.MethodGet && res.status != http.StatusNotModified
	u, err := url.Parse(res.header.Get("Location"))
	if err != nil || !keeps {
		return "", fmt.Errorf("%w: HTTP status %d", fencing.ErrUnsupported, res.status)
	}
	if u.Host != "" && (u.Scheme != s.scheme() || !s.d.isAt(u)) {
		return "", fmt.Errorf("%w: it redirects to another address", fencing.ErrUnsupported)
	}
	p, err := localPath(u.EscapedPath())
	if err != nil {
		return "", fmt.Errorf("%w: it redirects to what is no resource", fencing.ErrUnsupported)
	}
	return p, nil
}

// isAt says whether the URL is one of this device.
func (d *Driver) isAt(u *url.URL) bool {
	port := uint64(defaultPort)
	if u.Port() != "" {
		var err error
		if port, err = strconv.ParseUint(u.Port(), 10, 16); err != nil {
			return false
		}
	}
	if port != uint64(d.addr.Port()) {
		return false
	}
	a, err := netip.ParseAddr(u.Hostname())
	return err == nil && a.Unmap() == d.addr.Addr().Unmap() || d.cfg.Name != "" && u.Hostname() == d.cfg.Name
}

// retryAfter reads how long the board wants to be left alone, if it is short. A
// date is of no use: its clock may show anything.
func retryAfter(h http.Header) (time.Duration, bool) {
	n, err := strconv.Atoi(h.Get(retryAfterName))
	if d := time.Duration(n) * time.Second; err == nil && n >= 0 && n <= int(retryAfterMax/time.Second) {
		return d, true
	}
	return 0, false
}

// sleep waits, and says whether there is time left after it.
func sleep(ctx context.Context, d time.Duration) bool {
	if end, ok := ctx.Deadline(); ok && time.Until(end) <= d {
		return false
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return ctx.Err() == nil
	case <-ctx.Done():
		return false
	}
}

// errIdle is returned when the board closed a connection between two requests, as
// it may at any time.
var errIdle = fmt.Errorf("%w: it closed the connection", fencing.ErrUnreachable)

// exchange sends the request once. After an error, and where the board says so,
// the connection is closed, and the next request makes a fresh one.
func (s *session) exchange(ctx context.Context, q request, body []byte) (*answer, error) {
	if err := s.connect(ctx); err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil && !q.command {
		return nil, err
	}
	if q.command {
		if err := q.permit.Check(ctx); err != nil {
			return nil, err
		}
	}
	// A login that is abandoned may still become a session at the board, whose
	// token nobody has. So its answer is waited for a little, to delete it.
	wait := time.Duration(0)
	if q.login {
		wait = goodbyePart
	}
	stop := bind(ctx, s.conn, wait)
	res, keep, err := s.speak(q, body)
	stop()
	if err != nil || !keep {
		s.close()
	}
	s.used = true
	return res, err
}

// speak writes the request and reads the answer, and says whether the connection
// can carry another.
func (s *session) speak(q request, body []byte) (*answer, bool, error) {
	req, err := s.head(q, body)
	if err != nil {
		return nil, false, err
	}
	idle := func(err error) error {
		// Without one byte of an answer on a connection that was good before.
		if s.used {
			return fmt.Errorf("%w: %w", errIdle, err)
		}
		return fmt.Errorf("%w: %w", fencing.ErrUnreachable, err)
	}
	if err := req.Write(s.conn); err != nil {
		return nil, false, idle(err)
	}
	s.wire.N = headerMax
	if _, err := s.reader.Peek(1); err != nil {
		return nil, false, idle(err)
	}
	res, err := s.readHead(req)
	if err != nil {
		return nil, false, err
	}
	defer func() { _ = res.Body.Close() }()
	s.wire.N = bodyMax + headerMax // and what chunks need around them
	data, err := io.ReadAll(io.LimitReader(res.Body, bodyMax+1))
	switch {
	case len(data) > bodyMax || s.wire.N <= 0:
		return nil, false, fmt.Errorf("%w: its answer is longer than 1 MiB", fencing.ErrUnsupported)
	case err != nil:
		return nil, false, fmt.Errorf("%w: its answer breaks off", fencing.ErrUnreachable)
	}
	// What stands behind the answer is no answer to anything.
	keep := !res.Close && s.reader.Buffered() == 0
	return &answer{status: res.StatusCode, header: res.Header, etag: res.Header.Get("ETag"), body: data}, keep, nil
}

// readHead reads the head of the answer, after those that only say "wait".
func (s *session) readHead(req *http.Request) (*http.Response, error) {
	for range interimMax {
		res, err := http.ReadResponse(s.reader, req)
		if s.wire.N <= 0 {
			return nil, fmt.Errorf("%w: its answer's head is longer than 64 KiB", fencing.ErrUnsupported)
		}
		if err != nil {
			// The cause may quote what the board sent; it is not told.
			return nil, fmt.Errorf("%w: its answer is no HTTP, or breaks off", fencing.ErrUnreachable)
		}
		if res.StatusCode >= 200 {
			return res, nil
		}
	}
	return nil, fmt.Errorf("%w: it does not come to an answer", fencing.ErrUnsupported)
}

func (s *session) scheme() string {
	if s.d.cfg.Plain {
		return "http"
	}
	return "https"
}

// authority is the address without a zone, which is of no concern to the board.
func (d *Driver) authority() string {
	return netip.AddrPortFrom(d.addr.Addr().Unmap().WithZone(""), d.addr.Port()).String()
}

func (s *session) head(q request, body []byte) (*http.Request, error) {
	u := s.scheme() + "://" + s.d.authority() + q.path
	req, err := http.NewRequest(q.method, u, bytes.NewReader(body))
	if err != nil {
		return nil, fmt.Errorf("%w: its path cannot be asked for", fencing.ErrUnsupported)
	}
	h := req.Header
	h.Set("Accept", "application/json")
	h.Set("Accept-Encoding", "identity")
	h.Set("OData-Version", "4.0")
	h.Set("User-Agent", "haven")
	if q.body != nil {
		h.Set("Content-Type", "application/json")
	}
	if q.ifMatch != "" {
		h.Set("If-Match", q.ifMatch)
	}
	switch {
	case q.login:
	case s.token != "":
		h.Set("X-Auth-Token", s.token)
	default:
		req.SetBasicAuth(s.d.cfg.Username, s.password)
	}
	return req, nil
}

// connect makes a connection unless there is one.
func (s *session) connect(ctx context.Context) error {
	if s.conn != nil {
		return nil
	}
	raw, err := s.d.cfg.Net.DialContext(ctx, "tcp", s.d.addr.String())
	if err != nil {
		return fmt.Errorf("%w: %w", fencing.ErrUnreachable, err)
	}
	conn := raw
	if !s.d.cfg.Plain {
		cfg, err := s.d.tls()
		if err != nil {
			_ = raw.Close()
			return err
		}
		t := tls.Client(raw, cfg)
		if err := t.HandshakeContext(ctx); err != nil {
			_ = raw.Close()
			return handshakeError(err)
		}
		conn = t
	}
	s.conn, s.used = conn, false
	s.wire = &io.LimitedReader{R: conn, N: headerMax}
	s.reader = bufio.NewReader(s.wire)
	return nil
}

// close drops the connection. The farewell of TLS is left out: it can hang for
// seconds, and the session is deleted by its own request.
func (s *session) close() {
	if s.conn == nil {
		return
	}
	if t, ok := s.conn.(*tls.Conn); ok {
		_ = t.NetConn().Close()
	} else {
		_ = s.conn.Close()
	}
	s.conn = nil
}

// tls is how the board is verified: before anything is sent to it.
func (d *Driver) tls() (*tls.Config, error) {
	cfg := &tls.Config{MinVersion: tls.VersionTLS12, NextProtos: []string{"http/1.1"}}
	if d.pin != nil {
		cfg.VerifyConnection = d.verifyPin
	}
	if d.cfg.Roots == nil {
		cfg.InsecureSkipVerify = true // VerifyConnection is instead of it.
		return cfg, nil
	}
	pool, err := d.cfg.Roots()
	if err != nil {
		return nil, fmt.Errorf("get authorities: %w", err)
	}
	if pool == nil {
		return nil, errors.New("get authorities: there are none")
	}
	cfg.RootCAs = pool // Nil would mean those of this machine.
	cfg.ServerName = d.addr.Addr().Unmap().WithZone("").String()
	if d.cfg.Name != "" {
		cfg.ServerName = d.cfg.Name
	}
	return cfg, nil
}

var errPin = errors.New("its key is not the pinned one")

func (d *Driver) verifyPin(state tls.ConnectionState) error {
	if len(state.PeerCertificates) == 0 {
		return errPin
	}
	sum := sha256.Sum256(state.PeerCertificates[0].RawSubjectPublicKeyInfo)
	if subtle.ConstantTimeCompare(sum[:], d.pin) != 1 {
		return fmt.Errorf("%w but %x", errPin, sum)
	}
	return nil
}

// handshakeError tells a wrong certificate from a broken connection.
func handshakeError(err error) error {
	var verify *tls.CertificateVerificationError
	var invalid x509.CertificateInvalidError
	switch {
	case errors.Is(err, errPin), errors.As(err, &verify), errors.As(err, &invalid):
		return fmt.Errorf("%w: %w", ErrCertificate, err)
	}
	var alert *net.OpError // as the library tells alerts, which have no other type
	var record tls.RecordHeaderError
	if errors.As(err, &alert) && strings.HasSuffix(alert.Op, " error") || errors.As(err, &record) {
		return fmt.Errorf("%w: no TLS with it: %w", fencing.ErrUnsupported, err)
	}
	return fmt.Errorf("%w: %w", fencing.ErrUnreachable, err)
}

// bind makes reads and writes on the socket end with the context, or so much
// later. The function it returns unbinds, after which no more deadlines are set.
func bind(ctx context.Context, conn net.Conn, later time.Duration) func() {
	done := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(done)
		_ = conn.SetDeadline(time.Now().Add(later))
	})
	return func() {
		if !stop() {
			<-done
		}
	}
}
