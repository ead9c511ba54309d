package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/haven-ha/haven/internal/config"
	"github.com/haven-ha/haven/storagebeat"
)

// storeTimeout is generous: a slow NFS server needs seconds for a first mount.
const storeTimeout = 15 * time.Second

func (a *app) store() *cobra.Command {
	return group("store", "Prepare and look at the shared stores that hosts beat on",
		"  haven store init nfs1\n  haven store check nfs1", a.storeInit(), a.storeCheck(), a.storeDump())
}

// storeFlags say how a store is reached.
type storeFlags struct {
	a       *app
	cluster string
	kind    string
	timeout time.Duration
}

func (a *app) storeFlags(cmd *cobra.Command) *storeFlags {
	f := &storeFlags{a: a}
	cmd.Flags().StringVar(&f.cluster, "cluster", "", "`name` of the cluster (default: that of the configuration)")
	cmd.Flags().StringVar(&f.kind, "type", "", "`kind` of a store given by its path or pool: dir, block or rados (default: block below /dev, else dir)")
	cmd.Flags().DurationVar(&f.timeout, "timeout", storeTimeout, "give up after this `time`")
	cmd.ValidArgsFunction = func(*cobra.Command, []string, string) ([]cobra.Completion, cobra.ShellCompDirective) {
		var names []cobra.Completion
		if c := a.readConfig(); c != nil {
			for _, s := range c.Heartbeat.Stores {
				names = append(names, cobra.CompletionWithDesc(s.Name, s.Place()))
			}
		}
		return names, cobra.ShellCompDirectiveDefault
	}
	return f
}

// place is one store as the command line names it.
type place struct {
	kind, path string
	options    map[string]string
	cluster    string // empty when nobody says which one
}

// find tells where a store is from its name or its path.
func (f *storeFlags) find(arg string) (place, error) {
	c, err := config.Load(f.a.configPath)
	p := place{cluster: f.cluster}
	if p.cluster == "" && c != nil {
		p.cluster = c.Cluster
	}
	var known []config.Store
	if c != nil {
		known = c.Heartbeat.Stores
	}
	byPath := filepath.IsAbs(arg)
	for _, s := range known {
		// A name has no slash; a pool of the configuration is known by its namespace.
		if s.Name == arg || byPath && s.Path == filepath.Clean(arg) || strings.Contains(arg, "/") && s.Place() == arg {
			p.kind, p.path, p.options = s.Type, s.Place(), s.Options()
			break
		}
	}
	switch {
	case p.path != "" && f.kind != "" && f.kind != p.kind:
		return place{}, usagef("--type %s: %s is a %s by the configuration", f.kind, arg, p.kind)
	case p.path != "":
		return p, nil
	case byPath:
		p.path = filepath.Clean(arg)
		p.kind, err = f.kindOf(p.path)
		return p, err
	case f.kind == storagebeat.TypeRados:
		p.kind, p.path = f.kind, arg
		return p, nil
	case err != nil:
		return place{}, fmt.Errorf("find store %s by its name: %w", arg, err)
	}
	return place{}, fmt.Errorf("there is no store %s in %s; a path begins with /, and a pool needs --type rados", arg, f.a.configPath)
}

// kindOf says what kind of store a path means.
func (f *storeFlags) kindOf(path string) (string, error) {
	switch {
	case f.kind == storagebeat.TypeDir || f.kind == storagebeat.TypeBlock:
		return f.kind, nil
	case f.kind != "":
		return "", usagef("--type %s: want dir or block, or rados with a pool instead of a path", f.kind)
	case strings.HasPrefix(path, "/dev/"):
		return storagebeat.TypeBlock, nil
	}
	return storagebeat.TypeDir, nil
}

// with does something to a store in a child process, so that a store that hangs
// does not hang this one.
func (f *storeFlags) with(ctx context.Context, p place, cluster string, do func(context.Context, *storagebeat.Child) error) error {
	if f.timeout <= 0 {
		return usagef("--timeout %s: want more than nothing", f.timeout)
	}
	path := p.path
	child, err := storagebeat.NewChild(storagebeat.ChildConfig{
		Command: f.a.StoreChild, Type: p.kind, Path: path, Options: p.options, Cluster: cluster, Timeout: f.timeout,
	})
	if err != nil {
		return err
	}
	err = do(ctx, child)
	if closeErr := child.Close(); err == nil {
		err = closeErr
	}
	switch {
	case ctx.Err() != nil:
		return fmt.Errorf("%s: ended by a signal", path)
	case errors.Is(err, storagebeat.ErrTimeout), errors.Is(err, storagebeat.ErrStuck):
		return fmt.Errorf("%s did not answer within %s: the storage hangs, or is slower than --timeout; it is as it was, or as it was to be: %w", path, f.timeout, err)
	case errors.Is(err, storagebeat.ErrNoIdentity) && p.kind == storagebeat.TypeBlock:
		return fmt.Errorf("%s is no store: it is another device than you think, or 'haven store init' was never run: %w", path, err)
	case errors.Is(err, storagebeat.ErrNoIdentity) && p.kind == storagebeat.TypeRados:
		return fmt.Errorf("%s is no store: it is another pool than you think, or 'haven store init' was never run: %w", path, err)
	case errors.Is(err, storagebeat.ErrNoIdentity):
		return fmt.Errorf("%s is no store: it is not mounted, or 'haven store init' was never run: %w", path, err)
	}
	return err
}

