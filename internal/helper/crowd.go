package helper

import (
	"net"
	"sync"
)

// How many connections are held at once: in all, and from one address. Those
// beyond are closed at once, so that nobody who holds many open keeps others
// out for longer than headerLimit, and alone keeps out nobody else.
const (
	maxConns        = 128
	maxConnsPerHost = 16
)

// crowd is a listener that bounds connections.
type crowd struct {
	net.Listener

	mu   sync.Mutex
	all  int
	from map[string]int
}

func newCrowd(ln net.Listener) *crowd { return &crowd{Listener: ln, from: map[string]int{}} }

// Accept returns the next connection for which there is room.
func (c *crowd) Accept() (net.Conn, error) {
	for {
		conn, err := c.Listener.Accept()
		if err != nil {
			return nil, err
		}
		host, _, err := net.SplitHostPort(conn.RemoteAddr().String())
		if err != nil {
			host = conn.RemoteAddr().String()
		}
		if c.enter(host) {
			return &visitor{Conn: conn, leave: sync.OnceFunc(func() { c.leave(host) })}, nil
		}
		_ = conn.Close()
	}
}

func (c *crowd) enter(host string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.all >= maxConns || c.from[host] >= maxConnsPerHost {
		return false
	}
	c.all++
	c.from[host]++
	return true
}

func (c *crowd) leave(host string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.all--
	if c.from[host]--; c.from[host] == 0 {
		delete(c.from, host)
	}
}

type visitor struct {
	net.Conn
	leave func()
}

func (v *visitor) Close() error {
	v.leave()
	return v.Conn.Close()
}
