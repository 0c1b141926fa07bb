package alert

import (
	"context"
	"log/slog"
)

// Slog returns a sink that writes alerts to a log: critical ones as errors, others as
// warnings, and resolved ones as information.
func Slog(l *slog.Logger) Sink {
	return func(ctx context.Context, a Alert) error {
		level := slog.LevelWarn
		switch {
		case a.State == Resolved:
			level = slog.LevelInfo
		case a.Severity == Critical:
			level = slog.LevelError
		}
		l.LogAttrs(ctx, level, "alert "+string(a.State), slog.String("kind", string(a.Kind)), slog.String("app", a.App),
			slog.String("instance", a.Instance), slog.String("step", a.Step), slog.String("subject", a.Subject),
			slog.Float64("value", a.Value), slog.Float64("threshold", a.Threshold), slog.Time("since", a.Since),
			slog.String("message", a.Message), slog.String("action", a.Action))
		return nil
	}
}