func (a *app) storeInit() *cobra.Command {
	cmd := &cobra.Command{
		Use: "init NAME|PATH", Short: "Make a shared directory, block device or Ceph pool a store", Args: cobra.ExactArgs(1),
		Long: `Make a directory on shared storage, a shared block device or a Ceph pool a
store: write its identity, without which no agent reads or writes there. Do it
once, from any host, with the storage mounted. A directory is made if its parent
exists. A pool, POOL or POOL/NAMESPACE, is best configured first and named here
by the store's name.

What is there already is not given up unless it is named word for word. A store:
--replace with the name of its cluster. A directory that holds something else:
--replace with its path. A pool or namespace that holds other objects: --replace
with POOL or POOL/NAMESPACE; they stay where they are. A device that holds
anything but zeros where the store will be, or in its first or last MiB: --erase
with DEVICE:CLUSTER, as both are given here; all that is on the device is lost
then.

Of a store that is made anew agents conclude nothing until they have seen beats
move on it again.`,
		Example: `  haven store init nfs1
  haven store init /mnt/nfs1/.haven --cluster prod-a
  haven store init nfs1 --replace prod-a
  haven store init /dev/mapper/beat --cluster prod-a --erase /dev/mapper/beat:prod-a`,
	}
	f := a.storeFlags(cmd)
	var o storagebeat.InitOptions
	cmd.Flags().StringVar(&o.Replace, "replace", "", "give up the store of this `cluster`, or what is at this path")
	cmd.Flags().StringVar(&o.Erase, "erase", "", "give up all data on this device, for this cluster: `DEVICE:CLUSTER`")
	cmd.Flags().IntVar(&o.Slots, "slots", 0, "`number` of hosts that a device takes (default 64, at most 1024)")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		p, err := f.find(args[0])
		if err != nil {
			return err
		}
		path := p.path
		switch o.Cluster = p.cluster; {
		case o.Cluster == "":
			return usagef("there is no usable configuration at %s that names the cluster: --cluster does", a.configPath)
		case p.kind != storagebeat.TypeBlock && (o.Erase != "" || cmd.Flags().Changed("slots")):
			return usagef("--erase and --slots are for block devices")
		case cmd.Flags().Changed("slots") && o.Slots < 1:
			return usagef("--slots %d: want 1 or more", o.Slots)
		case o.Erase != "" && o.Erase != storagebeat.EraseName(path, o.Cluster):
			return usagef("--erase %s: to erase this device for this cluster, say %s", o.Erase, storagebeat.EraseName(path, o.Cluster))
		}
		var id storagebeat.Identity
		err = f.with(cmd.Context(), p, "", func(ctx context.Context, c *storagebeat.Child) (err error) {
			id, err = c.Init(ctx, o)
			return err
		})
		switch {
		case errors.Is(err, storagebeat.ErrNotEmpty) && p.kind == storagebeat.TypeBlock && id.ID.IsZero():
			return fmt.Errorf("%w (--erase)", err)
		case errors.Is(err, storagebeat.ErrNotEmpty):
			return fmt.Errorf("%w (--replace)", err)
		case err != nil:
			return err
		}
		if a.json() {
			return a.printJSON(id)
		}
		a.printf("%s is now store %s of cluster %s.\n", path, id.ID, id.Cluster)
		return nil
	}
	return cmd
}

func (a *app) storeCheck() *cobra.Command {
	cmd := &cobra.Command{
		Use: "check NAME|PATH", Short: "Look at a store from this host and try a write", Args: cobra.ExactArgs(1),
		Example: "  haven store check nfs1\n  haven store check /mnt/nfs1/.haven -o json",
	}
	f := a.storeFlags(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		p, err := f.find(args[0])
		if err != nil {
			return err
		}
		var r storagebeat.CheckReport
		err = f.with(cmd.Context(), p, p.cluster, func(ctx context.Context, c *storagebeat.Child) (err error) {
			r, err = c.Check(ctx)
			return err
		})
		if err != nil {
			return err
		}
		if r.Local {
			a.warnf("%s is a %s, which one host alone can use: it is no shared store", p.path, r.FileSystem)
		}
		if a.json() {
			return a.printJSON(r)
		}
		a.printf("%s can be read and written.\n\n", clean(p.path))
		a.field("Store", r.Identity.ID.String())
		a.field("Cluster", r.Identity.Cluster)
		a.field("Type", r.FileSystem)
		a.field("Past cache", yesNo(r.Direct))
		if r.Slots > 0 {
			a.field("Slots", fmt.Sprint(r.Slots))
		}
		a.field("Records", fmt.Sprintf("%d, of which %d are valid", r.Records, r.Valid))
		a.field("Read", r.ReadLatency.Round(time.Microsecond).String()+" a record")
		a.field("Write", r.WriteLatency.Round(time.Microsecond).String()+" a record")
		return nil
	}
	return cmd
}

