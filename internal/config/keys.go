package config

import (
	"maps"
	"time"

	"github.com/haven-ha/haven"
)

const (
	maxHosts  = 200 // the largest gossip cluster that was simulated
	maxStores = 8   // each is a child process on every host
	// maxIsolationAddresses are pinged all at once, each second, while nobody is seen.
	maxIsolationAddresses = 8
	maxDevices            = 8 // per host
)

// keys returns the fields of the whole file with c as their destination. This
// is the one place where a key is written down.
func (c *Config) keys() []field {
	return []field{
		must(name("cluster", &c.Cluster, "Name of the cluster. Gossip and beats carry it, so that clusters that share a network or a store do not mix. Never change it while the cluster runs.")),
		file("data_dir", &c.DataDir, "Directory of the agent's durable state, on a local disk. A host that loses it comes back as a stranger and is given no VM before it is registered anew."),
		integer("bootstrap_expect", &c.BootstrapExpect, 1, maxHosts, "How many hosts must have found each other before a new cluster is founded. More than half of the configured hosts, witnesses counted; the default is the least such number. It has no effect once the cluster exists."),
		section("log", "The agent's own log, on standard error.", c.Log.keys()),
		section("gossip", "Membership on the management network. What gossip says is evidence, never an order.", c.Gossip.keys()),
		section("api", "HTTPS API and Raft, on one port with mutual TLS, and the local socket.", c.API.keys()),
		section("raft", "Times of the consensus layer. They decide how soon a lost master is replaced.", c.Raft.keys()),
		section("libvirt", "The VM manager.", c.Libvirt.keys()),
		section("helper", "The host helper: a web server of its own that lists the host's VMs, in the wire format of CloudStack's KVM HA helper.", c.Helper.keys()),
		section("heartbeat", "Beats on shared storage: the second path by which a host is seen.", c.Heartbeat.keys()),
		section("detection", "How a host is judged.", c.Detection.keys()),
		section("fencing", "How a failed host is made certainly dead.", c.Fencing.keys()),
		boolean("fence_without_store", &c.FenceWithoutStore, "With no store configured, fence a host because the network and the helper are silent, although nothing says that its VMs stopped writing. Without it such a host is fenced only when its VMs' disks are seen to be idle."),
		section("restart", "How VMs are started again.", c.Restart.keys()),
		section("response", "What is done about a host that lives and is in trouble. By default nothing is: its VMs run on.", c.Response.keys()),
		section("holds", "When what holds recovery back becomes an alarm.", c.Holds.keys()),
		section("recorder", "The flight recorder: as master, the agent keeps what it saw and concluded around each incident, in data_dir/flight, for \"haven replay\".", c.Recorder.keys()),
		section("notify", "Who is told of what happens. Only the master tells of the cluster; each agent tells of its own isolation. Passwords and keys stand in files, never here.", c.Notify.keys()),
		must(table("hosts", "section of hosts", "All hosts of the cluster, by name. A host's name is its host name, unless the agent is started with another.", checkHostName, func(n string) ([]field, func()) { return c.hostKeys(n) })),
	}
}

func (l *Log) keys() []field {
	return []field{
		word("level", &l.Level, []string{"debug", "info", "warn", "error"}, nil, "Least severe level that is written."),
		word("format", &l.Format, []string{"text", "json"}, nil, "Form of each line."),
	}
}

func (g *Gossip) keys() []field {
	return []field{
		port(&g.Port, "UDP and TCP port, on every host's address."),
		must(secretFile("key_file", &g.KeyFile, "File with the key that encrypts gossip, the same on every host; \"haven keys\" makes one. While keys are being changed it holds up to three, one on each line, the one in use first.")),
		duration("probe_interval", &g.ProbeInterval, 100*time.Millisecond, 30*time.Second, "Time between two probes of other members by one member."),
		duration("probe_timeout", &g.ProbeTimeout, 50*time.Millisecond, 10*time.Second, "How long a direct probe may take before others are asked to probe. Less than probe_interval."),
		integer("suspicion_multiplier", &g.SuspicionMultiplier, 2, 20, "A silent member is held for dead after about this × max(1, log10(hosts)) × probe_interval."),
		duration("gossip_interval", &g.Interval, 50*time.Millisecond, 5*time.Second, "Time between two rounds of passing on news."),
		duration("push_pull_interval", &g.PushPullInterval, 2*time.Second, 5*time.Minute, "Time between two exchanges of the whole membership with one other member. It repairs what gossip lost."),
		duration("rejoin_interval", &g.RejoinInterval, time.Second, time.Minute, "Time between two attempts to join configured hosts that are not seen. Members forget each other after a long cut; this heals it."),
	}
}

