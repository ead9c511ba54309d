package config

import (
	"bytes"
	"fmt"
	"io"
	"net/mail"
	"net/netip"
	"net/url"
	"regexp"
	"strings"
	"text/template"
	"time"

	"go.yaml.in/yaml/v4"
)

// Notify says who is told, and how.
type Notify struct {
	MinSeverity string // info, warning or critical
	PerMinute   int
	RemindEvery time.Duration
	Queue       int
	Email       []Email
	SNMP        []SNMP
	Webhook     []Webhook
}

// Email is one mail server, and to whom it is asked to pass mails on.
type Email struct {
	Name         string
	Server       string // name or address
	Port         int
	TLS          string // starttls, tls or none
	ServerName   string
	CAFile       string
	Auth         string // auto, plain or login
	Username     string
	PasswordFile string
	From         string
	To           []string
	Subject      string // template; empty for the default
	BodyFile     string // file with a template; empty for the default
	MinSeverity  string // empty: as of Notify
}

// SNMP is one manager that is sent traps or informs.
type SNMP struct {
	Name                string
	Address             string // name or address
	Port                int
	Version             string // v2c or v3
	Inform              bool
	CommunityFile       string
	Username            string
	Auth                string // sha256, sha384 or sha512
	AuthPasswordFile    string
	Privacy             string // aes128, aes192 or aes256
	PrivacyPasswordFile string
	MinSeverity         string
}

// Webhook is one HTTP server that is sent documents.
type Webhook struct {
	Name        string
	URL         string
	URLFile     string
	SecretFile  string
	CAFile      string
	MinSeverity string
}

// Bounds of what can be configured.
const (
	maxTargets    = 6 // of each kind; each is a goroutine and a queue
	maxRecipients = 20
	maxBodyFile   = 64 << 10
)

func defaultNotify() Notify {
	return Notify{MinSeverity: "info", PerMinute: 10, RemindEvery: time.Hour, Queue: 500}
}

var severities = []string{"info", "warning", "critical"}

func (n *Notify) keys() []field {
	return []field{
		word("min_severity", &n.MinSeverity, severities, nil, "The least severity that is sent. critical: VMs are down, or what protects them is. Targets can have their own."),
		integer("messages_per_minute", &n.PerMinute, 1, 600, "The most messages to one target within any minute. What is more becomes one summary, with counts and the first few."),
		duration("remind_every", &n.RemindEvery, time.Minute, 7*24*time.Hour, "A state that lasts, such as a hold, is told again after this time at the earliest, with the number of times that it came."),
		integer("queue", &n.Queue, 10, 10_000, "The most events that wait for one target. When there are more, the least severe and oldest are dropped, and the next message says how many."),
		list("email", "list of mail servers", "Mail servers that are sent events.", maxTargets, func() ([]field, func()) {
			e := Email{Port: 587, TLS: "starttls", Auth: "auto"}
			return e.keys(), func() { n.Email = append(n.Email, e) }
		}),
		list("snmp", "list of SNMP managers", "SNMP managers that are sent events, as packaging/HAVEN-MIB.txt describes them.", maxTargets, func() ([]field, func()) {
			s := SNMP{Port: 162, Version: "v3", Auth: "sha256", Privacy: "aes128"}
			return s.keys(), func() { n.SNMP = append(n.SNMP, s) }
		}),
		list("webhook", "list of web hooks", "HTTP servers that events are posted to, as JSON.", maxTargets, func() ([]field, func()) {
			var w Webhook
			return w.keys(), func() { n.Webhook = append(n.Webhook, w) }
		}),
	}
}

func ownSeverity(dst *string) field {
	return word("min_severity", dst, severities, nil, "The least severity that is sent to this target. Without it, notify.min_severity.")
}

const targetName = "Name of the target, in the log, in metrics and for \"haven notify test\"."

