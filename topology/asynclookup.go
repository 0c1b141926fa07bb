package topology

import (
	"context"
	"fmt"
	"time"

	"github.com/millrace/millrace/processors"
	"github.com/millrace/millrace/serde"
)

// A LookupOption configures [AsyncLookup].
type LookupOption interface{ lookup(*lookupOptions) }

type lookupOptions struct {
	processors.AsyncConfig
	errs []error
}

type lookupOption func(*lookupOptions)

func (f lookupOption) lookup(o *lookupOptions) { f(o) }

func (o *lookupOptions) fail(format string, args ...any) {
	o.errs = append(o.errs, fmt.Errorf(format, args...))
}

// Order says which results keep the order of their events. Default:
// [processors.OrderKey].
func Order(order processors.Order) LookupOption {
	return lookupOption(func(o *lookupOptions) {
		if order > processors.OrderNone {
			o.fail("Order(%d) is none of the orders of package processors", order)
		}
		o.Order = order
	})
}

// Concurrency sets how many calls of the step run at once on an instance, over
// all its partitions. Default: 64.
func Concurrency(slots int) LookupOption {
	return lookupOption(func(o *lookupOptions) {
		if slots < 1 {
			o.fail("Concurrency(%d): at least one call has to run", slots)
		}
		o.Slots = slots
	})
}

// AttemptTimeout bounds one attempt: the context of the function ends then. It
// cannot be switched off. Default: 30 s.
func AttemptTimeout(d time.Duration) LookupOption {
	return lookupOption(func(o *lookupOptions) {
		if d <= 0 {
			o.fail("AttemptTimeout(%s): it must be positive and cannot be switched off", d)
		}
		o.Attempts.Timeout = d
	})
}

// Deadline bounds a call, its attempts and the pauses between them, from the
// moment it was granted a slot. It cannot be switched off. Default: 2 min.
func Deadline(d time.Duration) LookupOption {
	return lookupOption(func(o *lookupOptions) {
		if d <= 0 {
			o.fail("Deadline(%s): it must be positive and cannot be switched off", d)
		}
		o.Attempts.Deadline = d
	})
}

// Retries sets how many attempts may follow a failed one. The pause before the
// n-th is a random time between 0 and 2^(n-1) times base, at most ceiling, and at
// least what [processors.RetryAfter] asks for. Default: 3, 200 ms, 10 s.
func Retries(n int, base, ceiling time.Duration) LookupOption {
	return lookupOption(func(o *lookupOptions) {
		if n < 0 || base < 0 || ceiling < base {
			o.fail("Retries(%d, %s, %s): the number and the pauses must not be negative, and the ceiling not below the base", n, base, ceiling)
		}
		o.Attempts.Attempts, o.Attempts.Backoff, o.Attempts.MaxBackoff = n+1, base, ceiling
	})
}

// MaxWait bounds the time that a call waits for a slot; it ends as a failure
// then. After a restart the time begins again. Default: 0, it waits without limit.
func MaxWait(d time.Duration) LookupOption {
	return lookupOption(func(o *lookupOptions) {
		if d < 0 {
			o.fail("MaxWait(%s): it must not be negative; 0 waits without limit", d)
		}
		o.MaxWait = d
	})
}

// Capacity bounds the in-flight entries of a partition, by number and by bytes.
// When a bound is reached the partition is paused: Kafka is the buffer. Default:
// 50,000 and 256 MiB.
func Capacity(entries, bytes int) LookupOption {
	return lookupOption(func(o *lookupOptions) {
		if entries < 1 || bytes < 1 {
			o.fail("Capacity(%d, %d): both bounds must be positive", entries, bytes)
		}
		o.MaxEntries, o.MaxBytes = entries, bytes
	})
}

// HandoverWait sets how long running calls may go on when their partition moves
// to another instance, before they are cancelled and asked again there. All
// instances need the same. Default: 5 s, at most 10 s.
func HandoverWait(d time.Duration) LookupOption {
	return lookupOption(func(o *lookupOptions) {
		if d <= 0 || d > 10*time.Second {
			o.fail("HandoverWait(%s): it must be positive and at most 10s, since it has to fit into a rebalance", d)
		}
		o.HandoverWait = d
	})
}

// FailurePolicy says what becomes of an event that ends without an answer.
type FailurePolicy uint8

const (
	// DeadLetterEvent writes the source record to <app>.<step>.dlq.
	DeadLetterEvent FailurePolicy = iota
	// FallbackEvent forwards the event to [Lookup.Fallbacks].
	FallbackEvent
)

// OnFailure sets what becomes of an event that ends without an answer. Default:
// [DeadLetterEvent].
func OnFailure(p FailurePolicy) LookupOption {
	return lookupOption(func(o *lookupOptions) { o.Fallback = p == FallbackEvent })
}

// A Lookup is the outcome of [AsyncLookup].
type Lookup[K, V, R any] struct {
	results   *KStream[K, processors.Answer[V, R]]
	fallbacks *KStream[K, V]
}

// Results is the stream of answered events: key, timestamp and headers are those
// of the event, the value holds the event's value and the result. Map it to what
// is to be written.
func (l *Lookup[K, V, R]) Results() *KStream[K, processors.Answer[V, R]] { return l.results }

// Fallbacks is the stream of the events that ended without an answer, unchanged
// but for the header [processors.FallbackHeader]. It needs [OnFailure] of
// [FallbackEvent].
func (l *Lookup[K, V, R]) Fallbacks() *KStream[K, V] { return l.fallbacks }

