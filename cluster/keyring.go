package cluster

import (
	"bytes"
	"errors"
	"fmt"

	"github.com/hashicorp/memberlist"
)

// Errors of the key ring.
var (
	// ErrKeyUnknown is returned when no installed key has the given id.
	ErrKeyUnknown = errors.New("no such gossip key is installed")
	// ErrKeyInUse is returned when the key that encrypts is to be removed.
	ErrKeyInUse = errors.New("gossip key is in use")
	// ErrKeyRingFull is returned when MaxKeys keys are installed already.
	ErrKeyRingFull = errors.New("gossip key ring is full")
)

// KeyInfo names one installed key.
type KeyInfo struct {
	ID string `json:"id"`
	// Primary marks the key that encrypts. All keys decrypt.
	Primary bool `json:"primary"`
}

// Keys lists the installed keys, the primary one first.
func (c *Cluster) Keys() []KeyInfo {
	c.keyMu.Lock()
	defer c.keyMu.Unlock()
	var out []KeyInfo
	for i, k := range c.keys.GetKeys() {
		out = append(out, KeyInfo{ID: Key(k).ID(), Primary: i == 0})
	}
	return out
}

// InstallKey adds a key for decryption, in this agent only. To rotate: install
// the new key on every agent, then use it on every agent, then remove the old
// one. It returns ErrKeyRingFull, or the reason why the key is malformed.
func (c *Cluster) InstallKey(k Key) error {
	if err := k.check(); err != nil {
		return err
	}
	c.keyMu.Lock()
	defer c.keyMu.Unlock()
	if _, err := c.findKey(k.ID()); err == nil {
		return nil
	}
	if len(c.keys.GetKeys()) >= MaxKeys {
		return ErrKeyRingFull
	}
	if err := c.keys.AddKey(bytes.Clone(k)); err != nil {
		return fmt.Errorf("install gossip key: %w", err)
	}
	return nil
}

// UseKey makes the installed key with this id the one that encrypts. An agent
// that has not installed it hears nothing more from this one.
func (c *Cluster) UseKey(id string) error {
	c.keyMu.Lock()
	defer c.keyMu.Unlock()
	k, err := c.findKey(id)
	if err != nil {
		return err
	}
	if err := c.keys.UseKey(k); err != nil {
		return fmt.Errorf("use gossip key: %w", err)
	}
	return nil
}

// RemoveKey forgets the installed key with this id. It returns ErrKeyInUse for
// the one that encrypts, and nil for one that is not there.
func (c *Cluster) RemoveKey(id string) error {
	c.keyMu.Lock()
	defer c.keyMu.Unlock()
	k, err := c.findKey(id)
	if err != nil {
		return nil //nolint:nilerr // Gone is what was asked for.
	}
	keys := append([][]byte(nil), c.keys.GetKeys()...)
	if bytes.Equal(k, keys[0]) {
		return ErrKeyInUse
	}
	return removeKey(c.keys, keys, k)
}

// removeKey takes k out of the ring. memberlist's RemoveKey shifts the keys behind
// k in the array that its readers are walking, without a lock. Removing the
// last key shifts nothing, so the tail is taken off and put back: for a few
// microseconds a message under one of those keys may be lost, as any may.
func removeKey(ring *memberlist.Keyring, keys [][]byte, k []byte) error {
	var tail [][]byte
	for i := len(keys) - 1; i > 0; i-- {
		if err := ring.RemoveKey(keys[i]); err != nil {
			return fmt.Errorf("remove gossip key: %w", err)
		}
		if bytes.Equal(keys[i], k) {
			break
		}
		tail = append([][]byte{keys[i]}, tail...)
	}
	for _, t := range tail {
		if err := ring.AddKey(t); err != nil {
			return fmt.Errorf("put back gossip key: %w", err)
		}
	}
	return nil
}

func (c *Cluster) findKey(id string) (Key, error) {
	for _, k := range c.keys.GetKeys() {
		if Key(k).ID() == id {
			return k, nil
		}
	}
	return nil, ErrKeyUnknown
}
