package cli

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/haven-ha/haven"
	"github.com/haven-ha/haven/internal/client"
)

// powerVerb is an action on a host's power.
type powerVerb struct {
	action            haven.FenceAction
	short, long, mark string
	reason            bool // is required
	force, all, light bool // are offered
}

func (a *app) fencePower(v powerVerb) *cobra.Command {
	use := string(v.action) + " HOST"
	if v.all {
		use = string(v.action) + " {HOST | --all}"
	}
	if v.reason {
		use += " --reason WHY"
	}
	cmd := &cobra.Command{Use: use, Short: v.short, Long: v.long, Args: cobra.MaximumNArgs(1), Example: v.mark}
	f := a.act(cmd, "why, for the record"+map[bool]string{true: " (required)"}[v.reason])
	if v.reason {
		must(cmd.MarkFlagRequired("reason"))
	}
	var force, all bool
	if v.force {
		cmd.Flags().BoolVar(&force, "force", false, "even though something shows that the host lives")
	}
	if v.all {
		cmd.Flags().BoolVar(&all, "all", false, "all hosts that have a fence device")
	}
	var length time.Duration
	var dark bool
	if v.light {
		cmd.Flags().DurationVar(&length, "for", 0, "blink for this `time`, from 1s to 255s")
		cmd.Flags().BoolVar(&dark, "off", false, "put the light out")
	}
	cmd.ValidArgsFunction = a.completeHosts(f.target)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		switch {
		case all == (len(args) == 1):
			return usagef("name one host%s", map[bool]string{true: ", or give --all"}[v.all])
		case v.reason && strings.TrimSpace(f.reason) == "":
			return usagef("--reason is empty: others will want to know why")
		}
		act := client.Act{Force: force}
		if timed := cmd.Flags().Changed("for"); timed || dark {
			seconds, err := lightSeconds(length, timed, dark)
			if err != nil {
				return err
			}
			act.Light = &seconds
		}
		return a.askPower(cmd, f, v.action, args, act)
	}
	return cmd
}

// lightSeconds is what is asked of a light, in seconds; 0 puts it out.
func lightSeconds(length time.Duration, timed, dark bool) (int, error) {
	switch {
	case timed && dark:
		return 0, usagef("--for and --off: want one of them")
	case dark:
		return 0, nil
	case length < time.Second || length > client.LightMax*time.Second || length%time.Second != 0:
		return 0, usagef("--for %s: want whole seconds from 1s to %ds, as boards take them", length, client.LightMax)
	}
	return int(length / time.Second), nil
}

// askPower asks for the action of each host, and shows what came of it.
func (a *app) askPower(cmd *cobra.Command, f *actFlags, action haven.FenceAction, hosts []string, act client.Act) error {
	s, err := f.dial(cmd.Context())
	if err != nil {
		return err
	}
	defer s.close()
	if len(hosts) == 0 {
		if hosts, err = s.fencedHosts(); err != nil {
			return err
		}
		if len(hosts) == 0 {
			return errors.New("no host has a fence device")
		}
	}
	var bad []string
	answers := askAll(s, f, action, hosts, act)
	for i, name := range hosts {
		answer := <-answers[i]
		if answer.err != nil && len(hosts) == 1 {
			return answer.err
		}
		if answer.err != nil {
			a.wrapped("", oneLine(fmt.Sprintf("%s: %v", name, answer.err)))
		} else if a.json() {
			a.printRaw(answer.doc)
		} else {
			a.showPower(answer.FenceAnswer)
		}
		if !answer.good() {
			bad = append(bad, name)
		}
	}
	if len(bad) > 0 {
		return errors.New(string(action) + " failed: " + strings.Join(bad, ", "))
	}
	return nil
}

// powerAnswer is what came of an action on one host.
type powerAnswer struct {
	client.FenceAnswer
	doc json.RawMessage
	err error
}

// good says whether it went well.
func (p powerAnswer) good() bool {
	return p.err == nil && p.Status != "failed" && (p.Action != haven.ActionTest || sound(p.Devices))
}

// askedAtOnce is how many hosts are asked at once: boards that are dead take
// seconds each, and all together have one time limit.
const askedAtOnce = 16

// askAll asks for the action of several hosts at once. Each answer comes on the
// channel of its host.
func askAll(s *session, f *actFlags, action haven.FenceAction, hosts []string, act client.Act) []chan powerAnswer {
	answers := make([]chan powerAnswer, len(hosts))
	slots := make(chan struct{}, askedAtOnce)
	for i, name := range hosts {
		answers[i] = make(chan powerAnswer, 1)
		go func() {
			slots <- struct{}{}
			answers[i] <- askPowerOf(s, f, action, name, act)
			<-slots
		}()
	}
	return answers
}

