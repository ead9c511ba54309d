package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/haven-ha/haven"
	"github.com/haven-ha/haven/internal/client"
	"github.com/haven-ha/haven/internal/config"
	"github.com/haven-ha/haven/internal/netx"
	"github.com/haven-ha/haven/internal/pki"
	"github.com/haven-ha/haven/internal/tlsmux"
)

// defaultTimeout is a little more than an agent takes at most for an answer.
const defaultTimeout = 20 * time.Second

// target says which agent a verb talks to.
type target struct {
	a             *app
	socket        string
	server        string
	ca, cert, key string
	timeout       time.Duration
}

// target gives a verb the flags that say which agent it talks to.
func (a *app) target(cmd *cobra.Command) *target {
	t := &target{a: a}
	f := cmd.Flags()
	f.StringVar(&t.socket, "socket", a.env("HAVEN_SOCKET", ""), "local `socket` of the agent (default: api.socket of the configuration)")
	f.StringVar(&t.server, "server", a.env("HAVEN_SERVER", ""), "talk to this `host` instead: NAME, NAME:PORT or NAME@ADDRESS[:PORT]")
	f.StringVar(&t.ca, "ca", a.env("HAVEN_CA", ""), "with --server: the cluster's CA `certificate`")
	f.StringVar(&t.cert, "cert", a.env("HAVEN_CERT", ""), "with --server: your `certificate`")
	f.StringVar(&t.key, "key", a.env("HAVEN_KEY", ""), "with --server: your `key`")
	f.DurationVar(&t.timeout, "timeout", defaultTimeout, "give up after this `time`")
	return t
}

// session is one conversation with one agent, within the timeout.
type session struct {
	ctx    context.Context
	cancel context.CancelFunc
	client *client.Client
	host   haven.HostID // for messages when local
	local  string       // path of the socket; empty when remote
	idle   func()
}

func (s *session) close() {
	s.cancel()
	s.idle()
}

// dial prepares the conversation; nothing is sent yet.
func (t *target) dial(ctx context.Context) (*session, error) {
	if t.timeout <= 0 {
		return nil, usagef("--timeout %s: want more than nothing", t.timeout)
	}
	s := &session{}
	if err := t.choose(s); err != nil {
		return nil, err
	}
	s.ctx, s.cancel = context.WithTimeout(ctx, t.timeout)
	return s, nil
}

func (t *target) choose(s *session) error {
	if t.server != "" && t.socket != "" && t.socket != t.a.Getenv("HAVEN_SOCKET") {
		return usagef("--server and --socket exclude each other")
	}
	if t.server != "" {
		return t.remote(s)
	}
	s.local = t.socket
	if s.local == "" {
		s.local = config.Default(config.ProfileNormal).API.Socket
		if c := t.a.readConfig(); c != nil && c.API.Socket != "" {
			s.local = c.API.Socket
		}
	}
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return netx.Real{}.DialContext(ctx, "unix", s.local)
	}}
	s.client, s.host, s.idle = client.NewAt(transport, "http://local"), "this host", transport.CloseIdleConnections
	return nil
}

// remote connects with the operator's certificate. The cluster is the one that
// the certificate is for, and the server must prove to be the host that is named.
func (t *target) remote(s *session) error {
	host, addr, err := t.a.parseServer(t.server)
	if err != nil {
		return err
	}
	if t.ca == "" || t.cert == "" || t.key == "" {
		return usagef("--server needs --ca, --cert and --key; 'haven pki client' makes a certificate")
	}
	ca, err := os.ReadFile(t.ca)
	if err != nil {
		return fmt.Errorf("read CA: %w", err)
	}
	pair, err := pki.LoadPair(t.cert, t.key)
	if err != nil {
		return err
	}
	infos, err := pki.Show(pair.Cert)
	if err != nil || len(infos) == 0 {
		return fmt.Errorf("read %s: %w", t.cert, errors.Join(err, pki.ErrNoIdentity))
	}
	creds, err := pki.NewCredentials(infos[0].Cluster, ca, pair)
	if err != nil {
		return err
	}
	transport := tlsmux.NewTransport(netx.Real{}, creds, func(haven.HostID) (string, bool) { return addr, true })
	s.client, s.host, s.idle = client.New(transport), host, transport.CloseIdleConnections
	return nil
}

