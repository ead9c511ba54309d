// Package email sends notifications as mail, to one server that passes them on.
package email

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/smtp"
	"net/textproto"
	"slices"
	"strings"
	"text/template"
	"time"

	"github.com/haven-ha/haven/internal/notify"
	"github.com/haven-ha/haven/internal/redact"
)

// Dialer opens connections; netx.Stack is one.
type Dialer interface {
	DialContext(ctx context.Context, network, addr string) (net.Conn, error)
}

// Mode says how the connection is protected.
type Mode string

// The modes.
const (
	StartTLS Mode = "starttls" // a plain connection that must become TLS before anything is sent
	TLS      Mode = "tls"      // TLS from the beginning
	Plain    Mode = "none"     // no protection; no password is ever sent
)

// Auth is how the user name and password are told.
type Auth string

// The ways to authenticate.
const (
	AuthAuto  Auth = "auto" // PLAIN when the server offers it, else LOGIN
	AuthPlain Auth = "plain"
	AuthLogin Auth = "login"
)

// Config is one mail server.
type Config struct {
	Net  Dialer
	Addr string // host:port
	// ServerName is what the server's certificate must be for; empty for the host
	// of Addr.
	ServerName string
	Mode       Mode
	Roots      *x509.CertPool // nil for the system's
	Auth       Auth
	Username   string                 // empty: no authentication
	Password   func() (string, error) // read for each mail
	// Self is the name by which this host greets the server.
	Self string
	From string   // a bare address
	To   []string // bare addresses, at least one
	// Subject and Body are text templates over Fields; empty for the defaults.
	Subject, Body string
	Log           *slog.Logger
}

// Sender sends mails. It keeps no connection.
type Sender struct {
	cfg           Config
	host          string
	subject, body *template.Template
}

// ErrNoTLS is returned when the connection cannot be protected as configured:
// nothing was sent then.
var ErrNoTLS = errors.New("the server offers no STARTTLS")

// New checks the configuration. It does not connect.
func New(cfg Config) (*Sender, error) {
	host, _, err := net.SplitHostPort(cfg.Addr)
	if err != nil {
		return nil, fmt.Errorf("mail server: %w", err)
	}
	switch {
	case cfg.Username != "" && cfg.Mode == Plain:
		return nil, errors.New("a password is not sent without TLS")
	case cfg.Username != "" && cfg.Password == nil:
		return nil, errors.New("a user name needs a password")
	case len(cfg.To) == 0:
		return nil, errors.New("nobody to write to")
	}
	for _, a := range append([]string{cfg.From}, cfg.To...) {
		if !bareAddress(a) {
			return nil, fmt.Errorf("%q is not a mail address", a)
		}
	}
	s := &Sender{cfg: cfg, host: host}
	if s.subject, err = parse("subject", cfg.Subject, defaultSubject); err != nil {
		return nil, err
	}
	if s.body, err = parse("body", cfg.Body, defaultBody); err != nil {
		return nil, err
	}
	if cfg.ServerName != "" {
		s.host = cfg.ServerName
	}
	return s, nil
}

// Send sends one mail to all recipients. It is a success when the server took
// responsibility for at least one of them: sending again would tell those twice.
func (s *Sender) Send(ctx context.Context, m notify.Message) error {
	text, err := s.compose(m)
	if err != nil {
		return &notify.Error{Err: fmt.Errorf("write mail: %w", err), ForGood: true}
	}
	password := ""
	if s.cfg.Username != "" {
		if password, err = s.cfg.Password(); err != nil {
			return fmt.Errorf("read password: %w", err)
		}
	}
	err = s.deliver(ctx, password, text)
	if err != nil && ctx.Err() != nil {
		err = fmt.Errorf("%w (%w)", err, ctx.Err())
	}
	return blotted(err, password)
}

// deliver has one conversation with the server, bounded by the context.
func (s *Sender) deliver(ctx context.Context, password string, text []byte) error {
	conn, err := s.cfg.Net.DialContext(ctx, "tcp", s.cfg.Addr)
	if err != nil {
		return fmt.Errorf("connect: %w", err)
	}
	defer func() { _ = conn.Close() }() // what matters was said before
	if deadline, ok := ctx.Deadline(); ok {
		if err := conn.SetDeadline(deadline); err != nil {
			return fmt.Errorf("connect: %w", err)
		}
	}
	raw := conn // TLS goes around it below.
	defer context.AfterFunc(ctx, func() { _ = raw.SetDeadline(time.Unix(1, 0)) })()
	if s.cfg.Mode == TLS {
		secure := tls.Client(conn, s.tls())
		if err := secure.HandshakeContext(ctx); err != nil {
			return fmt.Errorf("TLS: %w", err)
		}
		conn = secure
	}
	c, err := smtp.NewClient(conn, s.host)
	if err != nil {
		return fmt.Errorf("greeting: %w", err)
	}
	if err := c.Hello(s.cfg.Self); err != nil {
		return fmt.Errorf("EHLO: %w", err)
	}
	if s.cfg.Mode == StartTLS {
		if ok, _ := c.Extension("STARTTLS"); !ok {
			return ErrNoTLS
		}
		if err := c.StartTLS(s.tls()); err != nil {
			return fmt.Errorf("STARTTLS: %w", err)
		}
	}
	if s.cfg.Username != "" {
		if err := s.authenticate(c, password); err != nil {
			return err
		}
	}
	if err := s.envelope(c); err != nil {
		return err
	}
	if err := data(c, text); err != nil {
		return err
	}
	_ = c.Quit() // The server has the mail; how it says good-bye changes nothing.
	return nil
}

