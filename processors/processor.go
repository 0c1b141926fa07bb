package processors

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/millrace/millrace/serde"
	"github.com/millrace/millrace/state"
)

// A Processor is a step written by hand. One instance serves one task; its
// methods are called one at a time, never concurrently.
//
// What must survive belongs into stores: they are undone with a failed record
// and rolled back by an abort, fields of the processor are not. After an abort
// the processor is closed and a new one takes its place.
type Processor[KIn, VIn, KOut, VOut any] interface {
	// Init is called once, before the first record, when the stores are restored.
	// The context is valid until Close.
	Init(ctx *Context[KOut, VOut]) error
	// Process takes a record. Its error ends the processing of the source record
	// and goes to the error policy; [WithAction] chooses what becomes of it.
	Process(rec Record[KIn, VIn]) error
	// Close ends the processor. It must not use the context.
	Close() error
}

// ProcessorFunc makes a [Processor] of a function, for steps without state of
// their own.
type ProcessorFunc[KIn, VIn, KOut, VOut any] func(ctx *Context[KOut, VOut], rec Record[KIn, VIn]) error

// New returns a processor that calls f.
func (f ProcessorFunc[KIn, VIn, KOut, VOut]) New() Processor[KIn, VIn, KOut, VOut] {
	return &funcProcessor[KIn, VIn, KOut, VOut]{f: f}
}

type funcProcessor[KIn, VIn, KOut, VOut any] struct {
	f   ProcessorFunc[KIn, VIn, KOut, VOut]
	ctx *Context[KOut, VOut]
}

func (p *funcProcessor[KIn, VIn, KOut, VOut]) Init(ctx *Context[KOut, VOut]) error {
	p.ctx = ctx
	return nil
}

func (p *funcProcessor[KIn, VIn, KOut, VOut]) Process(rec Record[KIn, VIn]) error {
	return p.f(p.ctx, rec)
}
func (p *funcProcessor[KIn, VIn, KOut, VOut]) Close() error { return nil }

// A Context is what a [Processor] sees of its task. It is used only inside of
// Init, Process and punctuations, which the task calls one at a time.
type Context[K, V any] struct {
	t       Task
	step    string
	next    Forward[K, V]
	stores  map[string]StoreSerdes
	cancels []func()
	opened  bool         // Init has returned
	used    map[int]bool // numbers of scheduled StreamTime punctuations
}

// StoreSerdes are a connected store's serdes: boxed serde.Serde[K] and
// serde.Serde[V].
type StoreSerdes struct{ Key, Value any }

// NewContext returns the context of the processor of a step. next takes what it
// forwards.
func NewContext[K, V any](t Task, step string, stores map[string]StoreSerdes, next Forward[K, V]) *Context[K, V] {
	return &Context[K, V]{t: t, step: step, stores: stores, next: next, used: map[int]bool{}}
}

// Forward hands a record to the steps behind the processor. Timestamp and
// headers are as the processor set them; nil keys and values of nilable types are
// null. An error must be returned by the caller: it undoes the source record.
func (c *Context[K, V]) Forward(rec Record[K, V]) error { return c.next(rec) }

// Schedule calls fn at intervals until cancel is called or the processor ends.
// The argument is the time in ms since the epoch: stream time or wall clock.
//
// [StreamTime] punctuations fire on the first record and then whenever stream
// time reaches or passes a multiple of the interval since the epoch; [WallClock]
// punctuations fire one interval after the call and then at every interval. Missed
// ones collapse into one. A punctuation is atomic as a record is: what it did is
// undone if it fails. The interval is at least 1 ms.
//
// When a StreamTime punctuation is due next is part of the task's state: those that
// Init schedules, known by their order, go on after a restart as if there had been
// none. One scheduled later fires on the record after that.
func (c *Context[K, V]) Schedule(kind PunctuationKind, interval time.Duration, fn func(at int64) error) (cancel func()) {
	var next *state.Cell
	free := func() {}
	if kind == StreamTime {
		next, free = c.due()
	}
	stop := c.t.Schedule(kind, max(interval, time.Millisecond), next, func(at int64) (err error) {
		defer func() {
			if p := recover(); p != nil {
				err = Panicked(ClassProcess, c.step, p)
			}
		}()
		return Fail(ClassProcess, c.step, fn(at))
	})
	cancel = func() { stop(); free() }
	c.cancels = append(c.cancels, cancel)
	return cancel
}

