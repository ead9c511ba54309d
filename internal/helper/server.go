package helper

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/haven-ha/haven/internal/netx"
)

// Options are what a Server needs.
type Options struct {
	Address string      // where to listen: host:port, with a literal or empty host
	TLS     *tls.Config // nil means HTTP without TLS
	// Username and Password are what clients must give. An empty user name
	// means that everybody may ask.
	Username, Password string
	// Neighbours are the helpers that may be checked on request, and Client
	// asks them. All others are refused, or the helper would ask any address
	// for anybody.
	Neighbours []netip.AddrPort
	Client     *Client
	VMs        Lister
	// Unit asks how the agent's unit is; nil: nothing is known of it.
	Unit UnitReader
	Net  netx.Stack
	Log  *slog.Logger
}

// Server is the helper's web server.
type Server struct {
	opts       Options
	lists      lists
	neighbours neighbours
	units      units
	want       atomic.Pointer[[sha256.Size]byte] // of the credentials

	mu       sync.Mutex
	refusals int       // since the last line in the log
	toldAt   time.Time // when that was
}

// New makes a server; Run serves.
func New(o Options) (*Server, error) {
	if o.Username != "" && o.Password == "" {
		return nil, errors.New("helper: a user name without a password")
	}
	if o.Username == "" && o.TLS != nil {
		return nil, errors.New("helper: TLS without a user name and password")
	}
	if strings.Contains(o.Username, ":") {
		return nil, errors.New("helper: a user name cannot hold a colon")
	}
	if o.VMs == nil || o.Client == nil || o.Net == nil || o.Log == nil {
		return nil, errors.New("helper: options are missing")
	}
	s := &Server{
		opts: o, lists: lists{from: o.VMs, log: o.Log}, units: units{read: o.Unit},
		neighbours: neighbours{client: o.Client, allowed: map[netip.AddrPort]bool{}, slots: make(chan struct{}, maxChecks)},
	}
	for _, n := range o.Neighbours {
		s.neighbours.allowed[netip.AddrPortFrom(n.Addr().Unmap(), n.Port())] = true
	}
	want := digest(o.Username, o.Password)
	s.want.Store(&want)
	return s, nil
}

// Protected says whether clients must give a password.
func (s *Server) Protected() bool { return s.opts.Username != "" }

// SetPassword takes another password for the same user, from clients and for the
// neighbours' helpers. An empty one changes nothing.
func (s *Server) SetPassword(password string) {
	if s.opts.Username == "" || password == "" {
		return
	}
	want := digest(s.opts.Username, password)
	s.want.Store(&want)
	s.opts.Client.password.Store(&password)
}

// Limits of one connection. A neighbour's check, the longest answer, takes
// checkLimit.
const (
	headerLimit  = 2 * time.Second
	requestLimit = 3 * time.Second
	answerLimit  = 6 * time.Second
	idleLimit    = 15 * time.Second
	maxHeader    = 8 << 10
	stopLimit    = 3 * time.Second
)

// Run listens and serves until ctx ends. It calls ready, if not nil, once it
// listens. An error means that it could not listen, or not any longer.
func (s *Server) Run(ctx context.Context, ready func(addr string)) error {
	ln, err := s.opts.Net.Listen("tcp", s.opts.Address)
	if err != nil {
		return fmt.Errorf("listen for helper requests: %w", err)
	}
	crowd := newCrowd(ln)
	srv := &http.Server{
		Handler:           s,
		ReadHeaderTimeout: headerLimit, // of the TLS handshake too
		ReadTimeout:       requestLimit,
		WriteTimeout:      answerLimit,
		IdleTimeout:       idleLimit,
		MaxHeaderBytes:    maxHeader,
		Protocols:         http1(),
		ErrorLog:          slog.NewLogLogger(s.opts.Log.Handler(), slog.LevelDebug),
	}
	served := make(chan error, 1)
	go func() {
		if s.opts.TLS != nil {
			srv.TLSConfig = s.opts.TLS.Clone()
			served <- srv.ServeTLS(crowd, "", "")
			return
		}
		served <- srv.Serve(crowd)
	}()
	if ready != nil {
		ready(ln.Addr().String())
	}
	select {
	case err = <-served:
	case <-ctx.Done():
		stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopLimit)
		defer cancel()
		_ = srv.Shutdown(stop)
		_ = srv.Close()
		<-served
		s.lists.wait(stop)
		s.units.wait(stop)
	}
	if err != nil {
		return fmt.Errorf("serve helper requests: %w", err)
	}
	return nil
}

