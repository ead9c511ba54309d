//go:build lab

package lab_test

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/haven-ha/haven/test/lab"
	"github.com/haven-ha/haven/test/lab/guestos"
)

// TestHostsAreMachines guards what Haven takes for granted on real hosts.
func TestHostsAreMachines(t *testing.T) {
	l := newLab(t, lab.Config{Zones: []string{"a", "b"}})
	boots := map[string]bool{}
	for i, h := range l.Hosts() {
		if want := []string{"a", "b", "a"}[i]; h.Zone != want {
			t.Errorf("%s is in zone %q, want %q", h.Name, h.Zone, want)
		}
		for command, want := range map[string]string{
			"hostname":                               h.Name,
			"ls /sys/class/net | xargs":              "lo mgmt oob stor",
			"cat /proc/sys/kernel/random/boot_id":    must(h.BootID())(t),
			"grep -c /mnt/h /proc/mounts || true":    "0",
			"ip route show default | xargs":          "default via 10.77.0.254 dev mgmt",
			"ps -e -o pid=,comm= | grep -c libvirtd": "1",
			"virsh -q -c qemu:///system capabilities | sed -n 's|.*<uuid>\\(.*\\)</uuid>.*|\\1|p'": h.UUID,
		} {
			out := must(h.Exec(within(t, 20*time.Second), "sh", "-c", command))(t)
			if got := strings.TrimSpace(out); got != want {
				t.Errorf("%s: %s = %q, want %q", h.Name, command, got, want)
			}
		}
		boots[must(h.BootID())(t)] = true
		for _, other := range l.Hosts() {
			for _, address := range []string{other.Address, other.StorageAddress, other.BMCAddress, other.Name, "10.77.0.254"} {
				if !pings(t, h, address) {
					t.Errorf("%s cannot ping %s", h.Name, address)
				}
			}
		}
	}
	if len(boots) != 3 {
		t.Errorf("boot ids are shared: %v", boots)
	}
	testSharedStorage(t, l)
	testState(t, l.Host(1))
}

// testSharedStorage guards that hosts see each other's direct writes at once, and
// that locks hold between them.
func testSharedStorage(t *testing.T, l *lab.Lab) {
	a, b := l.Host(1), l.Host(2)
	for i := range 20 {
		want := strings.Repeat(string(rune('a'+i)), 4096)
		ok(t, os.WriteFile(filepath.Join(l.Dir(), "block"), []byte(want), 0o600))
		must(a.Exec(t.Context(), "dd", "if="+l.Dir()+"/block", "of=/srv/shared", "bs=4096", "count=1", "oflag=direct", "conv=notrunc", "status=none"))(t)
		if got := must(b.Exec(t.Context(), "cat", "/srv/shared"))(t); got != want {
			t.Fatalf("round %d: %s reads %.10q", i, b.Name, got)
		}
	}
	must(a.Exec(t.Context(), "sh", "-ec", `cd /srv; mkdir -p one/two; echo hello > one/two/file; mv one/two/file one/moved; rmdir one/two
		ln -s moved one/link; truncate -s 5 one/moved; chmod 640 one/moved; fallocate -l 8192 one/big; sync one/big; df . > /dev/null`))(t)
	if got := must(b.Exec(t.Context(), "sh", "-ec", "cd /srv/one; cat link; ls | xargs; stat -c '%a %s' moved big | xargs; rm -r /srv/one; ls /srv"))(t); got !=
		"hello"+"big link moved\n640 5 644 8192\n"+"shared\n" {
		t.Errorf("%s sees %q", b.Name, got)
	}
	ok(t, a.SetPrograms(t.Context(), []lab.Program{{Name: "locker", Args: []string{"flock", "/srv/shared", "sleep", "1000"}}}))
	eventually(t, "the lock is taken", func() bool {
		_, err := b.Exec(t.Context(), "flock", "-n", "/srv/shared", "true")
		return err != nil
	})
	ok(t, a.SetPrograms(t.Context(), nil))
	eventually(t, "the lock is free again", func() bool {
		_, err := b.Exec(t.Context(), "flock", "-n", "/srv/shared", "true")
		return err == nil
	})
}

