//go:build ceph

package rados

import (
	"errors"
	"testing"
	"time"

	haven "github.com/haven-ha/haven"
	"github.com/haven-ha/haven/storagebeat"
	"github.com/haven-ha/haven/storagebeat/storetest"
)

func TestConforms(t *testing.T) {
	storetest.Run(t, func(t *testing.T) storetest.Place {
		place := newPlace(t)
		return storetest.Place{
			Open: func(t testing.TB, of string) storagebeat.Backend {
				t.Helper()
				b, err := Type().Open(options(place, of))
				ok(t, err)
				return b
			},
			Occupy: func(t testing.TB) {
				t.Helper()
				direct(t, place, func(s *store) error { return put(s.session.io, "rbd_directory", []byte("x")) })
			},
			Seize: storagebeat.InitOptions{Replace: place},
			Damage: func(t testing.TB, host haven.HostID, w storagebeat.Writer, data []byte) {
				t.Helper()
				direct(t, place, func(s *store) error { return s.session.io.Write(beatPrefix+nameOf(host, w), data, 0) })
			},
			Spoil: func(t testing.TB, host haven.HostID, data []byte) {
				t.Helper()
				direct(t, place, func(s *store) error { return s.session.io.Write(beatPrefix+nameOf(host, mailbox), data, 0) })
			},
			Vanish: func(t testing.TB) func() {
				t.Helper()
				var h head
				direct(t, place, func(s *store) (err error) {
					if h, err = s.readHead(lasting(t, 10*time.Second)); err != nil {
						return err
					}
					return s.session.io.Delete(identityObject)
				})
				return func() {
					direct(t, place, func(s *store) error {
						err := s.putIdentity(lasting(t, 10*time.Second), h.text, nil)
						for _, name := range h.names {
							err = errors.Join(err, s.announce(lasting(t, 10*time.Second), head{text: h.text}, name))
						}
						return err
					})
				}
			},
		}
	})
}

// direct does something to a place past the backend's own ways.
func direct(t testing.TB, place string, do func(*store) error) {
	t.Helper()
	s := opened(t, place).store
	_, err := s.session.ready(lasting(t, 10*time.Second))
	ok(t, err)
	ok(t, do(s))
}
