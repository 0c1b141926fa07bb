package processors

import (
	"context"
	"log/slog"
	"time"

	"github.com/millrace/millrace/state"
)

// Task is what an operator needs from the task that runs it: one sub-topology on
// one partition. All its methods are called from the task's own goroutine, while
// it processes a record, a tick or a punctuation.
type Task interface {
	// Context ends when the task is closed.
	Context() context.Context
	Logger() *slog.Logger
	// Partition is the partition the task owns.
	Partition() int32
	// Source is the record being processed, with its topic, partition and
	// offset; its Topic is empty during a punctuation.
	Source() *Raw
	// StreamTime is the largest timestamp (ms since the epoch) of the records the
	// task has taken for processing, -1 before the first.
	StreamTime() int64
	// Now is the wall clock as of the batch being processed.
	Now() time.Time
	// Store returns the store of that name, which the sub-topology declared.
	Store(name string) *state.Store
	// Global returns the instance's copy of a global table by store name.
	Global(name string) *state.Store
	// Cell returns the durable number of that name: a row of the task that
	// survives restarts and is undone with the record that changed it.
	Cell(name string) *state.Cell
	// Produce hands a record to the open transaction. With partition < 0 it goes
	// to the partition of its key (murmur2), or to any for a null key.
	Produce(topic string, partition int32, rec Raw) error
	// Schedule calls fn at intervals; see [PunctuationKind]. next is a cell of the task
	// that says when a StreamTime punctuation is due, nil for WallClock; a StreamTime
	// punctuation without one runs after every record.
	Schedule(kind PunctuationKind, interval time.Duration, next *state.Cell, fn func(at int64) error) (cancel func())
	// Dispatch starts a call once the open transaction has committed.
	Dispatch(call Call)
	// Drop counts a record that an operator dropped, and why: "null-key",
	// "null-value", "null-foreign-key", "early" or "late" for its windows, "expired"
	// or "out-of-order" for a table with history, "duplicate", "superseded". Operators
	// call the function [Drop].
	Drop(node, reason string)
}

// PunctuationKind tells which clock drives a punctuation.
type PunctuationKind uint8

const (
	// StreamTime punctuations fire on the first record and then whenever stream
	// time passes a multiple of the interval; missed ones collapse into one.
	StreamTime PunctuationKind = iota
	// WallClock punctuations fire one interval after they were scheduled and
	// then at every interval; missed ones collapse into one.
	WallClock
)

// A Call is one dispatch of an in-flight entry of an asynchronous operator. It
// runs outside of every transaction; its outcome is appended to the task's loop
// topic and so becomes an ordinary input.
type Call struct {
	Step  string // the operator
	Entry string // id of the entry
	Round int    // which request of the entry this is
	Ask   int    // how often the round was asked before
	// Abandoned says that this call repeats one whose owner ended without a word.
	Abandoned bool
	// Slots bounds how many calls of the step run at once on an instance.
	Slots int
	// MaxWait bounds the time until a slot is granted; 0 waits without limit.
	MaxWait time.Duration
	// HandoverWait bounds how long the call may go on when its task is handed over.
	HandoverWait time.Duration
	// Gate, if not nil, says how many calls of the step may run for one more to be
	// granted a slot: 0 while it cannot be made, and then when to ask again, zero if
	// that is not known. It must return quickly; a call that waits for it is passed by
	// others.
	Gate func() (calls int, retryAt time.Time)
	// Flight, if not empty, says which calls of the step are equal: while one runs on
	// an instance the others wait for it.
	Flight string
	// Run makes the call and returns the outcome as a loop record (key, value). It
	// returns soon after ctx ends. It owns its retries, attempt timeout and
	// deadline; the deadline starts with Run, when the slot has been granted. A
	// record with a nil Value says that ctx ended before there was an outcome or, if
	// it did not end, that the call cannot be made now: it gives its slot back and
	// waits, for MaxWait at most, until Gate lets it run again.
	Run func(ctx context.Context) Raw
	// Waited returns the outcome for a call that was not granted a slot within
	// MaxWait, or could not be made.
	Waited func() Raw
	// Released returns the loop record that says that this owner gave the call up
	// without an outcome.
	Released func() Raw
	// Failed returns the outcome that replaces one too large for the loop topic.
	Failed func(err error) Raw
}
