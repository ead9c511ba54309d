// Package api serves Haven's HTTPS API. It knows how to tell who asks, what that
// one may do, how long a body may be and how an error looks; what is answered
// comes from the routes that it is given.
package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/haven-ha/haven"
	"github.com/haven-ha/haven/internal/client"
	"github.com/haven-ha/haven/internal/pki"
)

// Need says who may use a route.
type Need int

// The needs, from the least.
const (
	NeedViewer   Need = iota // operators of any role, hosts, and root on this host
	NeedOperator             // operators and admins
	NeedAdmin                // admins
	NeedHost                 // other hosts of the cluster only
)

// Route is one thing that can be asked.
type Route struct {
	Pattern  string // as of http.ServeMux: "GET /v1/members"
	Need     Need
	MaxBytes int64 // of the body; 0: no body
	Serve    func(ctx context.Context, c *Call) (any, error)
}

// Call is one request.
type Call struct {
	// From is the host that asks, on a NeedHost route.
	From haven.HostID
	// By names who asks, for the record.
	By string
	// Role is what the asker may do.
	Role pki.Role
	Body []byte
	req  *http.Request
}

// Path returns a part of the path that the pattern names.
func (c *Call) Path(name string) string { return c.req.PathValue(name) }

// Query returns a parameter of the query.
func (c *Call) Query(name string) string { return c.req.URL.Query().Get(name) }

// URI is what was asked for, to ask somebody else the same.
func (c *Call) URI() string { return c.req.URL.RequestURI() }

// Decode reads the body strictly.
func (c *Call) Decode(into any) error {
	d := json.NewDecoder(strings.NewReader(string(c.Body)))
	d.DisallowUnknownFields()
	err := d.Decode(into)
	if err == nil {
		if _, end := d.Token(); !errors.Is(end, io.EOF) {
			err = errors.New("there is more after the value")
		}
	}
	if err != nil {
		return problem(http.StatusBadRequest, "bad request", err.Error())
	}
	return nil
}

// requestTimeout bounds the answering of one request.
const requestTimeout = 15 * time.Second

// Handler serves the routes. Extra handlers, such as metrics and the page, are
// served as they are to whoever may look (NeedViewer).
func Handler(cluster string, routes []Route, extra map[string]http.Handler, log *slog.Logger) http.Handler {
	s := &server{cluster: cluster, log: log}
	mux := http.NewServeMux()
	for _, r := range routes {
		mux.Handle(r.Pattern, s.route(r))
	}
	for pattern, h := range extra {
		mux.Handle(pattern, s.guard(h))
	}
	return mux
}

type server struct {
	cluster string
	log     *slog.Logger
}

// ByLocal is who a call over the local socket is by, when nobody gave a name.
const ByLocal = "root (local)"

type localKey struct{}

// LocalContext marks the connections of a listener that only root on this host
// can reach, as http.Server's ConnContext.
func LocalContext(ctx context.Context, _ net.Conn) context.Context {
	return context.WithValue(ctx, localKey{}, true)
}

// identify tells who asks.
func (s *server) identify(r *http.Request) (who pki.Identity, local bool, err error) {
	if r.Context().Value(localKey{}) != nil {
		return pki.Identity{Cluster: s.cluster, Role: pki.RoleAdmin, Name: "root"}, true, nil
	}
	if r.TLS == nil {
		return pki.Identity{}, false, errors.New("no certificate")
	}
	who, err = pki.PeerIdentity(*r.TLS)
	if err == nil && who.Cluster != s.cluster {
		err = fmt.Errorf("certificate of cluster %q", who.Cluster)
	}
	return who, false, err
}

// allow checks one need, and fills in who the call is by.
func (s *server) allow(need Need, r *http.Request, c *Call) error {
	who, local, err := s.identify(r)
	if err != nil {
		return problem(http.StatusUnauthorized, "not authenticated", err.Error())
	}
	c.By, c.Role = who.String(), who.Role
	if local {
		c.By = ByLocal
	}
	if who.IsHost() {
		c.From = who.Host
		c.Role = pki.RoleViewer
		if behalf := r.Header.Get(client.HeaderOnBehalf); behalf != "" && need != NeedHost {
			if c.By, c.Role, err = onBehalf(behalf); err != nil {
				return problem(http.StatusBadRequest, "bad request", err.Error())
			}
		}
	}
	ok := false
	switch need {
	case NeedHost:
		ok = who.IsHost()
	case NeedViewer:
		ok = c.Role.Includes(pki.RoleViewer)
	case NeedOperator:
		ok = c.Role.Includes(pki.RoleOperator)
	case NeedAdmin:
		ok = c.Role.Includes(pki.RoleAdmin)
	}
	if !ok {
		return problem(http.StatusForbidden, "not allowed", fmt.Sprintf("%s may not do this", c.By))
	}
	return nil
}