// parseServer tells the host's name, which its certificate must bear, and where it
// is: as given, else as the configuration says, else under its name.
func (a *app) parseServer(server string) (haven.HostID, string, error) {
	c := a.readConfig()
	port := config.Default(config.ProfileNormal).API.Port
	if c != nil {
		port = c.API.Port
	}
	name, addr, at := strings.Cut(server, "@")
	if !at {
		addr = name
	}
	if h, p, err := net.SplitHostPort(addr); err == nil {
		n, err := strconv.ParseUint(p, 10, 16)
		if err != nil || n == 0 {
			return "", "", usagef("--server %s: port %q is not 1 to 65535", server, p)
		}
		addr, port = h, int(n)
	}
	addr = strings.Trim(addr, "[]")
	if !at {
		name = addr
	}
	if ip, err := netip.ParseAddr(name); err == nil {
		if name = hostAt(c, ip); name == "" {
			return "", "", usagef("--server %s: an address alone does not say which host to expect there: NAME@%s", server, server)
		}
	}
	host, err := haven.ParseHostID(name)
	if err != nil {
		return "", "", usagef("--server %s: %w", server, err)
	}
	if conf, ok := configured(c, host); ok && !at {
		addr = conf.Address.String()
	}
	return host, net.JoinHostPort(addr, strconv.Itoa(port)), nil
}

func configured(c *config.Config, host haven.HostID) (config.Host, bool) {
	if c == nil {
		return config.Host{}, false
	}
	return c.Host(host)
}

func hostAt(c *config.Config, ip netip.Addr) string {
	if c != nil {
		for id, h := range c.Hosts {
			if h.Address == ip {
				return string(id)
			}
		}
	}
	return ""
}

// get reads one document of the API.
func (s *session) get(path string) (json.RawMessage, error) {
	var doc json.RawMessage
	if err := s.client.Get(s.ctx, s.host, path, &doc); err != nil {
		return nil, s.explain(err)
	}
	return doc, nil
}

// post asks for an act.
func (s *session) post(path string, act any) (json.RawMessage, error) {
	var doc json.RawMessage
	if err := s.client.Post(s.ctx, s.host, path, act, &doc); err != nil {
		_, answered := errors.AsType[*client.Error](err)
		op, _ := errors.AsType[*net.OpError](err)
		if sent := op == nil || op.Op != "dial"; sent && !answered {
			return nil, exitError{ExitUnreachable, fmt.Errorf("whether it was done is not known, look before you ask again: %w", s.explain(err))}
		}
		return nil, s.explain(err)
	}
	return doc, nil
}

// explain says what an error means for the operator, and gives it its exit code.
func (s *session) explain(err error) error {
	if answer, ok := errors.AsType[*client.Error](err); ok {
		switch answer.Status {
		case http.StatusUnauthorized, http.StatusForbidden, http.StatusConflict, http.StatusPreconditionFailed:
			return exitError{ExitRefused, answer}
		case http.StatusServiceUnavailable, http.StatusMisdirectedRequest:
			return exitError{ExitUnreachable, answer}
		}
		return answer
	}
	if _, bad := errors.AsType[*json.SyntaxError](err); bad {
		return fmt.Errorf("what answers is no agent: %w", err)
	}
	why := "no agent answered"
	switch {
	case s.local != "" && (errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED)):
		why = "the agent on this host does not run (nothing listens at " + s.local + "); start havend, or name another host with --server"
	case s.local != "" && errors.Is(err, fs.ErrPermission):
		why = "only root may talk to the agent on this host: use sudo, or --server with a certificate"
	case errors.Is(err, context.DeadlineExceeded):
		why = "no agent answered in time"
	case errors.Is(err, pki.ErrWrongIdentity):
		why = "somebody else than the host named by --server answered"
	}
	return exitError{ExitUnreachable, fmt.Errorf("%s: %w", why, err)}
}