func (a *API) keys() []field {
	return []field{
		port(&a.Port, "TCP port, on every host's address."),
		must(file("ca_file", &a.CAFile, "Certificate of the authority that signed all hosts' certificates, PEM; \"haven pki\" makes one.")),
		must(secretFile("cert_file", &a.CertFile, "This host's certificate, PEM.")),
		must(secretFile("key_file", &a.KeyFile, "Private key of this host's certificate, PEM.")),
		file("socket", &a.Socket, "Local socket for root, by which the operator's tool talks to the agent."),
	}
}

func (r *Raft) keys() []field {
	const least, most = 100 * time.Millisecond, 30 * time.Second
	return []field{
		duration("heartbeat_timeout", &r.Heartbeat, least, most, "Time without word from the master after which a voter starts an election."),
		duration("election_timeout", &r.Election, least, most, "Time after which an election without a winner is repeated. At least heartbeat_timeout."),
		duration("lease_timeout", &r.Lease, least, most, "Time without contact to a majority after which the master steps down. At most heartbeat_timeout. A stall of the master that is longer costs a change of master."),
		duration("commit_timeout", &r.Commit, 10*time.Millisecond, 5*time.Second, "Time after which the master tells idle voters what is committed. At most half of heartbeat_timeout."),
	}
}

func (l *Libvirt) keys() []field {
	return []field{file("socket", &l.Socket, "Socket of libvirtd or virtqemud.")}
}

func (h *Helper) keys() []field {
	return []field{
		boolean("plain", &h.Plain, "Serve HTTP without TLS. The list of VMs, and the password if there is one, then cross the network in the clear."),
		port(&h.Port, "TCP port, on every host's address. With plain: true the default is 8080."),
		secretFile("cert_file", &h.CertFile, "Certificate, PEM. Required, unless plain is true."),
		secretFile("key_file", &h.KeyFile, "Private key of the certificate, PEM. Required, unless plain is true."),
		username(&h.Username, "User name that clients give (basic authentication). Required, unless plain is true."),
		secretFile("password_file", &h.PasswordFile, "File with that user's password. Required, if there is a user name."),
	}
}

func (h *Heartbeat) keys() []field {
	return []field{
		duration("interval", &h.Interval, 200*time.Millisecond, 10*time.Second, "Time between two beats of a host on each store, and between two readings of the others' beats."),
		duration("stale_after", &h.StaleAfter, time.Second, 2*time.Minute, "Time without a new beat after which a host's beat is stale, by the reader's own clock. At least 2 × interval + io_timeout: a beat may wait one interval to be written, take the whole io_timeout and wait one more interval to be read."),
		duration("io_timeout", &h.IOTimeout, 200*time.Millisecond, 30*time.Second, "How long one reading or writing on a store may take. Then the store counts as hung, the process stuck in it is abandoned and another is tried."),
		list("stores", "list of stores", "The shared stores, the same on every host. A host is alive on storage if its beat moves on any of them. \"haven store init\" prepares a new one.", maxStores, func() ([]field, func()) {
			var s Store
			return s.keys(), func() { h.Stores = append(h.Stores, s) }
		}),
	}
}