func (e *Email) keys() []field {
	return []field{
		must(name("name", &e.Name, targetName)),
		must(machine("server", &e.Server, "The mail server.")),
		port(&e.Port, "TCP port. With tls: tls it is mostly 465."),
		word("tls", &e.TLS, []string{"starttls", "tls", "none"}, nil, "starttls: the connection must become TLS before anything is sent; a server that does not offer it is sent nothing. tls: TLS from the beginning. none: no protection, and no password."),
		machine("server_name", &e.ServerName, "What the server's certificate must be for. Without it, server."),
		file("ca_file", &e.CAFile, "Authority that signed the server's certificate, PEM. Without it, those of the system."),
		word("auth", &e.Auth, []string{"auto", "plain", "login"}, nil, "How user name and password are told. auto: PLAIN if the server offers it, else LOGIN."),
		username(&e.Username, "User name at the server. Without it, none is told."),
		secretFile("password_file", &e.PasswordFile, "File with that user's password. Required, if there is a user name."),
		must(mailbox("from", &e.From, "Address of the sender.")),
		must(mailboxes("to", &e.To, maxRecipients, "Addresses of the recipients.")),
		line("subject", &e.Subject, "Template of the subject (Go's text/template). "+fieldsDoc),
		file("body_file", &e.BodyFile, "File with a template of the text. Its fields are those of subject."),
		ownSeverity(&e.MinSeverity),
	}
}

func (s *SNMP) keys() []field {
	return []field{
		must(name("name", &s.Name, targetName)),
		must(machine("address", &s.Address, "The manager.")),
		port(&s.Port, "UDP port."),
		word("version", &s.Version, []string{"v2c", "v3"}, nil, "Version of the protocol. v3 is sent with authentication and privacy only."),
		boolean("inform", &s.Inform, "Send informs, which the manager acknowledges and which are repeated until it does. Traps are sent once, and may be lost."),
		secretFile("community_file", &s.CommunityFile, "File with the community. Required of v2c; it crosses the network in the clear."),
		username(&s.Username, "User name. Required of v3."),
		word("auth", &s.Auth, []string{"sha256", "sha384", "sha512"}, nil, "Authentication of v3 (RFC 7860)."),
		secretFile("auth_password_file", &s.AuthPasswordFile, "File with the password of the authentication, at least 8 characters. Required of v3."),
		word("privacy", &s.Privacy, []string{"aes128", "aes192", "aes256"}, nil, "Encryption of v3. Only aes128 is a standard (RFC 3826); the longer ones are as most managers have them."),
		secretFile("privacy_password_file", &s.PrivacyPasswordFile, "File with the password of the encryption, at least 8 characters. Required of v3."),
		ownSeverity(&s.MinSeverity),
	}
}

func (w *Webhook) keys() []field {
	return []field{
		must(name("name", &w.Name, targetName)),
		link("url", &w.URL, "Where events are posted to. This, or url_file."),
		secretFile("url_file", &w.URLFile, "File with the URL, for one that holds a secret."),
		secretFile("secret_file", &w.SecretFile, "File with the key of the signature (HMAC-SHA256). Without it, nothing is signed."),
		file("ca_file", &w.CAFile, "Authority that signed the server's certificate, PEM. Without it, those of the system."),
		ownSeverity(&w.MinSeverity),
	}
}

// machinePattern is a name of DNS.
var machinePattern = regexp.MustCompile(`^[a-zA-Z0-9_]([a-zA-Z0-9_.-]{0,251}[a-zA-Z0-9])?$`)

// machine is a name or an address. Names are looked up when something is sent:
// what waits for a name server there holds up nothing else.
func machine(key string, dst *string, doc string) field {
	return field{
		name: key, kind: "name or IP address", limits: "without port", preset: *dst, doc: doc,
		set: func(d *decoder, path string, n *yaml.Node) {
			text, ok := d.scalar(path, n)
			if !ok {
				return
			}
			if _, err := netip.ParseAddr(text); err != nil && !machinePattern.MatchString(text) {
				d.bad(n, path, "is neither a name nor an address", "write it without port and brackets, such as mail.example.org or 10.0.0.25")
				return
			}
			*dst = text
		},
	}
}

