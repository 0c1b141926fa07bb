package engine

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/millrace/millrace/processors"
	"github.com/millrace/millrace/state"
)

var (
	_ processors.Task             = (*task)(nil)
	_ processors.PartitionCounter = (*task)(nil)
)

func (t *task) Context() context.Context { return t.ctx }
func (t *task) Logger() *slog.Logger     { return t.log }
func (t *task) Partition() int32         { return t.id.Partition }
func (t *task) Source() *processors.Raw  { return &t.raw }
func (t *task) StreamTime() int64        { return t.stream.Value() }
func (t *task) Now() time.Time           { return t.now }

func (t *task) Store(name string) *state.Store  { return t.part.Store(name) }
func (t *task) Global(name string) *state.Store { return t.inst.globals.store(name) }
func (t *task) Cell(name string) *state.Cell    { return t.part.Cell(name) }
func (t *task) Dispatch(call processors.Call)   { t.newCalls = append(t.newCalls, call) }
func (t *task) Drop(node, reason string)        { t.inst.metrics.dropped(t.id, node, reason) }

// Partitions returns the partition count of a topic.
func (t *task) Partitions(topic string) (int32, error) {
	return t.inst.partitionCount(topic)
}

// Schedule registers a punctuation.
func (t *task) Schedule(kind processors.PunctuationKind, interval time.Duration, next *state.Cell, fn func(at int64) error) (cancel func()) {
	return t.timers.Add(kind, interval, time.Now(), next, fn)
}

// maxFuture is how far ahead of the wall clock a record's timestamp may lie; the
// broker refuses more (message.timestamp.after.max.ms).
const maxFuture = time.Hour

// Produce checks the record as the broker would, so that a failure is this
// record's and not its batch's, and keeps it until the source record is done.
func (t *task) Produce(topic string, partition int32, rec processors.Raw) error {
	r := t.inst.records.get()
	r.Topic, r.Partition, r.Key, r.Value = topic, partition, rec.Key, rec.Value
	r.Timestamp = time.UnixMilli(rec.Timestamp)
	r.Headers = toHeaders(rec.Headers)
	r.Context = t.ctx
	if err := t.checkOutput(r); err != nil || len(t.refused) > 0 && t.wasRefused(r) {
		if err == nil {
			err = produceError(topic, "the broker refused this output of a punctuation")
		}
		if t.raw.Topic != "" {
			return err
		}
		// There is no source record to blame (a punctuation): the output itself
		// becomes the dead letter.
		r.Offset = -1
		r = deadLetter(t.sub.DeadLetterTopic, r, err, t.now)
		if err := t.checkOutput(r); err != nil {
			return err // it cannot be kept: the punctuation fails and the task stops
		}
		t.Report(deadLettered(t.id, err))
	}
	t.out = append(t.out, r)
	return nil
}

// wasRefused reports whether the broker has refused the same output before.
func (t *task) wasRefused(r *kgo.Record) bool {
	return t.raw.Topic == "" && slices.ContainsFunc(t.refused, func(o *kgo.Record) bool {
		return o.Topic == r.Topic && bytes.Equal(o.Key, r.Key) && bytes.Equal(o.Value, r.Value)
	})
}

func (t *task) checkOutput(r *kgo.Record) *processors.Error {
	if t.limitOf != r.Topic { // topics change seldom
		t.limitOf, t.maxSize = r.Topic, t.inst.limit(r.Topic)
	}
	at := r.Timestamp.UnixMilli()
	switch size, limit := recordSize(r), t.maxSize; {
	case size > limit:
		return produceError(r.Topic, "the record has %d bytes, %s takes %d (max.message.bytes): make it smaller or raise the limit", size, r.Topic, limit)
	case at < 0:
		return produceError(r.Topic, "negative timestamp %d: set the record's timestamp", at)
	case at > t.now.UnixMilli()+maxFuture.Milliseconds():
		return produceError(r.Topic, "timestamp %s is more than %s ahead of the wall clock, which the broker refuses", r.Timestamp.UTC().Format(time.RFC3339), maxFuture)
	}
	return nil
}

func produceError(step, format string, args ...any) *processors.Error {
	return &processors.Error{Class: processors.ClassProduce, Step: step, Err: fmt.Errorf(format, args...)}
}

// recordSize estimates, from above, the bytes of r as a batch of one.
func recordSize(r *kgo.Record) int {
	const batch, perRecord, perHeader = 61, 21, 10
	n := batch + perRecord + len(r.Key) + len(r.Value)
	for _, h := range r.Headers {
		n += perHeader + len(h.Key) + len(h.Value)
	}
	return n
}

// toRaw is a polled record as operators see it.
func toRaw(r *kgo.Record) processors.Raw {
	return processors.Raw{
		Topic: r.Topic, Partition: r.Partition, Offset: r.Offset,
		Key: r.Key, Value: r.Value, Timestamp: r.Timestamp.UnixMilli(), Headers: fromHeaders(r.Headers),
	}
}

func toHeaders(hs []processors.Header) []kgo.RecordHeader {
	if len(hs) == 0 {
		return nil
	}
	out := make([]kgo.RecordHeader, len(hs))
	for i, h := range hs {
		out[i] = kgo.RecordHeader{Key: h.Key, Value: h.Value}
	}
	return out
}

func fromHeaders(hs []kgo.RecordHeader) []processors.Header {
	if len(hs) == 0 {
		return nil
	}
	out := make([]processors.Header, len(hs))
	for i, h := range hs {
		out[i] = processors.Header{Key: h.Key, Value: h.Value}
	}
	return out
}
