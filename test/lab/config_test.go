package lab

import (
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestCheckDir(t *testing.T) {
	for _, tc := range []struct {
		name, dir string
		ok        bool
	}{
		{"drawn", "", true},
		{"temporary", "/tmp/lab", true},
		{"name begins like a hidden one", "/running/lab", true},
		{"relative", "lab", false},
		{"not clean", "/tmp/../lab", false},
		{"too long for a socket", "/" + strings.Repeat("x", maxDirPath), false},
		{"hidden by the host's run", "/run", false},
		{"hidden by the host's store", "/srv/lab", false},
		{"needs quoting", "/tmp/my lab", false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if err := checkDir(tc.dir); (err == nil) != tc.ok {
				t.Errorf("%q: %v", tc.dir, err)
			}
		})
	}
}

func TestCheckPrograms(t *testing.T) {
	args := []string{"true"}
	for _, tc := range []struct {
		name     string
		programs []Program
		ok       bool
	}{
		{"none", nil, true},
		{"two", []Program{{Name: "a", Args: args}, {Name: "b", Args: args}}, true},
		{"twice", []Program{{Name: "a", Args: args}, {Name: "a", Args: args}}, false},
		{"ours", []Program{{Name: libvirtd, Args: args}}, false},
		{"a path", []Program{{Name: "../a", Args: args}}, false},
		{"no command", []Program{{Name: "a"}}, false},
		{"negative pause", []Program{{Name: "a", Args: args, RestartAfter: -1}}, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if err := checkPrograms(tc.programs); (err == nil) != tc.ok {
				t.Errorf("got %v", err)
			}
		})
	}
}

// TestAddressPlan guards that no address is given twice in the largest lab, and
// that host N is where people look for it.
func TestAddressPlan(t *testing.T) {
	s := &spec{Dir: "/tmp/lab", BMC: BMCSim}
	seen := map[string]string{
		"10.77.0.254": "operator", "10.78.0.254": "operator", "10.79.0.254": "operator", stripAddress("a"): "strip a", stripAddress("b"): "strip b",
	}
	for i := 1; i <= maxHosts; i++ {
		h := s.newHost(i, []string{"a", "b"})
		for _, address := range []string{h.Address, h.StorageAddress, h.OOBAddress, h.BMCAddress} {
			if _, err := netip.ParseAddr(address); err != nil {
				t.Error(err)
			}
			if other, taken := seen[address]; taken {
				t.Errorf("%s belongs to %s and %s", address, other, h.Name)
			}
			seen[address] = h.Name
		}
	}
	if h := s.newHost(3, nil); h.Address != "10.77.0.13" || h.BMCAddress != "10.78.0.13" || h.Zone != "" {
		t.Errorf("host 3 is %+v", h)
	}
}

func TestAccounts(t *testing.T) {
	file := filepath.Join(t.TempDir(), "passwd")
	for _, tc := range []struct{ name, have, want string }{
		{"added", "root:x:0:0::/root:/bin/sh\n", "root:x:0:0::/root:/bin/sh\nqemu:x:7:7::/:/x\n"},
		{"no end of line", "root:x:0:0::/root:/bin/sh", "root:x:0:0::/root:/bin/sh\nqemu:x:7:7::/:/x\n"},
		{"there already", "qemu:x:1:1::/:/y\n", "qemu:x:1:1::/:/y\n"},
		{"name is a part of another", "my-qemu:x:1:1::/:/y\n", "my-qemu:x:1:1::/:/y\nqemu:x:7:7::/:/x\n"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if err := os.WriteFile(file, []byte(tc.have), 0o600); err != nil {
				t.Fatal(err)
			}
			got, err := accounts(file, "qemu:x:7:7::/:/x")
			if err != nil || got != tc.want {
				t.Errorf("%q, %v", got, err)
			}
		})
	}
}

func TestProcessIsNotJustAPID(t *testing.T) {
	p, err := findProcess(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	if !p.alive() {
		t.Error("this process is not alive")
	}
	p.Start++
	if p.alive() {
		t.Error("another process of the same PID counts as this one")
	}
}
