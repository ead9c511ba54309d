package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
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
	timeout time.Duration
}

func (a *app) storeFlags(cmd *cobra.Command) *storeFlags {
	f := &storeFlags{a: a}
	cmd.Flags().StringVar(&f.cluster, "cluster", "", "`name` of the cluster (default: that of the configuration)")
	cmd.Flags().DurationVar(&f.timeout, "timeout", storeTimeout, "give up after this `time`")
	cmd.ValidArgsFunction = func(*cobra.Command, []string, string) ([]cobra.Completion, cobra.ShellCompDirective) {
		var names []cobra.Completion
		if c := a.readConfig(); c != nil {
			for _, s := range c.Heartbeat.Stores {
				names = append(names, cobra.CompletionWithDesc(s.Name, s.Path))
			}
		}
		return names, cobra.ShellCompDirectiveDefault
	}
	return f
}

// find tells a store's directory and cluster from its name or its path.
func (f *storeFlags) find(arg string) (path, cluster string, err error) {
	c, loadErr := config.Load(f.a.configPath)
	cluster = f.cluster
	if cluster == "" && c != nil {
		cluster = c.Cluster
	}
	if filepath.IsAbs(arg) {
		return filepath.Clean(arg), cluster, nil
	}
	if loadErr != nil {
		return "", "", fmt.Errorf("find store %s by its name: %w", arg, loadErr)
	}
	for _, s := range c.Heartbeat.Stores {
		if s.Name == arg {
			return s.Path, cluster, nil
		}
	}
	return "", "", fmt.Errorf("there is no store %s in %s; a path begins with /", arg, f.a.configPath)
}

// with does something to a store in a child process, so that a store that hangs
// does not hang this one.
func (f *storeFlags) with(ctx context.Context, path, cluster string, do func(context.Context, *storagebeat.Child) error) error {
	if f.timeout <= 0 {
		return usagef("--timeout %s: want more than nothing", f.timeout)
	}
	child, err := storagebeat.NewChild(storagebeat.ChildConfig{Command: f.a.StoreChild, Path: path, Cluster: cluster, Timeout: f.timeout})
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
	case errors.Is(err, storagebeat.ErrNoIdentity):
		return fmt.Errorf("%s is no store: it is not mounted, or 'haven store init' was never run: %w", path, err)
	}
	return err
}

func (a *app) storeInit() *cobra.Command {
	cmd := &cobra.Command{
		Use: "init NAME|PATH", Short: "Make a directory on shared storage a store", Args: cobra.ExactArgs(1),
		Long: `Make a directory on shared storage a store: write its identity, without which
no agent reads or writes there. Do it once, from any host, with the storage
mounted. The directory is made if its parent exists.

What is there already is not given up unless --replace names it word for word:
the cluster of the store that is there, or the path of a directory that holds
something else. Of a store that is made anew agents conclude nothing until they
have seen beats move on it again.`,
		Example: "  haven store init nfs1\n  haven store init /mnt/nfs1/.haven --cluster prod-a\n  haven store init nfs1 --replace prod-a",
	}
	f := a.storeFlags(cmd)
	replace := cmd.Flags().String("replace", "", "give up the store of this `cluster`, or what is at this path")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		path, cluster, err := f.find(args[0])
		if err != nil {
			return err
		}
		if cluster == "" {
			return usagef("there is no usable configuration at %s that names the cluster: --cluster does", a.configPath)
		}
		var id storagebeat.Identity
		err = f.with(cmd.Context(), path, "", func(ctx context.Context, c *storagebeat.Child) (err error) {
			id, err = c.Init(ctx, storagebeat.InitOptions{Cluster: cluster, Replace: *replace})
			return err
		})
		if errors.Is(err, storagebeat.ErrNotEmpty) {
			return fmt.Errorf("%w (--replace)", err)
		}
		if err != nil {
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
		path, cluster, err := f.find(args[0])
		if err != nil {
			return err
		}
		var r storagebeat.CheckReport
		err = f.with(cmd.Context(), path, cluster, func(ctx context.Context, c *storagebeat.Child) (err error) {
			r, err = c.Check(ctx)
			return err
		})
		if err != nil {
			return err
		}
		if r.Local {
			a.warnf("%s is a %s, which one host alone can mount: it is no shared store", path, r.FileSystem)
		}
		if a.json() {
			return a.printJSON(r)
		}
		a.printf("%s can be read and written.\n\n", clean(path))
		a.field("Store", r.Identity.ID.String())
		a.field("Cluster", r.Identity.Cluster)
		a.field("Type", r.FileSystem)
		a.field("Past cache", yesNo(r.Direct))
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
}

func (a *app) storeDump() *cobra.Command {
	cmd := &cobra.Command{
		Use: "dump NAME|PATH", Short: "Show every beat on a store", Args: cobra.ExactArgs(1),
		Long: `Show every beat on a store as it is at this moment. One look does not tell
whether a beat moves: look twice, or ask 'haven hosts'.`,
		Example: "  haven store dump nfs1\n  haven store dump nfs1 -o json",
	}
	f := a.storeFlags(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		path, cluster, err := f.find(args[0])
		if err != nil {
			return err
		}
		var c storagebeat.Contents
		err = f.with(cmd.Context(), path, cluster, func(ctx context.Context, child *storagebeat.Child) (err error) {
			c, err = child.ReadAll(ctx)
			return err
		})
		if err != nil {
			return err
		}
		d := storeDump{c.Identity, append([]storagebeat.Entry{}, storagebeat.Dump(c)...)}
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
	t := newTable("HOST", "WRITER", "SEQUENCE", "EVERY", "SEES", "ISOLATED", "LEFT", "VMS")
	for _, e := range d.Records {
		if e.Beat == nil {
			t.row([]string{e.Host, e.Writer, "", "", "", "", "", ""}, labelled("no beat", e.Error))
			continue
		}
		b := e.Beat
		vms := fmt.Sprint(len(b.VMs))
		if !b.Complete {
			vms += " or more"
		}
		t.row([]string{
			e.Host, e.Writer, fmt.Sprint(b.Sequence), b.Interval.String(), string(b.Master), yesNo(b.Isolated), string(b.Left), vms,
		})
	}
	a.show(t)
}
