package libvirt

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/haven-ha/haven"
)

const bigXML = `<domain type='kvm'>
  <name>big</name><uuid>AAAAAAAA-2222-4333-8444-555555555555</uuid>
  <maxMemory slots='4' unit='GiB'>16</maxMemory><memory unit='GiB'>2</memory><currentMemory unit='GiB'>1</currentMemory>
  <vcpu placement='static' current='2'>4</vcpu>
  <os><type arch='x86_64'>hvm</type></os>
  <devices>
    <disk type='file' device='disk'><source file='/srv/a.qcow2'/><target dev='vda' bus='virtio'/></disk>
    <disk type='block' device='disk'><source dev='/dev/disk/by-id/x'/><target dev='vdb'/></disk>
    <disk type='file' device='cdrom'><source file='/srv/a.iso'/><target dev='sda'/><readonly/></disk>
    <disk type='file' device='cdrom'><source file='/srv/b.iso' startupPolicy='optional'/><target dev='sdb'/><readonly/></disk>
    <disk type='file' device='cdrom'><target dev='sdc'/><readonly/></disk>
    <disk type='network' device='disk'><source protocol='rbd' name='p/i'/><target dev='vdc'/></disk>
    %DEVICES%
  </devices>
</domain>`

func TestParse(t *testing.T) {
	xml := []byte(strings.Replace(bigXML, "%DEVICES%", "", 1))
	p, err := Parse(xml)
	if err != nil {
		t.Fatal(err)
	}
	if p.ID != "aaaaaaaa-2222-4333-8444-555555555555" || p.Name != "big" || p.MemoryMiB != 2048 || p.VCPUs != 4 || len(p.Fixed) != 0 || len(p.Disks) != 5 {
		t.Errorf("Parse() = %+v", p)
	}
	paths, err := DiskPaths(xml)
	if want := []string{"/srv/a.qcow2", "/dev/disk/by-id/x", "/srv/a.iso"}; err != nil || !slices.Equal(paths, want) {
		t.Errorf("DiskPaths() = %v, %v, want %v", paths, err, want)
	}
}

func TestFixed(t *testing.T) {
	tests := []struct {
		name, devices string
		fixed         int
	}{
		{"nothing special", `<interface type='bridge'><source bridge='br0'/></interface>`, 0},
		{"PCI device", `<hostdev mode='subsystem' type='pci'><source><address domain='0' bus='1' slot='0' function='0'/></source></hostdev>`, 1},
		{"passed-through NIC", `<interface type='hostdev'><source><address type='pci' domain='0' bus='1' slot='0' function='0'/></source></interface>`, 1},
		{"TPM", `<tpm model='tpm-crb'><backend type='emulator' version='2.0'/></tpm>`, 1},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			p, err := Parse([]byte(strings.Replace(bigXML, "%DEVICES%", tt.devices, 1)))
			if err != nil || len(p.Fixed) != tt.fixed {
				t.Errorf("Parse() = %v, %v, want %d reasons", p.Fixed, err, tt.fixed)
			}
		})
	}
}

func TestParseRefuses(t *testing.T) {
	for name, xml := range map[string]string{
		"empty":       "",
		"other":       "<network/>",
		"no uuid":     "<domain type='kvm'><name>a</name></domain>",
		"no name":     "<domain type='kvm'><uuid>" + string(vmNumber(1)) + "</uuid></domain>",
		"odd unit":    "<domain type='kvm'><name>a</name><uuid>" + string(vmNumber(1)) + "</uuid><memory unit='ells'>1</memory></domain>",
		"vast memory": "<domain type='kvm'><name>a</name><uuid>" + string(vmNumber(1)) + "</uuid><memory unit='TiB'>99999999999</memory></domain>",
		"too long":    "<domain>" + strings.Repeat(" ", maxDefinition) + "</domain>",
	} {
		t.Run(name, func(t *testing.T) {
			if p, err := Parse([]byte(xml)); err == nil {
				t.Errorf("Parse() = %+v", p)
			}
		})
	}
}

func TestParseNeverPanics(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		xml := []byte(strings.Replace(bigXML, "%DEVICES%", "", 1))
		for range rapid.IntRange(1, 20).Draw(t, "cuts") {
			i := rapid.IntRange(0, len(xml)-1).Draw(t, "at")
			xml = slices.Delete(xml, i, min(len(xml), i+rapid.IntRange(1, 30).Draw(t, "n")))
			if len(xml) == 0 {
				return
			}
		}
		_, _ = Parse(xml)
	})
}

// The conversion agrees with counting in bytes, and never rounds down: a VM
// must not be thought smaller than it is.
func TestMebibytes(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.Uint64Range(0, 1<<40).Draw(t, "KiB")
		got, err := mebibytes(n, "KiB")
		if err != nil || got*1024 < n || (got > 0 && (got-1)*1024 >= n) {
			t.Fatalf("mebibytes(%d KiB) = %d, %v", n, got, err)
		}
	})
}

func TestNodeInfo(t *testing.T) {
	root := fakeProc(t)
	for name, text := range map[string]string{
		"meminfo": "MemTotal:       8388608 kB\nMemFree:  1 kB\n",
		"stat":    "cpu  1 2 3\ncpu0 1\ncpu1 1\ncpu11 1\nintr 5\n",
	} {
		if err := os.WriteFile(filepath.Join(root, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	c := New(Options{ProcRoot: root})
	defer c.Close()
	inv := haven.Inventory{Complete: true, Processes: []haven.VMID{vmNumber(4)}, VMs: []haven.VMInfo{
		{ID: vmNumber(1), State: haven.VMRunning, MemoryMiB: 1024, VCPUs: 2},
		{ID: vmNumber(2), State: haven.VMShutOff, MemoryMiB: 4096, VCPUs: 8},
		{ID: vmNumber(3), State: haven.VMIncoming, MemoryMiB: 512, VCPUs: 1},
		{ID: vmNumber(4), State: haven.VMShutOff, MemoryMiB: 256, VCPUs: 1}, // its process remains
	}}
	load, err := c.NodeInfo(inv)
	want := haven.HostLoad{MemoryMiB: 8192, MemoryFreeMiB: 8192 - 1024 - 512 - 256, CPUs: 3, VCPUsRunning: 4}
	if err != nil || load != want {
		t.Errorf("NodeInfo() = %+v, %v, want %+v", load, err, want)
	}
	inv.VMs[0].MemoryMiB = 100 << 20
	if load, err := c.NodeInfo(inv); err != nil || load.MemoryFreeMiB != 0 {
		t.Errorf("an overcommitted host has %d MiB free, %v", load.MemoryFreeMiB, err)
	}
}
