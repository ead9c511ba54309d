package libvirt

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"

	lv "github.com/digitalocean/go-libvirt"

	"github.com/haven-ha/haven"
)

// StartOptions are what a start may do besides.
type StartOptions struct {
	// Resume allows to resume a managed-save image instead of booting. Only a
	// VM that nothing has run since it was saved may be resumed.
	Resume bool
}

// Define stores a definition, in place of the one with the same UUID. It does
// not touch a running VM, only what its next boot uses.
func (c *Client) Define(ctx context.Context, xml []byte) error {
	const op = "define VM"
	if _, err := Parse(xml); err != nil {
		return &Error{Op: op, Kind: ErrUnsuitable, Err: err}
	}
	sent, err := c.change(ctx, op, func(_ context.Context, l *lv.Libvirt, send func() bool) error {
		if !send() {
			return nil
		}
		_, err := l.DomainDefineXMLFlags(string(xml), 0)
		return err
	})
	return changed(op, sent, err)
}

// SetAutostart says whether libvirtd starts the VM by itself when the host boots.
func (c *Client) SetAutostart(ctx context.Context, id haven.VMID, on bool) error {
	op := "switch off autostart"
	flag := int32(0)
	if on {
		op, flag = "switch on autostart", 1
	}
	sent, err := c.change(ctx, op, func(_ context.Context, l *lv.Libvirt, send func() bool) error {
		d, err := lookup(l, id)
		if err != nil || !send() {
			return err
		}
		return l.DomainSetAutostart(d, flag)
	})
	return changed(op, sent, err)
}

// Destroy ends the VM at once, as pulling its plug would. Its success does not
// prove the VM gone: on hung storage a write of it may still be in flight. Ask
// Gone.
func (c *Client) Destroy(ctx context.Context, id haven.VMID) error {
	const op = "destroy VM"
	sent, err := c.change(ctx, op, func(_ context.Context, l *lv.Libvirt, send func() bool) error {
		d, err := lookup(l, id)
		if err != nil || !send() {
			return err
		}
		return l.DomainDestroyFlags(d, lv.DomainDestroyDefault)
	})
	return changed(op, sent, err)
}

// Start stores the definition, if the host has another one or none, and starts
// the VM. xml must be the definition of id, and is used as it is.
//
// When it returns nil the VM runs. A definite error (see the sentinels) means
// that libvirt's attempt has ended; whether the VM is gone after it is to be
// asked of Gone. ErrOutcomeUnknown means that the VM may run, or may start
// running much later: only the inventory, or the end of the host, tells. While
// such a start has not ended, Start of the same VM returns the same again.
// Errors that are haven.ErrUnavailable mean that no start was attempted.
func (c *Client) Start(ctx context.Context, id haven.VMID, xml []byte, o StartOptions) error {
	const op = "start VM"
	p, err := Parse(xml)
	if err != nil {
		return &Error{Op: op, Kind: ErrUnsuitable, Err: err}
	}
	if p.ID != id {
		return &Error{Op: op, Kind: ErrConflict, Err: fmt.Errorf("the definition is of %s", p.ID)}
	}
	if !c.claim(id) {
		return &Error{Op: op, Kind: ErrOutcomeUnknown, Err: errors.New("an earlier start of it has not ended")}
	}
	sent, err := c.change(ctx, op+" "+string(id), func(ctx context.Context, l *lv.Libvirt, send func() bool) error {
		mine := false // From send on, this goroutine gives the claim back.
		defer func() {
			if mine {
				c.release(id)
			}
		}()
		return start(ctx, l, id, string(xml), o, func() bool { mine = send(); return mine })
	})
	if !sent {
		c.release(id)
	}
	return changed(op, sent, err)
}

// start is the part of a start that runs on the connection. From send on its
// outcome is unknown until libvirt has answered.
func start(ctx context.Context, l *lv.Libvirt, id haven.VMID, xml string, o StartOptions, send func() bool) error {
	const op = "start VM"
	d, err := prepare(ctx, l, id, xml)
	if err != nil {
		return err
	}
	if saved, err := l.DomainHasManagedSaveImage(d, 0); err != nil {
		return err
	} else if saved != 0 && !o.Resume {
		return &Error{Op: op, Kind: ErrSavedImage}
	}
	if !send() {
		return nil
	}
	_, err = l.DomainCreateWithFlags(d, 0)
	if err == nil || !fromLibvirt(err) {
		return err
	}
	kind := classify(err)
	if errors.Is(kind, ErrAlreadyRunning) {
		return &Error{Op: op, Kind: kind, Err: err}
	}
	// An error is libvirt's word that it failed, but a daemon in between may
	// have lost the one that does the work. The state must agree.
	state, reason, stateErr := l.DomainGetState(d, 0)
	if stateErr == nil {
		if s, _ := stateOf(lv.DomainState(state), reason, false); !s.Present() {
			return &Error{Op: op, Kind: kind, Err: err}
		}
	}
	return &Error{Op: op, Kind: ErrOutcomeUnknown, Err: errors.Join(err, stateErr)}
}

// prepare makes sure that the host has this definition, and that the VM is not
// active.
func prepare(ctx context.Context, l *lv.Libvirt, id haven.VMID, xml string) (lv.Domain, error) {
	d, err := lookup(l, id)
	if err != nil && !lv.IsNotFound(err) {
		return d, err
	}
	if err == nil {
		active, err := l.DomainIsActive(d)
		if err != nil {
			return d, err
		}
		if active != 0 {
			return d, &Error{Op: "start VM", Kind: ErrAlreadyRunning}
		}
		if old, err := l.DomainGetXMLDesc(d, definitionFlags); err == nil && old == xml {
			return d, nil
		}
	}
	if ctx.Err() != nil {
		return d, fmt.Errorf("%w: gave up before the definition was stored", haven.ErrUnavailable)
	}
	return l.DomainDefineXMLFlags(xml, 0)
}

func (c *Client) claim(id haven.VMID) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, ok := c.starting[id]; ok {
		return false
	}
	c.starting[id] = struct{}{}
	return true
}

func (c *Client) release(id haven.VMID) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.starting, id)
}

// The stages of a call that changes something. Exactly one of the two sides
// leaves the first stage: the call by sending, or its caller by giving up.
const (
	stageOpen int32 = iota
	stageSent
	stageGivenUp
)

// change runs a call that changes something. The call asks send right before
// the request that matters; false means that its caller has left, and then
// nothing may be sent. It reports whether the request may have been sent.
func (c *Client) change(ctx context.Context, op string, fn func(ctx context.Context, l *lv.Libvirt, send func() bool) error) (sent bool, err error) {
	var stage atomic.Int32
	send := func() bool { return stage.CompareAndSwap(stageOpen, stageSent) }
	_, err = call(ctx, c.control, op, func(ctx context.Context, l *lv.Libvirt) (struct{}, error) {
		return struct{}{}, fn(ctx, l, send)
	})
	return !stage.CompareAndSwap(stageOpen, stageGivenUp), err
}

// changed gives an error of a call that changes something its kind.
func changed(op string, sent bool, err error) error {
	var done *Error
	if err == nil || errors.As(err, &done) || fromLibvirt(err) || !sent {
		return failed(op, err)
	}
	return &Error{Op: op, Kind: ErrOutcomeUnknown, Err: err}
}