// testState guards what survives a power cut and what does not.
func testState(t *testing.T, h *lab.Host) {
	must(h.Exec(t.Context(), "touch", lab.HostDataDir+"/kept", lab.HostRunDir+"/lost"))(t)
	ok(t, os.WriteFile(filepath.Join(h.ConfigDir, "haven.yaml"), []byte("x"), 0o600))
	before := must(h.BootID())(t)
	ok(t, h.CutPower(t.Context()))
	ok(t, h.PowerOn(t.Context()))
	ok(t, h.WaitReady(t.Context()))
	if after := must(h.BootID())(t); after == before {
		t.Error("the boot id survived a power cut")
	}
	got := must(h.Exec(t.Context(), "sh", "-c", "cd /; ls -d .$0/kept .$1/lost .$2/haven.yaml 2>/dev/null | xargs", lab.HostDataDir, lab.HostRunDir, lab.HostConfigDir))(t)
	if want := "./etc/haven/haven.yaml ./var/lib/haven/kept\n"; got != want {
		t.Errorf("after a power cut: %q, want %q", got, want)
	}
}

// TestFailover is the whole way by hand: what Haven will do, on the lab's parts.
func TestFailover(t *testing.T) {
	for _, kind := range []lab.BMCKind{lab.BMCSim, lab.BMCGo} {
		t.Run(string(kind), func(t *testing.T) { testFailover(t, newLab(t, lab.Config{BMC: kind})) })
	}
}

func testFailover(t *testing.T, l *lab.Lab) {
	h1, h2, h3 := l.Host(1), l.Host(2), l.Host(3)
	g := running(t, l, h1, "vm1")
	expectPower(t, h2, h1, "on")

	cut := time.Now()
	ok(t, h1.CutPower(t.Context()))
	t.Logf("power cut took %v", time.Since(cut).Round(time.Millisecond))
	expectPower(t, h2, h1, "off")
	if pings(t, h3, h1.Address) {
		t.Error("a host without power answers")
	}
	dead := must(g.Header())(t)
	if writes(t, g) {
		t.Fatal("the guest outlived its host")
	}

	ok(t, g.Define(t.Context(), h2))
	start := time.Now()
	ok(t, g.Start(t.Context(), h2))
	w := must(g.WaitWriter(within(t, 20*time.Second), dead.Nonce))(t)
	t.Logf("start to first write %v", w.At.Sub(start).Round(time.Millisecond))
	if w.Seq != dead.Seq+1 {
		t.Errorf("the new boot wrote %d after %d", w.Seq, dead.Seq)
	}

	suite := h1.BMCCipherSuites[0]
	must(ipmi(t, h3, h1, suite, "chassis", "power", "on"))(t)
	ok(t, h1.WaitReady(t.Context()))
	if s := must(g.State(t.Context(), h1))(t); s != "shut off" {
		t.Errorf("the returned host says %q of its old guest", s)
	}
	must(ipmi(t, h1, h3, suite, "chassis", "power", "off"))(t)
	eventually(t, "h3 is off", func() bool { return !must(h3.PowerIsOn())(t) })
	commands := must(h1.PowerCommands())(t)
	if len(commands) != 1 || commands[0].Command != "on" || commands[0].At.Before(cut) {
		t.Errorf("h1's BMC noted %v", commands)
	}
	if commands := must(h2.PowerCommands())(t); len(commands) != 0 {
		t.Errorf("h2's BMC noted %v", commands)
	}
	j := must(g.Journal())(t)
	if j.Boots != 2 || j.SecondWriters() != 0 || len(j.Runs()) != 2 {
		t.Errorf("boots %d, second writers %d, runs %v", j.Boots, j.SecondWriters(), j.Runs())
	}
}

