package obs

import (
	"context"
	"io"
	"log/slog"
	"strings"
	"time"
	"unicode/utf8"
)

const (
	maxLine = 400 // bytes of one foreign message that are kept
	keyLine = 64  // bytes of one that tell it from others
)

// LineLogger turns text lines with a level in front, such as
// "[WARN] memberlist: …", into slog records. It is an io.Writer for a standard
// *log.Logger without flags. The message of each record is constant and the
// text is in the attribute "text".
//
// The foreign library's errors are facts about the network and not faults of
// this process, and anyone who reaches the port can cause some of them, so
// [ERR] and [ERROR] become warnings. Repetitions within a minute become debug
// records.
type LineLogger struct {
	log   *slog.Logger
	msg   string
	quiet *quiet
}

var _ io.Writer = (*LineLogger)(nil)

// NewLineLogger returns a LineLogger that writes records with the message msg
// to log.
func NewLineLogger(log *slog.Logger, msg string) *LineLogger {
	return &LineLogger{log: log, msg: msg, quiet: newQuiet()}
}

// Write logs one line. It never fails, and writes at once to the slog handler:
// a caller that holds locks should queue lines and write them elsewhere.
func (l *LineLogger) Write(p []byte) (int, error) {
	level, text := ParseLine(string(p))
	if text == "" {
		return len(p), nil
	}
	ctx := context.Background()
	level, repeated := l.quiet.admit(time.Now(), level, lineKey(level, text))
	if !l.log.Enabled(ctx, level) {
		return len(p), nil
	}
	attrs := []slog.Attr{slog.String("text", clip(text, maxLine))}
	if repeated > 0 {
		attrs = append(attrs, slog.Int("repeated", repeated))
	}
	l.log.LogAttrs(ctx, level, l.msg, attrs...) //nolint:sloglint // One constant for each LineLogger.
	return len(p), nil
}

// ParseLine splits a line into its level and its text without the prefixes
// "[LEVEL]" and "name:" of a single word. A line without a level is
// informational.
func ParseLine(line string) (slog.Level, string) {
	line = strings.TrimSpace(line)
	level := slog.LevelInfo
	if rest, ok := strings.CutPrefix(line, "["); ok {
		if word, text, ok := strings.Cut(rest, "]"); ok {
			if lv, known := lineLevel(word); known {
				level, line = lv, strings.TrimSpace(text)
			}
		}
	} else if text, ok := strings.CutPrefix(line, "Err: "); ok {
		level, line = slog.LevelWarn, text
	}
	if name, text, ok := strings.Cut(line, ": "); ok && name == "memberlist" {
		line = text
	}
	return level, line
}

func lineLevel(word string) (slog.Level, bool) {
	switch word {
	case "TRACE", "DEBUG":
		return slog.LevelDebug, true
	case "INFO":
		return slog.LevelInfo, true
	case "WARN", "ERR", "ERROR":
		return slog.LevelWarn, true
	}
	return 0, false
}

// lineKey is what two repetitions of a message have in common: its beginning,
// without the sender, whose port changes with every connection.
func lineKey(level slog.Level, text string) string {
	text, _, _ = strings.Cut(text, " from=")
	return level.String() + clip(text, keyLine)
}

// clip shortens s to at most n bytes of valid UTF-8.
func clip(s string, n int) string {
	s = strings.ToValidUTF8(s, "?")
	if len(s) <= n {
		return s
	}
	for n > 0 && !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n] + "…"
}