// due returns the cell of a StreamTime punctuation: that of the lowest number that no
// other one has until free is called.
func (c *Context[K, V]) due() (next *state.Cell, free func()) {
	n := 0
	for c.used[n] {
		n++
	}
	c.used[n] = true
	next = c.t.Cell(fmt.Sprintf("punctuation:%s:%d", c.step, n))
	if c.opened {
		next.Set(-1)
	}
	done := false
	return next, func() {
		if !done {
			done = true
			delete(c.used, n)
		}
	}
}

// Context ends when the task is closed. It is a task's, not a record's.
func (c *Context[K, V]) Context() context.Context { return c.t.Context() }

// Logger returns the task's logger.
func (c *Context[K, V]) Logger() *slog.Logger { return c.t.Logger() }

// Step returns the step's name.
func (c *Context[K, V]) Step() string { return c.step }

// Partition returns the partition the task owns.
func (c *Context[K, V]) Partition() int32 { return c.t.Partition() }

// Source returns the source record being processed, with topic and offset; its
// Topic is empty during a punctuation. It must not be changed.
func (c *Context[K, V]) Source() *Raw { return c.t.Source() }

// StreamTime returns the largest timestamp (ms since the epoch) of the records
// the task has taken, -1 before the first.
func (c *Context[K, V]) StreamTime() int64 { return c.t.StreamTime() }

// Now returns the task's wall clock: the time of the batch being processed.
func (c *Context[K, V]) Now() time.Time { return c.t.Now() }

func (c *Context[K, V]) store(name string) (*state.Store, StoreSerdes, error) {
	serdes, ok := c.stores[name]
	if !ok {
		return nil, StoreSerdes{}, fmt.Errorf("store %q is not connected to step %q; pass topology.Stores(%q) to it", name, c.step, name)
	}
	s := c.t.Store(name)
	if s == nil {
		return nil, StoreSerdes{}, fmt.Errorf("store %q: the task of step %q does not hold it", name, c.step)
	}
	return s, serdes, nil
}

func (c *Context[K, V]) streamTime() func() int64 { return c.t.StreamTime }
func (c *Context[K, V]) task() Task               { return c.t }

func (c *Context[K, V]) everyRecord(f func(now int64) error) {
	c.cancels = append(c.cancels, c.t.Schedule(StreamTime, time.Millisecond, nil, f))
}

// StoreContext is a [Context] of any type, from which stores are opened.
type StoreContext interface {
	store(name string) (*state.Store, StoreSerdes, error)
	streamTime() func() int64
	task() Task
	// everyRecord calls f after every record, until the processor ends.
	everyRecord(f func(now int64) error)
}

// KeyValueStore opens the connected key-value store of that name, in Init. K and
// V are those it was declared with.
func KeyValueStore[K, V any](ctx StoreContext, name string) (state.KeyValueStore[K, V], error) {
	s, key, value, err := openStore[K, V](ctx, name, state.KeyValue)
	if err != nil {
		return nil, err
	}
	return expire(ctx, s, key, state.NewKeyValueStore(s, key, value)), nil
}

// WindowStore opens the connected window store of that name, in Init. K and V
// are those it was declared with. Its stream time is the task's.
func WindowStore[K, V any](ctx StoreContext, name string) (state.WindowStore[K, V], error) {
	s, key, value, err := openStore[K, V](ctx, name, state.Window)
	if err != nil {
		return nil, err
	}
	return state.NewWindowStore(s, key, value, ctx.streamTime()), nil
}