// TestSecondCopy guards the journal's power to convict: with locks a second copy
// does not start, and without them the journal counts it.
func TestSecondCopy(t *testing.T) {
	t.Run("locks", func(t *testing.T) {
		l := newLab(t, lab.Config{Hosts: 2})
		g := running(t, l, l.Host(1), "vm1")
		ok(t, g.Define(t.Context(), l.Host(2)))
		if err := g.Start(t.Context(), l.Host(2)); err == nil || !strings.Contains(err.Error(), "lock") {
			t.Errorf("second copy: %v", err)
		}
		if j := must(g.Journal())(t); j.SecondWriters() != 0 || j.Boots != 1 {
			t.Errorf("boots %d, second writers %d", j.Boots, j.SecondWriters())
		}
	})
	t.Run("no locks", func(t *testing.T) {
		l := newLab(t, lab.Config{Hosts: 2, NoLocks: true})
		g := running(t, l, l.Host(1), "vm1")
		ok(t, g.Define(t.Context(), l.Host(2)))
		ok(t, g.Start(t.Context(), l.Host(2)))
		var j guestos.Journal
		t.Cleanup(func() { t.Logf("%+v, runs %d, second writers %d", j.Header, len(j.Runs()), j.SecondWriters()) })
		eventually(t, "the guests see each other", func() bool {
			j = must(g.Journal())(t)
			return j.Boots == 2 && j.Conflicts > 2 && j.SecondWriters() > int(j.Conflicts)
		})
	})
}

func TestStorageHang(t *testing.T) {
	l := newLab(t, lab.Config{Hosts: 2})
	h1, h2 := l.Host(1), l.Host(2)
	g1, g2 := running(t, l, h1, "vm1"), running(t, l, h2, "vm2")

	ok(t, h1.Storage(t.Context(), lab.StorageHang))
	eventually(t, "a request waits", func() bool { return must(h1.StorageStatus(t.Context()))(t).Held > 0 })
	if writes(t, g1) {
		t.Error("vm1 writes to hung storage")
	}
	if !writes(t, g2) {
		t.Error("vm2 hangs with another host's storage")
	}
	ok(t, h1.Storage(t.Context(), lab.StorageOK))
	if !writes(t, g1) {
		t.Error("vm1 does not write after the release")
	}

	ok(t, l.StorageAll(t.Context(), lab.StorageHang))
	if writes(t, g1) || writes(t, g2) {
		t.Error("a guest writes to hung storage")
	}
	// A power cut wins over a hung disk, and what was in flight is lost.
	before := must(g1.Header())(t)
	cut := time.Now()
	must(ipmi(t, h2, h1, 3, "chassis", "power", "off"))(t)
	expectPower(t, h2, h1, "off")
	t.Logf("off with stuck processes took %v", time.Since(cut).Round(time.Millisecond))
	if s := must(h1.StorageStatus(t.Context()))(t); s.Mode != lab.StorageHang {
		t.Errorf("the storage is %q after the power cut", s.Mode)
	}
	// A host boots although its storage hangs.
	ok(t, h1.PowerOn(t.Context()))
	ok(t, h1.WaitReady(t.Context()))
	ok(t, l.StorageAll(t.Context(), lab.StorageOK))
	if !writes(t, g2) {
		t.Error("vm2 does not write after the release")
	}
	if after := must(g1.Header())(t); !slices.Equal(after.Writers, before.Writers) || after.Seq != before.Seq {
		t.Errorf("vm1 wrote after its death: %+v, before %+v", after, before)
	}
}

func TestStorageModes(t *testing.T) {
	l := newLab(t, lab.Config{Hosts: 1})
	h := l.Host(1)
	ok(t, os.WriteFile(l.ExportDir()+"/file", make([]byte, 4096), 0o600))
	for i, tc := range []struct {
		mode              lab.StorageMode
		read, write, grow string
	}{
		{lab.StorageOK, "", "", ""},
		{lab.StorageEIO, "Input/output error", "Input/output error", "Input/output error"},
		{lab.StorageStale, "Stale file handle", "Stale file handle", "Stale file handle"},
		{lab.StorageRO, "", "Read-only file system", "Read-only file system"},
		{lab.StorageNoSpace, "", "", "No space left on device"},
		{lab.StorageSlow(50 * time.Millisecond), "", "", ""},
	} {
		t.Run(string(tc.mode), func(t *testing.T) {
			ok(t, h.Storage(t.Context(), tc.mode))
			start := time.Now()
			const dd = "dd if=/dev/zero of=/srv/file bs=4096 count=1 oflag=direct conv=notrunc seek="
			for command, want := range map[string]string{"cat /srv/file": tc.read, dd + "0": tc.write, dd + strconv.Itoa(10*(i+1)): tc.grow} {
				_, err := h.Exec(within(t, 20*time.Second), "sh", "-c", command)
				if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
					t.Errorf("%s: %v, want %q", command, err, want)
				}
			}
			if strings.HasPrefix(string(tc.mode), "slow") && time.Since(start) < 100*time.Millisecond {
				t.Errorf("slow storage answered all in %v", time.Since(start))
			}
		})
	}
	if err := h.Storage(t.Context(), "broken"); err == nil {
		t.Error("an unknown mode was taken")
	}
}

