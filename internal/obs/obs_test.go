package obs

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/go-hclog"
)

func textLog(level slog.Level) (*slog.Logger, *bytes.Buffer) {
	var buf bytes.Buffer
	drop := func(_ []string, a slog.Attr) slog.Attr {
		if a.Key == slog.TimeKey {
			return slog.Attr{}
		}
		return a
	}
	return slog.New(slog.NewTextHandler(&buf, &slog.HandlerOptions{Level: level, ReplaceAttr: drop})), &buf
}

func TestParseLine(t *testing.T) {
	tests := []struct {
		name  string
		line  string
		level slog.Level
		text  string
	}{
		{"error", "[ERR] memberlist: Failed to send ack: x\n", slog.LevelWarn, "Failed to send ack: x"},
		{"long error", "[ERROR] memberlist: bad", slog.LevelWarn, "bad"},
		{"warning", "[WARN] memberlist: Refuting", slog.LevelWarn, "Refuting"},
		{"info", "[INFO] memberlist: Suspect a", slog.LevelInfo, "Suspect a"},
		{"debug", "[DEBUG] memberlist: Stream", slog.LevelDebug, "Stream"},
		{"no component", "[ERR] Failed to shutdown transport: x", slog.LevelWarn, "Failed to shutdown transport: x"},
		{"odd error", "Err: Could not set the deadline: x", slog.LevelWarn, "Could not set the deadline: x"},
		{"no level", "hello: world", slog.LevelInfo, "hello: world"},
		{"unknown level", "[1.2.3.4] hello", slog.LevelInfo, "[1.2.3.4] hello"},
		{"open bracket", "[WARN", slog.LevelInfo, "[WARN"},
		{"empty", "\n", slog.LevelInfo, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			level, text := ParseLine(tt.line)
			if level != tt.level || text != tt.text {
				t.Errorf("got %v %q, want %v %q", level, text, tt.level, tt.text)
			}
		})
	}
}

func TestLineLoggerDemotesRepetitions(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		out, buf := textLog(slog.LevelInfo)
		std := log.New(NewLineLogger(out, "gossip"), "", 0)
		for port := range 100 {
			std.Printf("[ERR] memberlist: Decrypt packet failed: no key from=10.0.0.9:%d", port)
		}
		std.Printf("[INFO] memberlist: Suspect kvm-01 has failed")
		std.Printf("[INFO] memberlist: Suspect kvm-02 has failed")
		want := `level=WARN msg=gossip text="Decrypt packet failed: no key from=10.0.0.9:0"
level=INFO msg=gossip text="Suspect kvm-01 has failed"
level=INFO msg=gossip text="Suspect kvm-02 has failed"
`
		if buf.String() != want {
			t.Fatalf("got:\n%s\nwant:\n%s", buf, want)
		}
		buf.Reset()
		time.Sleep(quietWindow)
		std.Printf("[ERR] memberlist: Decrypt packet failed: no key from=10.0.0.9:7")
		want = `level=WARN msg=gossip text="Decrypt packet failed: no key from=10.0.0.9:7" repeated=99` + "\n"
		if buf.String() != want {
			t.Fatalf("got:\n%s\nwant:\n%s", buf, want)
		}
	})
}

func TestLineLoggerIsBounded(t *testing.T) {
	out, buf := textLog(slog.LevelInfo)
	l := NewLineLogger(out, "gossip")
	for i := range 10 * quietKeys {
		_, _ = fmt.Fprintf(l, "[ERR] memberlist: unacceptable label %q", fmt.Sprint(i))
	}
	if n := len(l.quiet.seen); n > quietKeys+1 {
		t.Errorf("%d keys kept, want at most %d", n, quietKeys+1)
	}
	if n := strings.Count(buf.String(), "\n"); n > quietKeys+1 {
		t.Errorf("%d lines logged, want at most %d", n, quietKeys+1)
	}
	buf.Reset()
	_, _ = fmt.Fprintf(NewLineLogger(out, "gossip"), "[WARN] memberlist: %s", strings.Repeat("ä", 5000))
	if buf.Len() > 2*maxLine {
		t.Errorf("a long line made %d bytes", buf.Len())
	}
}

