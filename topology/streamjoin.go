package topology

import (
	"fmt"
	"time"

	"github.com/millrace/millrace/processors"
	"github.com/millrace/millrace/state"
)

// JoinWindows says which records of two streams are joined; see [Within].
type JoinWindows struct {
	processors.JoinWindows
	grace bool // Grace was given
}

// A JoinWindowOption configures [Within] and [Between]. [Grace] is one.
type JoinWindowOption interface{ joinWindow(*JoinWindows) }

func (d grace) joinWindow(w *JoinWindows) { w.Grace, w.grace = time.Duration(d), true }

// Within joins records of two streams whose timestamps are at most d apart.
// [Grace] must be given: how long after that a late record may come. Records are
// kept for 2 d + grace of stream time.
func Within(d time.Duration, opts ...JoinWindowOption) JoinWindows { return Between(d, d, opts...) }

// Between joins a record of the left stream with those of the right stream that
// are at most before older and at most after newer, both inclusive. One of the two
// may be negative: Between(-time.Minute, time.Hour) joins what is a minute to an
// hour newer. [Grace] must be given. Records are kept for before + after + grace of
// stream time.
func Between(before, after time.Duration, opts ...JoinWindowOption) JoinWindows {
	w := JoinWindows{JoinWindows: processors.JoinWindows{Before: before, After: after}}
	for _, opt := range opts {
		opt.joinWindow(&w)
	}
	return w
}

// check returns what is wrong with w.
func (w JoinWindows) check() []error {
	var errs []error
	fail := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if w.Before%time.Millisecond != 0 || w.After%time.Millisecond != 0 {
		fail("join windows from %s before to %s after; both must be numbers of milliseconds", w.Before, w.After)
	} else if w.Before+w.After < 0 {
		fail("join windows from %s before to %s after: they end before they start; make the sum 0 or more", w.Before, w.After)
	}
	switch {
	case !w.grace:
		fail("no grace; pass topology.Grace, for example topology.Grace(0) to wait for no late records")
	case w.Grace < 0 || w.Grace%time.Millisecond != 0:
		fail("a grace of %s; it must be a number of milliseconds, 0 or more", w.Grace)
	}
	return errs
}

// kept is how long the stores keep records.
func (w JoinWindows) kept() time.Duration { return max(w.Retention(), time.Millisecond) }

// String describes the windows, for the fingerprint and Describe.
func (w JoinWindows) String() string {
	return fmt.Sprintf("from %s before to %s after, grace %s", w.Before, w.After, w.Grace)
}

// StreamJoin joins the records of two streams that have the same key and are not
// too far apart, each pair once, and forwards what f makes of both. A result's
// timestamp is the larger of the two, its headers are those of the record that came
// last. Streams may be joined with themselves.
//
//	                 StreamJoin  StreamLeftJoin  StreamOuterJoin
//	a pair           f           f               f
//	left alone       -           f, late         f, late
//	right alone      -           -               f, late
//	null value       dropped     dropped         dropped         ("null-value")
//	left null key    dropped     f, at once      f, at once      ("null-key")
//	right null key   dropped     dropped         f, at once      ("null-key")
//
// A record alone is forwarded once it cannot have a partner any more: when stream
// time, the largest timestamp of both streams, has passed its window by more than
// the grace. It keeps its own timestamp and headers; those of one moment come out
// in the order of their timestamps, before the result of the record that moved the
// time. Only records move it, so that the last ones of idle input wait. (Kafka
// Streams looks for such records at most once per second, and sometimes later than
// it could.)
//
// A late record joins what is still kept: for before + after + grace. Records are
// kept in the stores <name>-left and <name>-right, those alone in
// <name>-unmatched, each with its changelog. The streams must have the same number
// of partitions and partitioner. If a step before may have changed the key, the
// records go through the repartition topic <app>.<name>-left-repartition or
// <app>.<name>-right-repartition.
func StreamJoin[K, L, R, V any](left *KStream[K, L], right *KStream[K, R], name string, w JoinWindows, f func(left L, right R) V) *KStream[K, V] {
	return joinStreams(left, right, name, w, processors.InnerJoin, func(_ K, l L, _ bool, r R, _ bool) (V, error) { return f(l, r), nil })
}