func mailbox(key string, dst *string, doc string) field {
	return field{
		name: key, kind: "mail address", limits: "ASCII, without a name beside it", preset: *dst, doc: doc,
		set: func(d *decoder, path string, n *yaml.Node) {
			text, ok := d.scalar(path, n)
			if !ok {
				return
			}
			a, err := mail.ParseAddress(text)
			if err != nil || a.Name != "" || a.Address != text || len(text) > 254 || strings.ContainsFunc(text, func(r rune) bool { return r <= ' ' || r > '~' || strings.ContainsRune(`<>"`, r) }) {
				d.bad(n, path, "is not a mail address", "write the bare address, such as ops@example.org")
				return
			}
			*dst = text
		},
	}
}

func mailboxes(key string, dst *[]string, most int, doc string) field {
	return field{
		name: key, kind: "list of mail addresses", limits: fmt.Sprintf("1 to %d", most), doc: doc,
		set: func(d *decoder, path string, n *yaml.Node) {
			if !d.isKind(path, n, yaml.SequenceNode, "a list of mail addresses", "write it as [ops@example.org]") {
				return
			}
			if len(n.Content) == 0 || len(n.Content) > most {
				d.bad(n, path, fmt.Sprintf("has %d entries", len(n.Content)), fmt.Sprintf("name 1 to %d", most))
				return
			}
			all := make([]string, len(n.Content))
			for i, item := range n.Content {
				at := fmt.Sprintf("%s.%d", path, i)
				d.src.at[at] = pos{item.Line, item.Column}
				mailbox(key, &all[i], doc).set(d, at, item)
			}
			*dst = all
		},
	}
}

// link is a URL without anything in it that looks like a secret; the value is not
// repeated in messages all the same.
func link(key string, dst *string, doc string) field {
	return field{
		name: key, kind: "URL", limits: "https:// or http://, without user name and query", doc: doc,
		set: func(d *decoder, path string, n *yaml.Node) {
			text, ok := d.scalar(path, n)
			if !ok {
				return
			}
			u, err := url.Parse(text)
			switch {
			case err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Hostname() == "" || u.Fragment != "":
				d.bad(n, path, "is not a URL", "begin it with https:// or http:// and a name or address")
			case u.User != nil || u.RawQuery != "" || u.ForceQuery:
				d.bad(n, path, "may hold a secret", "put the URL into a file that only root can read, and name the file in url_file")
			default:
				*dst = text
			}
		},
	}
}

// MailFields are the fields that templates of mails may use. Each is a text.
func MailFields() []string {
	return []string{"Cluster", "Severity", "Kind", "Host", "VM", "Incident", "Text", "Do", "Time", "By", "ID", "Reminder", "Count", "Dropped", "Summary"}
}

const fieldsDoc = "Fields are .Cluster, .Severity, .Kind, .Host, .VM, .Incident, .Text, .Do (what to do), .Time, .By, .ID, .Reminder, .Count, .Dropped and .Summary; each is a text, and empty for nothing."

// CheckMailTemplate says what is wrong with a template, or nothing.
func CheckMailTemplate(text string) error {
	t, err := template.New("template").Option("missingkey=error").Parse(text)
	if err == nil {
		fields := map[string]string{}
		for _, f := range MailFields() {
			fields[f] = ""
		}
		err = t.Execute(&bytes.Buffer{}, fields)
	}
	if err == nil {
		return nil
	}
	return fmt.Errorf("broken template: %s", strings.TrimPrefix(err.Error(), "template: "))
}

// LoadMailBody reads and checks the file with a template of a mail's text.
func LoadMailBody(path string) (string, error) {
	f, _, err := openRegular(path)
	if err != nil {
		return "", err
	}
	defer func() { _ = f.Close() }() // opened for reading
	data, err := io.ReadAll(io.LimitReader(f, maxBodyFile+1))
	if err != nil {
		return "", fmt.Errorf("read %s: %w", path, err)
	}
	if len(data) > maxBodyFile {
		return "", fmt.Errorf("%s is larger than 64 KiB", path)
	}
	if err := CheckMailTemplate(string(data)); err != nil {
		return "", fmt.Errorf("%s: %w", path, err)
	}
	return string(data), nil
}

