package cli

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/haven-ha/haven"
	"github.com/haven-ha/haven/internal/pki"
)

const caName = "ca"

func (a *app) pki() *cobra.Command {
	return group("pki", "Make and look at the cluster's certificates", `  haven pki init --cluster prod-a
  haven pki host kvm-01=10.0.0.11 kvm-02=10.0.0.12
  haven pki client maria --role operator
  haven pki show maria.pem`, a.pkiInit(), a.pkiHost(), a.pkiClient(), a.pkiShow())
}

// pkiFlags say where certificates are and how they are made.
type pkiFlags struct {
	dir     string
	days    int
	replace bool
}

func (p *pkiFlags) add(cmd *cobra.Command, lifetime time.Duration) {
	f := cmd.Flags()
	f.StringVar(&p.dir, "dir", ".", "`directory` of the CA's files and of the new ones")
	f.IntVar(&p.days, "days", int(lifetime/(24*time.Hour)), "how many `days` it is valid")
	f.BoolVar(&p.replace, "replace", false, "overwrite existing files")
}

func (p *pkiFlags) lifetime() (time.Duration, error) {
	if p.days < 1 || p.days > 100*365 {
		return 0, usagef("--days %d: want 1 to 36500", p.days)
	}
	return time.Duration(p.days) * 24 * time.Hour, nil
}

func (p *pkiFlags) paths(name string) (cert, key string) {
	return filepath.Join(p.dir, name+".pem"), filepath.Join(p.dir, name+".key")
}

func (p *pkiFlags) loadCA() (*pki.CA, error) {
	cert, key := p.paths(caName)
	ca, err := pki.LoadCA(cert, key)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w; 'haven pki init' makes a CA, --dir says where it is", err)
	}
	return ca, err
}

func (a *app) pkiInit() *cobra.Command {
	cmd := &cobra.Command{
		Use: "init --cluster NAME", Short: "Make the cluster's certificate authority", Args: cobra.NoArgs,
		Long: `Make the cluster's certificate authority: ca.pem, which every host and operator
needs, and ca.key, which signs certificates. Whoever has ca.key can be any host
and any admin: keep it away from the hosts. The cluster's name is that of the
configuration.`,
		Example: "  haven pki init --cluster prod-a --dir /root/haven-pki",
	}
	p := &pkiFlags{}
	p.add(cmd, pki.DefaultCALifetime)
	name := cmd.Flags().String("cluster", "", "`name` of the cluster (required)")
	must(cmd.MarkFlagRequired("cluster"))
	cmd.RunE = func(*cobra.Command, []string) error {
		life, err := p.lifetime()
		if err != nil {
			return err
		}
		ca, err := pki.NewCA(*name, life)
		if err != nil {
			return err
		}
		return a.savePair(p, caName, ca.Pair())
	}
	return cmd
}

func (a *app) pkiHost() *cobra.Command {
	cmd := &cobra.Command{
		Use: "host NAME[=ADDRESS[,ADDRESS]]...", Short: "Make the certificates of hosts",
		Long: `Make the certificate and key of each host named. Haven knows a host by its name
alone; the addresses are for others that ask the helper over HTTPS. Without one
they come from the hosts section of the configuration, if there is one here.
--all makes those of all hosts of the configuration.`,
		Example: "  haven pki host kvm-01=10.0.0.11 kvm-02=10.0.0.12\n  haven pki host --all --config ./haven.yaml",
	}
	p := &pkiFlags{}
	p.add(cmd, pki.DefaultHostLifetime)
	all := cmd.Flags().Bool("all", false, "all hosts of the configuration")
	cmd.Args = func(_ *cobra.Command, args []string) error {
		if *all == (len(args) > 0) {
			return usagef("name the hosts, or say --all")
		}
		return nil
	}
	cmd.RunE = func(_ *cobra.Command, args []string) error {
		life, err := p.lifetime()
		if err != nil {
			return err
		}
		hosts, err := a.hostsToIssue(args)
		if err != nil {
			return err
		}
		ca, err := p.loadCA()
		if err != nil {
			return err
		}
		for _, h := range hosts {
			if err := p.free(string(h.id)); err != nil {
				return err // before any is made
			}
		}
		for _, h := range hosts {
			pair, err := ca.IssueHost(h.id, h.addrs, life)
			if err != nil {
				return err
			}
			if err := a.savePair(p, string(h.id), pair); err != nil {
				return err
			}
		}
		return nil
	}
	return cmd
}

type namedHost struct {
	id    haven.HostID
	addrs []netip.Addr
}

