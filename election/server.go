package election

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"strings"

	"github.com/haven-ha/haven"
)

// ServerID names one Raft server: a host and one life of its data directory,
// as in "kvm-01/5f0c3a9be2d41788". It is drawn when the directory is created.
type ServerID string

func newServerID(host haven.HostID) ServerID {
	var b [8]byte
	_, _ = rand.Read(b[:]) // It never fails; it crashes the program instead.
	return ServerID(string(host) + "/" + hex.EncodeToString(b[:]))
}

// Host is the host that the server is on, or "" when the id is malformed.
func (s ServerID) Host() haven.HostID {
	host, life, ok := strings.Cut(string(s), "/")
	if !ok || len(life) != 16 {
		return ""
	}
	id, err := haven.ParseHostID(host)
	if err != nil {
		return ""
	}
	return id
}

func (s ServerID) check() error {
	if s.Host() == "" {
		return fmt.Errorf("server id %q: want HOST/16 hex digits", s)
	}
	return nil
}

// Server is one member of the Raft configuration.
type Server struct {
	ID      ServerID `json:"id"`
	Address string   `json:"address"` // ip:port
	Voter   bool     `json:"voter"`
}

// In Raft's configuration and messages an address is ID@ip:port, so that
// whoever connects to it can say which server is meant.
func joinAddress(id ServerID, addr string) string { return string(id) + "@" + addr }

func splitAddress(s string) (ServerID, string, error) {
	id, addr, ok := strings.Cut(s, "@")
	if !ok || addr == "" {
		return "", "", fmt.Errorf("raft address %q: want SERVER@ip:port", s)
	}
	if err := ServerID(id).check(); err != nil {
		return "", "", fmt.Errorf("raft address %q: %w", s, err)
	}
	return ServerID(id), addr, nil
}
