package libvirt

import (
	"context"
	"errors"

	"github.com/haven-ha/haven"
	"github.com/haven-ha/haven/vmrestart"
)

// Hypervisor is a Client as an agent and its executor of orders see it.
type Hypervisor struct {
	*Client
	// AsideDir is where SetAside keeps what it takes away.
	AsideDir string
}

var _ vmrestart.Hypervisor = Hypervisor{}

// Start starts the VM and says what became of that. A failure is called one only
// when no start was attempted, or when after it the VM is gone; a VM that runs
// already is started. Managed-save images are never resumed.
func (h Hypervisor) Start(ctx context.Context, id haven.VMID, xml []byte) (vmrestart.Outcome, error) {
	err := h.Client.Start(ctx, id, xml, StartOptions{})
	switch {
	case err == nil, errors.Is(err, ErrAlreadyRunning):
		return vmrestart.Started, nil
	case errors.Is(err, ErrOutcomeUnknown):
		return vmrestart.Unclear, err
	case errors.Is(err, haven.ErrUnavailable):
		return vmrestart.Failed, err
	}
	if gone, why := h.Gone(ctx, id); gone != haven.Yes {
		return vmrestart.Unclear, errors.Join(err, why)
	}
	if errors.Is(err, ErrLocked) {
		return vmrestart.Locked, err
	}
	return vmrestart.Failed, err
}

// Disks lists the host paths of the disks that a start needs.
func (h Hypervisor) Disks(xml []byte) ([]string, error) { return DiskPaths(xml) }

// Load is NodeInfo.
func (h Hypervisor) Load(inv haven.Inventory) (haven.HostLoad, error) { return h.NodeInfo(inv) }

// SetAside takes the definition of a VM that moved away off this host.
func (h Hypervisor) SetAside(ctx context.Context, id haven.VMID) error {
	return h.Client.SetAside(ctx, id, h.AsideDir)
}
