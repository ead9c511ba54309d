package election

import (
	"errors"
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

// transport is Raft's network transport with two additions: it remembers who
// acknowledged this leader's term, and when; and it keeps votes of a server
// without a log for the proposer that has this server's promise.
type transport struct {
	*raft.NetworkTransport
	contacts *contacts
	rpcs     chan raft.RPC
}

func newTransport(inner *raft.NetworkTransport, c *contacts) *transport {
	return &transport{NetworkTransport: inner, contacts: c, rpcs: make(chan raft.RPC)}
}

// AppendEntries notes when the request went out: an answer proves that the
// follower had not voted for a newer leader at that time, not later.
func (t *transport) AppendEntries(id raft.ServerID, target raft.ServerAddress, args *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse) error {
	sent, committed := time.Now(), t.contacts.commitIndex()
	if err := t.NetworkTransport.AppendEntries(id, target, args, resp); err != nil {
		return err
	}
	if resp.Term == args.Term {
		t.contacts.note(ServerID(id), contact{term: args.Term, at: sent, lastLog: resp.LastLog}, committed)
	}
	return nil
}

// Consumer gives the requests that filter let pass.
func (t *transport) Consumer() <-chan raft.RPC { return t.rpcs }

var errNoPromise = errors.New("this server has no log and gave its promise to another proposer, or to none")

// filter passes requests on until done is closed. A request for a vote is
// refused unless mayVote agrees.
func (t *transport) filter(done <-chan struct{}, mayVote func(ServerID) bool) {
	for {
		select {
		case <-done:
			return
		case rpc := <-t.NetworkTransport.Consumer():
			if who, ok := candidate(rpc.Command); ok && !mayVote(who) {
				rpc.Respond(nil, errNoPromise)
				continue
			}
			select {
			case t.rpcs <- rpc:
			case <-done:
				return
			}
		}
	}
}

func candidate(command any) (ServerID, bool) {
	switch c := command.(type) {
	case *raft.RequestVoteRequest:
		return ServerID(c.ID), true
	case *raft.RequestPreVoteRequest:
		return ServerID(c.ID), true
	}
	return "", false
}

// contact is the newest acknowledgement of one follower.
type contact struct {
	term     uint64
	at       time.Time // when the acknowledged request was sent
	lastLog  uint64    // the follower's last log index
	caughtUp time.Time // the last time lastLog was not behind what was committed
}

// contacts remembers the followers' acknowledgements. Servers that left the
// configuration are dropped by forget.
type contacts struct {
	mu       sync.Mutex
	byServer map[ServerID]contact
	commit   func() uint64
}

func newContacts() *contacts { return &contacts{byServer: map[ServerID]contact{}} }

func (c *contacts) setCommitIndex(f func() uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.commit = f
}

func (c *contacts) commitIndex() uint64 {
	c.mu.Lock()
	f := c.commit
	c.mu.Unlock()
	if f == nil {
		return 0
	}
	return f()
}

func (c *contacts) note(id ServerID, n contact, committed uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	old := c.byServer[id]
	if old.term > n.term {
		return
	}
	if old.term == n.term {
		n.caughtUp = old.caughtUp
		if n.at.Before(old.at) { // Two requests are under way at times.
			n.at = old.at
		}
		n.lastLog = max(n.lastLog, old.lastLog)
	}
	if n.lastLog >= committed {
		n.caughtUp = n.at
	}
	c.byServer[id] = n
}

// get returns a server's contact in the given term.
func (c *contacts) get(id ServerID, term uint64) (contact, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	n, ok := c.byServer[id]
	return n, ok && n.term == term
}

func (c *contacts) forget(keep func(ServerID) bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for id := range c.byServer {
		if !keep(id) {
			delete(c.byServer, id)
		}
	}
}
