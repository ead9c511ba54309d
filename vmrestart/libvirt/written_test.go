package libvirt

import (
	"slices"
	"strings"
	"testing"
)

// TestWrittenBy guards P5: what a VM writes to is named in full, and what nobody
// can see is named as that.
func TestWrittenBy(t *testing.T) {
	const (
		block  = "a block device keeps no time of its last write"
		rbd    = "a rbd disk is not a file on its host"
		hidden = "it uses a device of its host, which may be a disk"
	)
	base := []Written{{Path: "/srv/a.qcow2"}, {Path: "/dev/disk/by-id/x", Blind: block}, {Blind: rbd}}
	for _, tt := range []struct {
		name, devices string
		want          []Written
	}{
		{"files, block and network disks, CDs", "", nil},
		{
			"a chain", `<disk type='file' device='disk'><driver type='qcow2' cache='none'/><source file='/srv/top.qcow2'/>
			<backingStore type='file'><format type='qcow2'/><source file='/srv/mid.qcow2'/>
			<backingStore type='block'><format type='raw'/><source dev='/dev/base'/>
			<backingStore type='file'><format type='raw'/><source file='/srv/base.raw'/></backingStore></backingStore></backingStore></disk>`,
			[]Written{{Path: "/srv/top.qcow2"}, {Path: "/srv/mid.qcow2", Layer: true}, {Path: "/srv/base.raw", Layer: true}},
		},
		{"the end of a chain", `<disk type='file' device='disk'><source file='/srv/b.raw'/><backingStore/></disk>`, []Written{{Path: "/srv/b.raw"}}},
		{
			"data in a file beside", `<disk type='file' device='disk'><source file='/srv/m.qcow2'><dataStore type='file'><format type='raw'/><source file='/srv/d.raw'/></dataStore></source></disk>`,
			[]Written{{Path: "/srv/m.qcow2"}, {Path: "/srv/d.raw"}},
		},
		{"read only and shared", `<disk type='file' device='disk'><source file='/srv/ro'/><readonly/></disk><disk type='file' device='disk'><source file='/srv/sh'/><shareable/></disk>`, nil},
		{"transient", `<disk type='file' device='disk'><source file='/srv/t'/><transient/></disk>`, []Written{{Path: "/srv/t", Blind: "its writes go to a file that ends with it"}}},
		{"a volume", `<disk type='volume' device='disk'><source pool='p' volume='v'/></disk>`, []Written{{Blind: "only its host's VM manager knows where a pool's volume is"}}},
		{"an NVMe disk", `<disk type='nvme' device='disk'><source type='pci' namespace='1'><address domain='0' bus='1' slot='0' function='0'/></source></disk>`, []Written{{Blind: "it is not a file"}}},
		{"a shared directory", `<filesystem type='mount'><source dir='/srv/x'/><target dir='x'/></filesystem>`, []Written{{Blind: "it writes to a directory of its host"}}},
		{"a directory to read", `<filesystem type='mount'><source dir='/srv/x'/><target dir='x'/><readonly/></filesystem>`, nil},
		{"a device of the host", `<hostdev mode='subsystem' type='pci'><source><address domain='0' bus='1' slot='0' function='0'/></source></hostdev>`, []Written{{Blind: hidden}}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			id, got, err := WrittenBy([]byte(strings.Replace(bigXML, "%DEVICES%", tt.devices, 1)))
			if want := append(slices.Clone(base), tt.want...); err != nil || id != "aaaaaaaa-2222-4333-8444-555555555555" || !slices.Equal(got, want) {
				t.Errorf("got %s %+v, %v, want %+v", id, got, err, want)
			}
		})
	}
	if _, _, err := WrittenBy([]byte("<domain>")); err == nil {
		t.Error("half a definition was taken")
	}
}
