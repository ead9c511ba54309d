package email

import (
	"bytes"
	"fmt"
	"mime"
	"mime/quotedprintable"
	"net/mail"
	"strings"
	"text/template"
	"time"

	"github.com/haven-ha/haven/internal/notify"
)

const (
	defaultSubject = `[{{.Cluster}}] {{.Severity}}: {{.Kind}}{{if .Host}} {{.Host}}{{end}}{{if .Reminder}} (reminder){{end}}`
	defaultBody    = `{{.Text}}
{{if .Do}}
What to do:
  {{.Do}}
{{end}}{{if .Summary}}
{{.Summary}}{{end}}
Cluster:  {{.Cluster}}
Event:    {{.Kind}} ({{.Severity}})
{{- if .Host}}
Host:     {{.Host}}{{end}}
{{- if .VM}}
VM:       {{.VM}}{{end}}
{{- if .Incident}}
Incident: {{.Incident}}{{end}}
Time:     {{.Time}}
Told by:  {{.By}}
{{- if .Count}}
Count:    told {{.Count}} times since the last mail{{end}}
{{- if .Dropped}}
Dropped:  {{.Dropped}} less urgent or older events were not sent{{end}}
Id:       {{.ID}}
`
)

// Fields are what templates may use. All are text, empty for nothing.
func Fields(m notify.Message) map[string]string {
	f := map[string]string{
		"ID": m.ID, "Kind": m.Kind, "Severity": m.Severity.String(), "Cluster": m.Cluster, "By": string(m.By),
		"Host": string(m.Host), "VM": string(m.VM), "Incident": string(m.Incident), "Time": m.Time.UTC().Format(time.RFC3339),
		"Text": m.Text, "Do": m.Do, "Reminder": "", "Count": "", "Dropped": "", "Summary": summary(m),
	}
	if m.Reminder {
		f["Reminder"] = "reminder"
	}
	if m.Count > 1 {
		f["Count"] = fmt.Sprint(m.Count)
	}
	if m.Dropped > 0 {
		f["Dropped"] = fmt.Sprint(m.Dropped)
	}
	return f
}

func summary(m notify.Message) string {
	if len(m.Summary) == 0 {
		return ""
	}
	var b strings.Builder
	for _, k := range m.Summary {
		fmt.Fprintf(&b, "%6d  %s\n", k.Count, k.Kind)
	}
	b.WriteString("\nThe first, the most severe first:\n")
	for _, e := range m.First {
		fmt.Fprintf(&b, "  %s %s %s: %s\n", e.Time.UTC().Format(time.RFC3339), e.Severity, e.Kind, e.Text)
	}
	return b.String()
}

func parse(name, text, preset string) (*template.Template, error) {
	if text == "" {
		text = preset
	}
	t, err := template.New(name).Option("missingkey=error").Parse(text)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	if err := t.Execute(&bytes.Buffer{}, Fields(notify.Message{})); err != nil {
		return nil, fmt.Errorf("try %s: %w", name, err)
	}
	return t, nil
}

// Bounds of a mail, in octets. A line of a header has 998 at most.
const (
	maxSubject = 250
	maxBody    = 64 << 10
)

// compose writes the whole mail. Nothing of an event can add a header: values
// have no line breaks, and the subject is cut and encoded.
func (s *Sender) compose(m notify.Message) ([]byte, error) {
	var subject, body bytes.Buffer
	if err := s.subject.Execute(&subject, Fields(m)); err != nil {
		return nil, err
	}
	if err := s.body.Execute(&body, Fields(m)); err != nil {
		return nil, err
	}
	thread := s.id(m.Cluster, m.Thread())
	var out bytes.Buffer
	header := func(name, value string) { fmt.Fprintf(&out, "%s: %s\r\n", name, line(value)) }
	header("From", s.cfg.From)
	fmt.Fprintf(&out, "To: %s\r\n", strings.Join(s.cfg.To, ",\r\n "))
	header("Subject", mime.QEncoding.Encode("utf-8", cut(line(subject.String()), maxSubject)))
	header("Date", m.Time.UTC().Format(time.RFC1123Z))
	header("Message-ID", s.messageID(m))
	header("In-Reply-To", thread)
	header("References", thread)
	header("Auto-Submitted", "auto-generated")
	header("MIME-Version", "1.0")
	header("Content-Type", "text/plain; charset=utf-8")
	header("Content-Transfer-Encoding", "quoted-printable")
	header("X-Haven-Event", mime.QEncoding.Encode("utf-8", m.ID))
	header("X-Haven-Severity", m.Severity.String())
	out.WriteString("\r\n")
	w := quotedprintable.NewWriter(&out)
	text := strings.ReplaceAll(cut(body.String(), maxBody), "\r\n", "\n")
	if _, err := w.Write([]byte(strings.ReplaceAll(text, "\n", "\r\n"))); err != nil {
		return nil, err
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return out.Bytes(), nil
}

// line makes one line of what may be several.
func line(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, s)
}

func cut(s string, limit int) string {
	if len(s) <= limit {
		return s
	}
	return strings.ToValidUTF8(s[:limit], "") + "…"
}

// bareAddress says whether a is an address as SMTP's commands want it, in ASCII.
func bareAddress(a string) bool {
	got, err := mail.ParseAddress(a)
	return err == nil && got.Name == "" && got.Address == a && !strings.ContainsFunc(a, func(r rune) bool { return r <= ' ' || r > '~' || strings.ContainsRune("<>\"", r) })
}