func TestKernelHang(t *testing.T) {
	l := newLab(t, lab.Config{Hosts: 2})
	h1, h2 := l.Host(1), l.Host(2)
	g := running(t, l, h1, "vm1")
	ok(t, h1.Hang(t.Context()))
	if pings(t, h2, h1.Address) || writes(t, g) {
		t.Error("a hung host lives")
	}
	expectPower(t, h2, h1, "on")
	if _, err := h1.Exec(within(t, 500*time.Millisecond), "true"); err == nil {
		t.Error("a hung host runs a command")
	}
	ok(t, h1.Unhang(t.Context()))
	if !pings(t, h2, h1.Address) || !pings(t, h1, "10.77.0.254") || !writes(t, g) {
		t.Error("a host that goes on does not live")
	}
	ok(t, h1.Hang(t.Context()))
	must(ipmi(t, h2, h1, 3, "chassis", "power", "off"))(t)
	expectPower(t, h2, h1, "off")
	must(ipmi(t, h2, h1, 3, "chassis", "power", "on"))(t)
	ok(t, h1.WaitReady(t.Context()))
	if !pings(t, h2, h1.Address) {
		t.Error("the host did not come back to the network")
	}
	if j := must(g.Journal())(t); j.Boots != 1 || j.SecondWriters() != 0 {
		t.Errorf("boots %d, second writers %d", j.Boots, j.SecondWriters())
	}
}

func TestNetworkCuts(t *testing.T) {
	l := newLab(t, lab.Config{})
	h1, h2, h3 := l.Host(1), l.Host(2), l.Host(3)
	expect := func(from *lab.Host, address string, want bool) {
		t.Helper()
		if want { // ARP asks again only once a second
			eventually(t, from.Name+" pings "+address, func() bool { return pings(t, from, address) })
		} else if pings(t, from, address) {
			t.Errorf("%s pings %s", from.Name, address)
		}
	}
	ok(t, h1.CutMgmt())
	expect(h1, h2.Address, false)
	expect(h2, h1.Address, false)
	expect(h2, h3.Address, true)
	expect(h1, h2.StorageAddress, true)
	expectPower(t, h1, h1, "on")
	ok(t, h1.CutPower(t.Context())) // a power-on does not plug it in
	ok(t, h1.PowerOn(t.Context()))
	ok(t, h1.WaitReady(t.Context()))
	expect(h1, h2.Address, false)
	ok(t, h1.HealMgmt(t.Context()))
	expect(h1, h2.Address, true)

	ok(t, h1.CutStor())
	expect(h1, h2.StorageAddress, false)
	expect(h1, h2.Address, true)
	ok(t, h1.HealStor(t.Context()))
	expect(h1, h2.StorageAddress, true)

	ok(t, h1.CutOOB())
	expect(h1, h2.BMCAddress, false)
	expect(h2, h1.BMCAddress, true)
	ok(t, h1.HealOOB(t.Context()))
	expect(h1, h2.BMCAddress, true)

	testOneWay(t, l, h1, h2)
	expect(h1, h3.Address, true)
	expect(h1, h2.Address, false)
	expect(h2, h1.Address, false)
	ok(t, l.HealOneWay(t.Context(), h1, h2))
	ok(t, l.HealOneWay(t.Context(), h1, h2))
	expect(h1, h2.Address, true)

	for name, way := range map[string]struct {
		cut, heal func(context.Context) error
		from, to  *lab.Host
	}{
		"deaf": {h1.Deafen, h1.Undeafen, h2, h1},
		"mute": {h1.Mute, h1.Unmute, h1, h2},
	} {
		ok(t, way.cut(t.Context()))
		if heard(t, way.from, way.to) || !heard(t, way.to, way.from) {
			t.Errorf("%s: not just one way is cut", name)
		}
		expect(h2, h3.Address, true)
		ok(t, way.heal(t.Context()))
		expect(h1, h2.Address, true)
	}
	testGroupFaults(t, l, expect)
}

