package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"time"

	"github.com/haven-ha/haven"
	"github.com/haven-ha/haven/internal/client"
	"github.com/haven-ha/haven/web"
)

// usualListen is where the page is, unless somebody else listens there.
const usualListen = "127.0.0.1:7980"

// listen opens the page's port; an empty address takes the usual or any one.
func listen(addr string) (net.Listener, error) {
	if addr != "" {
		return net.Listen("tcp", addr)
	}
	l, err := net.Listen("tcp", usualListen)
	if err != nil {
		return net.Listen("tcp", "127.0.0.1:0")
	}
	return l, nil
}

// serve shows the page until the context ends.
func (d *demo) serve(ctx context.Context, l net.Listener, out io.Writer) error {
	self := l.Addr().String()
	srv := &http.Server{
		Handler: d.handler(self), ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 10 * time.Second, MaxHeaderBytes: 16 << 10,
		BaseContext: func(net.Listener) context.Context { return ctx },
	}
	fmt.Fprintf(out, "Open http://%s/ and break something. Ctrl-C ends it.\n", self)
	ended := make(chan error, 1)
	go func() { ended <- srv.Serve(l) }()
	select {
	case err := <-ended:
		return fmt.Errorf("serve the page: %w", err)
	case <-ctx.Done():
	}
	err := srv.Close()
	<-ended
	fmt.Fprintln(out, "ending")
	return err
}

// handler serves the page, the agents' API as they answer it, and the faults.
// It is for browsers on this machine, at this address and no other name of it.
func (d *demo) handler(self string) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /{$}", web.Handler())
	mux.Handle("GET /web/", web.Handler())
	for _, path := range []string{"status", "hosts", "vms", "incidents", "incidents/{id}", "raft", "members"} {
		mux.HandleFunc("GET /v1/"+path, d.passOn)
	}
	mux.HandleFunc("GET /demo/hosts", func(w http.ResponseWriter, _ *http.Request) { answer(w, d.view()) })
	mux.HandleFunc("POST /demo/hosts/{host}/confirm-dead", func(w http.ResponseWriter, r *http.Request) {
		acted(w, d.sayDead(r.Context(), haven.HostID(r.PathValue("host"))))
	})
	mux.HandleFunc("POST /demo/hosts/{host}/{part}/{state}", func(w http.ResponseWriter, r *http.Request) {
		state := r.PathValue("state")
		if state != "on" && state != "off" {
			problem(w, http.StatusNotFound, "a part is switched on or off")
			return
		}
		acted(w, d.setPart(haven.HostID(r.PathValue("host")), r.PathValue("part"), state == "on"))
	})
	return onlyAt(self, http.NewCrossOriginProtection().Handler(mux))
}

// onlyAt refuses requests that name another host: a page elsewhere whose name
// was made to point to this machine would be of the same origin as itself.
func onlyAt(self string, h http.Handler) http.Handler {
	names := map[string]bool{self: true}
	if ap, err := netip.ParseAddrPort(self); err == nil {
		names[net.JoinHostPort("localhost", strconv.Itoa(int(ap.Port())))] = true
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !names[r.Host] {
			problem(w, http.StatusMisdirectedRequest, "this page is not served under that name")
			return
		}
		h.ServeHTTP(w, r)
	})
}

// passOn asks an agent what was asked here.
func (d *demo) passOn(w http.ResponseWriter, r *http.Request) {
	var body json.RawMessage
	if err := d.get(r.Context(), r.URL.EscapedPath(), &body); err != nil {
		status := http.StatusServiceUnavailable
		if e, ok := errors.AsType[*client.Error](err); ok && e.Status/100 == 4 {
			status = e.Status
		}
		problem(w, status, err.Error())
		return
	}
	if r.URL.Path == "/v1/status" {
		var st client.Status
		if json.Unmarshal(body, &st) == nil {
			d.learn(st)
		}
	}
	answer(w, body)
}

// truthView is what really is, for the page.
type truthView struct {
	Hosts      []hostParts  `json:"hosts"`
	VMs        []vmTruth    `json:"vms"`
	Violations []string     `json:"violations"`
	Events     []eventTruth `json:"events"` // the newest last
}

type vmTruth struct {
	VM     haven.VMID     `json:"vm"`
	RunsOn []haven.HostID `json:"runs_on"`
	Starts int            `json:"starts"`
}

type eventTruth struct {
	At   time.Time `json:"at"`
	Text string    `json:"text"`
}

// maxShown bounds the events on the page.
const maxShown = 100

func (d *demo) view() truthView {
	v := truthView{Violations: append([]string{}, d.cluster.World.Violations()...), Events: []eventTruth{}}
	for _, h := range d.cluster.Hosts() {
		v.Hosts = append(v.Hosts, d.parts(h))
	}
	for _, id := range d.vms {
		v.VMs = append(v.VMs, vmTruth{id, append([]haven.HostID{}, d.cluster.World.RunsOn(id)...), d.cluster.World.Starts(id)})
	}
	events := d.truth.since(time.Time{})
	for _, e := range events[max(0, len(events)-maxShown):] {
		v.Events = append(v.Events, eventTruth{e.at, e.Text})
	}
	return v
}

func acted(w http.ResponseWriter, err error) {
	switch {
	case err == nil:
		answer(w, map[string]string{"status": "done"})
	case errors.Is(err, errNoSuch):
		problem(w, http.StatusNotFound, err.Error())
	case errors.Is(err, errHasPower):
		problem(w, http.StatusConflict, err.Error())
	default:
		problem(w, http.StatusServiceUnavailable, err.Error())
	}
}

func answer(w http.ResponseWriter, v any) { write(w, http.StatusOK, "application/json", v) }

func problem(w http.ResponseWriter, status int, detail string) {
	write(w, status, "application/problem+json", client.Problem{Title: http.StatusText(status), Status: status, Detail: detail})
}

func write(w http.ResponseWriter, status int, kind string, v any) {
	body, err := json.Marshal(v)
	if err != nil {
		status, body = http.StatusInternalServerError, []byte(`{"title":"answer could not be encoded"}`)
	}
	w.Header().Set("Content-Type", kind)
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_, _ = w.Write(body) // A browser that went away needs no answer.
}
