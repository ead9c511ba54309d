package election

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/hashicorp/raft"

	"github.com/haven-ha/haven"
)

// Leadership says who leads, as far as this server knows.
type Leadership struct {
	Server  ServerID     `json:"server,omitempty"` // empty: none is known
	Host    haven.HostID `json:"host,omitempty"`
	Address string       `json:"address,omitempty"`
	Term    uint64       `json:"term"`
	Self    bool         `json:"self"` // it is this server
}

// Leader tells who leads. Followers may be wrong for a while; a leader that
// must be sure calls Verify.
func (n *Node) Leader() Leadership {
	for range 8 {
		before := n.raft.CurrentTerm()
		state := n.raft.State()
		addr, _ := n.raft.LeaderWithID()
		// Raft leaves a state before it takes the next term, and enters one
		// after. The same term on both sides means that all three belong
		// together.
		if n.raft.CurrentTerm() != before {
			continue
		}
		return n.leadership(before, state, string(addr))
	}
	return Leadership{Term: n.raft.CurrentTerm()}
}

func (n *Node) leadership(term uint64, state raft.RaftState, leader string) Leadership {
	l := Leadership{Term: term}
	if state == raft.Leader && n.failure() == nil {
		l.Server, l.Host, l.Address, l.Self = n.id, n.cfg.Host, n.cfg.Address, true
		return l
	}
	id, addr, err := splitAddress(leader)
	if err != nil || id == n.id { // Just stepped down, or failed.
		return l
	}
	l.Server, l.Host, l.Address = id, id.Host(), addr
	return l
}

// IsLeader says whether this server believes to lead.
func (n *Node) IsLeader() bool { return n.Leader().Self }

// Changes gives the newest leadership whenever it changed. Steps that nobody
// read in time are left out: a leader that lost and won again between two
// reads shows as a new term. There is one reader.
func (n *Node) Changes() <-chan Leadership { return n.changes }

// watchEvery bounds how late a change is seen that Raft did not announce.
const watchEvery = 250 * time.Millisecond

// watch publishes changes. Raft's announcements only wake it up: it never
// waits for us, and may drop them.
func (n *Node) watch(ctx context.Context) {
	wake := make(chan raft.Observation, 1)
	obs := raft.NewObserver(wake, false, func(o *raft.Observation) bool {
		switch o.Data.(type) {
		case raft.LeaderObservation, raft.RaftState:
			return true
		}
		return false
	})
	n.raft.RegisterObserver(obs)
	defer n.raft.DeregisterObserver(obs)
	tick := time.NewTicker(watchEvery)
	defer tick.Stop()
	var last Leadership
	for {
		select {
		case <-ctx.Done():
			return
		case <-wake:
		case <-n.raft.LeaderCh():
		case <-tick.C:
		}
		now := n.Leader()
		if now == last {
			continue
		}
		last = now
		select { // Nobody else sends, so there is room after this.
		case <-n.changes:
		default:
		}
		n.changes <- now
	}
}

// Verified says that this server led in Term at the moment At, and at any
// moment before it since it was elected.
type Verified struct {
	Term uint64
	At   time.Time // with Go's monotonic reading
}

// Age is how old the verification is: by the monotonic clock, or by the wall
// clock when that says more, because the monotonic one stands still while the
// machine is suspended.
func (v Verified) Age(now time.Time) time.Duration {
	return max(now.Sub(v.At), now.Round(0).Sub(v.At.Round(0)))
}

const (
	// verifyTimeout bounds Verify when its context does not.
	verifyTimeout = 5 * time.Second
	// verifyPause lies between two rounds of heartbeats for one Verify.
	verifyPause = 10 * time.Millisecond
)

// Verify makes sure that this server leads now: a majority of the voters
// acknowledged its term in answer to requests that went out after Verify was
// called. At in the result is the time of the call. The error wraps
// haven.ErrNotMaster.
//
// It says nothing about the state machine; a new leader calls Barrier before
// it trusts what it reads there.
func (n *Node) Verify(ctx context.Context) (Verified, error) {
	started := time.Now()
	ctx, cancel := context.WithTimeout(ctx, verifyTimeout)
	defer cancel()
	lead := n.Leader()
	for {
		if err := n.failure(); err != nil {
			return Verified{}, notMaster("verify leadership", err)
		}
		if !lead.Self {
			return Verified{}, notMaster("verify leadership", raft.ErrNotLeader)
		}
		if err := n.calls.do(ctx, func() error { return n.raft.VerifyLeader().Error() }); err != nil {
			return Verified{}, notMaster("verify leadership", err)
		}
		// Raft also counts non-voters, and answers that were on their way
		// already when it was asked. We count voters by the time of sending,
		// and ask again when that is not enough.
		at, now := n.confirmed()
		if !now.Self || now.Term != lead.Term {
			return Verified{}, notMaster("verify leadership", raft.ErrLeadershipLost)
		}
		if !at.Before(started) {
			return Verified{Term: lead.Term, At: started}, nil
		}
		select {
		case <-ctx.Done():
			return Verified{}, notMaster("verify leadership", ctx.Err())
		case <-time.After(verifyPause):
		}
	}
}

// VerifiedWithin says, from what heartbeats showed and without asking anybody,
// whether this server led at some moment within the last d.
func (n *Node) VerifiedWithin(d time.Duration) (Verified, bool) {
	at, lead := n.confirmed()
	v := Verified{Term: lead.Term, At: at}
	return v, lead.Self && !at.IsZero() && v.Age(time.Now()) <= d
}

// confirmed gives the latest moment at which a majority of the voters, this
// server included, is known to have followed the given leadership.
func (n *Node) confirmed() (time.Time, Leadership) {
	now := time.Now()
	lead := n.Leader()
	if !lead.Self {
		return time.Time{}, lead
	}
	var times []time.Time
	voters := 0
	for _, s := range n.servers() {
		if !s.Voter {
			continue
		}
		voters++
		if s.ID == n.id {
			times = append(times, now)
		} else if c, ok := n.contacts.get(s.ID, lead.Term); ok {
			times = append(times, c.at)
		}
	}
	quorum := voters/2 + 1
	if len(times) < quorum {
		return time.Time{}, lead
	}
	slices.SortFunc(times, func(a, b time.Time) int { return b.Compare(a) })
	return times[quorum-1], lead
}

func notMaster(what string, err error) error {
	if errors.Is(err, haven.ErrNotMaster) {
		return err
	}
	return fmt.Errorf("%s: %w: %w", what, haven.ErrNotMaster, err)
}
