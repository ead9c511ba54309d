package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
)

// cutTable drops the frames of every pair of switch ports in the set cut: one
// element cuts one direction. To the ports in deaf and from those in mute no IP
// packet goes; ARP does, which needs both directions and would cut the other one
// too.
const cutTable = `table bridge lab {
	set cut { type ifname . ifname; }
	set deaf { type ifname; }
	set mute { type ifname; }
	chain forward {
		type filter hook forward priority 0; policy accept;
		iifname . oifname @cut drop
		ether type ip oifname @deaf drop
		ether type ip iifname @mute drop
	}
}
`

// port is the switch's end of a host's leg on a network.
func port(host, network string) string { return host + "-" + network }

// seatAddress is the operator's seat on the management network.
const seatAddress = "10.77.0.254"

// buildNetwork makes all namespaces and wires.
func (s *spec) buildNetwork(ctx context.Context) error {
	var names, wires strings.Builder
	for _, n := range s.namespaces() {
		fmt.Fprintf(&names, "netns add %s\n", s.netns(n))
	}
	wire := func(ns, device, peer string) {
		fmt.Fprintf(&wires, "link add %s netns %s type veth peer name %s netns %s\n", device, s.netns(ns), peer, s.netns(switchNS))
	}
	for _, network := range networks() {
		wire(operatorNS, network, port(operatorNS, network))
		for _, h := range s.Hosts {
			wire(h.Name, network, port(h.Name, network))
		}
	}
	for _, h := range s.Hosts {
		wire(bmcNS(h.Name), oob, port(bmcNS(h.Name), oob))
	}
	for _, name := range s.feedNames() {
		wire(stripNS(name), oob, port(stripNS(name), oob))
	}
	if err := ipBatch(ctx, "", names.String()); err != nil {
		return fmt.Errorf("make network namespaces: %w", err)
	}
	if err := s.tuneNamespaces(); err != nil {
		return err
	}
	if err := ipBatch(ctx, "", wires.String()); err != nil {
		return fmt.Errorf("make wires: %w", err)
	}
	if err := ipBatch(ctx, s.netns(switchNS), s.switchBatch()); err != nil {
		return fmt.Errorf("make switch: %w", err)
	}
	if err := s.nft(ctx, cutTable); err != nil {
		return err
	}
	return s.addressLegs(ctx)
}

// switchBatch makes the bridges and plugs every wire in.
func (s *spec) switchBatch() string {
	var b strings.Builder
	plug := func(name, network string) {
		fmt.Fprintf(&b, "link set %s master br-%s up\n", name, network)
	}
	b.WriteString("link set lo up\n")
	for _, network := range networks() {
		fmt.Fprintf(&b, "link add br-%s type bridge forward_delay 0\nlink set br-%s up\n", network, network)
		plug(port(operatorNS, network), network)
		for _, h := range s.Hosts {
			plug(port(h.Name, network), network)
		}
	}
	for _, h := range s.Hosts {
		plug(port(bmcNS(h.Name), oob), oob)
	}
	for _, name := range s.feedNames() {
		plug(port(stripNS(name), oob), oob)
	}
	return b.String()
}

// addressLegs gives every leg its address.
func (s *spec) addressLegs(ctx context.Context) error {
	leg := func(device, address string) string {
		return fmt.Sprintf("addr add %s/24 dev %s\nlink set %s up\n", address, device, device)
	}
	const lo = "link set lo up\n"
	errs := []error{ipBatch(ctx, s.netns(operatorNS),
		lo+leg(mgmt, seatAddress)+leg(oob, "10.78.0.254")+leg(stor, SeatStorageAddress))}
	for _, h := range s.Hosts {
		errs = append(errs,
			ipBatch(ctx, s.netns(h.Name), lo+leg(mgmt, h.Address)+leg(oob, h.OOBAddress)+leg(stor, h.StorageAddress)),
			ipBatch(ctx, s.netns(bmcNS(h.Name)), lo+leg(oob, h.BMCAddress)))
	}
	for _, name := range s.feedNames() {
		errs = append(errs, ipBatch(ctx, s.netns(stripNS(name)), lo+leg(oob, stripAddress(name))))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("give addresses: %w", err)
	}
	return nil
}

