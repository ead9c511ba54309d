// Package detector judges hosts: evidence in, verdicts out. It is pure. One
// Machine looks at all hosts of the cluster with each Step; it has no clock, no
// goroutine and does no I/O. The master acts on its verdicts; every voter runs
// one too, so that a new master starts with what it has seen itself.
//
// # Paths
//
// Each path is alive (Yes), silent for certain (No) or Unknown. Yes is believed
// from anybody. No counts only from an observer that vouches for the path it
// looked through: it reaches a majority of the configured hosts, its loop is in
// time, and its words are no older than StaleAfter. Everything else is Unknown,
// and Unknown is never dead, off or idle (P5).
//
//	network  alive: a report within SuspectAfter, an agent's answer to a probe
//	         within ProbeFresh, a rise to alive in gossip, or gossip still
//	         holding it for alive GossipLag after its last other word.
//	         dead: nothing of this for Silence, and the latest probe of every
//	         neighbour asked failed, of at least one that is not this agent.
//	beats    alive: a sequence moves on any store, read by anybody.
//	         stale: it stood still for more than StaleAfter on every store that
//	         somebody can vouch for (own beat read back, another host's moves,
//	         not hung), and at least one such store has been so for StaleAfter.
//	         If no other host is due to write (two hosts and a witness, or all
//	         others proved dead, left or in maintenance), the reader's own beat
//	         is enough. The suspect's own words about stores do not count.
//	helper   alive: its beat moves, or it or the host's network stack answered
//	         a probe within half of Silence. dead: no life for Silence, probes
//	         failed as above, and its beat is stale or was never written.
//	disk     active: anybody saw a disk change within Silence. idle: somebody
//	         who vouches saw all of them idle, and nobody saw one change. A
//	         host that was unreachable counts as active until it is idle:
//	         guests write in bursts, and a pause that nobody measured is no end.
//	power    off: OffReadings trusted readings of one device, each in a session
//	         of its own begun OffGap after the one before ended, all begun after
//	         the last sign of life on any path and after the last on, none older
//	         than OffFresh. A reading with another host's GUID is not trusted.
//
// # Verdicts
//
// The first row that fits is the verdict.
//
//	observer not trusted                       unknown, hold observer
//	the ledger holds a proof for its boot      dead, until a newer boot registers
//	left, host shutting down                   shutdown, for as long as it is gone
//	power off, and all of the below            dead (proved)
//	left, said so                              stopped
//	network alive, beat moves or unknown       healthy
//	network alive, beat stale                  storage-lost
//	not silent for long enough                 as before, or unknown
//	network silent, not yet dead               suspect
//	dead, beat moves and says isolated         isolated
//	dead, beat moves                           partitioned
//	dead, beat unknown                         unknown, perhaps hold storage-outage
//	dead, stale, helper alive                  agent-down
//	dead, stale, disk active                   unreachable
//	dead, stale, helper unknown                unknown (suspect while it lived a moment ago)
//	dead, stale, helper dead, no store at all  unknown, hold needs-operator, unless
//	                                           the disks are idle or FenceWithoutStore
//	dead, stale, helper dead, too few rounds   suspect
//	dead, stale, helper dead, Rounds in a row  failed
//
// Dead by the BMC needs, besides the readings: a trusted observer, a silent
// network, a boot that registered, failing probes of the agent by all neighbours
// asked after the first off, every beat older than OffBeatAge intervals on every
// store somebody can vouch for, and no start-up grace. If stores are configured
// and none works, the BMC's GUID must be known to be the host's: the beat that
// would unmask an off of the wrong chassis cannot be read. A storage outage does
// not hold such a proof back, because what it holds back are power commands.
//
// Failed needs, besides its row: all paths silent for Silence, counted from the
// last sign of life, from when the observer became trusted and from when the
// stores came back, whichever is latest; gossip not holding the host for alive
// (WaitForGossip); a boot that registered; no start-up grace. Once reached, it
// stands through Steps that only failed to see everything (suspect or unknown by
// their own evidence): a sign of life on any path, a proof, a leave, another boot,
// the end of the suspicion or of the observer's trust end it. The permission to
// fence never stands: MayFence needs all of the above at this very Step, and adds
// the mass-failure brake, mastership, and that it is a hypervisor not in
// maintenance.
//
// A round lasts from Round to twice that. It succeeds at the first Step in that
// time that finds agent and helper probes of every neighbour asked failed since
// its start (at least one of each), the agent's and the helper's beat stale and
// no disk active; otherwise it fails and the count is zero. Any sign of life and
// any Step of an untrusted observer set it to zero at once. At most one round
// ends per Step: time in which nobody looked proves nothing.
//
// A host whose agent left on purpose is stopped for as long as its helper or
// anything else lives, or nothing is known. It is dead only by a BMC's proof that
// includes a failing probe of the helper: a stop never starts a recovery, but the
// host under stopped agents can die. A host that shuts down stays shutdown; that
// its power is off is told by PowerOff, for the shutdown policy. The leave ends
// with a return in gossip, or words of the agent later than SuspectAfter after it.
//
// Life of the same boot well after enough offs (OffBeatAge intervals) is a
// contradiction: hold, and Distrust of the BMC. The verdict is then what the
// other paths say.
//
// # Brakes
//
//	start-up-grace   StartupGrace after the start of the process or a cold start;
//	                 none after a change of master. No failed, no proof by the BMC.
//	observer         the observer rule fails: nobody is judged. Afterwards every
//	                 host has its whole window again.
//	storage-outage   no store works for any reader, and at least two readers say
//	                 so (one, if this agent has no store): beats are unknown.
//	mass-failure     more hosts are bad than may be: suspect, isolated,
//	                 partitioned, unreachable, failed, dead or unknown while
//	                 suspected. Hosts long dead count; witnesses and hosts in
//	                 maintenance do not. Holds power commands, never proofs.
//	                 It closes at once, and opens when a trusted observer has
//	                 seen no more than may be for MassFailureCalm without a
//	                 break: hosts that flap around the share open no gap.
//	contradiction    see above.
//
// A hold carries what is, what may be, what releases it and its age. It is an alarm
// once it has lasted for HoldAlarm (see Hold.Alarm), and Output.Ended tells why it
// ended. A host that falls from health FlapCount times within FlapWindow is in
// quarantine until it has been healthy for FlapCalm without a break: it should be
// given no VMs. That holds back nothing else.
//
// # Numbers
//
//	                         fast     normal   calm
//	SuspectAfter             0.6 s    1 s      3 s
//	Silence                  2.5 s    8 s      20 s
//	Rounds × Round           3×0.5 s  3×1 s    5×2 s
//	BeatInterval             0.5 s    1 s      2 s
//	StaleAfter               2 s      4 s      10 s
//	ProbeFresh               1 s      2 s      4 s
//	PowerEvery               1 s      2 s      5 s
//	OffReadings × OffGap     2×0.3 s  2×0.3 s  2×1 s
//	OffBeatAge               1.25 intervals in all
//	OffFresh                 10 s     10 s     20 s
//	GossipLag                15 s     15 s     30 s
//	WaitForGossip            no       yes      yes
//	StartupGrace             1 min    2 min    5 min
//	MassFailureCalm          10 s     10 s     30 s
//	FlapCount in FlapWindow  3 in 10 min, FlapCalm 10 min in all
//	HoldAlarm                1 min in all
//
// Bad hypervisors allowed at once, by MassFailureShare 0.5 (at least one):
//
//	hypervisors  2  3  5  16  50
//	allowed      1  1  2  8   25
package detector
