package cli_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/haven-ha/haven"
	"github.com/haven-ha/haven/internal/api"
	"github.com/haven-ha/haven/internal/client"
	"github.com/haven-ha/haven/internal/minicluster"
	"github.com/haven-ha/haven/internal/world"
)

// wholeCluster starts three real agents with one VM on kvm-03 and waits until it
// is protected ("cluster start"), or cuts kvm-03's power and waits until the VM
// runs elsewhere ("cluster cut"). The local socket leads to the agents' API.
func wholeCluster(ts *testscript.TestScript, _ bool, args []string) {
	switch args[0] {
	case "start":
		ts.Check(startCluster(ts))
	case "cut":
		c := ts.Value(clusterKey{}).(*slot).running
		c.Hosts()[2].PowerOff()
		ts.Check(c.until("/v1/incidents", func(data []byte) bool {
			var all []client.Incident
			return json.Unmarshal(data, &all) == nil && len(all) == 1 && all[0].Step == haven.StepClosed
		}))
	default:
		ts.Fatalf("cluster %s?", args[0])
	}
}

// clusterKey is where a script keeps its cluster.
type clusterKey struct{}

type slot struct{ running *running }

// running is a cluster and a client of it.
type running struct {
	*minicluster.Cluster
	api *client.Client
}

func startCluster(ts *testscript.TestScript) error {
	c, err := minicluster.New(minicluster.Options{
		Hosts: 3, Dir: ts.MkAbs("."), StoreChild: []string{"/proc/self/exe", storeChild}, MemoryMiB: 8192,
		Net:     [2]byte{byte(os.Getpid() >> 8), byte(os.Getpid())},
		OnEvent: func(world.Event) {},
		Log:     func(haven.HostID) *slog.Logger { return slog.New(slog.DiscardHandler) },
	})
	if err != nil {
		return err
	}
	ts.Defer(c.Close)
	cl, err := c.Client()
	if err != nil {
		return err
	}
	r := &running{c, cl}
	ts.Value(clusterKey{}).(*slot).running = r
	if err := r.door(ts); err != nil {
		return err
	}
	if _, err := c.Hosts()[2].Machine.UserStart(world.XML("00000000-0000-4000-8000-000000000001", "web-1", 512)); err != nil {
		return err
	}
	return errors.Join(
		r.until("/v1/vms", func(data []byte) bool {
			var vms []client.VM
			return json.Unmarshal(data, &vms) == nil && len(vms) == 1 && vms[0].Protected
		}),
		r.until("/v1/hosts", func(data []byte) bool {
			var hosts []client.Host
			on := 0
			err := json.Unmarshal(data, &hosts)
			for _, h := range hosts {
				if h.Power.State == "on" && h.Verdict == haven.VerdictHealthy {
					on++
				}
			}
			return err == nil && on == 3
		}),
		r.until("/v1/status", func(data []byte) bool {
			var st client.Status
			return json.Unmarshal(data, &st) == nil && st.Healthy
		}),
	)
}

// ask sends a request to the first agent that answers it.
func (r *running) ask(ctx context.Context, method, path string, body []byte) (answer json.RawMessage, err error) {
	for _, h := range r.Hosts() {
		if !h.AgentRuns() {
			continue
		}
		one, cancel := context.WithTimeout(ctx, 5*time.Second)
		if method == http.MethodPost {
			err = r.api.Post(one, h.ID, path, json.RawMessage(body), &answer)
		} else {
			err = r.api.Get(one, h.ID, path, &answer)
		}
		cancel()
		var said *client.Error
		if err == nil || errors.As(err, &said) {
			return answer, err
		}
	}
	return nil, err
}

// until polls until the answer is as wanted.
func (r *running) until(path string, ok func([]byte) bool) error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		data, err := r.ask(ctx, http.MethodGet, path, nil)
		if err == nil && ok(data) {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("wait for %s: last answer %s, last error %w", path, data, errors.Join(err, ctx.Err()))
		}
	}
}

// door passes what comes in at the local socket on to the agents.
func (r *running) door(ts *testscript.TestScript) error {
	l, err := net.Listen("unix", ts.MkAbs("s"))
	if err != nil {
		return err
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/", func(w http.ResponseWriter, req *http.Request) {
		body, err := io.ReadAll(io.LimitReader(req.Body, client.MaxSmallBytes))
		var answer json.RawMessage
		if err == nil {
			answer, err = r.ask(req.Context(), req.Method, req.URL.RequestURI(), body)
		}
		var said *client.Error
		switch {
		case errors.As(err, &said):
			w.WriteHeader(said.Status)
			answer, err = json.Marshal(said.Problem)
		case err != nil:
			w.WriteHeader(http.StatusBadGateway)
		}
		if _, werr := w.Write(answer); err != nil || werr != nil {
			ts.Logf("door: %v", errors.Join(err, werr))
		}
	})
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- api.Serve(ctx, l, mux, true, slog.New(slog.DiscardHandler)) }()
	ts.Defer(func() {
		cancel()
		if err := <-ended; err != nil {
			ts.Logf("door: %v", err)
		}
	})
	return nil
}