// tuneNamespaces sets what differs from the kernel's defaults. Settings that this
// kernel does not have are not needed on it.
func (s *spec) tuneNamespaces() error {
	settings := map[string]string{
		"net/ipv6/conf/all/disable_ipv6":     "1",
		"net/ipv6/conf/default/disable_ipv6": "1",
		// A host's dead sockets must not live on to the next power-on.
		"net/ipv4/tcp_orphan_retries": "1",
		// The switch is a switch, whatever firewall the machine has.
		"net/bridge/bridge-nf-call-iptables":  "0",
		"net/bridge/bridge-nf-call-ip6tables": "0",
		"net/bridge/bridge-nf-call-arptables": "0",
	}
	for _, n := range s.namespaces() {
		err := inNetns(s.netnsPath(n), func() error {
			for key, value := range settings {
				err := os.WriteFile("/proc/sys/"+key, []byte(value), 0)
				if err != nil && !errors.Is(err, os.ErrNotExist) {
					return fmt.Errorf("set %s in %s: %w", key, n, err)
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// nft feeds commands to the switch.
func (s *spec) nft(ctx context.Context, commands string) error {
	return inNetns(s.netnsPath(switchNS), func() error { return feed(ctx, commands, "nft", "-f", "-") })
}

// setGateway gives a host its default route, to the operator's seat, which answers
// pings. The kernel forgets it whenever the host's own end of the wire is down.
func (s *spec) setGateway(ctx context.Context, host string) error {
	return ipBatch(ctx, s.netns(host), "route replace default via "+seatAddress+" dev "+mgmt+"\n")
}

// waitLeg waits until a host's leg carries frames, if it is up at both ends.
func (s *spec) waitLeg(ctx context.Context, host, network string) error {
	err := waitCarrier(ctx, link{s.netnsPath(host), network}, link{s.netnsPath(switchNS), port(host, network)})
	if err != nil {
		return fmt.Errorf("wait for %s: %w", port(host, network), err)
	}
	return nil
}

// direction is a way through the switch of the management network.
type direction struct{ from, to string }

// setCut adds or removes the cuts of directions, all at once.
func (s *spec) setCut(ctx context.Context, cut bool, ways ...direction) error {
	var elements []string
	for _, w := range ways {
		elements = append(elements, fmt.Sprintf("%q . %q", port(w.from, mgmt), port(w.to, mgmt)))
	}
	if err := s.setElements(ctx, "cut", cut, elements...); err != nil {
		return fmt.Errorf("cut %v: %w", ways, err)
	}
	return nil
}

// setElements puts elements into a set of the switch or takes them out.
func (s *spec) setElements(ctx context.Context, set string, in bool, elements ...string) error {
	list := fmt.Sprintf("element bridge lab %s { %s }\n", set, strings.Join(elements, ", "))
	// Adding an element that is there is no error, but deleting one that is not is.
	commands := "add " + list
	if !in {
		commands += "delete " + list
	}
	return s.nft(ctx, commands)
}

// setLoss drops so many of a hundred frames from and to a port; 0 ends it.
func (s *spec) setLoss(ctx context.Context, port string, percent int) error {
	chain := "bridge lab loss-" + port
	commands := []string{"add chain " + chain + " { type filter hook forward priority 1; policy accept; }", "flush chain " + chain}
	if percent > 0 {
		for _, end := range []string{"iifname", "oifname"} {
			commands = append(commands, fmt.Sprintf("add rule %s %s %q numgen random mod 100 < %d drop", chain, end, port, percent))
		}
	}
	if err := s.nft(ctx, strings.Join(commands, "\n")+"\n"); err != nil {
		return fmt.Errorf("lose %d %% at %s: %w", percent, port, err)
	}
	return nil
}

// removeNetwork deletes those of the lab's namespaces that exist; wires and
// bridges go with them.
func (s *spec) removeNetwork(ctx context.Context) error {
	var b strings.Builder
	for _, n := range s.namespaces() {
		if _, err := os.Lstat(s.netnsPath(n)); err == nil {
			fmt.Fprintf(&b, "netns del %s\n", s.netns(n))
		}
	}
	if err := ipBatch(ctx, "", b.String()); err != nil {
		return fmt.Errorf("remove network namespaces: %w", err)
	}
	return nil
}

// ipBatch runs ip's commands in a namespace, or in the machine's own.
func ipBatch(ctx context.Context, ns, commands string) error {
	if commands == "" {
		return nil
	}
	args := []string{"ip", "-batch", "-"}
	if ns != "" {
		args = []string{"ip", "-n", ns, "-batch", "-"}
	}
	return feed(ctx, commands, args...)
}

// feed runs a system tool with text on its standard input.
func feed(ctx context.Context, input string, args ...string) error {
	path, err := toolPath(args[0])
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, path, args[1:]...)
	cmd.Env, cmd.Stdin = systemEnv(), strings.NewReader(input)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(string(out)))
	}
	return nil
}
