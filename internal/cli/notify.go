package cli

import (
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/haven-ha/haven/internal/client"
)

func (a *app) notify() *cobra.Command {
	return group("notify", "Look after notifications", "  haven notify test", a.notifyTest())
}

func (a *app) notifyTest() *cobra.Command {
	cmd := &cobra.Command{
		Use: "test", Short: "Send a test to whoever is notified", Args: cobra.NoArgs,
		Long: `Send a test event to every target in the section notify of the configuration,
and say what became of it. The agent that is asked sends it, by its own way:
each agent may be master one day, so test them all (--server).

An SNMP trap that left the host is a success here; only an inform is
acknowledged. The exit code is 1 when a target did not take it.`,
		Example: "  haven notify test\n  haven notify test --target ops\n  haven notify test --server kvm-02",
	}
	to := a.target(cmd)
	name := cmd.Flags().String("target", "", "only the target of this `name`")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		s, err := to.dial(cmd.Context())
		if err != nil {
			return err
		}
		defer s.close()
		doc, err := s.post(client.PathNotifyTest, client.NotifyTest{Target: *name})
		if err != nil {
			return err
		}
		tested, err := decode[client.NotifyTested](doc)
		if err != nil {
			return err
		}
		failed := 0
		for _, o := range tested.Targets {
			if o.Error != "" {
				failed++
			}
		}
		if a.json() {
			a.printRaw(doc)
		} else {
			a.showTested(tested)
		}
		if failed > 0 {
			return fmt.Errorf("%d of %s did not take it", failed, count(len(tested.Targets), "target"))
		}
		return nil
	}
	return cmd
}

func (a *app) showTested(t client.NotifyTested) {
	for _, o := range t.Targets {
		took := (time.Duration(o.Took) * time.Millisecond)
		if o.Error == "" {
			a.wrapped("", fmt.Sprintf("%s (%s): sent by %s in %s", o.Target, o.Type, t.By, took))
		} else {
			a.wrapped("", fmt.Sprintf("%s (%s): FAILED after %s: %s", o.Target, o.Type, took, o.Error))
		}
	}
}