func TestHCLog(t *testing.T) {
	tests := []struct {
		name string
		log  func(hclog.Logger)
		want string
	}{
		{"plain", func(l hclog.Logger) { l.Info("entering leader state", "leader", "x") }, "level=INFO msg=\"entering leader state\" leader=x\n"},
		{"keys", func(l hclog.Logger) { l.Warn("lost", "server-id", "a", "backoff time", time.Second) }, "level=WARN msg=lost server_id=a backoff_time=1s\n"},
		{"name and implied", func(l hclog.Logger) { l.Named("raft").With("a", 1).Named("snap").Error("x") }, "level=ERROR msg=x logger=raft.snap a=1\n"},
		{"reset name", func(l hclog.Logger) { l.Named("raft").ResetNamed("fsm").Info("x") }, "level=INFO msg=x logger=fsm\n"},
		{"odd argument", func(l hclog.Logger) { l.Info("x", "lonely") }, "level=INFO msg=x extra=lonely\n"},
		{"format", func(l hclog.Logger) { l.Info("x", "pct", hclog.Fmt("%d of %d", 1, 2)) }, "level=INFO msg=x pct=\"1 of 2\"\n"},
		{"quote and hex", func(l hclog.Logger) { l.Info("x", "q", hclog.Quote("a\nb"), "h", hclog.Hex(255)) }, "level=INFO msg=x q=\"\\\"a\\\\nb\\\"\" h=0xff\n"},
		{"error value", func(l hclog.Logger) { l.Error("x", "error", errors.New("boom")) }, "level=ERROR msg=x error=boom\n"},
		{"below level", func(l hclog.Logger) { l.Debug("x"); l.Trace("x") }, ""},
		{"by level", func(l hclog.Logger) { l.Log(hclog.Warn, "x") }, "level=WARN msg=x\n"},
		{"standard logger", func(l hclog.Logger) { l.StandardLogger(nil).Printf("[WARN] hi") }, "level=WARN msg=\"library message\" text=hi\n"},
		{"repetition about one peer", func(l hclog.Logger) {
			for i := range 5 {
				l.Error("failed to heartbeat to", "peer", "a", "error", fmt.Errorf("try %d", i))
			}
			l.Error("failed to heartbeat to", "peer", "b", "error", io.EOF)
		}, "level=ERROR msg=\"failed to heartbeat to\" peer=a error=\"try 0\"\nlevel=ERROR msg=\"failed to heartbeat to\" peer=b error=EOF\n"},
		{"state changes are never demoted", func(l hclog.Logger) { l.Info("election won"); l.Info("election won") }, "level=INFO msg=\"election won\"\nlevel=INFO msg=\"election won\"\n"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			out, buf := textLog(slog.LevelInfo)
			tt.log(HCLog(out))
			if buf.String() != tt.want {
				t.Errorf("got  %q\nwant %q", buf, tt.want)
			}
		})
	}
}

// Raft prints whole requests when it gets one that it did not expect. They hold
// VM definitions, and those hold passwords.
func TestHCLogHidesCommands(t *testing.T) {
	out, buf := textLog(slog.LevelDebug)
	secret := struct{ Data []byte }{[]byte("geheim")}
	HCLog(out).Error("got unexpected command", "command", hclog.Fmt("%#v", secret))
	HCLog(out).Error("got unexpected command", "command", secret)
	if s := buf.String(); strings.Contains(s, "geheim") || strings.Contains(s, "0x67") || !strings.Contains(s, "struct") {
		t.Errorf("logged %q", s)
	}
}