func (s *Store) keys() []field {
	return []field{
		must(name("name", &s.Name, "Name of the store, in beats, verdicts and messages.")),
		must(word("type", &s.Type, []string{typeDir, typeBlock, typeRados}, nil, "What it is. dir is a directory on anything mounted: NFS, CephFS, GFS2, Gluster. block is a block device that all hosts share and nothing else uses: a LUN, a mapped RBD. It needs 2 MiB. rados is a pool of a Ceph cluster, or a namespace of one, without a mount; it needs programs that were built with -tags ceph.")),
		file("path", &s.Path, "Where it is. Required of a dir and of a block. Of a dir: a directory on the shared file system, not its mount point, so that an unmounted one is noticed. Of a block: the device, by a name that stays, such as one in /dev/disk/by-id or /dev/mapper."),
		cephName("pool", &s.Pool, "Of a rados: the pool. Required there. It must be replicated, since Ceph keeps no omap in others; a namespace of a pool that has other uses will do."),
		cephName("namespace", &s.Namespace, "Of a rados: the namespace in the pool. Without it, the store is in the pool's own namespace."),
		file("ceph_conf", &s.CephConf, "Of a rados: Ceph's configuration file. Without it, the usual places are searched."),
		cephName("ceph_user", &s.CephUser, "Of a rados: the Ceph user, without \"client.\". Without it, admin. It needs the capabilities: mon 'allow r', osd 'allow rw pool=POOL namespace=NAMESPACE'."),
	}
}

func (d *Detection) keys() []field {
	return []field{
		word("profile", &d.Profile, []Profile{ProfileFast, ProfileNormal, ProfileCalm}, nil, "Sets all times of gossip, raft, heartbeat and detection together; see the table below. Keys that are given override it, wherever they stand."),
		duration("report_interval", &d.ReportInterval, 100*time.Millisecond, 10*time.Second, "Time between two reports of an agent to the master, in small clusters."),
		duration("suspect_after", &d.SuspectAfter, 200*time.Millisecond, time.Minute, "Time without a report after which a host is looked at: probes are sent and its power state is read. Nothing else follows from it. At least 2 × report_interval."),
		duration("silence", &d.Silence, time.Second, 10*time.Minute, "Time for which all paths to a host must be silent before it has failed. At least heartbeat.stale_after + heartbeat.interval, at least suspect_after + probe_timeout, and at least rounds × round_interval."),
		integer("rounds", &d.Rounds, 1, 20, "Number of consecutive rounds that must agree before a verdict leads to action. Any sign of life starts the count again."),
		duration("round_interval", &d.RoundInterval, 100*time.Millisecond, 30*time.Second, "Time between two rounds. At least probe_timeout, so that every round has answers of its own."),
		duration("probe_timeout", &d.ProbeTimeout, 100*time.Millisecond, 30*time.Second, "How long one probe of a suspect by a neighbour may take."),
		integer("probe_count", &d.ProbeCount, 1, 16, "Number of neighbours that are asked about a suspect, if there are so many."),
		integer("off_readings", &d.OffReadings, 2, 10, "Number of consecutive readings of power off, each in a session of its own, that prove a host dead."),
		duration("off_reading_gap", &d.OffReadingGap, 300*time.Millisecond, 30*time.Second, "Least time between two such readings."),
		duration("start_up_grace", &d.StartUpGrace, 0, time.Hour, "Time after the start of an agent during which, as master, it judges nobody, so that hosts that start together are not taken for dead. A change of master does not start it anew."),
		addresses("isolation_addresses", &d.IsolationAddresses, maxIsolationAddresses, "What an agent pings that sees no other host. When one of them answers, the agent is cut off from its peers only; when none does, it is isolated, and says so in its beat. Empty means the gateways of its default routes. Name machines that answer pings all the time and are no hosts of the cluster."),
		fraction("mass_failure_share", &d.MassFailureShare, 0.05, 1, "When more than this share of the hypervisors is bad at once, nobody is fenced and an alarm is raised: the fault is more likely to be in what they share. It must leave room for one host."),
		duration("mass_failure_calm", &d.MassFailureCalm, time.Second, time.Hour, "Time for which the number of bad hypervisors must have stayed within the share before that brake, once closed, opens again. At least round_interval."),
		integer("flap_count", &d.FlapCount, 1, 16, "Number of falls from health within flap_window that put a host in quarantine: it is given no VMs. Nothing else follows from it."),
		duration("flap_window", &d.FlapWindow, 10*time.Second, 24*time.Hour, "Time within which they count. At least flap_count × silence, since so many falls take so long."),
		duration("flap_calm", &d.FlapCalm, time.Second, 24*time.Hour, "Time for which a host in quarantine must be healthy without a break before the quarantine ends. At least silence."),
		duration("disk_idle", &d.DiskIdle, 5*time.Second, 10*time.Minute, "Time for which a neighbour must find all disks of a suspect's VMs unchanged before they are idle; and time for which a change that it found counts as activity. Guests keep writes back for up to 35 s. More than what a file system with an attribute cache of its own, such as Gluster, caches."),
		integer("disk_repeats", &d.DiskRepeats, 1, 100, "Number of consecutive readings, one each second, that must repeat the first one before disks are idle."),
	}
}

