package config

import (
	"fmt"
	"maps"
	"math"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/haven-ha/haven"
)

// checker holds a decoded configuration against the rules that join several
// values.
type checker struct {
	c        *Config
	src      *source
	problems []Problem
	warnings []Problem
	failed   map[string]bool // keys whose value could not be used
	// storeTypes are those that the program was built with; none for all.
	storeTypes []string
}

func newChecker(c *Config, found []Problem) *checker {
	k := &checker{c: c, src: c.src, problems: found, failed: map[string]bool{}}
	for _, p := range found {
		k.failed[p.Key] = true
	}
	return k
}

// wrong reports an error about the keys; it is shown at the first of them that
// is in the file. Nothing follows from a value that was refused already.
func (k *checker) wrong(message, advice string, keys ...string) {
	if !k.anyFailed(keys) {
		k.problems = append(k.problems, k.src.problem(k.src.where(keys...), keys[0], message, advice))
	}
}

func (k *checker) warn(message, advice string, keys ...string) {
	if !k.anyFailed(keys) {
		k.warnings = append(k.warnings, k.src.problem(k.src.where(keys...), keys[0], message, advice))
	}
}

func (k *checker) anyFailed(keys []string) bool {
	return slices.ContainsFunc(keys, func(key string) bool { return k.failed[key] })
}

// given says whether the key stands in the file, rightly or wrongly.
func (k *checker) given(key string) bool {
	_, ok := k.src.at[key]
	return ok
}

func (k *checker) relations() {
	k.ports()
	k.gossip()
	k.raft()
	k.heartbeat()
	k.detection()
	k.helper()
	k.stores()
	k.notify()
	if len(k.c.Hosts) == 0 {
		if k.given("hosts") {
			k.wrong("is empty", "name at least one host, as NAME: {address: IP}", "hosts")
		}
		return
	}
	k.members()
	k.responses()
	k.addresses()
	k.fencing()
	k.watchdogs()
	k.pills()
	k.massFailure()
}

// atLeast checks one value against a sum of others.
func (k *checker) atLeast(key string, value time.Duration, why string, least time.Duration, others ...string) {
	if value >= least {
		return
	}
	k.wrong(
		fmt.Sprintf("%s is too short: it must be at least %s (%s)", short(value), short(least), why),
		fmt.Sprintf("raise %s to %s or more, or lower %s", key, short(least), strings.Join(others, " or ")),
		append([]string{key}, others...)...)
}

func (k *checker) atMost(key string, value time.Duration, why string, most time.Duration, others ...string) {
	if value <= most {
		return
	}
	k.wrong(
		fmt.Sprintf("%s is too long: it must be at most %s (%s)", short(value), short(most), why),
		fmt.Sprintf("lower %s to %s or less, or raise %s", key, short(most), strings.Join(others, " or ")),
		append([]string{key}, others...)...)
}

func (k *checker) ports() {
	type use struct {
		key  string
		port int
	}
	uses := []use{{"gossip.port", k.c.Gossip.Port}, {"api.port", k.c.API.Port}, {"helper.port", k.c.Helper.Port}}
	for i, a := range uses {
		for _, b := range uses[:i] {
			if a.port == b.port {
				k.wrong(fmt.Sprintf("%d is the port of %s as well", a.port, b.key), "give each a port of its own", a.key, b.key)
			}
		}
	}
}

func (k *checker) gossip() {
	g := k.c.Gossip
	if g.ProbeTimeout >= g.ProbeInterval {
		k.wrong(
			fmt.Sprintf("%s must be less than gossip.probe_interval, which is %s: the rest of it is for the probes by others", short(g.ProbeTimeout), short(g.ProbeInterval)),
			"lower gossip.probe_timeout to half of gossip.probe_interval", "gossip.probe_timeout", "gossip.probe_interval")
	}
}

func (k *checker) raft() {
	r := k.c.Raft
	k.atLeast("raft.election_timeout", r.Election, "raft.heartbeat_timeout", r.Heartbeat, "raft.heartbeat_timeout")
	k.atMost("raft.lease_timeout", r.Lease, "raft.heartbeat_timeout: a master must step down before another is elected", r.Heartbeat, "raft.heartbeat_timeout")
	k.atMost("raft.commit_timeout", r.Commit, "half of raft.heartbeat_timeout", r.Heartbeat/2, "raft.heartbeat_timeout")
}

