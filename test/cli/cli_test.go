// Package cli_test runs the operator's tool as a process, in scripts, against an
// API served by the agents' own server code, and once against a whole cluster.
package cli_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/rogpeppe/go-internal/testscript"

	"golang.org/x/sys/unix"

	"github.com/haven-ha/haven/internal/agent"
	"github.com/haven-ha/haven/internal/api"
	"github.com/haven-ha/haven/internal/cli"
	"github.com/haven-ha/haven/internal/client"
	"github.com/haven-ha/haven/internal/netx"
	"github.com/haven-ha/haven/internal/pki"
	"github.com/haven-ha/haven/internal/stores"
	"github.com/haven-ha/haven/internal/tlsmux"
	"github.com/haven-ha/haven/storagebeat"
)

const storeChild = "store-child"

func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == storeChild {
		os.Exit(storagebeat.ChildMain(os.Args[2:], os.Stdin, os.Stdout, stores.Types()...))
	}
	testscript.Main(m, map[string]func(){"haven": tool})
}

// tool is the tool as cmd/haven starts it, with a clock that a script can stop.
func tool() {
	now := time.Now
	if at, err := time.Parse(time.RFC3339, os.Getenv("NOW")); err == nil {
		now = func() time.Time { return at }
	}
	os.Exit(cli.Run(context.Background(), cli.Env{
		Args: os.Args[1:], Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr, Getenv: os.Getenv, Now: now,
		Version: "v1.2.3", StoreChild: []string{"/proc/self/exe", storeChild},
	}))
}

func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata", RequireExplicitExec: true, RequireUniqueNames: true,
		UpdateScripts: os.Getenv("UPDATE_SCRIPTS") != "",
		Setup: func(env *testscript.Env) error {
			env.Setenv("NOW", "2026-11-22T05:00:00Z")
			env.Setenv("HAVEN_CONFIG", filepath.Join(env.WorkDir, "haven.yaml"))
			env.Setenv("HAVEN_SOCKET", filepath.Join(env.WorkDir, "s"))
			env.Values[clusterKey{}] = &slot{}
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"serve": serve, "code": code, "fits": fits, "gossipkeys": gossipKeys, "hang": hang, "hangstore": hangStore, "mode": mode,
			"cluster": wholeCluster, "explain": explain, "recording": recording, "damage": damage,
		},
	})
}

// code runs the tool and compares its exit code: code 4 haven arm.
func code(ts *testscript.TestScript, _ bool, args []string) {
	err := ts.Exec(args[1], args[2:]...)
	got := 0
	if err != nil {
		if _, scanErr := fmt.Sscanf(err.Error(), "exit status %d", &got); scanErr != nil {
			ts.Fatalf("%v", err)
		}
	}
	if fmt.Sprint(got) != args[0] {
		ts.Fatalf("exit code is %d, want %s", got, args[0])
	}
}

// fits fails when a line of the last output is longer than a terminal is wide.
func fits(ts *testscript.TestScript, neg bool, _ []string) {
	long := ""
	for line := range strings.SplitSeq(ts.ReadFile("stdout"), "\n") {
		if utf8.RuneCountInString(line) > 80 {
			long = line
		}
	}
	if (long == "") == neg {
		ts.Fatalf("a line longer than 80 characters: %q", long)
	}
}

// explain runs "haven explain" for the incident whose id was printed last.
func explain(ts *testscript.TestScript, _ bool, _ []string) {
	id, _, _ := strings.Cut(ts.ReadFile("stdout"), "\t")
	ts.Check(ts.Exec("haven", "explain", id))
}

// mode compares the permissions of a file: mode 600 ca.key.
func mode(ts *testscript.TestScript, _ bool, args []string) {
	info, err := os.Stat(ts.MkAbs(args[1]))
	ts.Check(err)
	if got := fmt.Sprintf("%o", info.Mode().Perm()); got != args[0] {
		ts.Fatalf("mode of %s is %s, want %s", args[1], got, args[0])
	}
}

// gossipKeys reads a file as the agent does: gossipkeys FILE COUNT.
func gossipKeys(ts *testscript.TestScript, _ bool, args []string) {
	keys, err := agent.LoadGossipKeys(ts.MkAbs(args[0]))
	ts.Check(err)
	if fmt.Sprint(len(keys)) != args[1] {
		ts.Fatalf("%d keys, want %s", len(keys), args[1])
	}
}

