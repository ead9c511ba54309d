package config

import (
	"fmt"
	"time"
)

// IsolationAction is what a host does with its VMs when it reaches nobody.
type IsolationAction string

// The actions of an isolated host.
const (
	IsolationLeave    IsolationAction = "leave"
	IsolationShutdown IsolationAction = "shutdown"
	IsolationPowerOff IsolationAction = "power-off"
)

// StorageLostAction is what is done about a host that lost its storage.
type StorageLostAction string

// The actions on lost storage.
const (
	StorageLostReport  StorageLostAction = "report"
	StorageLostRestart StorageLostAction = "restart-elsewhere"
)

// Response is what is done about hosts that live and are in trouble. By default
// nothing is.
type Response struct {
	Isolation struct {
		Action          IsolationAction
		Delay           time.Duration
		ShutdownTimeout time.Duration
	}
	StorageLost struct {
		Action StorageLostAction
		Delay  time.Duration
	}
}

// HostResponse is the part of Response that a host may have of its own.
type HostResponse struct {
	Isolation   IsolationAction
	StorageLost StorageLostAction
}

// Holds is about what holds recovery back.
type Holds struct {
	AlarmAfter  time.Duration
	RepeatEvery time.Duration
}

func defaultResponse() (r Response) {
	r.Isolation.Action, r.Isolation.Delay, r.Isolation.ShutdownTimeout = IsolationLeave, 30*time.Second, 2*time.Minute
	r.StorageLost.Action, r.StorageLost.Delay = StorageLostReport, time.Minute
	return r
}

func isolationAction(dst *IsolationAction, doc string) field {
	return word("action", dst, []IsolationAction{IsolationLeave, IsolationShutdown, IsolationPowerOff}, nil, doc)
}

func (r *Response) keys() []field {
	i, s := &r.Isolation, &r.StorageLost
	return []field{
		section("isolation", "A host that reaches nobody on the network, while a majority of the others, by their beats on a store, see a master that can start its VMs.", []field{
			isolationAction(&i.Action, "leave: its VMs run on. shutdown: it asks each VM to shut down, and ends it at once after shutdown_timeout. power-off: it ends each VM at once. It says so in its beat, and VMs that are proved gone are started elsewhere. It needs a store."),
			duration("delay", &i.Delay, 10*time.Second, time.Hour, "How long both must have lasted before it begins. When the network comes back before, nothing is done."),
			duration("shutdown_timeout", &i.ShutdownTimeout, 10*time.Second, time.Hour, "How long a VM is given to shut down."),
		}),
		section("storage_lost", "A host whose beats reach no store, while its agent reports and others' beats move.", []field{
			word("action", &s.Action, []StorageLostAction{StorageLostReport, StorageLostRestart}, nil, "report: only that. restart-elsewhere: the master has the host end each VM for which another host has room, and starts it there once it is proved gone. On storage that hangs it is not proved gone, and is held."),
			duration("delay", &s.Delay, 10*time.Second, 24*time.Hour, "How long it must have lasted before it begins."),
		}),
	}
}

func (h *HostResponse) keys() []field {
	return []field{
		word("isolation", &h.Isolation, []IsolationAction{IsolationLeave, IsolationShutdown, IsolationPowerOff}, nil, "As response.isolation.action."),
		word("storage_lost", &h.StorageLost, []StorageLostAction{StorageLostReport, StorageLostRestart}, nil, "As response.storage_lost.action."),
	}
}

func (h *Holds) keys() []field {
	return []field{
		duration("alarm_after", &h.AlarmAfter, 10*time.Second, 24*time.Hour, "A hold that has lasted for so long is an alarm. The start-up grace is none."),
		duration("repeat_every", &h.RepeatEvery, time.Minute, 7*24*time.Hour, "How often the alarm is repeated while the hold lasts."),
	}
}

// responses checks that configured responses can work.
func (k *checker) responses() {
	if len(k.c.Heartbeat.Stores) > 0 || k.given("heartbeat.stores") {
		return
	}
	const advice = "configure a store in heartbeat.stores, or write leave"
	if k.c.Response.Isolation.Action != IsolationLeave {
		k.wrong("an isolated host can tell only on a store that it stops its VMs, and there is none", advice, "response.isolation.action")
	}
	for _, id := range k.c.HostIDs() {
		if key := fmt.Sprintf("hosts.%s.response.isolation", id); k.given(key) && k.c.Hosts[id].Response.Isolation != IsolationLeave {
			k.wrong("an isolated host can tell only on a store that it stops its VMs, and there is none", advice, key)
		}
	}
}