// askPowerOf asks for the action of one host.
func askPowerOf(s *session, f *actFlags, action haven.FenceAction, name string, act client.Act) powerAnswer {
	host, err := haven.ParseHostID(name)
	if err != nil {
		return powerAnswer{err: usageError{err}}
	}
	doc, err := s.post(client.FencePath(host, action), f.signed(act))
	if err != nil {
		return powerAnswer{err: err}
	}
	answer, err := decode[client.FenceAnswer](doc)
	return powerAnswer{answer, doc, err}
}

// sound says whether each device answered, and would prove a host off.
func sound(devices []client.DeviceWord) bool {
	for _, d := range devices {
		if d.Failed != "" || !d.Trusted {
			return false
		}
	}
	return len(devices) > 0
}

func (a *app) showPower(answer client.FenceAnswer) {
	if len(answer.Devices) == 0 {
		a.wrapped("", fmt.Sprintf("%s: %s: %s. %s", answer.Host, answer.Action, answer.Status, answer.Detail))
		return
	}
	for _, d := range answer.Devices {
		text := fmt.Sprintf("%s, level %d, %s: ", answer.Host, d.Level, d.Device)
		if d.Failed != "" {
			text += fmt.Sprintf("%s: %s", d.Failed, d.Detail)
		} else {
			text += "power " + string(d.Power)
		}
		if d.Took > 0 {
			text += fmt.Sprintf(" (in %s)", precise(d.Took.Duration()))
		}
		if answer.Action == haven.ActionTest {
			text += proofText(d)
		}
		a.wrapped("", oneLine(text))
		if answer.Action == haven.ActionTest && d.Advice != "" {
			a.wrapped("  ", oneLine(d.Advice))
		}
	}
}

// fencedHosts lists the hosts that have a fence device.
func (s *session) fencedHosts() ([]string, error) {
	doc, err := s.get("/v1/hosts")
	if err != nil {
		return nil, err
	}
	hosts, err := decode[[]client.Host](doc)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, h := range hosts {
		if h.Power.State != "none" && h.Role != haven.RoleWitness {
			names = append(names, string(h.Host))
		}
	}
	return names, nil
}

// powerVerbs are the actions on a host's power.
func powerVerbs() []powerVerb {
	return []powerVerb{
		{
			action: haven.ActionStatus, short: "Read the power state from each of a host's fence devices", mark: "  haven fence status kvm-03",
			long: "Read the power state from each of a host's fence devices, now. Nothing is sent\nbut the question.",
		},
		{
			action: haven.ActionTest, all: true, short: "Find out whether a host's fence devices would do", mark: "  haven fence test kvm-03\n  haven fence test --all",
			long: "Read each of a host's fence devices, tell a wrong password from an account that\nmay not switch power, a device that is out of reach or busy, and one that seems\nto be another host's, and say whether its \"off\" would be a proof. Nothing is\nsent but questions. It fails when a device would not do.",
		},
		{
			action: haven.ActionOff, reason: true, force: true, short: "Power a host off at once", mark: "  haven fence off kvm-03 --reason \"it burns\"\n  haven fence off kvm-03 --force --by maria --reason \"it must not run on\"",
			long: "Power a host off, by its ladder, and read that it is off. Its VMs are started\nelsewhere once it is proved dead, as after any other death; in maintenance they\nwait. It is refused while anything shows that the host lives; --force, with a\nname, overrules that. It is recorded, and does not count for the limit.",
		},
		{
			action: haven.ActionOn, reason: true, short: "Power a host on", mark: "  haven fence on kvm-03 --reason \"repaired\"",
			long: "Power a host on, by all its fence devices that say off. It is refused while the\nhost is being fenced.",
		},
		{
			action: haven.ActionBlink, light: true, short: "Make a host's identify light blink, or put it out",
			mark: "  haven fence blink kvm-03\n  haven fence blink kvm-03 --for 4m\n  haven fence blink kvm-03 --off",
			long: "Make a host's identify light blink, so that it is found in the rack: for 255 s,\nwhich is the most that IPMI's one octet of seconds holds, or --for less. A\ndevice that cannot time its light (Redfish, programs) refuses --for, and without\nit blinks until --off puts the light out, or as it pleases.",
		},
	}
}

func (a *app) fenceCap() *cobra.Command {
	cmd := &cobra.Command{
		Use: "reset --reason WHY", Short: "Let the power-downs so far count no more", Args: cobra.NoArgs,
		Long: `At the limit of power-downs (fencing.limit) no more hosts are powered down. When
you know why so many failed, and that the next power-down is right, this lets
the ones so far count no more. What is held by the limit goes on at once.`,
		Example: "  haven fence cap reset --reason \"three bad boards of one batch, replaced\"",
	}
	f := a.act(cmd, "why, for the record (required)")
	must(cmd.MarkFlagRequired("reason"))
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if strings.TrimSpace(f.reason) == "" {
			return usagef("--reason is empty: others will want to know why the limit was lifted")
		}
		return f.do(cmd.Context(), client.PathCapReset, client.Act{}, "The power-downs so far count no more.")
	}
	return group("cap", "The limit on power-downs", "  haven fence cap reset --reason \"three bad boards, replaced\"", cmd)
}