// testGroupFaults guards the faults of more than one host, and those by chance.
func testGroupFaults(t *testing.T, l *lab.Lab, expect func(*lab.Host, string, bool)) {
	h1, h2, h3 := l.Host(1), l.Host(2), l.Host(3)
	ok(t, l.Partition(t.Context(), h1, h2))
	expect(h1, h3.Address, false)
	expect(h3, h2.Address, false)
	expect(h1, h2.Address, true)
	ok(t, l.HealCuts(t.Context()))
	expect(h3, h2.Address, true)
	expect(h1, h3.Address, true)

	ok(t, l.SwitchOff())
	expect(h1, h2.Address, false)
	expect(h2, h3.StorageAddress, true)
	ok(t, l.SwitchOn(t.Context()))
	expect(h1, h2.Address, true)
	expect(h2, h3.Address, true)

	ok(t, h1.Lose(t.Context(), 30))
	out := must(h2.Exec(within(t, time.Minute), "sh", "-c", "ping -q -n -i 0.01 -c 500 -W 1 $0 || true", h1.Address))(t)
	_, rest, _ := strings.Cut(out, "transmitted, ")
	got, err := strconv.Atoi(strings.Fields(rest)[0])
	if err != nil || got < 150 || got > 350 { // 245 on the average; the bounds are eight standard deviations away
		t.Errorf("%d of 500 pings came back over a link that loses 30 %% each way: %s", got, out)
	}
	ok(t, h1.Lose(t.Context(), 0))
	out = must(h2.Exec(within(t, time.Minute), "ping", "-q", "-n", "-i", "0.01", "-c", "100", "-W", "1", h1.Address))(t)
	if !strings.Contains(out, " 0% packet loss") {
		t.Errorf("after the loss: %s", out)
	}

	flapped := make(chan error, 1)
	go func() { flapped <- h1.Flap(t.Context(), 1500*time.Millisecond, 4*time.Second) }()
	eventually(t, "the link is down", func() bool { return !pings(t, h2, h1.Address) })
	ok(t, <-flapped)
	expect(h2, h1.Address, true)
}

// heard says whether datagrams of one host arrive at another: a ping needs both
// directions.
func heard(t *testing.T, sender, receiver *lab.Host) bool {
	t.Helper()
	counter := []string{"sh", "-c", "grep -m1 '^Udp: [0-9]' /proc/1/net/snmp | cut -d' ' -f3"} // NoPorts
	before := must(receiver.Exec(t.Context(), counter...))(t)
	conn := must(sender.Dial(t.Context(), "udp", netip.AddrPortFrom(netip.MustParseAddr(receiver.Address), 9).String()))(t)
	defer conn.Close()
	for range 50 {
		_, _ = conn.Write([]byte("hello")) // "port unreachable" is as good as an answer
		time.Sleep(2 * time.Millisecond)
		if must(receiver.Exec(t.Context(), counter...))(t) != before {
			return true
		}
	}
	return false
}

// testOneWay guards the direction of a one-way cut.
func testOneWay(t *testing.T, l *lab.Lab, from, to *lab.Host) {
	// Without ARP, which needs both directions.
	for here, there := range map[*lab.Host]*lab.Host{from: to, to: from} {
		mac := strings.TrimSpace(must(there.Exec(t.Context(), "cat", "/sys/class/net/mgmt/address"))(t))
		must(here.Exec(t.Context(), "ip", "neigh", "replace", there.Address, "dev", "mgmt", "nud", "permanent", "lladdr", mac))(t)
	}
	if !heard(t, from, to) || !heard(t, to, from) {
		t.Fatal("no connection before the cut")
	}
	ok(t, l.CutOneWay(t.Context(), from, to))
	ok(t, l.CutOneWay(t.Context(), from, to))
	if heard(t, from, to) {
		t.Error("the cut direction is open")
	}
	if !heard(t, to, from) {
		t.Error("the other direction is cut too")
	}
}