func openStore[K, V any](ctx StoreContext, name string, kind state.Kind) (*state.Store, serde.Serde[K], serde.Serde[V], error) {
	s, serdes, err := ctx.store(name)
	if err != nil {
		return nil, nil, nil, err
	}
	if s.Spec.Kind != kind {
		return nil, nil, nil, fmt.Errorf("store %q is of the other kind; open key-value stores with KeyValueStore, window stores with WindowStore", name)
	}
	key, okKey := serdes.Key.(serde.Serde[K])
	value, okValue := serdes.Value.(serde.Serde[V])
	if !okKey || !okValue {
		return nil, nil, nil, fmt.Errorf("store %q has other types than it is opened with: its serdes are %s and %s", name, s.Spec.KeySerde, s.Spec.ValueSerde)
	}
	return s, key, value, nil
}

// A RunningProcessor runs the processors of one step of one task, one after the
// other: Reset makes the first and every later one.
type RunningProcessor[KIn, VIn, KOut, VOut any] struct {
	// NewContext returns a fresh context, New a fresh processor.
	NewContext func() *Context[KOut, VOut]
	New        func() Processor[KIn, VIn, KOut, VOut]

	ctx *Context[KOut, VOut] // nil before the first Reset
	p   Processor[KIn, VIn, KOut, VOut]
}

// Process hands a record to the processor.
func (r *RunningProcessor[KIn, VIn, KOut, VOut]) Process(rec Record[KIn, VIn]) error {
	if r.p == nil {
		return errors.New("the processor is not initialised: the pipeline needs Reset before its first record")
	}
	return r.p.Process(rec)
}

// Reset closes the processor, if there is one, and initialises a fresh one.
func (r *RunningProcessor[KIn, VIn, KOut, VOut]) Reset() error {
	return errors.Join(r.Close(), r.open())
}

func (r *RunningProcessor[KIn, VIn, KOut, VOut]) open() (err error) {
	r.ctx = r.NewContext()
	defer func() {
		if p := recover(); p != nil {
			err = Panicked(ClassProcess, r.ctx.step, p)
		}
	}()
	p := r.New()
	if p == nil {
		return Fail(ClassProcess, r.ctx.step, errors.New("the function made no processor"))
	}
	if err := p.Init(r.ctx); err != nil {
		return Fail(ClassProcess, r.ctx.step, fmt.Errorf("init: %w", err))
	}
	r.ctx.opened = true
	r.p = p
	return nil
}

// Close ends the processor and its punctuations.
func (r *RunningProcessor[KIn, VIn, KOut, VOut]) Close() (err error) {
	if r.ctx == nil {
		return nil
	}
	for _, cancel := range r.ctx.cancels {
		cancel()
	}
	r.ctx.cancels = nil
	if r.p == nil {
		return nil
	}
	defer func() {
		r.p = nil
		if p := recover(); p != nil {
			err = Panicked(ClassProcess, r.ctx.step, p)
		}
	}()
	return Fail(ClassProcess, r.ctx.step, r.p.Close())
}

// Nulls sets the null flags of keys and values that stand for null before it
// forwards a record.
func Nulls[K, V any](next Forward[K, V]) Forward[K, V] {
	nullKey, nullValue := NullCheck[K](), NullCheck[V]()
	return func(r Record[K, V]) error {
		r.NoKey = r.NoKey || nullKey(r.Key)
		r.NoValue = r.NoValue || nullValue(r.Value)
		return next(r)
	}
}

// KeepKey returns the forward and the wrapper of the input of a processor that
// keeps keys: records forwarded while one is processed get its key.
func KeepKey[K, VIn, VOut any](next Forward[K, VOut]) (Forward[K, VOut], func(Forward[K, VIn]) Forward[K, VIn]) {
	var current *Record[K, VIn]
	forward := func(r Record[K, VOut]) error {
		if current != nil {
			r.Key, r.NoKey = current.Key, current.NoKey
		}
		return next(r)
	}
	return forward, func(process Forward[K, VIn]) Forward[K, VIn] {
		return func(r Record[K, VIn]) error {
			current = &r
			defer func() { current = nil }()
			return process(r)
		}
	}
}
