package config

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

const targets = `
notify:
  min_severity: warning
  messages_per_minute: 5
  remind_every: 2h
  email: [{name: ops, server: mail.example.org, username: haven, password_file: /etc/haven/mail.password, from: haven@example.org, to: [ops@example.org, night@example.org], subject: "{{.Host}}"}]
  snmp:
    - {name: nms, address: 10.0.0.30, username: haven, auth_password_file: /etc/haven/snmp.auth, privacy_password_file: /etc/haven/snmp.priv, inform: true, min_severity: critical}
    - {name: old, address: "fd00::30", version: v2c, community_file: /etc/haven/community}
  webhook: [{name: chat, url_file: /etc/haven/chat.url, secret_file: /etc/haven/chat.key}]
`

func TestNotifyTargets(t *testing.T) {
	c, err := Parse("haven.yaml", []byte(small+targets))
	if err != nil {
		t.Fatal(err)
	}
	n := c.Notify
	if n.MinSeverity != "warning" || n.PerMinute != 5 || n.RemindEvery != 2*time.Hour || n.Queue != 500 {
		t.Errorf("%+v", n)
	}
	if e := n.Email[0]; e.Port != 587 || e.TLS != "starttls" || e.Auth != "auto" || !slices.Equal(e.To, []string{"ops@example.org", "night@example.org"}) {
		t.Errorf("%+v", e)
	}
	if s := n.SNMP[0]; s.Version != "v3" || s.Auth != "sha256" || s.Privacy != "aes128" || !s.Inform || s.Port != 162 || s.MinSeverity != "critical" {
		t.Errorf("%+v", s)
	}
	if s := n.SNMP[1]; s.Version != "v2c" || s.Inform || s.Address != "fd00::30" {
		t.Errorf("%+v", s)
	}
	if n.Webhook[0].URLFile != "/etc/haven/chat.url" {
		t.Errorf("%+v", n.Webhook[0])
	}
	var v2c bool
	for _, w := range c.Warnings {
		v2c = v2c || w.Key == "notify.snmp.1.version"
	}
	if !v2c {
		t.Errorf("nobody warns of v2c: %v", c.Warnings)
	}
	var named []string
	for _, f := range c.files() {
		if strings.HasPrefix(f.keys[0], "notify.") {
			named = append(named, f.path)
		}
	}
	if want := []string{"/etc/haven/mail.password", "/etc/haven/snmp.auth", "/etc/haven/snmp.priv", "/etc/haven/community", "/etc/haven/chat.url", "/etc/haven/chat.key"}; !slices.Equal(named, want) {
		t.Errorf("looked at: %v", named)
	}
}

// A broken template in a file is found by havend --check, with the place of the
// key and the line in the file.
func TestMailBodyFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "body")
	for text, want := range map[string]string{
		"{{.Text}}\n": "", "one\n{{.Hots}}\n": `2:2: executing "template" at <.Hots>`, "{{if .Host}}": "unexpected EOF", strings.Repeat("x", maxBodyFile+1): "larger than 64 KiB",
	} {
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		c, err := Parse("haven.yaml", []byte(small+strings.Replace(targets, `subject: "{{.Host}}"`, "body_file: "+path, 1)))
		if err != nil {
			t.Fatal(err)
		}
		problems, _ := c.CheckFiles()
		found := ""
		for _, p := range problems {
			if p.Key == "notify.email.0.body_file" && p.Line > 0 {
				found = p.Message
			}
		}
		if (want == "") != (found == "") || !strings.Contains(found, want) {
			t.Errorf("%.20q: %q, want %q", text, found, want)
		}
	}
}