func (k *checker) heartbeat() {
	b := k.c.Heartbeat
	k.atLeast("heartbeat.stale_after", b.StaleAfter,
		"2 × heartbeat.interval + heartbeat.io_timeout: the slowest beat that still succeeds must not look stale",
		2*b.Interval+b.IOTimeout, "heartbeat.interval", "heartbeat.io_timeout")
}

func (k *checker) detection() {
	d := k.c.Detection
	k.atLeast("detection.suspect_after", d.SuspectAfter,
		"2 × detection.report_interval: one lost report is nothing to look into",
		2*d.ReportInterval, "detection.report_interval")
	k.atLeast("detection.silence", d.Silence,
		"heartbeat.stale_after + heartbeat.interval: nobody fails whose beat could still come",
		k.c.Heartbeat.StaleAfter+k.c.Heartbeat.Interval, "heartbeat.stale_after", "heartbeat.interval")
	k.atLeast("detection.silence", d.Silence,
		"detection.suspect_after + detection.probe_timeout: neighbours need time to answer",
		d.SuspectAfter+d.ProbeTimeout, "detection.suspect_after", "detection.probe_timeout")
	k.atLeast("detection.round_interval", d.RoundInterval,
		"detection.probe_timeout: each round needs answers of its own",
		d.ProbeTimeout, "detection.probe_timeout")
	k.atLeast("detection.silence", d.Silence,
		"detection.rounds × detection.round_interval: so many rounds need so long",
		time.Duration(d.Rounds)*d.RoundInterval, "detection.rounds", "detection.round_interval")
	k.atLeast("detection.mass_failure_calm", d.MassFailureCalm,
		"detection.round_interval: one round at least must find it so", d.RoundInterval, "detection.round_interval")
	k.atLeast("detection.flap_window", d.FlapWindow,
		"detection.flap_count × detection.silence: so many falls take so long",
		time.Duration(d.FlapCount)*d.Silence, "detection.flap_count", "detection.silence")
	k.atLeast("detection.flap_calm", d.FlapCalm,
		"detection.silence: the next fall is not seen before", d.Silence, "detection.silence")
	for i, addr := range d.IsolationAddresses {
		for _, id := range k.c.HostIDs() {
			if k.c.Hosts[id].Address == addr {
				k.wrong(fmt.Sprintf("%s is host %s: that it answers says nothing new", addr, id),
					"name a machine that is no host of the cluster, such as a gateway or a switch", fmt.Sprintf("detection.isolation_addresses.%d", i))
			}
		}
	}
	if d.DiskIdle < diskIdle {
		k.warn(fmt.Sprintf("guests keep writes back for up to %s: one that writes little may look idle", diskIdle), "raise it", "detection.disk_idle")
	}
}

func (k *checker) helper() {
	h := k.c.Helper
	need := func(key, value, why string) {
		if value == "" && !k.given("helper."+key) {
			k.wrong("is missing", "add it, "+why, "helper."+key)
		}
	}
	if h.Plain {
		k.warn("the helper answers without TLS, to anybody who can reach it", "remove plain, and give cert_file, key_file, username and password_file", "helper.plain")
	} else {
		const why = "or write plain: true for HTTP without TLS and password"
		need("cert_file", h.CertFile, why)
		need("key_file", h.KeyFile, why)
		need("username", h.Username, why)
	}
	if h.Username != "" {
		need("password_file", h.PasswordFile, "since there is a user name")
	}
	if h.Username == "" && h.PasswordFile != "" {
		k.wrong("is missing", "add it, or remove password_file", "helper.username", "helper.password_file")
	}
}

