// Package cli is the operator's tool: one file for each verb. It is a client of
// the agents' API and a maker of files; it holds no logic of the cluster, so that
// it can be trusted to say what the agents say and nothing else.
package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/haven-ha/haven/internal/client"
	"github.com/haven-ha/haven/internal/config"
)

// Exit codes. They are part of what programs may rely on; docs/cli.md lists them.
const (
	ExitOK          = 0
	ExitFailed      = 1 // what was asked for could not be done
	ExitUsage       = 2 // the command line is wrong
	ExitUnreachable = 3 // no agent answered, or the agent reached no master
	ExitRefused     = 4 // the cluster refused: not allowed, or not now
	ExitUnhealthy   = 5 // status --check: the cluster is not healthy
	ExitDiffers     = 6 // replay: the outcome is not what was recorded
)

// Env is all that the tool has of the process it runs in.
type Env struct {
	Args           []string
	Stdin          io.Reader
	Stdout, Stderr io.Writer
	Getenv         func(string) string
	Now            func() time.Time
	Version        string
	// StoreChild starts a store's child process; see storagebeat.ChildMain.
	StoreChild []string
}

// app is one run of the tool.
type app struct {
	Env
	output     string // table or json
	wide       bool
	configPath string
	ran        bool // a verb began: from here on an error is not one of usage
}

// usageError is returned when a command line cannot be meant as it is.
type usageError struct{ error }

// exitError is returned when an error has an exit code of its own.
type exitError struct {
	code int
	error
}

func (e exitError) Unwrap() error { return e.error }

func usagef(format string, args ...any) error { return usageError{fmt.Errorf(format, args...)} }

// Run carries out one command line and returns its exit code.
func Run(ctx context.Context, env Env) int {
	a := &app{Env: env}
	root := a.tree()
	root.SetArgs(env.Args)
	root.SetIn(env.Stdin)
	root.SetOut(env.Stdout)
	root.SetErr(env.Stderr)
	cmd, err := root.ExecuteContextC(ctx)
	if err == nil {
		return ExitOK
	}
	code := a.code(err)
	if text := err.Error(); text != "" {
		fmt.Fprintf(env.Stderr, "haven: %s\n", clean(text))
	}
	if code == ExitUsage {
		fmt.Fprintf(env.Stderr, "See '%s --help'.\n", cmd.CommandPath())
	}
	return code
}

func (a *app) code(err error) int {
	var exit exitError
	var usage usageError
	switch {
	case errors.As(err, &exit):
		return exit.code
	case errors.As(err, &usage), !a.ran:
		return ExitUsage
	}
	return ExitFailed
}

const about = `haven shows and steers a Haven cluster.

It talks to the agent on this host over its local socket, which only root can
use, or with --server to the agent of any host over mutual TLS. Every agent
answers for the whole cluster: it asks the master.

Exit codes: 0 done; 1 failed; 2 wrong usage; 3 no agent or no master could be
reached; 4 the cluster refused; 5 not healthy (status --check); 6 not as it was
recorded (replay).`

// tree makes all verbs.
func (a *app) tree() *cobra.Command {
	root := &cobra.Command{
		Use: "haven", Short: "Operate a Haven cluster", Long: about, SilenceErrors: true, SilenceUsage: true,
		Example: "  haven status\n  haven explain 1122-045449-kvm-03\n  haven hosts --server kvm-01 --ca ca.pem --cert me.pem --key me.key",
	}
	root.PersistentFlags().StringVarP(&a.output, "output", "o", "table", "table for people, or json for programs: the API's own documents")
	root.PersistentFlags().StringVar(&a.configPath, "config", a.env("HAVEN_CONFIG", "/etc/haven/haven.yaml"), "configuration `file` of the cluster")
	root.PersistentFlags().BoolVar(&a.wide, "wide", false, "more columns, and nothing cut to fit 80")
	must(root.RegisterFlagCompletionFunc("output", cobra.FixedCompletions([]string{"table", "json"}, cobra.ShellCompDirectiveNoFileComp)))
	root.AddGroup(&cobra.Group{ID: "look", Title: "Look:"}, &cobra.Group{ID: "act", Title: "Act:"}, &cobra.Group{ID: "prepare", Title: "Prepare:"})
	addTo(root, "look", a.status(), a.members(), a.hosts(), a.vms(), a.incidents(), a.explain(), a.replay(), a.raft())
	addTo(root, "act", a.fence(), a.arm(), a.disarm(), a.maintenance(), a.host(), a.notify())
	addTo(root, "prepare", a.config(), a.pki(), a.keys(), a.store())
	root.AddCommand(a.version())
	a.guard(root)
	return root
}

func addTo(root *cobra.Command, group string, cmds ...*cobra.Command) {
	for _, c := range cmds {
		c.GroupID = group
		root.AddCommand(c)
	}
}

