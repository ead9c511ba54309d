package libvirt

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/haven-ha/haven"
)

// NodeInfo says what the host has, and what is left of it beside the VMs of
// inv. Memory is the kernel's own figure: libvirt's NodeGetInfo was seen to
// report 4.4 GiB on a machine of 23 GiB whose memory is given lazily. Free
// means not promised to any VM that is there, so a VM that is paused or on its
// way in counts, and whether its guest has touched the memory does not.
func (c *Client) NodeInfo(inv haven.Inventory) (haven.HostLoad, error) {
	total, err := memTotalMiB(filepath.Join(c.opts.ProcRoot, "meminfo"))
	if err != nil {
		return haven.HostLoad{}, err
	}
	cpus, err := countCPUs(filepath.Join(c.opts.ProcRoot, "stat"))
	if err != nil {
		return haven.HostLoad{}, err
	}
	load := haven.HostLoad{MemoryMiB: total, MemoryFreeMiB: total, CPUs: cpus}
	for _, vm := range inv.VMs {
		if inv.Has(vm.ID) == haven.No {
			continue
		}
		load.MemoryFreeMiB -= min(load.MemoryFreeMiB, vm.MemoryMiB)
		load.VCPUsRunning += vm.VCPUs
	}
	return load, nil
}

func memTotalMiB(path string) (uint64, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return 0, fmt.Errorf("read memory size: %w", err)
	}
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		if len(f) == 3 && f[0] == "MemTotal:" && f[2] == "kB" {
			kib, err := strconv.ParseUint(f[1], 10, 64)
			if err != nil {
				return 0, fmt.Errorf("read memory size: %w", err)
			}
			return kib >> 10, nil
		}
	}
	return 0, fmt.Errorf("read memory size: %s has no MemTotal", path)
}

// countCPUs counts the online processors of the machine, not those this process
// may use.
func countCPUs(path string) (int, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return 0, fmt.Errorf("count processors: %w", err)
	}
	n := 0
	for s := bufio.NewScanner(bytes.NewReader(b)); s.Scan(); {
		if l := s.Text(); len(l) > 3 && strings.HasPrefix(l, "cpu") && l[3] >= '0' && l[3] <= '9' {
			n++
		}
	}
	if n == 0 {
		return 0, fmt.Errorf("count processors: %s names none", path)
	}
	return n, nil
}