func (k *checker) stores() {
	b := k.c.Heartbeat
	for i, s := range b.Stores {
		key := fmt.Sprintf("heartbeat.stores.%d", i)
		k.storeParts(key, s, b.Stores[:i])
		for _, other := range b.Stores[:i] {
			if s.Name != "" && s.Name == other.Name {
				k.wrong(fmt.Sprintf("%q is the name of another store", s.Name), "give each store a name of its own", key+".name")
			}
			if s.Path != "" && s.Path == other.Path {
				k.wrong("is the path of another store", "two beats in one place are one path: remove one of the stores", key+".path")
			}
		}
		if s.Path != "" && (s.Path == k.c.DataDir || strings.HasPrefix(s.Path, k.c.DataDir+"/")) {
			k.wrong("is inside data_dir, on the host's own disk", "a store must be shared by all hosts: name a directory on shared storage", key+".path")
		}
		if s.Type == "block" && strings.HasPrefix(s.Path, "/dev/sd") {
			k.warn("is a name that another disk may have after the next boot", "name it by /dev/disk/by-id: another disk is never taken for the store, but then the store is missing", key+".path")
		}
	}
	switch {
	case len(b.Stores) > 0 && k.c.FenceWithoutStore:
		k.warn("has no effect, since there are stores", "remove it", "fence_without_store")
	case len(b.Stores) == 0 && !k.given("heartbeat.stores") && k.c.FenceWithoutStore:
		k.warn("hosts are judged by the network and the helper alone", "configure a store in heartbeat.stores", "fence_without_store")
	case len(b.Stores) == 0:
		k.warn(
			"there is no store, so a host whose power is on is never fenced unless its VMs' disks are seen to be idle",
			"configure a store; or, knowing that then one path decides, write fence_without_store: true", "heartbeat.stores")
	}
}

// members checks what depends on how many hosts there are.
func (k *checker) members() {
	n, majority := len(k.c.Hosts), k.c.Majority()
	if n > maxHosts {
		k.wrong(fmt.Sprintf("there are %d hosts; at most %d are possible", n, maxHosts), "make two clusters of them", "hosts")
	}
	if b := k.c.BootstrapExpect; b < majority || b > n {
		k.wrong(
			fmt.Sprintf("%d does not fit %d configured hosts: it must be %d to %d, since two halves could each found a cluster otherwise, and more hosts than there are never meet", b, n, majority, n),
			fmt.Sprintf("remove it to get %d", majority), "bootstrap_expect", "hosts")
	}
	if len(k.c.Hypervisors()) == 0 {
		k.wrong("there is no hypervisor", "give at least one host the role hypervisor", "hosts")
	}
	switch {
	case n == 1:
		k.warn("there is one host: nobody sees it die, and nobody can take its VMs", "add hosts", "hosts")
	case n == 2:
		k.warn(
			"there are two hosts and no third vote: when one dies the other is no majority, and nothing is restarted",
			"add a third machine with role: witness; it runs no VMs and needs little", "hosts")
	case n%2 == 0:
		k.warn(
			fmt.Sprintf("%d hosts can be cut into two equal halves, neither of which is a majority; then nothing is restarted", n),
			"add a witness", "hosts")
	}
}

// addresses checks that every address belongs to one host or one BMC.
func (k *checker) addresses() {
	owner := map[netip.Addr]haven.HostID{}
	for _, id := range k.c.HostIDs() {
		a := k.c.Hosts[id].Address
		if other, twice := owner[a]; twice && a.IsValid() {
			k.wrong(fmt.Sprintf("%s is the address of host %s as well", a, other), "every host has an address of its own", fmt.Sprintf("hosts.%s.address", id))
			continue
		}
		owner[a] = id
	}
	hypervisors := k.c.Hypervisors()
	for _, n := range sorted(k.c.Fencing.Devices) {
		if v := k.c.Fencing.Devices[n]; v.Driver != "command" && v.Address.IsValid() && len(hypervisors) > 1 {
			k.wrong("one BMC cannot be that of all hosts", "move the address to each host: hosts.NAME.fencing.devices."+n+".address", "fencing.devices."+n+".address")
		}
	}
	bmc := map[netip.AddrPort][]seat{}
	for _, id := range hypervisors {
		devices := k.c.Hosts[id].Fencing.Devices
		for _, n := range sorted(devices) {
			v, key := devices[n], deviceKey(id, n)+".address"
			if !k.given(key) || !v.Address.IsValid() {
				continue
			}
			if host, ok := owner[v.Address]; ok {
				k.wrong(fmt.Sprintf("%s is the address of host %s itself, not of a BMC", v.Address, host), "write the address of the BMC: it must answer when the host cannot", key)
			}
			if v.Driver == "command" {
				continue // One power strip has an outlet for each host.
			}
			at, s := netip.AddrPortFrom(v.Address, uint16(v.Port)), seat{id, v.system()}
			if i := slices.IndexFunc(bmc[at], s.same); i >= 0 {
				k.wrong(fmt.Sprintf("%s is a device of host %s as well: one of the two would be powered off for the other", v.Address, bmc[at][i].host), "give each host the address of its own BMC", key)
				continue
			}
			bmc[at] = append(bmc[at], s)
		}
	}
}

