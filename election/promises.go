package election

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"

	"github.com/haven-ha/haven"
)

// Promise is a server's word that it takes part in no other bootstrap of this
// cluster than the one named by proposer and round. It is kept until the
// proposer itself took that round back, or a named operator resets it.
type Promise struct {
	Proposer ServerID `json:"proposer"`
	Round    uint64   `json:"round"`
}

func (p Promise) String() string { return fmt.Sprintf("%s, round %d", p.Proposer, p.Round) }

// PromiseRequest asks a host for its promise.
type PromiseRequest struct {
	Cluster  string         `json:"cluster"`
	Members  []haven.HostID `json:"members"` // all configured hosts, sorted
	Proposer ServerID       `json:"proposer"`
	Round    uint64         `json:"round"`
}

// PromiseReply is the answer to a PromiseRequest.
type PromiseReply struct {
	Granted bool     `json:"granted"`
	Server  ServerID `json:"server"`  // who answers
	Address string   `json:"address"` // its Raft address, ip:port
	Round   uint64   `json:"round"`   // that was granted
	// Ledger says that a ledger exists already: the proposer must give up.
	Ledger bool   `json:"ledger,omitempty"`
	Reason string `json:"reason,omitempty"` // of a refusal
}

// Reset is the record of an operator who took a promise back.
type Reset struct {
	Operator string    `json:"operator"`
	At       time.Time `json:"at"` // for people
	Was      Promise   `json:"was"`
}

// maxResets bounds the record of resets.
const maxResets = 16

// promiseRecord is what is on the disk.
type promiseRecord struct {
	Held   *Promise `json:"held,omitempty"`
	Rounds uint64   `json:"rounds"` // the newest round this server proposed
	Resets []Reset  `json:"resets,omitempty"`
}

// Promises keeps this server's promise. Every change is on the disk before
// anybody learns of it. It lives in the log store, so it is lost with the
// server and never without it.
type Promises struct {
	node   *Node
	stable raft.StableStore
	record atomic.Pointer[promiseRecord]
	turn   chan struct{} // held while the record is being changed
}

// ErrPromised is returned when this server's promise belongs to somebody else.
var ErrPromised = errors.New("this server promised to take part in another bootstrap")

func openPromises(n *Node) (*Promises, error) {
	p := &Promises{node: n, stable: n.stores.stable, turn: make(chan struct{}, 1)}
	raw, err := getStable(p.stable, keyPromise)
	if err != nil {
		return nil, fmt.Errorf("read promise: %w", err)
	}
	var rec promiseRecord
	if raw != nil {
		if err := json.Unmarshal(raw, &rec); err != nil {
			return nil, fmt.Errorf("read promise: %w", err)
		}
	}
	p.record.Store(&rec)
	return p, nil
}

// Held is the promise that this server gave, if any.
func (p *Promises) Held() (Promise, bool) {
	rec := p.record.Load()
	if rec.Held == nil {
		return Promise{}, false
	}
	return *rec.Held, true
}

// Resets are the times an operator took a promise back, oldest first.
func (p *Promises) Resets() []Reset { return slices.Clone(p.record.Load().Resets) }

// change rewrites the record. When ctx ends in the middle, the change may
// still happen; whoever asked does not count on it then.
func (p *Promises) change(ctx context.Context, decide func(promiseRecord) (promiseRecord, error)) error {
	return p.inTurn(ctx, func(rec promiseRecord) (func() error, error) {
		next, err := decide(rec)
		if err != nil {
			return nil, err
		}
		raw, err := json.Marshal(next)
		if err != nil {
			return nil, fmt.Errorf("encode promise: %w", err)
		}
		return func() error {
			if err := p.stable.Set(keyPromise, raw); err != nil {
				return fmt.Errorf("save promise: %w", err)
			}
			p.record.Store(&next)
			return nil
		}, nil
	})
}

// inTurn looks at the record and then does one thing, while nobody else
// changes the record. The turn lasts until the thing is done, even when ctx
// ends before.
func (p *Promises) inTurn(ctx context.Context, decide func(promiseRecord) (func() error, error)) error {
	select {
	case p.turn <- struct{}{}:
	case <-ctx.Done():
		return fmt.Errorf("wait for promise: %w: %w", haven.ErrUnavailable, ctx.Err())
	}
	act, err := decide(*p.record.Load())
	if err != nil {
		<-p.turn
		return err
	}
	done := make(chan error, 1)
	started := p.node.calls.start(func() {
		defer func() { <-p.turn }()
		done <- act()
	})
	if !started {
		<-p.turn
		return errBusy
	}
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return fmt.Errorf("%w: %w: %w", errWaitEnded, haven.ErrUnavailable, ctx.Err())
	}
}

