package kafka

import (
	"context"
	"fmt"
	"log/slog"
	"strings"

	"github.com/twmb/franz-go/pkg/kgo"
)

// slogger passes franz-go's messages on. Its info messages tell of every rebalance
// and transaction, so they count as debug here, and its debug messages as one step
// below that.
type slogger struct{ l *slog.Logger }

var _ kgo.Logger = slogger{}

// levelTrace is where franz-go's debug messages go.
const levelTrace = slog.LevelDebug - 4

func (s slogger) Level() kgo.LogLevel {
	ctx := context.Background()
	switch {
	case s.l == nil:
		return kgo.LogLevelNone
	case s.l.Enabled(ctx, levelTrace):
		return kgo.LogLevelDebug
	case s.l.Enabled(ctx, slog.LevelDebug):
		return kgo.LogLevelInfo
	case s.l.Enabled(ctx, slog.LevelWarn):
		return kgo.LogLevelWarn
	case s.l.Enabled(ctx, slog.LevelError):
		return kgo.LogLevelError
	}
	return kgo.LogLevelNone
}

func (s slogger) Log(level kgo.LogLevel, msg string, keyvals ...any) {
	if s.l == nil {
		return
	}
	to := slog.LevelError
	switch level {
	case kgo.LogLevelWarn:
		to = slog.LevelWarn
	case kgo.LogLevelInfo:
		to = slog.LevelDebug
	case kgo.LogLevelDebug:
		to = levelTrace
	}
	ctx := context.Background()
	if !s.l.Enabled(ctx, to) {
		return
	}
	attrs := make([]slog.Attr, 0, len(keyvals)/2)
	for i := 0; i+1 < len(keyvals); i += 2 {
		key := fmt.Sprint(keyvals[i])
		value := keyvals[i+1]
		if sensitive(key) {
			value = Secret{}
		}
		attrs = append(attrs, slog.Any(key, value))
	}
	s.l.LogAttrs(ctx, to, "kafka client: "+msg, attrs...)
}

// sensitive reports whether a key names something that must not be logged.
func sensitive(key string) bool {
	key = strings.ToLower(key)
	for _, word := range []string{"pass", "secret", "token", "credential", "sasl_auth"} {
		if strings.Contains(key, word) {
			return true
		}
	}
	return false
}