func (f *Fencing) keys() []field {
	return []field{
		actionKey(&f.Action, "What is done to a failed host. none: only report. off: power off and verify. reboot: power off and verify, have its VMs started elsewhere, then power on; a host that is found off stays off. blink: make its identify light blink; as with none, its VMs wait for another proof."),
		releaseKey(&f.Release, "What must come before a host that was fenced is given VMs again. auto: it has booted, reported, and said what it has. manual: also an operator's word, 'haven fence release'."),
		section("limit", "Cap on power-downs in the whole cluster. At the cap no more hosts are powered down, and an alarm is raised.", []field{
			integer("count", &f.Limit.Count, 1, 100, "Number of power-downs allowed within the window."),
			duration("window", &f.Limit.Window, time.Minute, 7*24*time.Hour, "Length of the window, which slides."),
			section("per_host", "Cap on power-downs of one host. At the cap it is held, and with action reboot it is not powered on again.", []field{
				integer("count", &f.Limit.PerHost.Count, 0, 100, "Number of power-downs of one host allowed within the window; 0 is no limit of its own."),
				duration("window", &f.Limit.PerHost.Window, time.Minute, 7*24*time.Hour, "Length of the window, which slides."),
			}),
		}),
		levels("levels", &f.Levels, "The ladder. Levels are tried in this order; all devices of a level must succeed. Two power supplies are one level of two devices."),
		duration("check_interval", &f.CheckInterval, 10*time.Second, 4*time.Minute, "Time between two background readings of each device. They find a wrong password today, and make a device trusted: one that said on within the last ten minutes, while its host lived."),
		duration("verify_timeout", &f.VerifyTimeout, 40*time.Second, 10*time.Minute, "How long one device is given to be read off, power commands that are sent again included, before the next level is tried. Slow boards need 10 s, and report it 20 s late."),
		poisonPill(&f.PoisonPill, "Whether a host resets itself at once when it finds a pill in its mailbox on a store: a word of the master that wants it fenced. It asks a master first when it reaches one. That a pill was written proves nothing; the proof is the watchdog's time, or the host's next boot. It needs a store and fencing.watchdog."),
		deviceTable(f.Devices, nil, "Defaults for the devices that hosts have, by name."),
		section("watchdog", "The host's own watchdog device, whose firing is a proof by time where no fence device answers: operations.md tells what arming it means. Off by default; it needs a store.", f.Watchdog.keys()),
	}
}

func poisonPill(dst *bool, doc string) field { return boolean("poison_pill", dst, doc) }

func actionKey(dst *haven.FenceAction, doc string) field {
	return word("action", dst, []haven.FenceAction{haven.ActionNone, haven.ActionOff, haven.ActionReboot, haven.ActionBlink}, nil, doc)
}

func releaseKey(dst *Release, doc string) field {
	return word("release", dst, []Release{ReleaseAuto, ReleaseManual}, nil, doc)
}

func (v *Device) keys() []field {
	return []field{
		word("driver", &v.Driver, []string{"ipmi", "redfish", "command"}, map[string]string{
			"watchdog": "is no device of a ladder: fencing.watchdog.device arms the host's own, and its proof by time needs no level",
			"manual":   "is no device of a ladder: an operator's word, haven fence confirm, counts at any time",
		}, "How to talk to it. ipmi: over the network (RMCP+). redfish: over the network (HTTPS). command: by a program, such as a fence agent. Required, here or in the cluster's defaults."),
		address("address", &v.Address, "The BMC's address. Every host has its own, so it belongs to the host. With driver command it is what the program is told, if it wants one."),
		port(&v.Port, "Port of the BMC: UDP, or TCP with driver redfish, where the default is 443."),
		username(&v.Username, "User name at the BMC. Required, here or in the cluster's defaults."),
		secretFile("password_file", &v.PasswordFile, "File with that user's password. Required, here or in the cluster's defaults."),
		secretFile("kg_file", &v.KGFile, "File with the BMC's own key for two-key logins (K_g), with driver ipmi, of boards that have one set: at most 20 characters, or 0x and their hexadecimal digits."),
		duration("timeout", &v.Timeout, 200*time.Millisecond, 30*time.Second, "How long one reading or command may take, session included. With driver ipmi a board that was silent is given more at the next time, up to 25 s, until it was quick again. With driver redfish the default is 15s: slow boards need 3 s for each of four or five answers."),
		word("cipher_suite", &v.CipherSuite, []CipherSuite{"auto", "17", "3"}, nil, "How the session is protected. auto tries 17, then 3. Where wrong passwords lock an account, name the one that works."),
		section("redfish", "The device, with driver redfish. Its certificate is always verified, by ca_file or by pin, or anything at its address could say off.", v.Redfish.keys()),
		section("command", "The program of a device with driver command. It runs as root, without a shell, in a process group that is killed when its time is up.", v.Command.keys()),
	}
}