func TestHCLogLevel(t *testing.T) {
	out, _ := textLog(slog.LevelWarn)
	l := HCLog(out)
	l.SetLevel(hclog.Trace)
	if l.IsTrace() || l.IsDebug() || l.IsInfo() || !l.IsWarn() || !l.IsError() || l.GetLevel() != hclog.Warn {
		t.Errorf("level %v", l.GetLevel())
	}
}

func scrape(t *testing.T, m *Metrics) string {
	t.Helper()
	rec := httptest.NewRecorder()
	m.Handler().ServeHTTP(rec, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	if rec.Code != http.StatusOK {
		t.Fatalf("status %d: %s", rec.Code, rec.Body)
	}
	return rec.Body.String()
}

func TestMetrics(t *testing.T) {
	m := NewMetrics()
	m.Counter("beats_total", "Beats written.").Add(2)
	m.Counter("idle_total", "Never counted.")
	drops := m.Counter("drops_total", "Drops.", "kind")
	drops.Inc("packet")
	drops.Inc("bad\xff")
	drops.Inc("too", "many")
	drops.Add(-1, "packet")
	g := m.Gauge("members", "Members.", "state")
	g.Set(3, "alive")
	g.Add(-1, "alive")
	g.Set(1, "dead")
	g.Forget("dead")
	m.Histogram("step_seconds", "Steps.", []float64{0.1, 1}, "kind").Observe(0.5, "x")
	m.GaugeFunc("score", "Score.", func() float64 { return 7 })
	m.CounterFunc("read_total", "Read.", func() float64 { return 8 })
	got := scrape(t, m)
	for _, want := range []string{
		"haven_beats_total 2\n", "haven_idle_total 0\n", `haven_drops_total{kind="packet"} 1` + "\n", `haven_drops_total{kind="bad?"} 1`,
		`haven_members{state="alive"} 2` + "\n", `haven_step_seconds_bucket{kind="x",le="1"} 1` + "\n",
		"haven_score 7\n", "haven_read_total 8\n", "go_goroutines ", "process_open_fds ",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("scrape lacks %q", want)
		}
	}
	if strings.Contains(got, `state="dead"`) {
		t.Error("a forgotten series is still there")
	}
}

func TestMetricsOfOneAgentAreItsOwn(t *testing.T) {
	a, b := NewMetrics(), NewMetrics()
	a.Counter("x_total", "X.").Inc()
	b.Counter("x_total", "X.")
	if !strings.Contains(scrape(t, b), "haven_x_total 0\n") {
		t.Error("agents share a registry")
	}
}

func TestNilMetrics(t *testing.T) {
	var m *Metrics
	m.Counter("x_total", "X.").Inc()
	m.Gauge("x", "X.").Set(1)
	m.Histogram("x_seconds", "X.", nil).Observe(1)
	m.GaugeFunc("y", "Y.", func() float64 { return 1 })
	rec := httptest.NewRecorder()
	m.Handler().ServeHTTP(rec, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	if rec.Code != http.StatusNotFound {
		t.Errorf("status %d", rec.Code)
	}
}

func TestMetricNames(t *testing.T) {
	tests := []struct {
		name string
		make func(*Metrics)
	}{
		{"prefix twice", func(m *Metrics) { m.Gauge("haven_x", "X.") }},
		{"counter without ending", func(m *Metrics) { m.Counter("x", "X.") }},
		{"histogram without unit", func(m *Metrics) { m.Histogram("x", "X.", nil) }},
		{"camel case", func(m *Metrics) { m.Gauge("camelCase", "X.") }},
		{"no help", func(m *Metrics) { m.Gauge("x", "") }},
		{"bad label", func(m *Metrics) { m.Gauge("x", "X.", "a-b") }},
		{"twice", func(m *Metrics) { m.Gauge("x", "X."); m.Gauge("x", "X.") }},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			defer func() {
				if recover() == nil {
					t.Error("accepted")
				}
			}()
			tt.make(NewMetrics())
		})
	}
}
