package engine

import (
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/millrace/millrace/internal/kafka"
	"github.com/millrace/millrace/processors"
	"github.com/millrace/millrace/state"
)

// An input is one source topic of a task, on the task's partition: the records
// polled and not yet processed, and the offsets that say how far it got.
type input struct {
	topic  string
	source int // its number in the sub-topology's pipeline
	loop   bool
	// buf[head:] are the records polled and not yet processed.
	buf   []*kgo.Record
	head  int
	bytes int // keys and values of buf[head:]
	// position is the offset behind the last record processed, committed the
	// position that the group's offset stands at, fetched the offset behind the
	// last record polled.
	position, committed, fetched kafka.Offset
	// timestamp extracts the event time of a record, if it is not the record's own;
	// partitionTime is the largest so far.
	timestamp     func(*processors.Raw, int64) (int64, error)
	partitionTime int64 // of the records processed, -1 before the first
	headTime      int64 // event time of the record at headOffset
	headOffset    int64
	// seen is the task's note that it has processed records of the topic.
	seen *state.Cell
	// end is the last known end of the partition for a read_committed reader,
	// looked when the broker was last asked for it.
	end       int64
	looked    time.Time
	emptyFrom time.Time // since when the buffer has been empty
}

// empty reports whether no polled record waits.
func (in *input) empty() bool { return in.head == len(in.buf) }

// add appends polled records. It reports false when they do not continue what
// was polled before, which means that the client lost its place.
func (in *input) add(records []*kgo.Record) bool {
	if in.empty() {
		in.buf, in.head = in.buf[:0], 0
	}
	for _, r := range records {
		if r.Offset < in.fetched.At {
			return false
		}
		in.fetched = kafka.Offset{At: r.Offset + 1, Epoch: r.LeaderEpoch}
		in.bytes += len(r.Key) + len(r.Value)
	}
	in.buf = append(in.buf, records...)
	in.end = max(in.end, in.fetched.At)
	return true
}

// peek returns the next record, skipping the control records at the head, which
// only move the position.
func (in *input) peek() *kgo.Record {
	for in.head < len(in.buf) {
		r := in.buf[in.head]
		if !r.Attrs.IsControl() {
			return r
		}
		in.advance(r)
	}
	return nil
}

// eventTime returns the event time of a record in ms; that of one whose extractor
// fails is the record's own, since the failure is reported when it is processed.
func (in *input) eventTime(r *kgo.Record) int64 {
	if in.timestamp == nil {
		return r.Timestamp.UnixMilli()
	}
	if in.headOffset == r.Offset && r.Offset > 0 {
		return in.headTime
	}
	raw := toRaw(r)
	ts, err := in.timestamp(&raw, in.partitionTime)
	if err != nil {
		ts = r.Timestamp.UnixMilli()
	}
	in.headTime, in.headOffset = ts, r.Offset
	return ts
}

// advance moves the position behind r, the record at the head.
func (in *input) advance(r *kgo.Record) {
	in.buf[in.head] = nil
	in.head++
	in.bytes -= len(r.Key) + len(r.Value)
	in.position = kafka.Offset{At: r.Offset + 1, Epoch: r.LeaderEpoch}
}

// rewind drops what was polled and goes back to the committed position.
func (in *input) rewind() {
	clear(in.buf)
	in.buf, in.head, in.bytes = in.buf[:0], 0, 0
	in.position, in.fetched = in.committed, in.committed
}

// lag is the number of offsets between the position and the known end.
func (in *input) lag() int64 { return max(0, in.end-in.position.At) }

// next returns the input whose head record is to be processed next, or nil if the
// task has to wait or has none: records of the loop first, then the smallest
// timestamp. capacity false leaves only the loop.
//
// A task takes from its inputs in timestamp order only when it knows the head of
// each: it waits for an empty input that is known to have data, and for idle (at
// most; KIP-695) for one that has none. A negative idle never waits.
func (t *task) next(now time.Time, capacity bool) *input {
	var best *input
	var bestTime int64
	alone := len(t.inputs) == 1
	waiting := false
	for _, in := range t.inputs {
		r := in.peek()
		switch {
		case in.loop && r != nil:
			return in
		case in.loop:
		case r == nil:
			if in.emptyFrom.IsZero() {
				in.emptyFrom = now
			}
			waiting = waiting || t.awaits(in, now)
		default:
			in.emptyFrom = time.Time{}
			if alone {
				best = in
			} else if ts := in.eventTime(r); best == nil || ts < bestTime {
				best, bestTime = in, ts
			}
		}
	}
	if waiting || !capacity || now.Before(t.retryAt) {
		return nil
	}
	return best
}

// awaits reports whether the task holds back records of other inputs for the
// empty input in.
func (t *task) awaits(in *input, now time.Time) bool {
	if len(t.inputs) == 1 || t.maxIdle < 0 {
		return false
	}
	empty := now.Sub(in.emptyFrom)
	return in.position.At < in.end && empty < awaitKnown || empty < t.maxIdle
}

// awaitKnown bounds the wait for data that the end offset promises: behind the
// emptied tail of a compacted topic there is none.
const awaitKnown = 30 * time.Second
