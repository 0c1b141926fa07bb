package engine

import (
	"strconv"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/millrace/millrace/processors"
)

// maxMessage bounds the error text in a dead letter, in bytes.
const maxMessage = 8 << 10

// deadLetter returns the dead letter of source record r: its raw key, value,
// timestamp and headers, followed by millrace.* headers that say where it came
// from and what failed.
func deadLetter(topic string, r *kgo.Record, e *processors.Error, now time.Time) *kgo.Record {
	message := e.Err.Error()
	if len(message) > maxMessage {
		message = strings.ToValidUTF8(message[:maxMessage], "") + "..."
	}
	headers := make([]kgo.RecordHeader, 0, len(r.Headers)+7)
	headers = append(headers, r.Headers...)
	for _, h := range [...][2]string{
		{"millrace.topic", r.Topic},
		{"millrace.partition", strconv.Itoa(int(r.Partition))},
		{"millrace.offset", strconv.FormatInt(r.Offset, 10)},
		{"millrace.timestamp", strconv.FormatInt(r.Timestamp.UnixMilli(), 10)},
		{"millrace.step", e.Step},
		{"millrace.class", string(e.Class)},
		{"millrace.message", message},
	} {
		headers = append(headers, kgo.RecordHeader{Key: h[0], Value: []byte(h[1])})
	}
	// A timestamp that no topic takes is replaced: the original is in the header.
	ts := r.Timestamp
	if ts.UnixMilli() < 0 || ts.After(now.Add(maxFuture)) {
		ts = now
	}
	return &kgo.Record{Topic: topic, Partition: -1, Key: r.Key, Value: r.Value, Headers: headers, Timestamp: ts}
}
