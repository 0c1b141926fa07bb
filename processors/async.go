package processors

import (
	"context"
	"fmt"
	"slices"
	"time"

	millracev1 "github.com/millrace/millrace/proto/millrace/v1"
)

// Order says which results of an asynchronous step keep the order of their
// events.
type Order uint8

const (
	// OrderKey keeps the order of the events of a key: at most one call per key is
	// out. Events without a key have no order.
	OrderKey Order = iota
	// OrderPartition calls as OrderKey does, but holds each result until those of
	// all earlier events of the partition are out, events without a key included.
	OrderPartition
	// OrderStrict is OrderPartition, and the committed offset of a source stays at
	// the first event whose result is not out, so that the group's lag tells the
	// truth to any tool.
	OrderStrict
	// OrderNone keeps no order.
	OrderNone
)

// String returns the order's name.
func (o Order) String() string {
	switch o {
	case OrderKey:
		return "key"
	case OrderPartition:
		return "partition"
	case OrderStrict:
		return "partition strict"
	case OrderNone:
		return "none"
	}
	return fmt.Sprintf("order(%d)", uint8(o))
}

// AsyncConfig configures an asynchronous step. All fields are required but
// MaxWait, Fallback, OpenFallback and FallbackOn.
type AsyncConfig struct {
	// Step names the step: its loop topic, dead letters and entries.
	Step string
	// DeadLetters is the topic that takes events that end without an answer.
	DeadLetters string
	Order       Order
	// Slots bounds the calls of the step that run at once on an instance.
	Slots int
	// MaxEntries and MaxBytes bound the entries of a partition: when one is
	// reached, no more events are read.
	MaxEntries, MaxBytes int
	// MaxWait bounds the time until a slot is granted; 0 waits without limit.
	MaxWait time.Duration
	// HandoverWait is how long calls may go on when the task moves to another
	// instance. It must be the same on all instances.
	HandoverWait time.Duration
	// Fallback forwards an event that ends without an answer to the fallbacks
	// instead of dead-lettering it.
	Fallback bool
	// OpenFallback does so with an event that ends since a circuit breaker is open.
	OpenFallback bool
	// FallbackOn does so with an event that ends with a failure of one of the classes.
	FallbackOn []Class
	Attempts   AttemptPolicy
}

// falls reports whether an event that ends so is a fallback.
func (c *AsyncConfig) falls(f *millracev1.Failure) bool {
	switch f.GetReason() {
	case millracev1.Failure_REASON_BREAKER_OPEN:
		return c.OpenFallback
	case millracev1.Failure_REASON_OVER_BUDGET:
		return true // the budget says so
	}
	return c.Fallback || slices.Contains(c.FallbackOn, Class(f.GetClass()))
}

// window is how many asked entries a task has at most. It keeps every slot of an
// instance busy, and bounds the events in memory and the calls that a hand-over
// has to give up. With MaxWait all heads must be waiting for a slot.
func (c *AsyncConfig) window() int {
	if c.MaxWait > 0 {
		return c.MaxEntries
	}
	return max(2*c.Slots, 16)
}

// Answer is the result of an asynchronous step: the event's value and what the
// call returned for it.
type Answer[V, R any] struct {
	Event  V
	Result R
}

// Owner names who runs a task: the instance (its state directory) and the
// process within it. Only one process at a time runs an instance.
type Owner struct {
	Instance    string
	Incarnation string
}

// An AskedCall names a call: which ask of which round of which entry.
type AskedCall struct {
	Entry      string
	Round, Ask int
}

// AsyncTask is what an asynchronous step needs of its task beyond [Task]. The
// engine must provide exactly this:
//
//   - Calls given to Dispatch start after the transaction is known to have
//     committed; they are dropped with the record or transaction that is undone.
//     If the outcome of a commit is unknown, they are dropped and the task is
//     reopened.
//   - Records of the loop topic are always taken, whatever Capacity says.
//   - After a rewind and after a restore the pipeline is Reset.
//   - A failed loop record that the step did not answer for (garbage in the loop
//     topic) is the error policy's, as any other. Where the broker refuses what a
//     loop record produced, [Async.Reject] takes the place of [Async.Loop].
//   - At the end of a cycle, before the changes of the task are collected,
//     [Async.Hold] is asked which offset of each source to commit.
type AsyncTask interface {
	Task
	// Owner names this process as owner of the task.
	Owner() Owner
	// Adopt is called at a Reset with the entries of the step that were asked by
	// this process. It takes over the task's calls and reports for each whether
	// the process has been given that call before, whether it waits, runs or has
	// ended; it ends a hand-over of the task that may be going on. What the process
	// knows of the step's calls for this task beyond those is forgotten.
	Adopt(step string, asked []AskedCall) []bool
	// Retire forgets the calls of an entry, once the open transaction has committed
	// and the calls dispatched in it were given to the process. One still running is
	// cancelled, and its outcome dropped.
	Retire(step, entry string)
	// Observer is told of the calls of the task, outside of it.
	Observer() Observer
	// Report tells whoever watches the instance what was decided, once the open
	// transaction has committed. It is dropped with the record or transaction that is
	// undone, and if the outcome of the commit is unknown.
	Report(Report)
	// LoopCaughtUp reports whether the task has processed, as of now, all records
	// of the loop topic below the high watermark read after it was assigned and
	// below those of all fetches since. An abort that rewinds the loop makes it
	// false again.
	LoopCaughtUp() bool
	// Undo undoes what the record being processed did so far: state, outputs and
	// calls.
	Undo()
	// Decide returns what becomes of e: its own action or, if that is Default, what
	// the application's error policy says. It is never Default.
	Decide(e *Error) Action
	// TopicID returns an identifier of a source topic that changes when the topic
	// is recreated, or the topic's name where ids are not known.
	TopicID(topic string) string
	// MaxRowBytes is the size of the largest row the task's changelog takes.
	MaxRowBytes() int
}

// Entry is what a call knows of its in-flight entry.
type Entry struct {
	// ID is the same for every call made for one event, also by other processes:
	// with Round it makes an idempotency key.
	ID string
	// Round is the number of the request within the entry, from 0.
	Round int
	// Attempt is the number of the attempt within this call, from 1.
	Attempt int
	// Owner is the process that makes the call.
	Owner Owner
}

type entryKey struct{}

// EntryFromContext returns the in-flight entry for which a function of an
// asynchronous step is called, and whether ctx is that of such a call.
func EntryFromContext(ctx context.Context) (Entry, bool) {
	e, ok := ctx.Value(entryKey{}).(Entry)
	return e, ok
}
