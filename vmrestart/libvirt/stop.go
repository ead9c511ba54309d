package libvirt

import (
	"context"

	lv "github.com/digitalocean/go-libvirt"

	"github.com/haven-ha/haven"
)

// Shutdown asks the VM's guest to shut down. That it was asked is all that
// success says. A VM that is not active, or not there, is success.
func (c *Client) Shutdown(ctx context.Context, id haven.VMID) error {
	const op = "shut down VM"
	sent, err := c.change(ctx, op, func(_ context.Context, l *lv.Libvirt, send func() bool) error {
		d, err := activeDomain(l, id)
		if err != nil || d == nil || !send() {
			return err
		}
		return l.DomainShutdownFlags(*d, lv.DomainShutdownDefault)
	})
	return changed(op, sent, err)
}

// Stop asks the VM's guest to shut down, when graceful, or ends the VM at once. A
// VM that is not active, or not there, is success. What is gone, Gone and the
// inventory tell.
func (h Hypervisor) Stop(ctx context.Context, id haven.VMID, graceful bool) error {
	if graceful {
		return h.Shutdown(ctx, id)
	}
	const op = "destroy VM"
	sent, err := h.change(ctx, op, func(_ context.Context, l *lv.Libvirt, send func() bool) error {
		d, err := activeDomain(l, id)
		if err != nil || d == nil || !send() {
			return err
		}
		return l.DomainDestroyFlags(*d, lv.DomainDestroyDefault)
	})
	return changed(op, sent, err)
}

// activeDomain finds an active domain; nil when it is not there, or not active.
func activeDomain(l *lv.Libvirt, id haven.VMID) (*lv.Domain, error) {
	d, err := lookup(l, id)
	if lv.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	active, err := l.DomainIsActive(d)
	if err != nil || active == 0 {
		return nil, err
	}
	return &d, nil
}
