package agent

import (
	"cmp"
	"crypto/x509"
	"fmt"
	"log/slog"
	"math"
	"net"
	"strconv"
	"sync"
	"time"

	"github.com/haven-ha/haven"
	"github.com/haven-ha/haven/internal/config"
	"github.com/haven-ha/haven/internal/netx"
	"github.com/haven-ha/haven/internal/notify"
	"github.com/haven-ha/haven/internal/notify/email"
	"github.com/haven-ha/haven/internal/notify/snmp"
	"github.com/haven-ha/haven/internal/notify/webhook"
	"github.com/haven-ha/haven/internal/obs"
	"github.com/haven-ha/haven/internal/pki"
)

// NewNotifier makes the notifier that the configuration describes; nil when it
// describes no target. The network is that of the agent, but for SNMP's, which is
// the machine's own.
func NewNotifier(cfg *config.Config, host haven.HostID, inc haven.Incarnation, stack netx.Stack, secrets *config.Secrets, m *obs.Metrics, log *slog.Logger) (Notifier, error) {
	n := cfg.Notify
	limits := notify.DefaultLimits()
	limits.PerMinute, limits.Pending, limits.Remind = n.PerMinute, n.Queue, n.RemindEvery
	b := targetBuilder{cfg: cfg, host: host, inc: inc, stack: stack, secrets: secrets, log: log, started: time.Now()}
	var targets []notify.Target
	add := func(name, kind, least string, s notify.Sender, err error) error {
		if err != nil {
			return fmt.Errorf("notification target %s: %w", name, err)
		}
		severity, _ := notify.ParseSeverity(cmp.Or(least, n.MinSeverity))
		targets = append(targets, notify.Target{Name: name, Type: kind, Least: severity, Sender: s})
		return nil
	}
	for _, e := range n.Email {
		s, err := b.email(e)
		if err := add(e.Name, "email", e.MinSeverity, s, err); err != nil {
			return nil, err
		}
	}
	for _, p := range n.SNMP {
		s, err := b.snmp(p)
		if err := add(p.Name, "snmp", p.MinSeverity, s, err); err != nil {
			return nil, err
		}
	}
	for _, w := range n.Webhook {
		s, err := b.webhook(w)
		if err := add(w.Name, "webhook", w.MinSeverity, s, err); err != nil {
			return nil, err
		}
	}
	if len(targets) == 0 {
		return nil, nil
	}
	return notify.New(notify.Config{Cluster: cfg.Cluster, Self: host, Targets: targets, Limits: limits, Meter: newNotifyMeter(m), Log: log}), nil
}

type targetBuilder struct {
	cfg     *config.Config
	host    haven.HostID
	inc     haven.Incarnation
	stack   netx.Stack
	secrets *config.Secrets
	log     *slog.Logger
	started time.Time
}

// rereads has the secrets of these files read again after each failure. Empty
// paths are passed over.
func (b targetBuilder) rereads(s notify.Sender, err error, paths ...string) (notify.Sender, error) {
	if err != nil {
		return nil, err
	}
	r := refusable{Sender: s}
	for _, p := range paths {
		if p != "" {
			r.secrets = append(r.secrets, b.secrets.File(p))
		}
	}
	return r, nil
}

// rootsOf is the pool of a CA file; nil for the system's.
func rootsOf(path string) (*x509.CertPool, error) {
	if path == "" {
		return nil, nil
	}
	return pki.Roots(path)
}

func (b targetBuilder) email(e config.Email) (notify.Sender, error) {
	roots, err := rootsOf(e.CAFile)
	if err != nil {
		return nil, err
	}
	body := ""
	if e.BodyFile != "" {
		if body, err = config.LoadMailBody(e.BodyFile); err != nil {
			return nil, err
		}
	}
	c := email.Config{
		Net: b.stack, Addr: net.JoinHostPort(e.Server, strconv.Itoa(e.Port)), ServerName: e.ServerName, Mode: email.Mode(e.TLS), Roots: roots,
		Auth: email.Auth(e.Auth), Username: e.Username, Self: string(b.host), From: e.From, To: e.To, Subject: e.Subject, Body: body, Log: b.log,
	}
	if e.Username != "" {
		c.Password = b.secrets.File(e.PasswordFile).Text
	}
	s, err := email.New(c)
	return b.rereads(s, err, e.PasswordFile)
}

func (b targetBuilder) snmp(p config.SNMP) (notify.Sender, error) {
	c := snmp.Config{
		Addr: net.JoinHostPort(p.Address, strconv.Itoa(p.Port)), Version: snmp.Version(p.Version), Inform: p.Inform,
		Username: p.Username, Auth: p.Auth, Privacy: p.Privacy,
		Host: b.host, Boots: uint32(min(uint64(b.inc), math.MaxInt32)), Started: b.started,
	}
	var paths []string
	if c.Version == snmp.V3 {
		c.AuthSecret, c.PrivacyPass = b.secrets.File(p.AuthPasswordFile).Text, b.secrets.File(p.PrivacyPasswordFile).Text
		paths = []string{p.AuthPasswordFile, p.PrivacyPasswordFile}
	} else {
		c.Community = b.secrets.File(p.CommunityFile).Text
		paths = []string{p.CommunityFile}
	}
	s, err := snmp.New(c)
	return b.rereads(s, err, paths...)
}

func (b targetBuilder) webhook(w config.Webhook) (notify.Sender, error) {
	roots, err := rootsOf(w.CAFile)
	if err != nil {
		return nil, err
	}
	c := webhook.Config{Net: b.stack, Roots: roots, URL: func() (string, error) { return w.URL, nil }}
	if w.URLFile != "" {
		c.URL = b.secrets.File(w.URLFile).Text
	}
	if w.SecretFile != "" {
		c.Secret = b.secrets.File(w.SecretFile).Text
	}
	return b.rereads(webhook.New(c), nil, w.URLFile, w.SecretFile)
}

// notifyMeter counts what becomes of notifications, by target.
type notifyMeter struct {
	sent, failed, dropped *obs.Counter
	queued                *obs.Gauge

	mu   sync.Mutex
	lost map[string]uint64
}

func newNotifyMeter(m *obs.Metrics) *notifyMeter {
	return &notifyMeter{
		sent:    m.Counter("notifications_sent_total", "Notifications that a target took, by target.", "target"),
		failed:  m.Counter("notifications_failed_total", "Attempts to notify that failed, by target.", "target"),
		dropped: m.Counter("notifications_dropped_total", "Events that were dropped and never sent, by target.", "target"),
		queued:  m.Gauge("notifications_queued", "Events that wait to be sent, by target.", "target"),
		lost:    map[string]uint64{},
	}
}

func (n *notifyMeter) Sent(target string)   { n.sent.Inc(target) }
func (n *notifyMeter) Failed(target string) { n.failed.Inc(target) }

func (n *notifyMeter) Queued(target string, waiting int, dropped uint64) {
	n.queued.Set(float64(waiting), target)
	n.mu.Lock()
	defer n.mu.Unlock()
	n.dropped.Add(float64(dropped-n.lost[target]), target)
	n.lost[target] = dropped
}