// maxName bounds the name of whoever a host speaks for.
const maxName = 200

// onBehalf reads for whom a host passes a request on.
func onBehalf(header string) (name string, role pki.Role, err error) {
	at := strings.LastIndexByte(header, ';')
	if at <= 0 || at > maxName {
		return "", "", fmt.Errorf("%s: want name;role", client.HeaderOnBehalf)
	}
	role, err = pki.ParseRole(header[at+1:])
	return header[:at], role, err
}

func (s *server) guard(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if err := s.allow(NeedViewer, r, &Call{}); err != nil {
			s.fail(w, r, err)
			return
		}
		h.ServeHTTP(w, r)
	})
}

func (s *server) route(route Route) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), requestTimeout)
		defer cancel()
		c := &Call{req: r}
		if err := s.allow(route.Need, r, c); err != nil {
			s.fail(w, r, err)
			return
		}
		body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, route.MaxBytes))
		if err != nil {
			status := http.StatusBadRequest
			if _, long := errors.AsType[*http.MaxBytesError](err); long {
				status = http.StatusRequestEntityTooLarge
			}
			s.fail(w, r, problem(status, "body not read", err.Error()))
			return
		}
		c.Body = body
		answer, err := route.Serve(ctx, c)
		if err != nil {
			s.fail(w, r, err)
			return
		}
		s.write(w, r, http.StatusOK, "application/json", answer)
	})
}

func (s *server) write(w http.ResponseWriter, r *http.Request, status int, kind string, v any) {
	data, err := json.Marshal(v)
	if err != nil {
		s.log.Error("answer could not be encoded", "path", r.URL.Path, "error", err)
		status, data = http.StatusInternalServerError, []byte(`{"title":"answer could not be encoded"}`)
	}
	w.Header().Set("Content-Type", kind)
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(status)
	if _, err := w.Write(append(data, '\n')); err != nil {
		s.log.Debug("answer could not be sent", "path", r.URL.Path, "error", err)
	}
}

func problem(status int, title, detail string) error {
	return &client.Error{Problem: client.Problem{Title: title, Status: status, Detail: detail}}
}

// fail writes an error as a problem document (RFC 9457).
func (s *server) fail(w http.ResponseWriter, r *http.Request, err error) {
	var e *client.Error
	if !errors.As(err, &e) {
		e = &client.Error{Problem: client.Problem{Title: http.StatusText(statusOf(err)), Status: statusOf(err), Detail: err.Error()}}
	}
	if e.Status == 0 {
		e.Status = http.StatusInternalServerError
	}
	if e.Status >= http.StatusInternalServerError && e.Status != http.StatusServiceUnavailable {
		s.log.Warn("request failed", "path", r.URL.Path, "error", err)
	}
	s.write(w, r, e.Status, "application/problem+json", e.Problem)
}

func statusOf(err error) int {
	switch {
	case errors.Is(err, haven.ErrNotMaster):
		return http.StatusMisdirectedRequest
	case errors.Is(err, haven.ErrNotFound):
		return http.StatusNotFound
	case errors.Is(err, haven.ErrStaleTerm):
		return http.StatusPreconditionFailed
	case errors.Is(err, haven.ErrUnavailable), errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		return http.StatusServiceUnavailable
	}
	return http.StatusInternalServerError
}

// Serve runs an HTTP server on a listener until the context ends, then gives
// open requests a moment.
func Serve(ctx context.Context, l net.Listener, h http.Handler, local bool, log *slog.Logger) error {
	srv := &http.Server{
		Handler:           h,
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       30 * time.Second,
		WriteTimeout:      time.Minute, // a peer that does not read must not keep its connection
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    16 << 10,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelDebug),
		BaseContext:       func(net.Listener) context.Context { return ctx },
		// Agents call one another over HTTP/2, where one connection carries all.
		HTTP2: &http.HTTP2Config{MaxConcurrentStreams: 250, SendPingTimeout: 15 * time.Second, PingTimeout: 5 * time.Second},
	}
	if local {
		srv.ConnContext = LocalContext
	}
	ended := make(chan error, 1)
	go func() { ended <- srv.Serve(l) }()
	select {
	case err := <-ended:
		return fmt.Errorf("serve API: %w", err)
	case <-ctx.Done():
	}
	last, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	if err := srv.Shutdown(last); err != nil {
		err = srv.Close()
		log.Debug("API connections were cut", "error", err)
	}
	<-ended
	return nil
}
