package config

import "fmt"

// pills checks that hosts which are to obey pills can find any, and that something
// can prove that they are gone.
func (k *checker) pills() {
	shared := false // what hosts have in common was told
	for _, id := range k.c.Hypervisors() {
		f, own := k.c.Hosts[id].Fencing, fmt.Sprintf("hosts.%s.fencing", id)
		if !f.PoisonPill || shared && !k.given(own+".poison_pill") && !k.given(own+".watchdog") {
			continue
		}
		shared = shared || !k.given(own+".poison_pill") && !k.given(own+".watchdog")
		keys := []string{"fencing.poison_pill"}
		if k.given(own + ".poison_pill") {
			keys = []string{own + ".poison_pill"}
		}
		if len(k.c.Heartbeat.Stores) == 0 && !k.given("heartbeat.stores") {
			k.wrong("a pill lies in a mailbox on a store, and there is no store", "configure one in heartbeat.stores, or remove it", keys...)
		}
		if f.Watchdog.Device == "" && !k.failed["fencing.watchdog.device"] && !k.failed[own+".watchdog.device"] {
			k.wrong(fmt.Sprintf("a pill proves nothing: what proves that host %s is gone when its fence devices are too is its watchdog, and it has none", id),
				"name one in fencing.watchdog.device, or remove it", keys...)
		}
	}
}