func deviceKey(id haven.HostID, n string) string {
	return fmt.Sprintf("hosts.%s.fencing.devices.%s", id, n)
}

// fencing checks that every ladder can be climbed.
func (k *checker) fencing() {
	used := map[string]bool{}
	var bare []string
	lacks := map[string][]haven.HostID{} // "device" or "device.key" → hosts that lack it
	for _, id := range k.c.HostIDs() {
		h, section := k.c.Hosts[id], fmt.Sprintf("hosts.%s.fencing", id)
		switch {
		case k.failed[fmt.Sprintf("hosts.%s.role", id)]:
			continue
		case h.Role == haven.RoleWitness:
			if k.given(section) {
				k.wrong("a witness is never fenced", "remove it", section)
			}
			continue
		case len(h.Fencing.Levels) == 0:
			bare = append(bare, string(id))
		}
		for _, n := range slices.Concat(h.Fencing.Levels...) {
			used[n] = true
			for _, what := range k.lacking(id, n) {
				lacks[what] = append(lacks[what], id)
			}
		}
	}
	for _, what := range sorted(lacks) {
		k.lack(what, lacks[what])
	}
	k.unused(used)
	k.programs(used)
	k.boardKeys(used)
	if len(bare) > 0 {
		k.warn(
			"no fence device for "+strings.Join(bare, ", ")+": if one of them dies, its VMs wait until an operator says that it is dead",
			"add levels and devices", "fencing.levels", "fencing")
	}
	if a := k.c.Fencing.Action; a == haven.ActionNone || a == haven.ActionBlink {
		k.warn("a failed host is only reported; its VMs are restarted only if its power is off already or an operator says that it is dead", "write off, if hosts are to be fenced", "fencing.action")
	}
}

// lacking lists what host id lacks to use the device called n.
func (k *checker) lacking(id haven.HostID, n string) []string {
	v, ok := k.c.Hosts[id].Fencing.Devices[n]
	if !ok {
		return []string{n}
	}
	var lacks []string
	need := func(name string, missing bool) {
		if missing && !k.given(deviceKey(id, n)+"."+name) && !k.given("fencing.devices."+n+"."+name) {
			lacks = append(lacks, n+"."+name)
		}
	}
	need("driver", v.Driver == "")
	if v.Driver == "command" {
		need("command.program", v.Command.Program == "")
		return lacks
	}
	need("address", !v.Address.IsValid())
	need("username", v.Username == "")
	need("password_file", v.PasswordFile == "")
	if v.Driver == "redfish" && v.Redfish.CAFile == "" && !k.given(deviceKey(id, n)+".redfish.ca_file") && !k.given("fencing.devices."+n+".redfish.ca_file") {
		need("redfish.pin", v.Redfish.Pin == "")
	}
	return lacks
}

// programs checks what fence devices with a program are told, and warns of those
// whose word for off is also one for their own failure.
func (k *checker) programs(used map[string]bool) {
	told := map[string]bool{}
	for _, id := range k.c.HostIDs() {
		for _, n := range slices.Sorted(maps.Keys(k.c.Hosts[id].Fencing.Devices)) {
			v := k.c.Hosts[id].Fencing.Devices[n]
			if v.Driver != "command" || !used[n] || told[n] {
				continue
			}
			told[n] = true
			k.program(n, deviceKey(id, n), v.Command)
		}
	}
}

// boardKeys warns of a board's key that nobody would use.
func (k *checker) boardKeys(used map[string]bool) {
	for _, id := range k.c.HostIDs() {
		for _, n := range slices.Sorted(maps.Keys(k.c.Hosts[id].Fencing.Devices)) {
			if v := k.c.Hosts[id].Fencing.Devices[n]; used[n] && v.KGFile != "" && v.Driver != "" && v.Driver != "ipmi" {
				k.warn(fmt.Sprintf("device %s of host %s has driver %s, which knows no kg_file", n, id, v.Driver), "leave it out, or name driver ipmi",
					deviceKey(id, n)+".kg_file", "fencing.devices."+n+".kg_file")
			}
		}
	}
}

