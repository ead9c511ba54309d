package config

import (
	"fmt"
	"time"

	"go.yaml.in/yaml/v4"
)

// Watchdog says on which terms a host arms its watchdog device.
type Watchdog struct {
	Device  string        // empty: none
	Timeout time.Duration // the device's own
	Silence time.Duration // since the last life, after which it is not petted any more
	// AllowSoftdog takes a timer of the kernel itself too.
	AllowSoftdog bool
}

func defaultWatchdog() Watchdog {
	return Watchdog{Timeout: 10 * time.Second, Silence: 10 * time.Second}
}

func (w *Watchdog) keys() []field {
	return []field{
		lineDevice("device", &w.Device, "The device, such as /dev/watchdog. Empty, it is left alone. A host whose watchdog is armed is reset when it loses every path: no report of its is acknowledged and no beat is written for so long. Nothing else may use the device, systemd (RuntimeWatchdogSec) included."),
		duration("timeout", &w.Timeout, 2*time.Second, time.Minute, "The device's own timeout, in whole seconds. It is petted at least four times as often."),
		duration("silence", &w.Silence, 2*time.Second, 10*time.Minute, "How long after its last life the host still pets the device. At most silence + 3 × timeout after it the host has been reset; whoever waits for that proof waits a little longer. At least 2 × (raft.heartbeat_timeout + raft.election_timeout) + 4 × detection.report_interval, so that a change of master resets nobody, and at least 3 × heartbeat.interval + 2 × heartbeat.io_timeout."),
		boolean("allow_softdog", &w.AllowSoftdog, "Use Linux' software watchdog too. It is a timer of the kernel that it watches over: a kernel that hangs hard enough is not reset by it, although the cluster believes so."),
	}
}

// lineDevice is the path of a device, or "" for none.
func lineDevice(key string, dst *string, doc string) field {
	f := file(key, dst, doc)
	some := f.set
	f.kind, f.limits, f.preset = "path", `absolute, at most 4095 octets, or ""`, ""
	f.set = func(d *decoder, path string, n *yaml.Node) {
		if n.Kind == yaml.ScalarNode && n.Value == "" && quoted(n) && n.Style&yaml.TaggedStyle == 0 {
			*dst = ""
			return
		}
		some(d, path, n)
	}
	return f
}

// watchdogs checks that watchdogs can be relied on.
func (k *checker) watchdogs() {
	shared := false // what hosts have in common was told
	for _, id := range k.c.Hypervisors() {
		w, own := k.c.Hosts[id].Fencing.Watchdog, fmt.Sprintf("hosts.%s.fencing.watchdog", id)
		if w.Device == "" || shared && !k.given(own) {
			continue
		}
		shared = shared || !k.given(own)
		keys := func(name string) []string {
			if k.given(own + "." + name) {
				return []string{own + "." + name}
			}
			return []string{"fencing.watchdog." + name, own + ".device", "fencing.watchdog.device"}
		}
		k.watchdog(w, keys)
	}
}

// watchdog checks one host's.
func (k *checker) watchdog(w Watchdog, keys func(name string) []string) {
	if len(k.c.Heartbeat.Stores) == 0 && !k.given("heartbeat.stores") {
		k.wrong("a watchdog proves nothing without a store: nobody could tell a host that lives on alone from one that was reset",
			"configure a store in heartbeat.stores, or remove the device", keys("device")...)
	}
	if w.Timeout%time.Second != 0 {
		k.wrong(short(w.Timeout)+" is not a whole number of seconds: devices count in those", "write "+short(w.Timeout.Round(time.Second)), keys("timeout")...)
	}
	r, d, b := k.c.Raft, k.c.Detection, k.c.Heartbeat
	k.silence(w, keys("silence"), 2*(r.Heartbeat+r.Election)+4*d.ReportInterval,
		"2 × (raft.heartbeat_timeout + raft.election_timeout) + 4 × detection.report_interval: a change of master must reset nobody")
	k.silence(w, keys("silence"), 3*b.Interval+2*b.IOTimeout,
		"3 × heartbeat.interval + 2 × heartbeat.io_timeout: a slow store must reset nobody")
	if w.AllowSoftdog {
		k.warn("a software watchdog does not reset a kernel that hangs hard: its hosts' VMs may then be started twice", "use a hardware watchdog", keys("allow_softdog")...)
	}
}

func (k *checker) silence(w Watchdog, keys []string, least time.Duration, why string) {
	if w.Silence < least {
		k.wrong(fmt.Sprintf("%s is too short: it must be at least %s (%s)", short(w.Silence), short(least), why),
			fmt.Sprintf("raise it to %s or more", short(least)), keys...)
	}
}