func (r *Redfish) keys() []field {
	return []field{
		resource("system", &r.System, "Path of the host's computer system, such as /redfish/v1/Systems/1. Only a board with several needs it."),
		file("ca_file", &r.CAFile, "Certificates of the authorities that the board's certificate comes from. It is read for each session."),
		line("certificate_name", &r.CertificateName, "The name in the board's certificate, with ca_file, if that is not the board's address."),
		fingerprint("pin", &r.Pin, "SHA-256 of the public key in the board's certificate. Alone it also accepts a certificate that is self-signed, expired or for another name. With ca_file both must be right."),
		word("session", &r.Session, []string{"session", "basic"}, nil, "session: log in, and delete the session afterwards. basic: send user and password with each request, for boards whose sessions do not work."),
	}
}

func (c *Command) keys() []field {
	w := &c.Words
	return []field{
		file("program", &c.Program, "The program. Required with driver command. It belongs on the host's own disk: on storage that hangs it cannot be started, and the device is busy until the storage is back."),
		word("style", &c.Style, []string{"arguments", "fence-agents"}, nil, "arguments: the template below. fence-agents: name=value lines on standard input, as /usr/sbin/fence_* want them, the address as ipaddr, the user as login, the password as passwd; nothing secret is on a command line."),
		texts("arguments", &c.Arguments, 64, "Template of the arguments with style arguments; one of them has {action} in it. {action}, {address}, {host}, {username} and {password_file} are filled in; a brace that is meant is written twice. A password itself has no place there: every user can read the arguments of all processes."),
		textTable("options", &c.Options, "Further options with style fence-agents, such as plug: \"3\"."),
		section("words", "What the program calls each action. An empty word, \"\", is an action that it cannot do. Without a word for status the device proves nothing: say so of a program that knows no status, or its complaint may pass for an answer.", []field{
			lineOrNone("off", &w.Off, "Power off, at once."),
			lineOrNone("on", &w.On, "Power on."),
			lineOrNone("blink", &w.Blink, "Blink the identify light."),
			lineOrNone("blink_off", &w.BlinkOff, "Put the identify light out."),
			lineOrNone("status", &w.Status, "Tell whether the power is on, by the exit code."),
			lineOrNone("test", &w.Test, "Something harmless that shows that off would work. Empty means the status."),
		}),
		integer("exit_on", &c.ExitOn, 0, 125, "Exit code of status that means on."),
		integer("exit_off", &c.ExitOff, 0, 125, "Exit code of status that means off. Any other means unknown. Fence agents use 0 and 2. A program of your own should use others than 0, 1 and 2, such as 10 and 11: 2 is also what shells and interpreters end with when they cannot read a script, and that would be taken for off."),
		word("proves", &c.Proves, []string{ProvesPower, ProvesStorage}, nil, "What its off proves. power: that the host is off. storage: that it reaches its disks no more, as with fence_scsi or a switch's port, while it may run on: its VMs are started elsewhere, it counts as dead until it boots anew, and Haven never gives it its disks back; action reboot leaves it as it is. Of a fence agent that says of itself that it cuts storage, power is not believed."),
		duration("run_timeout", &c.RunTimeout, time.Second, 2*time.Minute, "How long one run may take. A fence agent's off waits for the effect itself, for up to 20 s by default."),
	}
}