// AsyncLookup calls fn, any slow external function, for every event and goes on
// with its results, without the pipeline ever waiting for it: a table whose
// missing rows are computed asynchronously and durably.
//
// The event is stored as an in-flight entry in the transaction of its offset. Its
// call is made outside of every transaction, and the outcome comes back through
// the topic <app>.<name>-loop, so that every event ends exactly once, in a result,
// a fallback or a dead letter (<app>.<name>.dlq), and an answer that was appended
// is never asked for again. A call is repeated only if its process ended, froze or
// had to give it up before its outcome was appended: [processors.EntryFromContext]
// tells fn an id by which the callee can recognise a repetition.
//
// fn runs in a goroutine of its own and must be safe for concurrent use. It must
// return soon after its context ends. An error is tried again (see [Retries]);
// [processors.RetryAfter] sets the least pause, and [processors.WithAction]
// chooses: DeadLetter (and Stop) end the call at once as a failure, Skip drops the
// event. A panic ends the call as a failure. A nil result is passed on as the zero
// R. result encodes results for the loop topic.
//
// The step has a Kafka group of its own, <app>.<name>, which reads the source
// topic itself; stateless steps and sinks before and behind it run there too. A
// stateful or asynchronous step before it, or a changed key where the order is
// not [processors.OrderNone], costs the topic <app>.<name>-repartition.
func AsyncLookup[K, V, R any](s *KStream[K, V], name string, fn func(ctx context.Context, rec processors.Record[K, V]) (R, error), result serde.Serde[R], opts ...LookupOption) *Lookup[K, V, R] {
	o := lookupDefaults(s.b, name)
	for _, opt := range opts {
		opt.lookup(&o)
	}
	what := fmt.Sprintf("asynchronous step %q", name)
	for _, err := range o.errs {
		s.b.fail("%s: %v", what, err)
	}
	if fn == nil {
		s.b.fail("%s: the function is nil", what)
	}
	if result == nil {
		s.b.fail("%s: the serde of results is nil; pass one, for example serde.JSON", what)
	}
	step := &processors.AsyncStep[K, V, R]{
		AsyncConfig: o.AsyncConfig, Result: result,
		Call: func(ctx context.Context, rec processors.Record[K, V], _ []byte) (R, error) { return fn(ctx, rec) },
	}
	in := asyncInput(s, name, o.Order != processors.OrderNone)
	if needSerdes(in, what) {
		step.Key, step.Value = in.key, in.value
	}
	n := &node{
		kind: kindAsync, op: "async-lookup", name: name, detail: "order " + o.Order.String(),
		outs: 2, labels: []string{"results", "fallbacks"}, timers: true, fallback: o.Fallback,
	}
	if step.Key != nil && result != nil {
		n.serdes = [2]string{step.Key.Name(), step.Value.Name()}
		n.detail = join(n.detail, "results "+result.Name())
	}
	if o.Fallback {
		n.detail = join(n.detail, "fallbacks")
	}
	n.run = func(t processors.Task, out [][]any) (*operator, error) {
		async, in, err := step.Start(t, forwards[K, processors.Answer[V, R]](out[0]), forwards[K, V](out[1]))
		if err != nil {
			return nil, err
		}
		return asyncOperator(async, processors.Guard(name, in)), nil
	}
	s.b.addNode(n, in.from)
	return &Lookup[K, V, R]{
		results:   &KStream[K, processors.Answer[V, R]]{b: s.b, from: port{n: n}, key: in.key, changed: in.changed},
		fallbacks: &KStream[K, V]{b: s.b, from: port{n: n, out: 1}, key: in.key, value: in.value, changed: in.changed},
	}
}

// lookupDefaults are the options of an asynchronous step of that name.
func lookupDefaults(b *Builder, name string) lookupOptions {
	return lookupOptions{AsyncConfig: processors.AsyncConfig{
		Step: name, DeadLetters: b.app + "." + name + ".dlq", Slots: 64,
		MaxEntries: 50_000, MaxBytes: 256 << 20, HandoverWait: 5 * time.Second,
		Attempts: processors.AttemptPolicy{
			Timeout: 30 * time.Second, Deadline: 2 * time.Minute,
			Attempts: 4, Backoff: 200 * time.Millisecond, MaxBackoff: 10 * time.Second,
		},
	}}
}

// asyncOperator is the running operator of an asynchronous step.
func asyncOperator[K, V any](async *processors.Async, in processors.Forward[K, V]) *operator {
	return &operator{
		inputs: []any{in}, async: async,
		loop: async.Loop, capacity: async.Capacity, pending: async.Pending, reset: async.Reset, close: async.Close,
	}
}

// A Holder is a [Pipeline] that may hold offsets back: that of an asynchronous
// step in strict order does. The engine asks it at the end of every cycle, before
// it collects the changes of the task.
type Holder interface {
	// Hold returns the offset to commit for a source of which the records before
	// next have been processed, skipped or dead-lettered; it is at most next.
	Hold(source int, next int64) int64
}

// A Rejecter is a [Pipeline] of a sub-topology with a loop topic. Where the broker
// refuses what a loop record made it produce, the engine calls Reject in place of
// Process: the loop record's event ends with that error.
type Rejecter interface {
	Reject(rec *processors.Raw, cause error) error
}

var (
	_ Holder   = (*pipeline)(nil)
	_ Rejecter = (*pipeline)(nil)
)

// Hold implements [Holder].
func (p *pipeline) Hold(source int, next int64) int64 {
	if p.async == nil || source >= len(p.topics) {
		return next
	}
	return p.async.Hold(p.topics[source], next)
}

// Reject implements [Rejecter].
func (p *pipeline) Reject(rec *processors.Raw, cause error) error {
	if p.async == nil {
		return cause
	}
	return p.async.Reject(rec, cause)
}
