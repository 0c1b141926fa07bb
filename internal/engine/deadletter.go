package engine

import (
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/millrace/millrace/processors"
)

// deadLetter returns the dead letter of source record r: its raw key, value,
// timestamp and headers, followed by millrace.* headers that say where it came
// from and what failed.
func deadLetter(topic string, r *kgo.Record, e *processors.Error, now time.Time) *kgo.Record {
	raw := toRaw(r)
	headers := toHeaders(processors.DeadLetterHeaders(&raw, e.Step, e.Class, processors.ErrorText(e.Err), now))
	// A timestamp that no topic takes is replaced: the original is in the header.
	ts := r.Timestamp
	if ts.UnixMilli() < 0 || ts.After(now.Add(maxFuture)) {
		ts = now
	}
	return &kgo.Record{Topic: topic, Partition: -1, Key: r.Key, Value: r.Value, Headers: headers, Timestamp: ts}
}