// StreamLeftJoin is [StreamJoin], but records of the left stream without a partner
// are forwarded too: f then gets ok = false and the zero value.
func StreamLeftJoin[K, L, R, V any](left *KStream[K, L], right *KStream[K, R], name string, w JoinWindows, f func(left L, right R, ok bool) V) *KStream[K, V] {
	return joinStreams(left, right, name, w, processors.LeftJoin, func(_ K, l L, _ bool, r R, ok bool) (V, error) { return f(l, r, ok), nil })
}

// StreamOuterJoin is [StreamJoin], but records of either stream without a partner
// are forwarded too: f then gets hasLeft or hasRight = false and the zero value.
func StreamOuterJoin[K, L, R, V any](left *KStream[K, L], right *KStream[K, R], name string, w JoinWindows, f func(left L, hasLeft bool, right R, hasRight bool) V) *KStream[K, V] {
	return joinStreams(left, right, name, w, processors.OuterJoin, func(_ K, l L, hasL bool, r R, hasR bool) (V, error) { return f(l, hasL, r, hasR), nil })
}

func joinStreams[K, L, R, V any](left *KStream[K, L], right *KStream[K, R], name string, w JoinWindows, kind processors.JoinKind,
	f func(K, L, bool, R, bool) (V, error),
) *KStream[K, V] {
	b := left.b
	op := "stream-" + kind.String() + "-join"
	what := fmt.Sprintf("%s %q", op, name)
	if right.b != b {
		b.fail("%s: a stream belongs to another builder; build the whole application with one", what)
	}
	l := repartitioned(left, name+"-left", kind != processors.InnerJoin)
	r := repartitioned(right, name+"-right", kind == processors.OuterJoin)
	key := l.key
	if key == nil {
		key = r.key
	}
	n := &node{kind: kindStateful, op: op, name: name, detail: w.String(), aligned: true, timers: true, inputs: []input{inputOf(l), inputOf(r)}}
	for _, err := range w.check() {
		b.fail("%s: %v", what, err)
	}
	lOK, rOK := needSerdes(l, what+", left stream"), needSerdes(r, what+", right stream")
	alone, rows := processors.AloneSerde(key), processors.RecordSerde(key, processors.EitherSerde(l.value, r.value))
	if lOK && rOK {
		spec := state.Spec{Name: name + "-left", Kind: state.Events, KeySerde: key.Name(), ValueSerde: l.value.Name(), Retention: w.kept()}
		n.stores = append(n.stores, spec)
		spec.Name, spec.ValueSerde = name+"-right", r.value.Name()
		n.stores = append(n.stores, spec)
		if kind != processors.InnerJoin {
			n.stores = append(n.stores, state.Spec{Name: name + "-unmatched", KeySerde: alone.Name(), ValueSerde: rows.Name()})
		}
	}
	n.start = func(task processors.Task, out [][]any) ([]any, error) {
		ls, rs := task.Store(name+"-left"), task.Store(name+"-right")
		if ls == nil || rs == nil {
			return nil, fmt.Errorf("stores of %s: not in this task", what)
		}
		j := &processors.StreamStreamJoin[K, L, R, V]{
			Task: task, Step: name, Kind: kind, Windows: w.JoinWindows, Join: f, Next: forwards[K, V](out[0]),
			Left:  state.NewEventStore(ls, key, l.value, processors.JoinTime(task, name, true)),
			Right: state.NewEventStore(rs, key, r.value, processors.JoinTime(task, name, false)),
		}
		if kind != processors.InnerJoin {
			unmatched, err := openKeyValue(task, name+"-unmatched", alone, rows)
			if err != nil {
				return nil, err
			}
			j.Unmatched = unmatched
		}
		fromLeft, fromRight := j.Inputs()
		return []any{processors.Guard(name, fromLeft), processors.Guard(name, fromRight)}, nil
	}
	return &KStream[K, V]{b: b, from: port{n: b.addNode(n, l.from, r.from)}, key: key, value: serdeFor[L, V](l.value)}
}