func (s *Sender) tls() *tls.Config {
	return &tls.Config{ServerName: s.host, RootCAs: s.cfg.Roots, MinVersion: tls.VersionTLS12}
}

// authenticate gives the password to a server that has proved who it is.
func (s *Sender) authenticate(c *smtp.Client, password string) error {
	if _, secure := c.TLSConnectionState(); !secure {
		return errors.New("authenticate: a password is not sent without TLS")
	}
	_, words := c.Extension("AUTH")
	offered := strings.Fields(strings.ToUpper(words))
	var auth smtp.Auth = plainAuth{s.cfg.Username, password}
	onlyLogin := !slices.Contains(offered, "PLAIN") && slices.Contains(offered, "LOGIN")
	if s.cfg.Auth == AuthLogin || s.cfg.Auth == AuthAuto && onlyLogin {
		auth = &loginAuth{user: s.cfg.Username, password: password}
	}
	if err := c.Auth(auth); err != nil {
		return fmt.Errorf("authenticate as %s: %w", s.cfg.Username, err)
	}
	return nil
}

// envelope says from whom and to whom. A refusal here is about addresses and
// not about this mail: the next one would fare no better, so it is tried again.
func (s *Sender) envelope(c *smtp.Client) error {
	if err := c.Mail(s.cfg.From); err != nil {
		return fmt.Errorf("MAIL FROM %s: %w", s.cfg.From, err)
	}
	var refused []error
	for _, to := range s.cfg.To {
		if err := c.Rcpt(to); err != nil {
			refused = append(refused, fmt.Errorf("RCPT TO %s: %w", to, err))
			if _, answered := errors.AsType[*textproto.Error](err); !answered {
				return errors.Join(refused...) // the connection is lost
			}
		}
	}
	if len(refused) == len(s.cfg.To) {
		return errors.Join(refused...)
	}
	for _, err := range refused {
		s.cfg.Log.Warn("mail server refused a recipient", "error", err)
	}
	return nil
}

func data(c *smtp.Client, text []byte) error {
	w, err := c.Data()
	if err == nil {
		if _, err = w.Write(text); err == nil {
			err = w.Close()
		}
	}
	if err == nil {
		return nil
	}
	answer, _ := errors.AsType[*textproto.Error](err)
	return &notify.Error{Err: fmt.Errorf("DATA: %w", err), ForGood: answer != nil && answer.Code >= 500}
}

// plainAuth is RFC 4616.
type plainAuth struct{ user, password string }

func (a plainAuth) Start(server *smtp.ServerInfo) (string, []byte, error) {
	if !server.TLS {
		return "", nil, errors.New("no TLS")
	}
	return "PLAIN", []byte("\x00" + a.user + "\x00" + a.password), nil
}

func (plainAuth) Next(_ []byte, more bool) ([]byte, error) {
	if more {
		return nil, errors.New("the server asks for more than PLAIN has")
	}
	return nil, nil
}

// loginAuth is what old servers want: user name and password, one after the other.
type loginAuth struct {
	user, password string
	asked          int
}

func (a *loginAuth) Start(server *smtp.ServerInfo) (string, []byte, error) {
	if !server.TLS {
		return "", nil, errors.New("no TLS")
	}
	return "LOGIN", nil, nil
}

func (a *loginAuth) Next(_ []byte, more bool) ([]byte, error) {
	if !more {
		return nil, nil
	}
	a.asked++
	switch a.asked {
	case 1:
		return []byte(a.user), nil
	case 2:
		return []byte(a.password), nil
	}
	return nil, errors.New("the server asks for more than LOGIN has")
}

// blotted takes the password out of an error, in any form in which a server could
// send it back.
func blotted(err error, password string) error {
	if err == nil || password == "" {
		return err
	}
	text := redact.Text(err.Error(), password)
	if text == err.Error() {
		return err
	}
	e, _ := errors.AsType[*notify.Error](err)
	if e == nil {
		e = &notify.Error{}
	}
	return &notify.Error{Err: errors.New(text), After: e.After, ForGood: e.ForGood}
}

// messageID names one mail. The same event gets the same one from whichever
// agent, so that mail systems can drop what they have; a reminder is another mail.
func (s *Sender) messageID(m notify.Message) string {
	return s.id(m.Cluster, m.ID, fmt.Sprint(m.Number))
}

func (s *Sender) id(parts ...string) string {
	sum := sha256.Sum256([]byte(strings.Join(parts, "\x00")))
	return fmt.Sprintf("<haven.%x@%s>", sum[:16], s.cfg.From[strings.LastIndexByte(s.cfg.From, '@')+1:])
}