// Request answers a proposer on the host from, as the connection's certificate
// names it; members are the hosts configured here. A granted reply is on the
// disk. A refusal is a reply, not an error.
func (p *Promises) Request(ctx context.Context, from haven.HostID, members []haven.HostID, req PromiseRequest) (PromiseReply, error) {
	reply := PromiseReply{Server: p.node.id, Address: p.node.cfg.Address, Round: req.Round}
	members = slices.Sorted(slices.Values(members))
	switch {
	case req.Cluster != p.node.cfg.Cluster:
		reply.Reason = fmt.Sprintf("this is cluster %q", p.node.cfg.Cluster)
	case req.Proposer.Host() == "" || req.Proposer.Host() != from:
		reply.Reason = fmt.Sprintf("the request for server %q came from host %s", req.Proposer, from)
	case req.Round == 0:
		reply.Reason = "round 0 is none"
	case !slices.Equal(members, req.Members):
		reply.Reason = fmt.Sprintf("the configured hosts differ: here they are %v", members)
	default:
		reply.Ledger, reply.Reason = p.ledger()
	}
	if reply.Reason != "" {
		return reply, nil
	}
	var err error
	if reply.Reason, err = p.grant(ctx, Promise{Proposer: req.Proposer, Round: req.Round}); err != nil {
		return PromiseReply{}, err
	}
	reply.Granted = reply.Reason == ""
	return reply, nil
}

// grant gives the promise and saves it, unless another one is in the way: then
// it returns why.
func (p *Promises) grant(ctx context.Context, want Promise) (refused string, err error) {
	err = p.change(ctx, func(rec promiseRecord) (promiseRecord, error) {
		if rec.Held != nil && (rec.Held.Proposer != want.Proposer || rec.Held.Round > want.Round) {
			return rec, fmt.Errorf("%w: that of %s", ErrPromised, rec.Held)
		}
		rec.Held = &want
		return rec, nil
	})
	if errors.Is(err, ErrPromised) {
		return err.Error(), nil
	}
	return "", err
}

// ledger says whether a ledger is known to exist, and how.
func (p *Promises) ledger() (bool, string) {
	if p.node.HasLedger() {
		return true, "this server has a ledger"
	}
	if seen := p.node.ledgerSeen(); seen != "" {
		return true, "a ledger was seen: " + seen
	}
	return false, ""
}

// propose promises this server to itself, in a new round unless it is in one.
func (p *Promises) propose(ctx context.Context) error {
	return p.change(ctx, func(rec promiseRecord) (promiseRecord, error) {
		if rec.Held != nil {
			if rec.Held.Proposer == p.node.id {
				return rec, nil
			}
			return rec, fmt.Errorf("%w: that of %s", ErrPromised, rec.Held)
		}
		rec.Rounds++
		rec.Held = &Promise{Proposer: p.node.id, Round: rec.Rounds}
		return rec, nil
	})
}

// withdraw ends this server's own round for ever: it will not bootstrap with
// what was granted in it.
func (p *Promises) withdraw(ctx context.Context) error {
	return p.change(ctx, func(rec promiseRecord) (promiseRecord, error) {
		if rec.Held != nil && rec.Held.Proposer == p.node.id {
			rec.Held = nil
		}
		return rec, nil
	})
}

// release gives up a promise whose proposer says that it took the round back.
func (p *Promises) release(ctx context.Context, gone Promise) error {
	return p.change(ctx, func(rec promiseRecord) (promiseRecord, error) {
		if rec.Held != nil && *rec.Held == gone {
			rec.Held = nil
		}
		return rec, nil
	})
}

// Withdrawn tells a host that holds a promise for this server whether the
// round was taken back. It is true only when this server can never bootstrap
// with it.
func (p *Promises) Withdrawn(promise Promise) bool {
	return p.tookBack(promise) && !p.node.HasLedger()
}

func (p *Promises) tookBack(promise Promise) bool {
	rec := p.record.Load()
	if promise.Proposer != p.node.id || promise.Round > rec.Rounds {
		return false
	}
	return rec.Held == nil || *rec.Held != promise
}

// ResetPromise takes this server's promise back by an operator's word. It is
// for a proposer that is lost for good before its cluster came to life. When
// the proposer did bootstrap, or comes back and does, two clusters can come
// of it: the operator says that this cannot be. It is refused once this
// server has a ledger.
func (p *Promises) ResetPromise(ctx context.Context, operator string) (Promise, error) {
	if operator == "" {
		return Promise{}, errors.New("reset promise: no operator named")
	}
	var was Promise
	err := p.change(ctx, func(rec promiseRecord) (promiseRecord, error) {
		if p.node.HasLedger() {
			return rec, errors.New("this server has a ledger already")
		}
		if rec.Held == nil {
			return rec, fmt.Errorf("promise: %w", haven.ErrNotFound)
		}
		was = *rec.Held
		resets := append(slices.Clone(rec.Resets), Reset{Operator: operator, At: time.Now().UTC(), Was: was})
		rec.Resets = resets[max(0, len(resets)-maxResets):]
		rec.Held = nil
		return rec, nil
	})
	if err != nil {
		return Promise{}, fmt.Errorf("reset promise: %w", err)
	}
	p.node.cfg.Log.Warn("an operator took back a promise", "operator", operator, "proposer", was.Proposer, "round", was.Round)
	return was, nil
}
