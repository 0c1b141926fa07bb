package processors

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/millrace/millrace/serde"
	"github.com/millrace/millrace/state"
)

// A RetryPolicy says how often a function is called for a record, and when.
type RetryPolicy struct {
	// Attempts is how often it is called in all, at least 1.
	Attempts int
	// Backoff is the wait before the second attempt; it doubles with every further one,
	// up to MaxBackoff.
	Backoff, MaxBackoff time.Duration
	// MaxWaiting is how many records of a partition may wait; at that number no more
	// are read.
	MaxWaiting int
}

// wait is the pause behind attempt number n, from 1.
func (p RetryPolicy) wait(n int) int64 {
	d := p.Backoff
	for ; n > 1 && d < p.MaxBackoff; n-- {
		d *= 2
	}
	return min(d, p.MaxBackoff).Milliseconds()
}

// A Retrying calls a function that may fail, later again, and keeps the order of keys.
type Retrying[K, V, R any] struct {
	Task   Task
	Step   string
	Policy RetryPolicy
	// DeadLetters is the topic of the source records that are given up.
	DeadLetters string
	Keys        serde.Serde[K]
	Store       state.KeyValueStore[QueueKey, Sourced[K, V]]
	Call        func(Record[K, V]) (R, error)
	Next        Forward[K, R]

	null    func(R) bool
	rows    queue[Sourced[K, V]]
	waiting *state.Cell // minus one: a cell begins at -1
	// timers wake the lanes in which records wait; a payload counts the attempts of
	// the first one.
	timers *timers
}

// maxRetries bounds how many records of a lane are taken in one firing.
const maxRetries = 1000

// Start returns what takes the records. A record whose call succeeds is forwarded with
// the result. One that fails waits in the store, and with it all later ones of its key,
// while other keys go on; records without a key wait together. After the backoff it is
// tried again, in a tick, and when it succeeds those behind it are, in order. One that
// has had all its attempts becomes a dead letter, in the transaction of that tick.
//
// The function steers with [WithAction]: [DeadLetter], [Skip] and [Stop] end the
// attempts.
func (o *Retrying[K, V, R]) Start() Forward[K, V] {
	o.null, o.waiting = NullCheck[R](), o.Task.Cell(o.Step+".waiting")
	o.rows = queue[Sourced[K, V]]{o.Store, o.Task.Cell(o.Step + ".number")}
	o.timers = newTimers(o.Task, o.Step, WallClock, o.again)
	return o.process
}

// Reset is called before the first record and after an abort.
func (o *Retrying[K, V, R]) Reset() { o.timers.reset() }

// Close ends the ticks.
func (o *Retrying[K, V, R]) Close() { o.timers.close() }

// Waiting is how many records wait.
func (o *Retrying[K, V, R]) Waiting() int64 { return o.waiting.Value() + 1 }

func (o *Retrying[K, V, R]) process(r Record[K, V]) error {
	lane, err := queueLane(o.Keys, r)
	var waits bool
	if err == nil {
		_, _, waits, err = o.timers.get(lane)
	}
	if err != nil {
		return Fail(ClassState, o.Step, err)
	}
	if !waits {
		v, err := o.call(r)
		if err == nil {
			return o.Next(WithValue(r, v, o.null(v)))
		}
		if !o.retries(err) {
			return err
		}
		if o.Policy.Attempts <= 1 {
			return WithAction(DeadLetter, err)
		}
		if err := o.sleep(lane, 1); err != nil {
			return err
		}
	}
	o.waiting.Set(o.waiting.Value() + 1)
	return Fail(ClassState, o.Step, o.rows.add(lane, Sourced[K, V]{r, *o.Task.Source()}, r.Timestamp))
}

func (o *Retrying[K, V, R]) call(r Record[K, V]) (v R, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = Panicked(ClassProcess, o.Step, p)
		}
	}()
	v, err = o.Call(r)
	return v, Fail(ClassProcess, o.Step, err)
}

func (o *Retrying[K, V, R]) retries(err error) bool {
	e, _ := errors.AsType[*Error](err)
	return e.Action == Default || e.Action == Retry
}

func (o *Retrying[K, V, R]) sleep(lane []byte, attempts int) error {
	at := o.timers.now() + o.Policy.wait(attempts)
	return Fail(ClassState, o.Step, o.timers.set(lane, at, binary.AppendUvarint(nil, uint64(attempts))))
}