// vmList is the answer to GET /.
type vmList struct {
	Count int      `json:"count"`
	VMs   []string `json:"virtualmachines"`
	Error string   `json:"error,omitempty"`
}

// ServeHTTP answers one request.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	neighbour, isCheck := strings.CutPrefix(r.URL.Path, "/check-neighbour/")
	switch {
	case r.Method != http.MethodGet && r.Method != http.MethodHead:
		w.Header().Set("Allow", "GET, HEAD")
		s.refuse(w, r, http.StatusMethodNotAllowed, "only GET is answered")
	case r.URL.Path == "/healthz":
		answer(w, http.StatusOK, map[string]string{"status": "ok"})
	case !s.allowed(r):
		s.tellRefusal(r.RemoteAddr)
		w.Header().Set("WWW-Authenticate", `Basic realm="haven-helper", charset="UTF-8"`)
		s.refuse(w, r, http.StatusUnauthorized, "wrong user name or password")
	case r.URL.Path == "/":
		s.list(w, r)
	case r.URL.Path == "/agent":
		s.agent(w, r)
	case isCheck:
		s.check(w, r, neighbour)
	default:
		s.refuse(w, r, http.StatusNotFound, "no such path")
	}
}

func (s *Server) list(w http.ResponseWriter, r *http.Request) {
	names, err := s.lists.get(r.Context())
	if err != nil {
		s.refuse(w, r, http.StatusServiceUnavailable, err.Error())
		return
	}
	if names == nil {
		names = []string{}
	}
	answer(w, http.StatusOK, vmList{Count: len(names), VMs: names})
}

func (s *Server) check(w http.ResponseWriter, r *http.Request, neighbour string) {
	up, why, err := s.neighbours.check(r.Context(), neighbour)
	switch {
	case errors.Is(err, errStranger):
		s.refuse(w, r, http.StatusForbidden, err.Error())
	case err != nil:
		s.refuse(w, r, http.StatusServiceUnavailable, err.Error())
	case up:
		answer(w, http.StatusOK, map[string]string{"status": "Up"})
	default:
		s.opts.Log.Info("neighbour gives no list", "neighbour", neighbour, "error", why)
		answer(w, http.StatusOK, map[string]string{"status": "Down"})
	}
}

// allowed compares digests, so that the time it takes tells nothing about the
// credentials, not even their length.
func (s *Server) allowed(r *http.Request) bool {
	if s.opts.Username == "" {
		return true
	}
	user, password, ok := r.BasicAuth()
	got, want := digest(user, password), s.want.Load()
	return subtle.ConstantTimeCompare(got[:], want[:]) == 1 && ok
}

func digest(user, password string) [sha256.Size]byte {
	return sha256.Sum256([]byte(user + ":" + password))
}

// tellRefusal logs wrong credentials, ten seconds' worth in one line.
func (s *Server) tellRefusal(remote string) {
	s.mu.Lock()
	s.refusals++
	n, now := s.refusals, time.Now()
	tell := s.toldAt.IsZero() || now.Sub(s.toldAt) >= 10*time.Second
	if tell {
		s.refusals, s.toldAt = 0, now
	}
	s.mu.Unlock()
	if tell {
		s.opts.Log.Warn("requests with wrong credentials", "count", n, "last_from", remote)
	}
}

// refuse answers with an error. Asked for the list, it has the list's form.
func (s *Server) refuse(w http.ResponseWriter, r *http.Request, code int, why string) {
	if r.URL.Path == "/" {
		answer(w, code, vmList{Count: -1, VMs: []string{}, Error: why})
		return
	}
	answer(w, code, map[string]string{"error": why})
}

// answer writes one line of JSON. The client reads one line and no more.
func answer(w http.ResponseWriter, code int, v any) {
	line, err := json.Marshal(v)
	if err != nil {
		code, line = http.StatusInternalServerError, []byte(`{"error":"internal error"}`)
	}
	h := w.Header()
	h.Set("Content-Type", "application/json")
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(code)
	_, _ = w.Write(append(line, '\n'))
}