func TestPrograms(t *testing.T) {
	program := lab.Program{
		Name: "agent", Env: []string{"GREETING=hello"}, RestartAfter: 50 * time.Millisecond,
		Args: []string{"sh", "-c", "echo $GREETING; sleep 1000 & date +%s%N > /srv/beat-$(hostname); while :; do echo x >> /srv/ticks; sleep 0.05; done"},
	}
	once := lab.Program{Name: "once", Args: []string{"sh", "-c", "exit 3"}, Once: true}
	l := newLab(t, lab.Config{Hosts: 1, Programs: func(lab.HostInfo) ([]lab.Program, error) {
		return []lab.Program{program, once}, nil
	}})
	h := l.Host(1)
	get := func(name string) lab.ProgramStatus { return must(h.Program(t.Context(), name))(t) }
	is := func(name string, s lab.ProgramState) {
		t.Helper()
		eventually(t, name+" is "+string(s), func() bool { return get(name).State == s })
	}
	ticks := func() int64 {
		fi, err := os.Stat(l.ExportDir() + "/ticks")
		if err != nil {
			return 0
		}
		return fi.Size()
	}
	ticking := func() bool { // over 20 periods
		before := ticks()
		for range 100 {
			if time.Sleep(10 * time.Millisecond); ticks() > before+1 {
				return true
			}
		}
		return false
	}
	is("agent", lab.ProgramRunning)
	is("once", lab.ProgramEnded)
	if s := get("once"); s.LastExit != "exit status 3" || s.Starts != 1 {
		t.Errorf("once: %+v", s)
	}
	eventually(t, "the log has its greeting", func() bool {
		b, _ := os.ReadFile(h.LogDir + "/agent.log")
		return strings.HasPrefix(string(b), "hello")
	})

	first := get("agent")
	ok(t, h.Kill(t.Context(), "agent"))
	eventually(t, "it was started again", func() bool { s := get("agent"); return s.State == lab.ProgramRunning && s.Starts == 2 })
	if s := get("agent"); s.PID == first.PID || s.LastExit != "killed" {
		t.Errorf("after a kill: %+v, before %+v", s, first)
	}
	if out := must(h.Exec(t.Context(), "sh", "-c", "ps -e -o args= | grep -c '^sleep 1000'"))(t); out != "1\n" {
		t.Errorf("children of the agent: %s", out)
	}

	ok(t, h.Pause(t.Context(), "agent"))
	eventually(t, "it stands still", func() bool { return !ticking() })
	ok(t, h.Resume(t.Context(), "agent"))
	if !ticking() {
		t.Error("it does not go on")
	}

	ok(t, h.Hold(t.Context(), "agent"))
	eventually(t, "it is down", func() bool { s := get("agent"); return s.PID == 0 && s.State == lab.ProgramHeld })
	if ticking() {
		t.Error("it runs although it is held")
	}
	if err := h.Signal(t.Context(), "agent", syscall.SIGTERM); err == nil {
		t.Error("a signal to nobody was no error")
	}
	ok(t, h.Start(t.Context(), "agent"))
	is("agent", lab.ProgramRunning)
	if !ticking() {
		t.Error("it does not run after the hold")
	}

	ok(t, h.Stop(t.Context(), "agent"))
	eventually(t, "it was stopped", func() bool { s := get("agent"); return s.PID == 0 && s.State == lab.ProgramHeld })
	if s := get("agent"); s.LastExit != "terminated" {
		t.Errorf("after a stop: %+v", s)
	}
	ok(t, h.Start(t.Context(), "agent"))
	is("agent", lab.ProgramRunning)

	testLibvirtRestart(t, l, h)

	ok(t, h.CutPower(t.Context()))
	if _, err := h.Programs(t.Context()); err == nil {
		t.Error("a host without power answers")
	}
	if ticking() {
		t.Error("the agent outlived its host")
	}
	ok(t, h.PowerOn(t.Context()))
	ok(t, h.WaitReady(t.Context()))
	is("agent", lab.ProgramRunning)

	if out := must(h.Exec(t.Context(), "systemctl", "is-system-running"))(t); out != "running\n" {
		t.Errorf("the host says of itself %q", out)
	}
	farewell := lab.Program{Name: "farewell", Args: []string{"sh", "-c", "trap 'systemctl is-system-running > /srv/farewell; exit' TERM; echo > /srv/listening; while :; do sleep 0.05; done"}}
	ok(t, h.SetPrograms(t.Context(), []lab.Program{farewell}))
	eventually(t, "it listens to signals", func() bool { _, err := os.Stat(l.ExportDir() + "/listening"); return err == nil })
	ok(t, h.Shutdown())
	eventually(t, "the host is off", func() bool { return !must(h.PowerIsOn())(t) })
	if b := must(os.ReadFile(l.ExportDir() + "/farewell"))(t); string(b) != "stopping\n" {
		t.Errorf("during the shutdown the host said of itself %q", b)
	}
	if _, err := l.Dial(within(t, 500*time.Millisecond), "tcp", h.Address+":9"); err == nil || errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("a host that was shut down answers: %v", err)
	}
}