// serve starts an API that answers from the files below api/: GET /v1/hosts from
// v1/hosts.json, errors from v1/hosts.problem. What is posted goes to
// posted.log. "serve local" listens on the local socket, "serve HOST" on TLS with
// the host's certificate, and sets $ADDR.
func serve(ts *testscript.TestScript, _ bool, args []string) {
	log := slog.New(slog.DiscardHandler)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 2)
	workers := 1
	h := api.Handler("prod-a", canned(ts.MkAbs("api"), ts.MkAbs("posted.log")), nil, log)
	if args[0] == "local" {
		l, err := net.Listen("unix", ts.MkAbs("s"))
		ts.Check(err)
		go func() { ended <- api.Serve(ctx, l, h, true, log) }()
	} else {
		pair, err := pki.LoadPair(ts.MkAbs(args[0]+".pem"), ts.MkAbs(args[0]+".key"))
		ts.Check(err)
		creds, err := pki.NewCredentials("prod-a", []byte(ts.ReadFile("ca.pem")), pair)
		ts.Check(err)
		mux, err := tlsmux.Listen(tlsmux.Config{Stack: netx.Real{}, Addr: "127.0.0.1:0", Credentials: creds, Log: log})
		ts.Check(err)
		ts.Setenv("ADDR", mux.Addr().String())
		workers = 2
		go func() { ended <- mux.Run(ctx) }()
		go func() { ended <- api.Serve(ctx, mux.HTTP(), h, false, log) }()
	}
	ts.Defer(func() {
		cancel()
		for range workers {
			if err := <-ended; err != nil && !errors.Is(err, context.Canceled) && !errors.Is(err, net.ErrClosed) {
				ts.Logf("server: %v", err)
			}
		}
	})
}

// canned makes the operators' routes, with the needs that the agent's have.
func canned(dir, posted string) []api.Route {
	answer := func(_ context.Context, c *api.Call) (any, error) {
		path, _, _ := strings.Cut(c.URI(), "?")
		if len(c.Body) > 0 {
			line := fmt.Sprintf("%s by %s: %s\n", path, c.By, c.Body)
			if err := appendFile(posted, line); err != nil {
				return nil, err
			}
		}
		if data, err := os.ReadFile(dir + path + ".problem"); err == nil {
			e := &client.Error{}
			return nil, errors.Join(e, json.Unmarshal(data, &e.Problem))
		}
		data, err := os.ReadFile(dir + path + ".json")
		if err != nil && len(c.Body) > 0 {
			return map[string]string{"status": "done"}, nil
		}
		if err != nil {
			return nil, &client.Error{Problem: client.Problem{Title: "not found", Status: http.StatusNotFound, Detail: path}}
		}
		return json.RawMessage(data), nil
	}
	var routes []api.Route
	for _, path := range []string{"members", "raft", "status", "hosts", "vms", "incidents", "incidents/{id}", "hosts/{host}/decisions", "fence/log"} {
		routes = append(routes, api.Route{Pattern: "GET /v1/" + path, Need: api.NeedViewer, Serve: answer})
	}
	act := func(path string, need api.Need) {
		routes = append(routes, api.Route{Pattern: "POST /v1/" + path, Need: need, MaxBytes: client.MaxSmallBytes, Serve: answer})
	}
	act("notify/test", api.NeedOperator)
	act("arm", api.NeedOperator)
	act("disarm", api.NeedOperator)
	act("hosts/{host}/confirm-dead", api.NeedOperator)
	act("hosts/{host}/maintenance", api.NeedOperator)
	act("hosts/{host}/maintenance/end", api.NeedOperator)
	act("hosts/{host}/fence/{action}", api.NeedOperator)
	act("fence/cap/reset", api.NeedOperator)
	act("hosts/{host}/release", api.NeedAdmin)
	act("hosts/{host}/trust-bmc", api.NeedAdmin)
	return routes
}

func appendFile(path, text string) error {
	f, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = f.WriteString(text)
	return errors.Join(err, f.Close())
}

// hangStore makes a store that takes requests for its identity and never answers.
func hangStore(ts *testscript.TestScript, _ bool, args []string) {
	dir := ts.MkAbs(args[0])
	path := filepath.Join(dir, "identity.json")
	ts.Check(os.MkdirAll(dir, 0o700))
	ts.Check(unix.Mkfifo(path, 0o600))
	f, err := os.OpenFile(path, os.O_RDWR, 0) // a writer who says nothing
	ts.Check(err)
	ts.Defer(func() {
		if err := f.Close(); err != nil {
			ts.Logf("%v", err)
		}
	})
}

// hang listens on the local socket and never answers.
func hang(ts *testscript.TestScript, _ bool, _ []string) {
	l, err := net.Listen("unix", ts.MkAbs("s"))
	ts.Check(err)
	ts.Defer(func() {
		if err := l.Close(); err != nil {
			ts.Logf("%v", err)
		}
	})
}
