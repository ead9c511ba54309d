package storagebeat

import (
	"context"
	"errors"
	"fmt"
	"time"

	haven "github.com/haven-ha/haven"
)

// Mailbox is what a Monitor last read of its own host's mailbox on one store.
type Mailbox struct {
	Store string    // the store's configured name
	Read  time.Time // start of the last good read of the store, as long ago as it is, suspension included; zero when there was none
	Pill  *Pill     // what is in it; nil when there is nothing, or nothing that is a pill for this host
	Err   error     // why what is in it is no pill: nothing follows from it
	None  string    // why the store has no mailbox; empty when it has
}

// Mailbox returns what was last read of this host's mailbox. A store that cannot
// be read any more leaves what was read before, with the time of that. It never
// blocks on the store.
func (m *Monitor) Mailbox() Mailbox {
	m.mu.Lock()
	defer m.mu.Unlock()
	mail := m.mail
	if m.cfg.Boottime != nil && !mail.Read.IsZero() {
		age := time.Since(mail.Read)
		mail.Read = mail.Read.Add(-max(0, m.cfg.Boottime()-m.readAt-age))
	}
	return mail
}

// takeMail keeps what a good read showed; the caller holds the lock.
func (m *Monitor) takeMail(start time.Time, c Contents) {
	m.mail = Mailbox{Store: m.cfg.Store, Read: start, None: c.NoMailbox}
	for _, raw := range c.Pills {
		if raw.Host != m.cfg.Self {
			continue
		}
		p, err := DecodePillAt(c.Identity.ID, raw)
		switch {
		case err == nil:
			m.mail.Pill = &p
		case !errors.Is(err, ErrBlank):
			m.mail.Err = err
		}
	}
}

// Post seals a pill for this store and puts it into its host's mailbox. It fails
// while it is not known which store this is. An end of ctx does not break off a
// write, which would cost the beats their child process; that has its own bound.
func (m *Monitor) Post(ctx context.Context, p Pill, key []byte) error {
	mailer, ok := m.dev.(Mailer)
	if !ok {
		return fmt.Errorf("store %s: %w", m.cfg.Store, ErrNoMailbox)
	}
	m.mu.Lock()
	p.Store = m.tracker.store
	m.mu.Unlock()
	if p.Store.IsZero() {
		return fmt.Errorf("store %s: it was not read yet: %w", m.cfg.Store, haven.ErrUnavailable)
	}
	p, err := p.Sealed(key)
	if err != nil {
		return err
	}
	data, err := EncodePill(p)
	if err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), m.cfg.Timeout)
	defer cancel()
	if err := mailer.WritePill(ctx, RawPill{Host: p.Host, Data: data}); err != nil {
		return fmt.Errorf("store %s: %w", m.cfg.Store, err)
	}
	return nil
}

// BeatNow asks for a beat before the next one is due. It never blocks.
func (m *Monitor) BeatNow() {
	select {
	case m.early <- struct{}{}:
	default:
	}
}
