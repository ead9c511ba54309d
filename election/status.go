package election

import (
	"strconv"
	"time"

	"github.com/hashicorp/raft"

	"github.com/haven-ha/haven"
)

// Status is the state of this server and, on the leader, what it knows of the
// others. Durations are -1 when not known.
type Status struct {
	Server        ServerID       `json:"server"`
	State         string         `json:"state"` // leader, follower, candidate, not-a-member, failed, shutdown
	Leader        Leadership     `json:"leader"`
	Term          uint64         `json:"term"`
	LastIndex     uint64         `json:"last_index"`
	CommitIndex   uint64         `json:"commit_index"`
	AppliedIndex  uint64         `json:"applied_index"`
	SnapshotIndex uint64         `json:"snapshot_index"`
	SnapshotTerm  uint64         `json:"snapshot_term"`
	Servers       []ServerStatus `json:"servers"`
	// LeaderContactMS is how long ago a follower heard of its leader.
	LeaderContactMS int64      `json:"leader_contact_ms"`
	Disk            DiskStatus `json:"disk"`
	// Promise is what this server promised about a bootstrap, if anything.
	Promise *Promise `json:"promise,omitempty"`
	Failure string   `json:"failure,omitempty"`
}

// ServerStatus is one server of the configuration. Contact, lag and LastIndex
// are known to the leader only.
type ServerStatus struct {
	Server
	Host      haven.HostID `json:"host"`
	Self      bool         `json:"self"`
	ContactMS int64        `json:"contact_ms"` // age of its last acknowledgement
	LastIndex uint64       `json:"last_index,omitempty"`
	// BehindMS is for how long it has not had all that is committed. One that
	// answers heartbeats and stays behind has a hung disk.
	BehindMS int64 `json:"behind_ms"`
}

// DiskStatus is the state of this server's log.
type DiskStatus struct {
	Op        Op     `json:"op,omitempty"` // the operation that has been under way for longest
	RunningMS int64  `json:"running_ms"`
	Error     string `json:"error,omitempty"` // of the last write
}

// servers is the newest configuration, committed or not.
func (n *Node) servers() []Server {
	f := n.raft.GetConfiguration() // It does not block.
	if f.Error() != nil {
		return nil
	}
	return convertServers(f.Configuration())
}

func convertServers(conf raft.Configuration) []Server {
	servers := make([]Server, 0, len(conf.Servers))
	for _, s := range conf.Servers {
		out := Server{ID: ServerID(s.ID), Address: string(s.Address), Voter: s.Suffrage == raft.Voter}
		if _, addr, err := splitAddress(out.Address); err == nil {
			out.Address = addr
		}
		servers = append(servers, out)
	}
	return servers
}

// Status describes this server. It does not block.
func (n *Node) Status() Status {
	now := time.Now()
	lead := n.Leader()
	op, age, diskErr := n.disk.oldest(now)
	s := Status{
		Server: n.id, Leader: lead, Term: n.raft.CurrentTerm(),
		LastIndex: n.raft.LastIndex(), CommitIndex: n.raft.CommitIndex(), AppliedIndex: n.raft.AppliedIndex(),
		LeaderContactMS: -1,
		Disk:            DiskStatus{Op: op, RunningMS: age.Milliseconds()},
	}
	if diskErr != nil {
		s.Disk.Error = diskErr.Error()
	}
	stats := n.raft.Stats()
	s.SnapshotIndex, _ = strconv.ParseUint(stats["last_snapshot_index"], 10, 64)
	s.SnapshotTerm, _ = strconv.ParseUint(stats["last_snapshot_term"], 10, 64)
	if last := n.raft.LastContact(); !lead.Self && !last.IsZero() {
		s.LeaderContactMS = now.Sub(last).Milliseconds()
	}
	if p, ok := n.promises.Held(); ok {
		s.Promise = &p
	}
	member := false
	for _, srv := range n.servers() {
		member = member || srv.ID == n.id
		s.Servers = append(s.Servers, n.serverStatus(now, srv, lead))
	}
	s.State = n.stateName(member)
	if err := n.failure(); err != nil {
		s.State, s.Failure = "failed", err.Error()
	}
	return s
}

func (n *Node) serverStatus(now time.Time, srv Server, lead Leadership) ServerStatus {
	s := ServerStatus{Server: srv, Host: srv.ID.Host(), Self: srv.ID == n.id, ContactMS: -1, BehindMS: -1}
	if c, ok := n.contacts.get(srv.ID, lead.Term); ok && lead.Self {
		s.ContactMS, s.LastIndex = now.Sub(c.at).Milliseconds(), c.lastLog
		if !c.caughtUp.IsZero() {
			s.BehindMS = c.at.Sub(c.caughtUp).Milliseconds()
		}
	}
	return s
}

func (n *Node) stateName(member bool) string {
	switch n.raft.State() {
	case raft.Leader:
		return "leader"
	case raft.Candidate:
		return "candidate"
	case raft.Shutdown:
		return "shutdown"
	case raft.Follower:
		if member {
			return "follower"
		}
	}
	return "not-a-member"
}