// storeDump is what a store holds, for programs.
type storeDump struct {
	Identity storagebeat.Identity `json:"identity"`
	Records  []storagebeat.Entry  `json:"records"`
	// Mailboxes are those that were used; NoMailbox says why there are none at all.
	Mailboxes []storagebeat.PillEntry `json:"mailboxes,omitempty"`
	NoMailbox string                  `json:"no_mailbox,omitempty"`
}

func (a *app) storeDump() *cobra.Command {
	cmd := &cobra.Command{
		Use: "dump NAME|PATH", Short: "Show every beat and every pill on a store", Args: cobra.ExactArgs(1),
		Long: `Show every beat on a store as it is at this moment, and what is in the
mailboxes of hosts. One look does not tell whether a beat moves: look twice, or
ask 'haven hosts'. A poison pill proves nothing: neither that its host read it,
nor that a master wrote it.`,
		Example: "  haven store dump nfs1\n  haven store dump nfs1 -o json",
	}
	f := a.storeFlags(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		p, err := f.find(args[0])
		if err != nil {
			return err
		}
		var c storagebeat.Contents
		err = f.with(cmd.Context(), p, p.cluster, func(ctx context.Context, child *storagebeat.Child) (err error) {
			c, err = child.ReadAll(ctx)
			return err
		})
		if err != nil {
			return err
		}
		d := storeDump{c.Identity, append([]storagebeat.Entry{}, storagebeat.Dump(c)...), storagebeat.DumpPills(c), c.NoMailbox}
		if a.json() {
			return a.printJSON(d)
		}
		a.showDump(d)
		return nil
	}
	return cmd
}

func (a *app) showDump(d storeDump) {
	a.printf("Store %s of cluster %s\n\n", d.Identity.ID, clean(d.Identity.Cluster))
	slices.SortFunc(d.Records, func(x, y storagebeat.Entry) int {
		return cmp.Or(cmp.Compare(x.Host, y.Host), cmp.Compare(x.Writer, y.Writer))
	})
	numbered := slices.ContainsFunc(d.Records, func(e storagebeat.Entry) bool { return e.Slot > 0 })
	slot := func(e storagebeat.Entry) []string {
		if !numbered {
			return nil
		}
		return []string{fmt.Sprint(e.Slot)}
	}
	t := newTable(append(slotTitle(numbered), "HOST", "WRITER", "SEQUENCE", "EVERY", "SEES", "ISOLATED", "LEFT", "VMS")...)
	for _, e := range d.Records {
		if e.Beat == nil {
			t.row(append(slot(e), e.Host, e.Writer, "", "", "", "", "", ""), labelled("no beat", e.Error))
			continue
		}
		b := e.Beat
		vms := fmt.Sprint(len(b.VMs))
		if !b.Complete {
			vms += " or more"
		}
		t.row(append(slot(e),
			e.Host, e.Writer, fmt.Sprint(b.Sequence), b.Interval.String(), string(b.Master), yesNo(b.Isolated), leftOf(b), vms))
	}
	a.show(t)
	a.showPills(d)
}

// leftOf is what the beat says about the end of its writer.
func leftOf(b *storagebeat.Beat) string {
	if b.Resetting {
		return "resets itself"
	}
	return string(b.Left)
}

func (a *app) showPills(d storeDump) {
	if d.NoMailbox != "" {
		a.printf("\nThis store has no mailboxes: %s.\n", clean(d.NoMailbox))
	}
	if len(d.Mailboxes) == 0 {
		return
	}
	a.printf("\n")
	slices.SortFunc(d.Mailboxes, func(x, y storagebeat.PillEntry) int { return cmp.Compare(x.Host, y.Host) })
	t := newTable("MAILBOX", "HOLDS", "BOOT", "INCIDENT", "ATTEMPT", "TERM", "BY")
	for _, e := range d.Mailboxes {
		p := e.Pill
		if p == nil {
			t.row([]string{e.Host, "", "", "", "", "", ""}, labelled("no pill", e.Error))
			continue
		}
		holds := "poison pill"
		if p.Withdrawn {
			holds = "nothing any more"
		}
		t.row([]string{e.Host, holds, string(p.Boot), string(p.Incident), fmt.Sprint(p.Attempt), p.Term.String(), string(p.By)})
	}
	a.show(t)
}

// slotTitle is the column of slots, on a store that has such.
func slotTitle(numbered bool) []string {
	if numbered {
		return []string{"SLOT"}
	}
	return nil
}
