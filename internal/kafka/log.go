package kafka

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
)

// slogger passes franz-go's messages on. Its info messages tell of every rebalance
// and transaction, so they count as debug here, and its debug messages as one step
// below that. A warning or error that repeats itself is told once per second.
type slogger struct {
	l *slog.Logger

	mu       sync.Mutex
	repeated map[string]*repeats // by message
}

// repeats is when a message was told last, and how often it came since.
type repeats struct {
	told  time.Time
	since int
}

var _ kgo.Logger = (*slogger)(nil)

// repeatAfter is how long a message that was told is not told again.
const repeatAfter = time.Second

// levelTrace is where franz-go's debug messages go.
const levelTrace = slog.LevelDebug - 4

func (s *slogger) Level() kgo.LogLevel {
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

func (s *slogger) Log(level kgo.LogLevel, msg string, keyvals ...any) {
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
	attrs := make([]slog.Attr, 0, len(keyvals)/2+1)
	if to >= slog.LevelWarn {
		tell, times := s.tell(msg)
		if !tell {
			return
		}
		if times > 0 {
			attrs = append(attrs, slog.Int("repeated", times))
		}
	}
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

// tell reports whether a message is to be told now, and how often it was not.
func (s *slogger) tell(msg string) (tell bool, times int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.repeated == nil {
		s.repeated = map[string]*repeats{}
	}
	r := s.repeated[msg]
	if r == nil {
		r = &repeats{}
		s.repeated[msg] = r
	}
	if time.Since(r.told) < repeatAfter {
		r.since++
		return false, 0
	}
	times = r.since
	*r = repeats{told: time.Now()}
	return true, times
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