// notify checks that every target has what it needs.
func (k *checker) notify() {
	names := map[string]bool{}
	named := func(key, name string) {
		if name != "" && names[name] {
			k.wrong(fmt.Sprintf("another target is called %q", name), "give each a name of its own, whatever its kind", key+".name")
		}
		names[name] = true
	}
	need := func(key, name, value, why string) {
		if value == "" && !k.given(key+"."+name) {
			k.wrong("is missing", "add it"+why, key+"."+name, key)
		}
	}
	for i, e := range k.c.Notify.Email {
		key := fmt.Sprintf("notify.email.%d", i)
		named(key, e.Name)
		if err := CheckMailTemplate(e.Subject); err != nil {
			k.wrong(err.Error(), "mend it. "+fieldsDoc, key+".subject")
		}
		switch {
		case e.TLS == "none" && e.Username != "":
			k.wrong("a password is not sent without TLS", "remove username, or write starttls", key+".tls", key+".username")
		case e.TLS == "none":
			k.warn("mails cross the network in the clear, and nothing proves whose server takes them", "write starttls, if the server can", key+".tls")
		}
		if e.Username != "" {
			need(key, "password_file", e.PasswordFile, ", or remove username")
		} else if e.PasswordFile != "" {
			k.wrong("means nothing without a user name", "add username, or remove it", key+".password_file")
		}
	}
	for i, s := range k.c.Notify.SNMP {
		key := fmt.Sprintf("notify.snmp.%d", i)
		named(key, s.Name)
		k.snmp(key, s, need)
	}
	for i, w := range k.c.Notify.Webhook {
		key := fmt.Sprintf("notify.webhook.%d", i)
		named(key, w.Name)
		switch {
		case w.URL == "" && w.URLFile == "" && !k.given(key+".url") && !k.given(key+".url_file"):
			k.wrong("is missing", "add it, or url_file", key+".url", key)
		case w.URL != "" && w.URLFile != "":
			k.wrong("is there beside url_file", "keep one of the two", key+".url")
		case strings.HasPrefix(w.URL, "http:"):
			k.warn("events cross the network in the clear", "use https, if the server can", key+".url")
		}
	}
}

// snmp checks what belongs to the version of the protocol.
func (k *checker) snmp(key string, s SNMP, need func(key, name, value, why string)) {
	for _, part := range []struct{ name, value, version string }{
		{"community_file", s.CommunityFile, "v2c"},
		{"username", s.Username, "v3"},
		{"auth_password_file", s.AuthPasswordFile, "v3"},
		{"privacy_password_file", s.PrivacyPasswordFile, "v3"},
	} {
		switch {
		case part.version == s.Version:
			need(key, part.name, part.value, ": version "+s.Version+" needs it")
		case part.value != "":
			k.wrong("means nothing with version "+s.Version, "remove it, or write version: "+part.version, key+"."+part.name)
		}
	}
	if s.Version == "v2c" {
		k.warn("v2c proves nothing and hides nothing: whoever listens can read events and send others", "use v3, if the manager can", key+".version")
	}
}

// files lists the files that targets name.
func (n *Notify) files(add func(path string, kind fileKind, keys ...string)) {
	for i, e := range n.Email {
		key := fmt.Sprintf("notify.email.%d.", i)
		add(e.CAFile, public, key+"ca_file")
		add(e.PasswordFile, secretLine, key+"password_file")
		add(e.BodyFile, mailBody, key+"body_file")
	}
	for i, s := range n.SNMP {
		key := fmt.Sprintf("notify.snmp.%d.", i)
		add(s.CommunityFile, secretLine, key+"community_file")
		add(s.AuthPasswordFile, secretLine, key+"auth_password_file")
		add(s.PrivacyPasswordFile, secretLine, key+"privacy_password_file")
	}
	for i, w := range n.Webhook {
		key := fmt.Sprintf("notify.webhook.%d.", i)
		add(w.URLFile, secretLine, key+"url_file")
		add(w.SecretFile, secretLine, key+"secret_file")
		add(w.CAFile, public, key+"ca_file")
	}
}
