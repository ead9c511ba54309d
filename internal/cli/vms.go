package cli

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/haven-ha/haven"
	"github.com/haven-ha/haven/internal/client"
)

func (a *app) vms() *cobra.Command {
	cmd := &cobra.Command{
		Use: "vms [VM]", Short: "Every VM: where it runs, whether it is protected, what it waits for", Args: cobra.MaximumNArgs(1),
		Long: `Every VM that the cluster knows: where it runs, whether it is protected, and why
it waits or is not protected. With a name or UUID: that VM alone. --wide adds
the UUIDs.`,
		Example: "  haven vms\n  haven vms --wide\n  haven vms 8f2b1c04-7a51-4d43-9d0c-0d6a3c1f9f10",
	}
	to := a.target(cmd)
	cmd.ValidArgsFunction = complete(to, "/v1/vms", func(v client.VM) (string, string) { return v.Name, string(v.Owner) })
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		var is func(client.VM) bool
		if len(args) > 0 {
			is = func(v client.VM) bool { return v.Name == args[0] || strings.EqualFold(string(v.VM), args[0]) }
		}
		return listed(a, cmd, to, "/v1/vms", "VM", is, a.showVMs, a.showVM)
	}
	return cmd
}

func (a *app) showVMs(vms []client.VM) {
	head := []string{"NAME", "STATE", "HOST", "PHASE", "PROTECTED", "EPOCH", "MEMORY"}
	if a.wide {
		head = append(head, "VCPUS", "UUID")
	}
	t := newTable(head...)
	for _, v := range vms {
		epoch := ""
		if v.Protected {
			epoch = fmt.Sprint(v.Epoch)
		}
		cells := []string{v.Name, string(v.State), string(v.Owner), phase(v), yesNo(v.Protected), epoch, memory(v.MemoryMiB)}
		if a.wide {
			cells = append(cells, fmt.Sprint(v.VCPUs), string(v.VM))
		}
		t.row(cells, a.vmNotes(v)...)
	}
	a.show(t)
}

func phase(v client.VM) string {
	if v.Phase == "ordered" && v.Order != haven.OrderNone {
		return "ordered (" + string(v.Order) + ")"
	}
	return v.Phase
}

func (a *app) vmNotes(v client.VM) []string {
	notes := []string{v.Why, labelled("held", a.hold(v.Hold))}
	if v.Incident != "" {
		notes = append(notes, fmt.Sprintf("incident: 'haven explain %s'", v.Incident))
	}
	return notes
}

func (a *app) showVM(v client.VM) {
	a.wrapped("", fmt.Sprintf("%s is %s on %s", v.Name, v.State, orDash(string(v.Owner))))
	a.printf("\n")
	a.field("UUID", string(v.VM))
	a.field("Protected", yesNo(v.Protected))
	if v.Protected {
		a.field("Wanted", v.Desired)
		a.field("Phase", phase(v))
		a.field("Epoch", fmt.Sprint(v.Epoch))
	}
	a.field("Size", fmt.Sprintf("%s, %s", memory(v.MemoryMiB), count(v.VCPUs, "vCPU")))
	if v.Why != "" {
		a.field("Why", v.Why)
	}
	if v.Hold.Reason != "" {
		a.field("Held", a.hold(v.Hold))
	}
	if v.Incident != "" {
		a.field("Incident", string(v.Incident))
	}
}
