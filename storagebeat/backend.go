package storagebeat

import (
	"context"
	"fmt"
	"path/filepath"
	"time"
)

// Backend does the I/O of one kind of store. It lives in the child process, where
// every call may block for as long as the storage does: a Child gives up on the
// process, not on the call. Calls come one at a time.
//
// A context that has ended makes a method return its error before it touches the
// storage, and between two of several touches; a backend that can bound a single
// touch by it does so too. storetest.Run is the test that each backend passes.
type Backend interface {
	// ReadAll reads the identity and every record; see Device. A record that
	// cannot be read is in the result with its Err. A damaged record whose host
	// cannot be told has an empty Host. No host and writer comes twice.
	ReadAll(ctx context.Context) (Contents, error)
	// Write writes one record in place; see Device. It makes sure, each time,
	// that the storage is still the store that the record is for.
	Write(ctx context.Context, beat RawBeat) error
	// WritePill puts a pill into a host's mailbox; see Mailer. It makes sure of the
	// store as Write does.
	WritePill(ctx context.Context, pill RawPill) error
	// Init makes a store. When something is there that options do not name,
	// it changes nothing and returns ErrNotEmpty with the identity of the
	// store that is there, if it is one.
	Init(ctx context.Context, options InitOptions) (Identity, error)
	// Check reads everything and tries a write that no reader takes for a beat.
	Check(ctx context.Context) (CheckReport, error)
	// Close lets go of everything that is open. The backend is not used again.
	Close() error
}

// OpenOptions say which store a backend serves.
type OpenOptions struct {
	// Path is where the store is, in the words of its type.
	Path string
	// Cluster is the cluster that the store must belong to; empty takes any.
	Cluster string
	// Options are what else this type of store needs. An unknown one is refused.
	Options map[string]string
}

// Type is one kind of store. The programs give the kinds that they are built with
// to ChildMain; TypeDir is always among them.
type Type struct {
	Name string
	// Open makes a backend. It does not touch the storage: a store that is away
	// now may be back for the next operation.
	Open func(OpenOptions) (Backend, error)
}

// The names of the types.
const (
	TypeDir   = "dir"   // a directory of a mounted file system
	TypeBlock = "block" // a shared block device; see storagebeat/block
	TypeRados = "rados" // a Ceph pool, without a mount; see storagebeat/rados
)

// Dir returns the type of stores in a directory of anything that all hosts mount.
func Dir() Type {
	return Type{TypeDir, func(o OpenOptions) (Backend, error) {
		if err := o.Known(); err != nil {
			return nil, err
		}
		if !filepath.IsAbs(o.Path) {
			return nil, fmt.Errorf("open store: path %q is not absolute", o.Path)
		}
		return newDirStore(o.Path, o.Cluster), nil
	}}
}

// Known refuses options other than those that are named.
func (o OpenOptions) Known(names ...string) error {
	known := make(map[string]bool, len(names))
	for _, n := range names {
		known[n] = true
	}
	for name := range o.Options {
		if !known[name] {
			return fmt.Errorf("open store: unknown option %q", name)
		}
	}
	return nil
}

// InitOptions say what store is made.
type InitOptions struct {
	Cluster string `json:"cluster"`
	// Replace names, word for word, what may be given up: the cluster of the
	// store that is there now, or what the backend says it must name where
	// something else is. Empty gives up nothing.
	Replace string `json:"replace,omitempty"`
	// Erase names, word for word, a device and the cluster that it is for, as
	// EraseName makes it: then foreign data may be given up. Only backends of raw
	// devices take it.
	Erase string `json:"erase,omitempty"`
	// Slots is how many hosts a store with numbered places takes; 0 leaves it to
	// the backend.
	Slots int `json:"slots,omitempty"`
}

// EraseName is what InitOptions.Erase must say to give up foreign data at path.
func EraseName(path, cluster string) string { return path + ":" + cluster }

// CheckReport is what a look at a store found. The latencies are of one record.
type CheckReport struct {
	Identity     Identity      `json:"identity"`
	FileSystem   string        `json:"file_system"` // or what else holds the store, for people
	Local        bool          `json:"local"`       // it is of a kind that only one host can use
	Direct       bool          `json:"direct"`      // the page cache is passed by
	Records      int           `json:"records"`
	Valid        int           `json:"valid"`
	Slots        int           `json:"slots,omitempty"` // places for hosts, where they are numbered
	ReadLatency  time.Duration `json:"read_latency_ns"`
	WriteLatency time.Duration `json:"write_latency_ns"`
}

// The exported methods of dirStore make it a Backend.

// ReadAll implements Backend.
func (d *dirStore) ReadAll(ctx context.Context) (Contents, error) {
	if err := ctx.Err(); err != nil {
		return Contents{}, err
	}
	return d.readAll()
}

// Write implements Backend.
func (d *dirStore) Write(ctx context.Context, beat RawBeat) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	return d.write(beat)
}

// WritePill implements Backend.
func (d *dirStore) WritePill(ctx context.Context, pill RawPill) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	return d.writePill(pill)
}

// Init implements Backend.
func (d *dirStore) Init(ctx context.Context, options InitOptions) (Identity, error) {
	if err := ctx.Err(); err != nil {
		return Identity{}, err
	}
	if options.Erase != "" || options.Slots != 0 {
		return Identity{}, fmt.Errorf("make store: a directory takes neither a device to erase nor a number of slots")
	}
	return initStore(d.path, options)
}

// Check implements Backend.
func (d *dirStore) Check(ctx context.Context) (CheckReport, error) {
	if err := ctx.Err(); err != nil {
		return CheckReport{}, err
	}
	return d.check()
}

// Close implements Backend.
func (d *dirStore) Close() error {
	d.drop()
	return nil
}