// testLibvirtRestart guards that a guest outlives its host's libvirtd.
func testLibvirtRestart(t *testing.T, l *lab.Lab, h *lab.Host) {
	g := running(t, l, h, "vm1")
	ok(t, h.Kill(t.Context(), "libvirtd"))
	eventually(t, "libvirtd was started again", func() bool {
		s := must(h.Program(t.Context(), "libvirtd"))(t)
		return s.State == lab.ProgramRunning && s.Starts == 2
	})
	ok(t, h.WaitReady(t.Context()))
	if s := must(g.State(t.Context(), h))(t); s != "running" {
		t.Errorf("the guest is %q", s)
	}
	if j := must(g.Journal())(t); j.Boots != 1 || !writes(t, g) {
		t.Errorf("the guest did not live on: boots %d", j.Boots)
	}
}

func TestBMCFaults(t *testing.T) {
	for _, kind := range []lab.BMCKind{lab.BMCSim, lab.BMCGo} {
		t.Run(string(kind), func(t *testing.T) {
			l := newLab(t, lab.Config{Hosts: 2, BMC: kind})
			h1, h2 := l.Host(1), l.Host(2)
			for name, fault := range map[string]func() error{
				"killed":    func() error { return h1.KillBMC(t.Context()) },
				"unplugged": func() error { return h1.UnplugBMC(t.Context()) },
				"hung":      func() error { return h1.HangBMC(t.Context()) },
				"mains":     func() error { return h1.CutMains(t.Context()) },
			} {
				ok(t, fault())
				if out, err := ipmi(t, h2, h1, 3, "chassis", "power", "status"); err == nil {
					t.Errorf("%s: the BMC says %q", name, out)
				}
				ok(t, h1.HealBMC(t.Context()))
				expectPower(t, h2, h1, map[bool]string{true: "off", false: "on"}[name == "mains"])
				ok(t, h1.PowerOn(t.Context()))
			}
			ok(t, h1.SlowBMC(300*time.Millisecond))
			start := time.Now()
			expectPower(t, h2, h1, "on")
			if d := time.Since(start); d < 300*time.Millisecond {
				t.Errorf("a slow BMC answered in %v", d)
			}
			ok(t, h1.HealBMC(t.Context()))
			guid := must(ipmi(t, h2, h1, 3, "raw", "0x06", "0x37"))(t)
			if got, want := strings.ReplaceAll(guid, " ", ""), strings.ReplaceAll(h1.UUID, "-", ""); got != want {
				t.Errorf("the BMC's GUID is %s, the host's UUID %s", got, want)
			}
		})
	}
}

// TestOperatorSeat guards that tests reach every network from outside the hosts.
func TestOperatorSeat(t *testing.T) {
	l := newLab(t, lab.Config{Hosts: 1, Programs: func(lab.HostInfo) ([]lab.Program, error) {
		return []lab.Program{{Name: "listener", Args: []string{os.Args[0], "listen", ":8000"}}}, nil
	}})
	h := l.Host(1)
	for _, address := range []string{h.Address, h.StorageAddress, h.OOBAddress} {
		eventually(t, "a connection to "+address, func() bool {
			conn, err := l.Dial(within(t, time.Second), "tcp", address+":8000")
			if err == nil {
				_ = conn.Close()
			}
			return err == nil
		})
	}
	ok(t, h.Hang(t.Context()))
	if conn, err := l.Dial(within(t, 500*time.Millisecond), "tcp", h.Address+":8000"); err == nil {
		_ = conn.Close()
		t.Error("a hung host takes connections")
	}
	if _, err := l.Dial(context.Background(), "tcp", "h1:8000"); err == nil {
		t.Error("a name was taken for an address")
	}
	what := []string{}
	for _, s := range l.Stamps() {
		what = append(what, s.What)
	}
	if want := []string{"h1 power on", "h1 hung"}; !slices.Equal(what, want) {
		t.Errorf("stamps %q, want %q", what, want)
	}
}
