package agent

import (
	"context"
	"errors"
	"time"

	"github.com/haven-ha/haven"
	"github.com/haven-ha/haven/fencing"
	"github.com/haven-ha/haven/internal/config"
	"github.com/haven-ha/haven/internal/notify"
)

// rereading is the driver of a device whose password may be changed under us. When
// the device refuses the credentials, the files are read again, once; if another
// password is there, the call is made again with that one. The same password is
// never sent twice for it: accounts get locked.
type rereading struct {
	fencing.Driver
	secrets []*config.SecretFile
}

// do makes a call, and once more with another password if the file holds one now.
// Devices may share a file: then another one may have had it read again meanwhile.
func (d rereading) do(ctx context.Context, call func() error) error {
	var before []uint64
	for _, f := range d.secrets {
		_, _ = f.Text() // Reading it for the first time is no change; its error comes with the call.
		before = append(before, f.Changes())
	}
	err := call()
	if !errors.Is(err, fencing.ErrAuth) || ctx.Err() != nil {
		return err
	}
	other := false
	for i, f := range d.secrets {
		_, _ = f.Reload() // What cannot be read leaves the old one.
		other = other || f.Changes() != before[i]
	}
	if other {
		return call()
	}
	return err
}

// Power reads the power state.
func (d rereading) Power(ctx context.Context) (r fencing.Reading, err error) {
	err = d.do(ctx, func() (err error) { r, err = d.Driver.Power(ctx); return err })
	return r, err
}

// Set sends a power command. The permit is asked for each attempt (P3).
func (d rereading) Set(ctx context.Context, action haven.FenceAction, permit fencing.Permit) error {
	return d.do(ctx, func() error { return d.Driver.Set(ctx, action, permit) })
}

// Light times a light or puts it out. The permit is asked for each attempt (P3).
func (d rereading) Light(ctx context.Context, length time.Duration, permit fencing.Permit) error {
	return d.do(ctx, func() error { return fencing.Light(ctx, d.Driver, length, permit) })
}

// Identity asks for the GUID.
func (d rereading) Identity(ctx context.Context) (id fencing.GUID, err error) {
	err = d.do(ctx, func() (err error) { id, err = d.Driver.Identity(ctx); return err })
	return id, err
}

// Examine asks the driver, if it has an answer. It is not asked again: a reading
// that succeeded came before.
func (d rereading) Examine(ctx context.Context) error { return examine(ctx, d.Driver) }

// examine passes a question on to a driver that is wrapped: what it can do beside
// what all drivers can must not be lost on the way.
func examine(ctx context.Context, d fencing.Driver) error {
	if e, ok := d.(fencing.Examiner); ok {
		return e.Examine(ctx)
	}
	return nil
}

// forgetful is the driver of a program, which cannot say that it was the password:
// after any failure the file is read again before the next run.
type forgetful struct {
	fencing.Driver
	password *config.SecretFile
}

func (d forgetful) after(err error) {
	if err != nil {
		d.password.Refused()
	}
}

// Power asks for the status.
func (d forgetful) Power(ctx context.Context) (fencing.Reading, error) {
	r, err := d.Driver.Power(ctx)
	d.after(err)
	return r, err
}

// Set sends a power command.
func (d forgetful) Set(ctx context.Context, action haven.FenceAction, permit fencing.Permit) error {
	err := d.Driver.Set(ctx, action, permit)
	d.after(err)
	return err
}

// Examine runs the program's own test.
func (d forgetful) Examine(ctx context.Context) error {
	err := examine(ctx, d.Driver)
	d.after(err)
	return err
}

// Light times a light or puts it out.
func (d forgetful) Light(ctx context.Context, length time.Duration, permit fencing.Permit) error {
	err := fencing.Light(ctx, d.Driver, length, permit)
	d.after(err)
	return err
}

// refusable is a sender whose secrets are read again after each failure: its
// target may want others now.
type refusable struct {
	notify.Sender
	secrets []*config.SecretFile
}

// Send sends.
func (s refusable) Send(ctx context.Context, m notify.Message) error {
	err := s.Sender.Send(ctx, m)
	if err != nil {
		for _, f := range s.secrets {
			f.Refused()
		}
	}
	return err
}