func (k *checker) program(n, own string, c Command) {
	keys := func(name string) []string {
		own, common := own+".command", "fencing.devices."+n+".command"
		return []string{common + "." + name, own + "." + name, common, own, common + ".style", own + ".style"}
	}
	acts := slices.ContainsFunc(c.Arguments, func(a string) bool { return strings.Contains(a, "{action}") })
	wrong := func(message, advice, name string) { k.wrong(message, advice, keys(name)...) }
	switch {
	case c.ExitOn == c.ExitOff:
		wrong(fmt.Sprintf("exit code %d of device %s means both on and off", c.ExitOff, n), "give each a code of its own", "exit_off")
	case c.Style == "arguments" && !acts:
		wrong(fmt.Sprintf("no argument of device %s has {action} in it: its program could not tell off from status", n), "add {action} to arguments, or say style: fence-agents", "arguments")
	case c.Style == "arguments" && len(c.Options) > 0:
		wrong("options are for fence agents", "write them as arguments, or say style: fence-agents", "options")
	case c.Style != "arguments" && len(c.Arguments) > 0:
		wrong("a fence agent gets its options on standard input, not as arguments", "write them as options", "arguments")
	case c.Style == "arguments" && c.Words.Status != "" && c.ExitOff <= 2:
		// P2: a script that is lost must not prove that a host is off.
		wrong(fmt.Sprintf("exit code %d of device %s means off, and is also what programs end with by mistake, such as an interpreter that cannot read its script: a live host would be taken for dead", c.ExitOff, n),
			"have the program say off by a code of its own, such as 11, and name it here", "exit_off")
	}
}

// lack reports once what one or more hosts lack.
func (k *checker) lack(what string, ids []haven.HostID) {
	n, name, some := strings.Cut(what, ".")
	common, hosts := "fencing.devices."+n, joinWords(ids)
	if !some {
		levels := []string{"fencing.levels"}
		if own := fmt.Sprintf("hosts.%s.fencing.levels", ids[0]); k.given(own) {
			levels[0] = own
		}
		k.wrong(fmt.Sprintf("there is no device %q (%s)", n, hosts), "describe it in "+common+" and in hosts.NAME.fencing.devices", levels...)
		return
	}
	if name == "address" {
		for _, id := range ids {
			k.wrong("is missing", "add the address of this host's BMC", deviceKey(id, n)+".address")
		}
		return
	}
	if name == "redfish.pin" {
		k.wrong("is missing ("+hosts+"), and so is ca_file: what answers there could be anything", "add the pin of each board, or ca_file for all; operations.md shows how to get a pin", common+"."+name, deviceKey(ids[0], n)+"."+name)
		return
	}
	if k.given(common) {
		k.wrong("is missing ("+hosts+")", "add it here, or to the hosts' devices", common+"."+name)
		return
	}
	k.wrong("is missing ("+hosts+")", "add it here, or to "+common+" for all hosts", deviceKey(ids[0], n)+"."+name)
}

// unused warns of devices that stand in no ladder.
func (k *checker) unused(used map[string]bool) {
	reported := map[string]bool{}
	see := func(key, n string) {
		if used[n] || reported[n] {
			return
		}
		reported[n] = true
		k.warn("the device stands in no level and is never used", fmt.Sprintf("add it to fencing.levels, as in [[%s]], or remove it", n), key, "fencing.levels")
	}
	for _, n := range sorted(k.c.Fencing.Devices) {
		see("fencing.devices."+n, n)
	}
	for _, id := range k.c.Hypervisors() {
		for _, n := range sorted(k.c.Hosts[id].Fencing.Devices) {
			see(deviceKey(id, n), n)
		}
	}
}

// massFailure checks that the brake lets a single dead host through.
func (k *checker) massFailure() {
	n := len(k.c.Hypervisors())
	if share := k.c.Detection.MassFailureShare; n > 1 && share*float64(n) < 1 {
		k.wrong(
			fmt.Sprintf("%g of %d hypervisors is less than one: a single dead host would be held back", share, n),
			fmt.Sprintf("raise it to at least %g", math.Ceil(100/float64(n))/100), "detection.mass_failure_share", "hosts")
	}
}

func sorted[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