// again tries the records of a lane.
func (o *Retrying[K, V, R]) again(lane []byte, at int64, payload []byte) error {
	attempts, _ := binary.Uvarint(payload)
	left := maxRetries
	err := o.rows.take(lane, func(s Sourced[K, V], timestamp int64) (bool, error) {
		if left--; left < 0 {
			return false, o.timers.set(lane, at, nil)
		}
		r := s.Record
		r.Timestamp = timestamp
		v, err := o.call(r)
		if err == nil {
			err = o.Next(WithValue(r, v, o.null(v)))
			attempts = 0
			o.waiting.Set(o.waiting.Value() - 1)
			return true, err
		}
		if attempts++; o.retries(err) && attempts < uint64(o.Policy.Attempts) {
			return false, o.sleep(lane, int(attempts))
		}
		attempts = 0
		o.waiting.Set(o.waiting.Value() - 1)
		return true, o.giveUp(r, &s.Source, err)
	})
	return Fail(ClassState, o.Step, err)
}

// giveUp ends a record that failed for good.
func (o *Retrying[K, V, R]) giveUp(r Record[K, V], src *Raw, err error) error {
	e, _ := errors.AsType[*Error](err)
	switch e.Action {
	case Stop:
		return err
	case Skip:
		return Drop(o.Task, o.Step, r, "skipped")
	}
	headers := DeadLetterHeaders(src, e.Step, e.Class, ErrorText(e.Err), o.Task.Now())
	err = o.Task.Produce(o.DeadLetters, -1, Raw{Key: src.Key, Value: src.Value, Headers: headers, Timestamp: max(src.Timestamp, 0)})
	if err != nil {
		return &Error{Class: ClassProduce, Step: o.Step, Action: Stop, Err: fmt.Errorf("dead letter of %s/%d offset %d: %w", src.Topic, src.Partition, src.Offset, err)}
	}
	if task, ok := unwrap(o.Task).(interface{ Report(Report) }); ok {
		task.Report(Report{Step: e.Step, Status: StatusDeadLetter, Class: e.Class})
	}
	return nil
}

// Sourced is a record with the source record that caused it.
type Sourced[K, V any] struct {
	Record Record[K, V]
	Source Raw
}

// SourcedSerde encodes a record as [RecordSerde] does, behind its length, then its
// source: topic behind its length, partition, offset and timestamp as varints, headers,
// key and value, each behind its length + 1, 0 for null. Of the record, the timestamp is
// not written.
func SourcedSerde[K, V any](keys serde.Serde[K], values serde.Serde[V]) serde.Serde[Sourced[K, V]] {
	return sourcedSerde[K, V]{RecordSerde(keys, values)}
}

type sourcedSerde[K, V any] struct{ records serde.Serde[Record[K, V]] }

func (s sourcedSerde[K, V]) Append(dst []byte, v Sourced[K, V]) ([]byte, error) {
	rec, err := s.records.Append(nil, v.Record)
	if err != nil {
		return dst, err
	}
	dst = append(binary.AppendUvarint(dst, uint64(len(rec))), rec...)
	src := &v.Source
	dst = append(binary.AppendUvarint(dst, uint64(len(src.Topic))), src.Topic...)
	for _, n := range []int64{int64(src.Partition), src.Offset, src.Timestamp} {
		dst = binary.AppendVarint(dst, n)
	}
	return appendHeaders(dst, append([]Header{{Value: src.Key}, {Value: src.Value}}, src.Headers...)), nil
}

var errSourced = errors.New("record with its source: malformed")

func (s sourcedSerde[K, V]) Decode(data []byte) (v Sourced[K, V], err error) {
	rec, data, ok := cutBytes(data)
	if !ok {
		return v, errSourced
	}
	topic, data, ok := cutBytes(data)
	if !ok {
		return v, errSourced
	}
	var numbers [3]int64
	for i := range numbers {
		n, size := binary.Varint(data)
		if size <= 0 {
			return v, errSourced
		}
		numbers[i], data = n, data[size:]
	}
	headers, data, ok := cutHeaders(data)
	if !ok || len(headers) < 2 || len(data) > 0 {
		return v, errSourced
	}
	if v.Record, err = s.records.Decode(rec); err != nil {
		return Sourced[K, V]{}, err
	}
	v.Source = Raw{
		Topic: string(topic), Partition: int32(numbers[0]), Offset: numbers[1], Timestamp: numbers[2],
		Key: headers[0].Value, Value: headers[1].Value,
	}
	if len(headers) > 2 {
		v.Source.Headers = headers[2:]
	}
	return v, nil
}

func (s sourcedSerde[K, V]) Name() string { return fmt.Sprintf("sourced(%s)", s.records.Name()) }
