package obs

import (
	"context"
	"fmt"
	"io"
	"log"
	"log/slog"
	"strings"
	"time"

	"github.com/hashicorp/go-hclog"
)

// hcLogger is an hclog.Logger over slog.
type hcLogger struct {
	base    *slog.Logger // without name and implied arguments
	log     *slog.Logger
	name    string
	implied []any
	quiet   *quiet
}

var _ hclog.Logger = (*hcLogger)(nil)

// HCLog returns an hclog.Logger, as Raft wants one, that writes to log.
// Warnings and errors that repeat within a minute become debug records; the
// first one after the minute carries the count in "repeated". Levels are those
// of log's handler: SetLevel does nothing.
func HCLog(log *slog.Logger) hclog.Logger {
	return &hcLogger{base: log, log: log, quiet: newQuiet()}
}

func (l *hcLogger) Log(level hclog.Level, msg string, args ...any) {
	l.emit(slogLevel(level), msg, args)
}
func (l *hcLogger) Trace(msg string, args ...any) { l.emit(levelTrace, msg, args) }
func (l *hcLogger) Debug(msg string, args ...any) { l.emit(slog.LevelDebug, msg, args) }
func (l *hcLogger) Info(msg string, args ...any)  { l.emit(slog.LevelInfo, msg, args) }
func (l *hcLogger) Warn(msg string, args ...any)  { l.emit(slog.LevelWarn, msg, args) }
func (l *hcLogger) Error(msg string, args ...any) { l.emit(slog.LevelError, msg, args) }

func (l *hcLogger) emit(level slog.Level, msg string, args []any) {
	ctx := context.Background()
	if !l.log.Enabled(ctx, level) {
		return
	}
	attrs := hcAttrs(args)
	var repeated int
	if level >= slog.LevelWarn {
		level, repeated = l.quiet.admit(time.Now(), level, hcKey(msg, attrs))
		if !l.log.Enabled(ctx, level) {
			return
		}
	}
	if repeated > 0 {
		attrs = append(attrs, slog.Int("repeated", repeated))
	}
	l.log.LogAttrs(ctx, level, msg, attrs...) //nolint:sloglint // Raft's messages are constants already.
}

// hcKey tells which messages repeat each other: the same text about the same
// thing. By custom the first argument names the thing and the error, which may
// vary, comes last.
func hcKey(msg string, attrs []slog.Attr) string {
	if len(attrs) > 0 && attrs[0].Key != "error" {
		return clip(msg+"\x00"+attrs[0].String(), 2*keyLine)
	}
	return clip(msg, 2*keyLine)
}

// hcAttrs makes slog attributes of alternating keys and values.
func hcAttrs(args []any) []slog.Attr {
	attrs := make([]slog.Attr, 0, len(args)/2+2)
	for i := 0; i < len(args); i += 2 {
		if i+1 == len(args) {
			attrs = append(attrs, hcAttr("extra", args[i]))
			break
		}
		key, ok := args[i].(string)
		if !ok {
			key = fmt.Sprint(args[i])
		}
		attrs = append(attrs, hcAttr(key, args[i+1]))
	}
	return attrs
}

var snakeCase = strings.NewReplacer("-", "_", " ", "_")

func hcAttr(key string, value any) slog.Attr {
	key = snakeCase.Replace(key)
	if key == "command" {
		// Raft prints whole requests here, and with them the content of the
		// log, which holds VM definitions. Their type is enough.
		if f, ok := value.(hclog.Format); ok && len(f) > 1 {
			value = f[1]
		}
		return slog.String(key, fmt.Sprintf("%T", value))
	}
	switch v := value.(type) {
	case hclog.Format:
		return slog.String(key, clip(formatted(v), maxLine))
	case hclog.Hex:
		return slog.String(key, fmt.Sprintf("%#x", int(v)))
	case hclog.Octal:
		return slog.String(key, fmt.Sprintf("%#o", int(v)))
	case hclog.Binary:
		return slog.String(key, fmt.Sprintf("%#b", int(v)))
	case hclog.Quote:
		return slog.String(key, clip(fmt.Sprintf("%q", string(v)), maxLine))
	case error:
		return slog.String(key, clip(v.Error(), maxLine))
	case string:
		return slog.String(key, clip(v, maxLine))
	case time.Duration, time.Time, bool,
		int, int8, int16, int32, int64, uint, uint8, uint16, uint32, uint64, float32, float64:
		return slog.Any(key, v)
	}
	return slog.String(key, clip(fmt.Sprint(value), maxLine))
}

func formatted(f hclog.Format) string {
	if len(f) == 0 {
		return ""
	}
	format, ok := f[0].(string)
	if !ok {
		return fmt.Sprint(f...)
	}
	return fmt.Sprintf(format, f[1:]...)
}

// levelTrace is below debug, so that a handler set to debug leaves it out.
const levelTrace = slog.LevelDebug - 4

func slogLevel(l hclog.Level) slog.Level {
	switch l {
	case hclog.Trace:
		return levelTrace
	case hclog.Debug:
		return slog.LevelDebug
	case hclog.Warn:
		return slog.LevelWarn
	case hclog.Error:
		return slog.LevelError
	case hclog.NoLevel, hclog.Info, hclog.Off:
		return slog.LevelInfo
	}
	return slog.LevelInfo
}

func (l *hcLogger) enabled(level slog.Level) bool {
	return l.log.Enabled(context.Background(), level)
}
func (l *hcLogger) IsTrace() bool { return l.enabled(levelTrace) }
func (l *hcLogger) IsDebug() bool { return l.enabled(slog.LevelDebug) }
func (l *hcLogger) IsInfo() bool  { return l.enabled(slog.LevelInfo) }
func (l *hcLogger) IsWarn() bool  { return l.enabled(slog.LevelWarn) }
func (l *hcLogger) IsError() bool { return l.enabled(slog.LevelError) }

func (l *hcLogger) ImpliedArgs() []any { return l.implied }
func (l *hcLogger) Name() string       { return l.name }

func (l *hcLogger) With(args ...any) hclog.Logger {
	implied := append(append([]any(nil), l.implied...), args...)
	return l.derive(l.name, implied)
}

func (l *hcLogger) Named(name string) hclog.Logger {
	if l.name != "" {
		name = l.name + "." + name
	}
	return l.derive(name, l.implied)
}

func (l *hcLogger) ResetNamed(name string) hclog.Logger { return l.derive(name, l.implied) }

func (l *hcLogger) derive(name string, implied []any) *hcLogger {
	out := l.base
	if name != "" {
		out = out.With("logger", name)
	}
	for _, a := range hcAttrs(implied) {
		out = out.With(a)
	}
	return &hcLogger{base: l.base, log: out, name: name, implied: implied, quiet: l.quiet}
}

// SetLevel does nothing: the level belongs to the slog handler.
func (l *hcLogger) SetLevel(hclog.Level) {}

func (l *hcLogger) GetLevel() hclog.Level {
	switch {
	case l.IsTrace():
		return hclog.Trace
	case l.IsDebug():
		return hclog.Debug
	case l.IsInfo():
		return hclog.Info
	case l.IsWarn():
		return hclog.Warn
	case l.IsError():
		return hclog.Error
	}
	return hclog.Off
}

func (l *hcLogger) StandardLogger(opts *hclog.StandardLoggerOptions) *log.Logger {
	return log.New(l.StandardWriter(opts), "", 0)
}

func (l *hcLogger) StandardWriter(*hclog.StandardLoggerOptions) io.Writer {
	return &LineLogger{log: l.log, msg: "library message", quiet: l.quiet}
}
