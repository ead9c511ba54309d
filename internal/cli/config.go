package cli

import (
	"errors"
	"fmt"
	"slices"

	"github.com/spf13/cobra"

	"github.com/haven-ha/haven/internal/config"
)

func (a *app) config() *cobra.Command {
	return group("config", "Look at the configuration", "  haven config check", a.configCheck())
}

// configProblem is a problem for programs.
type configProblem struct {
	Severity string `json:"severity"` // error or warning
	File     string `json:"file"`
	Line     int    `json:"line,omitempty"`
	Column   int    `json:"column,omitempty"`
	Key      string `json:"key,omitempty"`
	Message  string `json:"message"`
	Advice   string `json:"advice,omitempty"`
}

func (a *app) configCheck() *cobra.Command {
	return &cobra.Command{
		Use: "check [FILE]", Short: "Check the configuration as the agent would, with the files that it names", Args: cobra.MaximumNArgs(1),
		Long: `Check the configuration as the agent would, with the files that it names on this
machine, and print everything that is wrong or doubtful at once. Exits with 0
when the agent can start with it, perhaps with warnings.`,
		Example: "  haven config check\n  haven config check ./haven.yaml -o json",
		RunE: func(_ *cobra.Command, args []string) error {
			path := a.configPath
			if len(args) > 0 {
				path = args[0]
			}
			if a.json() {
				return a.configCheckJSON(path)
			}
			if config.Check(path, a.Stdout) != 0 {
				return exitError{ExitFailed, errors.New("the agent cannot start with this configuration")}
			}
			return nil
		},
	}
}

func (a *app) configCheckJSON(path string) error {
	var problems, warnings []config.Problem
	c, err := config.Load(path)
	if bad, ok := errors.AsType[*config.Error](err); ok {
		problems, warnings = bad.Problems, bad.Warnings
	} else if err != nil {
		return err
	} else {
		missing, loose := c.CheckFiles()
		problems, warnings = missing, slices.Concat(c.Warnings, loose)
	}
	out := []configProblem{}
	for _, p := range problems {
		out = append(out, describe("error", p))
	}
	for _, p := range warnings {
		out = append(out, describe("warning", p))
	}
	if err := a.printJSON(out); err != nil {
		return err
	}
	if len(problems) > 0 {
		return exitError{ExitFailed, fmt.Errorf("%s: %s", path, count(len(problems), "error"))}
	}
	return nil
}

func describe(severity string, p config.Problem) configProblem {
	return configProblem{severity, p.File, p.Line, p.Column, p.Key, p.Message, p.Advice}
}