// deviceTable reads devices into a map. Each starts as the one of that name in
// base, if there is one, so that only what differs must be written.
func deviceTable(dst, base map[string]Device, doc string) field {
	return table("devices", "section of devices", doc, checkName, func(n string) ([]field, func()) {
		v, ok := base[n]
		if !ok {
			v = defaultDevice()
		}
		return v.keys(), func() { dst[n] = v }
	})
}

func (r *Restart) keys() []field {
	return []field{
		word("protect", &r.Protect, []string{"all"}, map[string]string{"opt-in": "is not available in this version"}, "Which VMs are protected: every persistent one that runs, or only those that were chosen by name."),
		integer("max_starts_in_flight", &r.MaxStartsInFlight, 1, 64, "Number of VMs that one host starts at the same time. Proxmox VE starts 4 per host, vSphere up to 32; more at once make each of them slower on hosts that are busy already."),
		integer("memory_reserve_mib", &r.MemoryReserveMiB, 0, 1<<20, "Memory of each host that is kept free of VMs, for the host itself, in MiB."),
	}
}

func (r *Recorder) keys() []field {
	return []field{
		integer("keep", &r.Keep, 0, 1000, "Number of recordings that are kept on each host; the oldest are removed. With 0 nothing is recorded."),
		integer("max_mib", &r.MaxMiB, 4, 16384, "Size of all recordings on a host together, in MiB. One recording may take a quarter of it, and says so when it ends for that reason. An incident of 50 hosts takes one to three MiB."),
	}
}

func checkHostName(s string) error {
	_, err := haven.ParseHostID(s)
	return err
}

// hostKeys returns the fields of the host called n. Its fence settings start
// as the cluster's, which were read before, and its own keys override them.
func (c *Config) hostKeys(n string) ([]field, func()) {
	h := Host{
		ID: haven.HostID(n), Role: haven.RoleHypervisor,
		Fencing: HostFencing{
			Action: c.Fencing.Action, Release: c.Fencing.Release, Limit: c.Fencing.Limit.PerHost, Levels: c.Fencing.Levels,
			Devices: maps.Clone(c.Fencing.Devices), Watchdog: c.Fencing.Watchdog, PoisonPill: c.Fencing.PoisonPill,
		},
		Response: HostResponse{Isolation: c.Response.Isolation.Action, StorageLost: c.Response.StorageLost.Action},
	}
	fields := []field{
		must(address("address", &h.Address, "The host's address on the management network.")),
		name("zone", &h.Zone, "What fails together, such as a rack. Voters and VMs are spread over zones."),
		word("role", &h.Role, []haven.Role{haven.RoleHypervisor, haven.RoleWitness}, nil, "hypervisor: runs VMs. witness: votes and observes only, and is never fenced."),
		section("fencing", "What differs for this host; the cluster's fencing section stands for the rest.", []field{
			actionKey(&h.Fencing.Action, "As fencing.action."),
			releaseKey(&h.Fencing.Release, "As fencing.release."),
			section("limit", "As fencing.limit.per_host: the cap on power-downs of this host. It never allows more than the cluster's.", []field{
				integer("count", &h.Fencing.Limit.Count, 0, 100, "Number of power-downs of this host allowed within the window; 0 is no limit of its own."),
				duration("window", &h.Fencing.Limit.Window, time.Minute, 7*24*time.Hour, "Length of the window, which slides."),
			}),
			levels("levels", &h.Fencing.Levels, "As fencing.levels."),
			poisonPill(&h.Fencing.PoisonPill, "As fencing.poison_pill."),
			section("watchdog", "What differs for this host's watchdog; fencing.watchdog stands for the rest.", h.Fencing.Watchdog.keys()),
			deviceTable(h.Fencing.Devices, c.Fencing.Devices, "The host's devices. Keys that are not given come from the cluster's device of the same name."),
		}),
		section("response", "What differs for this host; the cluster's response section stands for the rest.", h.Response.keys()),
	}
	return fields, func() {
		if h.Role == haven.RoleWitness {
			h.Fencing = HostFencing{Action: haven.ActionNone, Release: ReleaseAuto}
			h.Response = HostResponse{Isolation: IsolationLeave, StorageLost: StorageLostReport}
		}
		c.Hosts[h.ID] = h
	}
}