func (a *app) hostsToIssue(args []string) ([]namedHost, error) {
	c := a.readConfig()
	if len(args) == 0 {
		if c == nil {
			return nil, fmt.Errorf("--all: no usable configuration at %s", a.configPath)
		}
		for _, id := range c.HostIDs() {
			args = append(args, string(id))
		}
	}
	var hosts []namedHost
	for _, arg := range args {
		name, list, given := strings.Cut(arg, "=")
		id, err := haven.ParseHostID(name)
		if err != nil {
			return nil, usageError{err}
		}
		h := namedHost{id: id}
		conf, known := configured(c, id)
		switch {
		case given:
			for text := range strings.SplitSeq(list, ",") {
				ip, err := netip.ParseAddr(text)
				if err != nil {
					return nil, usagef("%s: %w", arg, err)
				}
				h.addrs = append(h.addrs, ip)
			}
		case known:
			h.addrs = []netip.Addr{conf.Address}
		default:
			a.warnf("no address is known of %s: its certificate names none (NAME=ADDRESS gives one)", id)
		}
		hosts = append(hosts, h)
	}
	return hosts, nil
}

func (a *app) pkiClient() *cobra.Command {
	cmd := &cobra.Command{
		Use: "client NAME --role ROLE", Short: "Make the certificate of an operator", Args: cobra.ExactArgs(1),
		Long: `Make the certificate and key of an operator. A viewer may look; an operator may
also arm, disarm and confirm that a host is off; an admin may do everything. The
name stands in the record of what was done.`,
		Example: "  haven pki client maria --role operator",
	}
	p := &pkiFlags{}
	p.add(cmd, pki.DefaultOperatorLifetime)
	role := cmd.Flags().String("role", "", "viewer, operator or admin (required)")
	must(cmd.MarkFlagRequired("role"))
	must(cmd.RegisterFlagCompletionFunc("role", cobra.FixedCompletions([]string{"viewer", "operator", "admin"}, cobra.ShellCompDirectiveNoFileComp)))
	cmd.RunE = func(_ *cobra.Command, args []string) error {
		life, err := p.lifetime()
		if err != nil {
			return err
		}
		r, err := pki.ParseRole(*role)
		if err != nil {
			return usageError{err}
		}
		ca, err := p.loadCA()
		if err != nil {
			return err
		}
		pair, err := ca.IssueOperator(args[0], r, life)
		if err != nil {
			return usageError{err}
		}
		return a.savePair(p, args[0], pair)
	}
	return cmd
}

// free says whether files of that name may be written. Whatever --replace says,
// the CA's are not those of a host, and a certificate is replaced by one of the
// same kind for the same subject only.
func (p *pkiFlags) free(name string) error {
	cert, key := p.paths(name)
	if !p.replace {
		for _, path := range []string{cert, key} {
			if _, err := os.Lstat(path); err == nil {
				return fmt.Errorf("%s is there already; --replace overwrites it", path)
			}
		}
	}
	return nil
}

func (a *app) savePair(p *pkiFlags, name string, pair pki.Pair) error {
	if err := p.free(name); err != nil {
		return err
	}
	cert, key := p.paths(name)
	infos, err := pki.Show(pair.Cert)
	if err != nil {
		return err
	}
	if err := sameSubject(cert, infos[0]); err != nil {
		return err
	}
	if err := pki.SavePair(pair, cert, key, p.replace); err != nil {
		return err
	}
	if a.json() {
		return a.printJSON(infos[0])
	}
	a.printf("%s %s: %s and %s, %s\n", infos[0].Kind, infos[0].Subject, cert, key, infos[0].Expiry(a.Now()))
	return nil
}

// sameSubject refuses to replace a certificate of another kind or subject, such as
// the CA's by that of a host named ca.
func sameSubject(path string, with pki.Info) error {
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("look at %s: %w", path, err)
	}
	old, err := pki.Show(data)
	if err != nil {
		return fmt.Errorf("%s is not a certificate of Haven, it is left alone: %w", path, err)
	}
	if o := old[0]; o.Kind != with.Kind || o.Subject != with.Subject || o.Cluster != with.Cluster {
		return fmt.Errorf("%s is of %s %s of cluster %s: it is not replaced by one of %s %s of cluster %s",
			path, o.Kind, o.Subject, o.Cluster, with.Kind, with.Subject, with.Cluster)
	}
	return nil
}

func (a *app) pkiShow() *cobra.Command {
	return &cobra.Command{
		Use: "show FILE...", Short: "Show the certificates in files", Args: cobra.MinimumNArgs(1),
		Example: "  haven pki show /etc/haven/host.pem\n  haven pki show *.pem -o json",
		RunE: func(_ *cobra.Command, args []string) error {
			all := []pki.Info{}
			for _, path := range args {
				data, err := os.ReadFile(path)
				if err != nil {
					return fmt.Errorf("read certificates: %w", err)
				}
				infos, err := pki.Show(data)
				if err != nil {
					return fmt.Errorf("%s: %w", path, err)
				}
				all = append(all, infos...)
			}
			if a.json() {
				return a.printJSON(all)
			}
			for i, info := range all {
				if i > 0 {
					a.printf("\n")
				}
				a.printf("%s\n  %s\n", clean(info.String()), info.Expiry(a.Now()))
			}
			return nil
		},
	}
}
