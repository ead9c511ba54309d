package cluster

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/hashicorp/memberlist"
)

// delegate takes memberlist's callbacks. Most of them run under memberlist's node
// lock: they take c.mu for a moment, never wait, and never call memberlist.
type delegate struct{ c *Cluster }

var (
	_ memberlist.Delegate         = (*delegate)(nil)
	_ memberlist.EventDelegate    = (*delegate)(nil)
	_ memberlist.ConflictDelegate = (*delegate)(nil)
	_ memberlist.AliveDelegate    = (*delegate)(nil)
)

func nodeAddr(ip net.IP, port uint16) netip.AddrPort {
	a, _ := netip.AddrFromSlice(ip)
	return netip.AddrPortFrom(a.Unmap(), port)
}

// NotifyAlive refuses members that cannot be: they would be passed on to
// others, or, being too long for a packet, wait for that for ever.
func (d *delegate) NotifyAlive(n *memberlist.Node) error {
	err := d.admit(n)
	if err != nil {
		d.c.stats.drop(DropMember)
	}
	return err
}

func (d *delegate) admit(n *memberlist.Node) error {
	if len(n.Meta) > memberlist.MetaMaxSize {
		return fmt.Errorf("meta of %d octets", len(n.Meta))
	}
	if checkAddr(nodeAddr(n.Addr, n.Port)) != nil {
		return errors.New("its address is none")
	}
	d.c.mu.Lock()
	defer d.c.mu.Unlock()
	return d.c.table.admits(time.Now(), n.Name)
}

func (d *delegate) NotifyJoin(n *memberlist.Node) { d.announced(n) }

func (d *delegate) NotifyUpdate(n *memberlist.Node) { d.announced(n) }

func (d *delegate) announced(n *memberlist.Node) {
	d.c.change(func(t *table, now time.Time) []Event { return t.alive(now, n.Name, nodeAddr(n.Addr, n.Port), n.Meta) })
}

func (d *delegate) NotifyLeave(n *memberlist.Node) {
	d.c.change(func(t *table, now time.Time) []Event { return t.gone(now, n.Name) })
}

func (d *delegate) NotifyConflict(existing, other *memberlist.Node) {
	d.c.change(func(t *table, now time.Time) []Event {
		return t.conflict(now, existing.Name, nodeAddr(other.Addr, other.Port), other.Meta)
	})
}

// NotifyMsg takes a direct message. Leave notices are the only ones.
func (d *delegate) NotifyMsg(b []byte) {
	n, err := decodeNotice(b)
	if err != nil {
		d.c.stats.drop(DropMessage)
		return
	}
	d.c.change(func(t *table, now time.Time) []Event { return t.notice(now, n) })
}

func (d *delegate) NodeMeta(int) []byte {
	d.c.mu.Lock()
	defer d.c.mu.Unlock()
	return d.c.raw
}

func (d *delegate) GetBroadcasts(int, int) [][]byte { return nil }
func (d *delegate) LocalState(bool) []byte          { return nil }
func (d *delegate) MergeRemoteState([]byte, bool)   {}