// must is for what can only fail by a mistake in this package.
func must(err error) {
	if err != nil {
		panic(err)
	}
}

// guard wraps every verb: usage errors are told from others, and a group of verbs
// does not take the name of a verb that it does not have for a request for help.
func (a *app) guard(cmd *cobra.Command) {
	for _, c := range cmd.Commands() {
		a.guard(c)
	}
	if cmd.HasSubCommands() && !cmd.Runnable() {
		cmd.RunE = func(c *cobra.Command, args []string) error {
			if len(args) > 0 {
				return usagef("%s has no verb %q", c.CommandPath(), args[0])
			}
			return c.Help()
		}
	}
	run := cmd.RunE
	cmd.RunE = func(c *cobra.Command, args []string) error {
		if a.output != "table" && a.output != "json" {
			return usagef("--output %s: want table or json", a.output)
		}
		a.ran = true
		return run(c, args)
	}
}

// group makes a verb that only holds others.
func group(use, short, example string, verbs ...*cobra.Command) *cobra.Command {
	c := &cobra.Command{Use: use, Short: short, Example: example}
	c.AddCommand(verbs...)
	return c
}

func (a *app) env(name, otherwise string) string {
	if v := a.Getenv(name); v != "" {
		return v
	}
	return otherwise
}

func (a *app) json() bool { return a.output == "json" }

// printf writes to the standard output. Nothing can be done when that fails.
func (a *app) printf(format string, args ...any) { fmt.Fprintf(a.Stdout, format, args...) }

// warnf writes a remark that does not belong to the output.
func (a *app) warnf(format string, args ...any) {
	fmt.Fprintf(a.Stderr, "haven: %s\n", clean(fmt.Sprintf(format, args...)))
}

// printJSON writes a document of this tool, for programs.
func (a *app) printJSON(v any) error {
	data, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return fmt.Errorf("encode output: %w", err)
	}
	a.printf("%s\n", data)
	return nil
}

// printRaw writes a document of the API exactly as it came.
func (a *app) printRaw(doc json.RawMessage) { a.printf("%s\n", bytes.TrimSpace(doc)) }

// readConfig loads the configuration for what it can tell this tool. Without one
// the tool does with less: an operator's own machine has none, and a file that
// is being edited must not take the tool away.
func (a *app) readConfig() *config.Config {
	c, err := config.Load(a.configPath)
	if err != nil {
		return nil
	}
	return c
}

// decode reads an answer of the API.
func decode[T any](doc json.RawMessage) (T, error) {
	var v T
	if err := json.Unmarshal(doc, &v); err != nil {
		return v, fmt.Errorf("decode answer: %w; is this tool as new as the agents?", err)
	}
	return v, nil
}

// view asks for one document and shows it as it is or as the function renders it.
func view[T any](a *app, cmd *cobra.Command, to *target, path string, render func(T)) error {
	s, err := to.dial(cmd.Context())
	if err != nil {
		return err
	}
	defer s.close()
	doc, err := s.get(path)
	if err != nil {
		return err
	}
	if a.json() {
		a.printRaw(doc)
		return nil
	}
	v, err := decode[T](doc)
	if err != nil {
		return err
	}
	render(v)
	return nil
}

// warnStale says that what was shown comes from an agent without a master.
func (a *app) warnStale(s *session) {
	if a.json() {
		return
	}
	doc, err := s.get("/v1/status")
	if err != nil {
		return // What was asked for is there; this was only about its age.
	}
	st, err := decode[client.Status](doc)
	switch {
	case err != nil:
	case st.Stale:
		a.warnf("the agent that answered cannot reach the master: this may be old")
	case !st.Armed:
		a.warnf("recovery is %s", disarmedText(st))
	}
}

// listed shows a list of the API, or the one entry of it that is asked for.
func listed[T any](a *app, cmd *cobra.Command, to *target, path, noun string, is func(T) bool, table func([]T), one func(T)) error {
	s, err := to.dial(cmd.Context())
	if err != nil {
		return err
	}
	defer s.close()
	doc, err := s.get(path)
	if err != nil {
		return err
	}
	if is == nil && a.json() {
		a.printRaw(doc)
		return nil
	}
	raws, err := decode[[]json.RawMessage](doc)
	if err != nil {
		return err
	}
	var all []T
	for _, raw := range raws {
		v, err := decode[T](raw)
		switch {
		case err != nil:
			return err
		case is == nil:
			all = append(all, v)
		case is(v) && a.json():
			a.printRaw(raw)
			return nil
		case is(v):
			one(v)
			a.warnStale(s)
			return nil
		}
	}
	if is != nil {
		return fmt.Errorf("there is no such %s: %s", noun, strings.Join(cmd.Flags().Args(), " "))
	}
	table(all)
	a.warnStale(s)
	return nil
}
