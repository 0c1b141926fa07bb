package topology

import (
	"fmt"
	"time"

	"github.com/millrace/millrace/processors"
)

// RetryPolicy says how often [Retry] calls its function for a record, and when.
type RetryPolicy = processors.RetryPolicy

// DefaultMaxWaiting is how many records of a partition wait in a [Retry] at most, if its
// policy does not say.
const DefaultMaxWaiting = 50_000

// Retry replaces the value of every record by the result of f, which may fail. A record
// for which it fails, or panics, waits, and with it all later ones of its key, in the
// store named name with the changelog <app>.<name>-table; records of other keys go on.
// When the policy's backoff has passed, by the wall clock, f is called again, and when it
// succeeds the records behind are tried, in order. Records without a key wait together.
//
// A record for which the last attempt fails becomes a dead letter in <app>.dlq, with the
// source record's key, value, headers and position, and the next of its key is tried.
// With [processors.WithAction] the function ends the attempts of a record at once:
// DeadLetter, Skip ("skipped", see [Dropped]) or Stop. What waits, and the attempts that
// were made, survive restarts and aborts; a call whose transaction is aborted is made
// again. An error of the steps behind, on a record that has waited, stops the task.
//
// f runs in the task and holds it up: it is for what is quick. Slow functions belong into
// [AsyncLookup], which has retries of its own.
//
// Backoff is at least 1 ms; MaxBackoff is 0 for no bound, and MaxWaiting 0 for
// [DefaultMaxWaiting]. The repartition topic, behind an asynchronous step or one that
// changes the key, is <app>.<name>-repartition.
func Retry[K, V, R any](s *KStream[K, V], name string, policy RetryPolicy, f func(processors.Record[K, V]) (R, error)) *KStream[K, R] {
	b, what := s.b, fmt.Sprintf("retry %q", name)
	switch {
	case policy.Attempts < 1:
		b.fail("%s: %d attempts; it must be at least 1, the first call included", what, policy.Attempts)
	case policy.Backoff < time.Millisecond:
		b.fail("%s: a backoff of %s; it must be at least 1 ms", what, policy.Backoff)
	case policy.MaxBackoff != 0 && policy.MaxBackoff < policy.Backoff:
		b.fail("%s: a largest backoff of %s, but the first is %s; make it at least that, or 0 for no bound", what, policy.MaxBackoff, policy.Backoff)
	case policy.MaxWaiting < 0:
		b.fail("%s: at most %d records may wait; it must be 1 or more, or 0 for %d", what, policy.MaxWaiting, DefaultMaxWaiting)
	case f == nil:
		b.fail("%s: the function is nil", what)
	}
	if policy.MaxBackoff == 0 {
		policy.MaxBackoff = forever
	}
	if policy.MaxWaiting == 0 {
		policy.MaxWaiting = DefaultMaxWaiting
	}
	in := repartitioned(s, name, true)
	out := &KStream[K, R]{b: b, key: in.key, value: serdeFor[V, R](s.value)}
	n := &node{kind: kindStateful, op: "retry", name: name, inputs: []input{inputOf(in)}}
	n.detail = fmt.Sprintf("%d attempts, backoff %s", policy.Attempts, policy.Backoff)
	if !needSerdes(in, what) {
		out.from = port{n: b.addNode(n, in.from)}
		return out
	}
	rows := processors.SourcedSerde(in.key, in.value)
	n.stores = b.keyValueSpec(n.op, name, processors.QueueKeySerde(), rows)
	n.run = func(task processors.Task, to [][]any) (*operator, error) {
		store, err := openKeyValue(task, name, processors.QueueKeySerde(), rows)
		if err != nil {
			return nil, err
		}
		o := &processors.Retrying[K, V, R]{
			Task: task, Step: name, Policy: policy, DeadLetters: b.app + ".dlq", Keys: in.key, Store: store, Call: f, Next: forwards[K, R](to[0]),
		}
		start := o.Start()
		return &operator{
			inputs:   []any{processors.Guard(name, start)},
			capacity: func() bool { return o.Waiting() < int64(policy.MaxWaiting) },
			reset:    func() error { o.Reset(); return nil },
			close:    func() error { o.Close(); return nil },
		}, nil
	}
	out.from = port{n: b.addNode(n, in.from)}
	return out
}

// forever is longer than any wait, and can be added to a time in ms.
const forever = 100 * 365 * 24 * time.Hour
