package cluster

import (
	"bytes"
	"errors"
	"fmt"
	"slices"

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

// ErrKeyTooNew is returned when the key that is to encrypt was not installed before.
var ErrKeyTooNew = errors.New("the first gossip key is a new one here: other agents may not have it yet")

// SetKeys makes these the installed keys, the first of them the one that encrypts,
// and says whether anything changed. The first must have been installed before, so
// that no agent begins to talk in a key that nobody else had the time to learn. An
// error changes nothing, unless it is of the key ring itself.
func (c *Cluster) SetKeys(keys []Key) (changed bool, err error) {
	if keys, err = checkKeys(keys); err != nil {
		return false, err
	}
	c.keyMu.Lock()
	defer c.keyMu.Unlock()
	old := append([][]byte(nil), c.keys.GetKeys()...)
	has := func(all [][]byte, k []byte) bool {
		return slices.ContainsFunc(all, func(o []byte) bool { return bytes.Equal(o, k) })
	}
	if !has(old, keys[0]) {
		return false, ErrKeyTooNew
	}
	for _, k := range keys {
		if !has(old, k) {
			changed = true
			if err := c.keys.AddKey(k); err != nil {
				return changed, fmt.Errorf("install gossip key: %w", err)
			}
		}
	}
	if !bytes.Equal(old[0], keys[0]) {
		changed = true
		if err := c.keys.UseKey(keys[0]); err != nil {
			return changed, fmt.Errorf("use gossip key: %w", err)
		}
	}
	for _, k := range old {
		if slices.ContainsFunc(keys, func(n Key) bool { return bytes.Equal(n, k) }) {
			continue
		}
		changed = true
		if err := removeKey(c.keys, append([][]byte(nil), c.keys.GetKeys()...), k); err != nil {
			return changed, err
		}
	}
	return changed, nil
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
