package processors

import (
	"context"
	"encoding/binary"
	"fmt"
	"slices"
	"time"

	"github.com/tidwall/btree"
	"google.golang.org/protobuf/proto"

	millracev1 "github.com/millrace/millrace/proto/millrace/v1"
	"github.com/millrace/millrace/state"
)

// Async is the state machine of an asynchronous step in one task. It admits
// events as durable entries, asks for the heads of their lanes, and ends entries
// as their outcomes come back through the loop topic. It is not safe for
// concurrent use.
//
// All it knows is in the task's rows; memory holds the heads of lanes and how
// many entries wait behind each. Every change of memory is undone when the record
// that made it is: the durable version number, which moves with each change, no
// longer fits then.
type Async struct {
	cfg     AsyncConfig
	task    AsyncTask
	typed   asyncTyped
	rows    *state.Store
	version *state.Cell
	prefix  []byte

	loaded  bool
	opened  time.Time // when this process got the task
	ver     int64     // the version memory stands for
	record  position
	ordinal int // of the next event of the record
	undo    []func()
	saved   asyncCounts // at the start of the record

	lanes     map[string]*lane
	byID      map[string]*head
	bySeq     *btree.BTreeG[*head] // all heads
	ready     *btree.BTreeG[*head] // heads to be asked when there is room
	inherited map[*head]struct{}
	ours      int // heads asked by this process
	finished  map[int64]row
	queues    queues // heads that wait for budgets
	asyncCounts

	unschedule func()
	closed     func() // what Close does; may be nil
}

// Close ends the step's part in what the instance shares.
func (a *Async) Close() error {
	if a.closed != nil {
		a.closed()
	}
	return nil
}

// asyncCounts are what is restored as a whole when a record is undone.
type asyncCounts struct {
	entries, bytes int
	// live holds all entries in order of admission, if the order is that of the
	// partition.
	live []liveEntry
}

type liveEntry struct {
	seq, timestamp, offset int64
	topic                  string
}

// position is that of a source record.
type position struct {
	topic  string
	offset int64
}

// row is the place and size of an entry.
type row struct {
	key  []byte
	size int
}

// A lane is a sequence of entries that are called one after the other.
type lane struct {
	prefix  string
	head    *head
	waiting int // entries behind the head
}

// A head is the first entry of a lane that has no outcome.
type head struct {
	row
	lane      *lane
	seq       int64
	id        string
	timestamp int64
	round     int32
	ask       int32 // the last one, -1 if there was none
	state     headState
	due       time.Time // when an inherited one may be asked again
	abandoned bool      // its last ask ended without any word of its owner
	// wait is what it waits for; of a ready one, what it has been woken from.
	wait    budgetWait
	further bool // its event has ended: see asyncFurther
}

type headState uint8

const (
	headReady     headState = iota // waits for room in the window
	headOurs                       // asked by this process
	headInherited                  // asked by another process: its outcome may come
	headWaiting                    // for a budget
)

// asyncTyped are the typed parts of a step. call runs outside of the task, what
// takes an outcome in the transaction that processes it.
type asyncTyped struct {
	resolve func(*millracev1.Entry) ([]byte, error) // nil if there is nothing to resolve
	// reserve takes what the present round may need out of the step's budgets, for
	// Entry.Reserved. It returns what to wait for if they do not cover it, or if behind
	// says so of one of their rows: others wait for it already. nil without budgets.
	reserve func(e *millracev1.Entry, behind func(row string) (time.Time, bool)) ([]byte, *budgetWait, error)
	// settle replaces what is reserved by what an outcome says was spent. It returns the
	// rows that have more left then.
	settle   func(*millracev1.Entry, *millracev1.Outcome) ([]string, error)
	call     func(context.Context, *request) *millracev1.Outcome
	answer   func(*millracev1.Entry, *millracev1.Outcome) error
	fallback func(*millracev1.Entry, *millracev1.Outcome) error
	// failed sees every outcome that is neither an answer nor a release before what
	// becomes of it; nil if the step has nothing to note.
	failed func(*millracev1.Entry, *millracev1.Outcome) error
	// report adds to a report what the step knows of the entry, and takes its status out
	// if there is nothing to report; nil if it knows nothing.
	report func(*Report, *millracev1.Entry, *millracev1.Outcome)
	// details returns headers for the entry's dead letter; nil if there are none.
	details func(*millracev1.Entry, *millracev1.Outcome) []Header
	// admit sets the Gate and the Flight of a call; nil leaves them out.
	admit   func(*request, *Call)
	further asyncFurther
	// sizes of the step's stores; nil if it has none.
	sizes func() []StoreSize
}

func newAsync(t AsyncTask, cfg AsyncConfig, typed asyncTyped) *Async {
	return &Async{
		cfg: cfg, task: t, typed: typed,
		rows: t.Store(state.TaskRows), version: t.Cell("async/" + cfg.Step), prefix: entriesPrefix(cfg.Step),
	}
}

// ordered reports whether results wait for those of earlier events.
func (a *Async) ordered() bool { return a.cfg.Order == OrderPartition || a.cfg.Order == OrderStrict }

// Capacity reports whether the step takes more events. Those already read are
// admitted anyway.
func (a *Async) Capacity() bool {
	return a.entries < a.cfg.MaxEntries && a.bytes < a.cfg.MaxBytes
}

// Pending returns the number of entries and the timestamp (ms) of the one
// admitted first, 0 if there is none.
func (a *Async) Pending() (entries int, oldest int64) {
	a.sync()
	if len(a.live) > 0 {
		return a.entries, a.live[0].timestamp
	}
	if !a.loaded {
		return 0, 0
	}
	if h, ok := a.bySeq.Min(); ok {
		oldest = h.timestamp
	}
	return a.entries, oldest
}

// Sizes returns what the stores of the step hold in this task.
func (a *Async) Sizes() []StoreSize {
	if a.typed.sizes == nil {
		return nil
	}
	return a.typed.sizes()
}

// Reset rebuilds memory from the rows of the task. It writes nothing; what is to
// be asked is asked with the next record or tick.
func (a *Async) Reset() error {
	if a.opened.IsZero() {
		a.opened = a.task.Now()
	}
	seqOrder := func(x, y *head) bool { return x.seq < y.seq }
	a.lanes, a.byID, a.inherited = map[string]*lane{}, map[string]*head{}, map[*head]struct{}{}
	a.bySeq = btree.NewBTreeGOptions(seqOrder, btree.Options{NoLocks: true})
	a.ready = btree.NewBTreeGOptions(seqOrder, btree.Options{NoLocks: true})
	a.finished, a.asyncCounts, a.ours = map[int64]row{}, asyncCounts{}, 0
	a.queues.rows = map[string][]*head{}
	a.undo, a.record, a.ver = nil, position{}, a.version.Value()

	var asked []*head
	var owners []Owner
	for kv, err := range a.rows.Scan(a.prefix, prefixEnd(a.prefix), false) {
		if err == nil {
			var h *head
			var o Owner
			if h, o, err = a.scanned(kv); h != nil {
				asked, owners = append(asked, h), append(owners, o)
			}
		}
		if err != nil {
			return &Error{Class: ClassState, Step: a.cfg.Step, Action: Stop, Err: err}
		}
	}
	slices.SortFunc(a.live, func(x, y liveEntry) int { return int(x.seq - y.seq) })
	a.adopt(asked, owners)
	a.loaded = true
	if len(a.inherited) > 0 || a.ready.Len() > 0 || len(a.finished) > 0 {
		a.wake()
	}
	return nil
}

// scanned takes a row into memory. It returns the head of a lane that was asked,
// with its owner, for adopt to add.
func (a *Async) scanned(kv state.KV) (*head, Owner, error) {
	prefix, seq, keyed, err := parseRowKey(a.prefix, kv.Key)
	if err != nil {
		return nil, Owner{}, err
	}
	a.entries++
	a.bytes += len(kv.Key) + len(kv.Value)
	var l *lane
	if keyed {
		l = a.lanes[prefix]
	}
	if l != nil && l.head != nil && !a.ordered() {
		l.waiting++
		return nil, Owner{}, nil
	}
	e, err := decodeEntry(kv.Value)
	if err != nil {
		return nil, Owner{}, err
	}
	if a.ordered() {
		a.live = append(a.live, liveOf(seq, e))
	}
	place := row{slices.Clone(kv.Key), len(kv.Key) + len(kv.Value)}
	if e.Outcome != nil {
		a.finished[seq] = place
		return nil, Owner{}, nil
	}
	if l == nil {
		if l = (&lane{prefix: prefix}); keyed {
			a.lanes[prefix] = l
		}
	}
	if l.head != nil {
		l.waiting++
		return nil, Owner{}, nil
	}
	h := newHead(l, seq, place, e)
	l.head = h
	if owner := (Owner{e.Ask.GetInstance(), e.Ask.GetIncarnation()}); owner != (Owner{}) {
		return h, owner, nil
	}
	a.add(h)
	return nil, Owner{}, nil
}

// adopt sorts out the heads that were asked: those whose calls this process
// knows, and those of others, which may yet be answered. Only what a dead or
// silent owner left is asked again, by revive.
func (a *Async) adopt(asked []*head, owners []Owner) {
	me := a.task.Owner()
	var mine []*head
	var calls []AskedCall
	for i, h := range asked {
		if owners[i] == me {
			mine = append(mine, h)
			calls = append(calls, AskedCall{h.id, int(h.round), int(h.ask)})
			continue
		}
		h.state = headInherited
		if owners[i].Instance != me.Instance { // else its process is dead
			h.due = a.opened.Add(a.cfg.HandoverWait + handoverMargin)
		}
		a.add(h)
	}
	known := a.task.Adopt(a.cfg.Step, calls)
	for i, h := range mine {
		h.state = headOurs
		if !known[i] { // its transaction committed without our knowing
			h.state = headInherited
		}
		a.add(h)
	}
}

// handoverMargin is how much longer than HandoverWait a new owner waits for the
// last words of the old one.
const handoverMargin = time.Second

func newHead(l *lane, seq int64, place row, e *millracev1.Entry) *head {
	h := &head{row: place, lane: l, seq: seq, id: e.Id, timestamp: e.Event.Timestamp, round: e.Round, ask: -1, further: e.Further}
	if e.Ask != nil {
		h.ask = e.Ask.Number
	}
	return h
}

func liveOf(seq int64, e *millracev1.Entry) liveEntry {
	return liveEntry{seq: seq, timestamp: e.Event.Timestamp, offset: e.Source.Offset, topic: e.Source.Topic}
}

// begin starts a record.
func (a *Async) begin(at position) error {
	if !a.loaded {
		if err := a.Reset(); err != nil {
			return err
		}
	}
	a.sync()
	clear(a.undo)
	a.undo, a.saved, a.record, a.ordinal = a.undo[:0], a.asyncCounts, at, 0
	return nil
}

// sync takes memory back with the state if the last record was undone.
func (a *Async) sync() {
	if !a.loaded || a.version.Value() == a.ver {
		return
	}
	for _, f := range slices.Backward(a.undo) {
		f()
	}
	clear(a.undo)
	a.undo, a.asyncCounts, a.ver = a.undo[:0], a.saved, a.version.Value()
}

// change notes that memory changes with the state, and returns the new version.
func (a *Async) change() int64 {
	a.ver++
	a.version.Set(a.ver)
	return a.ver
}

// admit stores an event as an entry, and asks for it if it heads its lane.
func (a *Async) admit(ev *millracev1.Event) error {
	src := a.task.Source()
	if at := (position{src.Topic, src.Offset}); at != a.record || !a.loaded || a.version.Value() != a.ver {
		if err := a.begin(at); err != nil {
			return err
		}
	}
	e := &millracev1.Entry{
		Id:    fmt.Sprintf("%s/%s/%d/%d/%d", a.cfg.Step, a.task.TopicID(src.Topic), src.Partition, src.Offset, a.ordinal),
		Event: ev, Source: sourceOf(src, ev),
	}
	prefix := string(laneOf(a.prefix, a.cfg.Order != OrderNone && ev.Key != nil, ev.Key))
	if size, limit := len(prefix)+seqBytes+proto.Size(e), a.task.MaxRowBytes()-rowReserve; size > limit {
		return &Error{Class: ClassState, Step: a.cfg.Step, Err: fmt.Errorf(
			"the event has %d bytes as an in-flight entry, more than the %d of a row: make it smaller, or raise the limit of rows", size, limit)}
	}
	seq := a.change()
	a.ordinal++
	a.entries++
	if a.ordered() {
		a.live = append(a.live, liveOf(seq, e))
	}
	l := a.lanes[prefix]
	place := row{key: rowKey(prefix, seq)}
	switch {
	case ev.Key == nil || a.cfg.Order == OrderNone:
		l = &lane{prefix: prefix} // of its own, needs no place among the lanes
	case l == nil:
		l = &lane{prefix: prefix}
		a.lanes[prefix] = l
		a.undo = append(a.undo, func() { delete(a.lanes, prefix) })
	default:
		l.waiting++
		a.undo = append(a.undo, func() { l.waiting-- })
		return a.put(&place, e)
	}
	h := newHead(l, seq, place, e)
	l.head = h
	a.insert(h)
	if a.hasRoom() && a.ready.Len() == 1 {
		if asked, err := a.ask(h, e); asked || err != nil {
			return err
		}
	}
	return a.put(&h.row, e)
}

// put writes an entry and accounts for its size.
func (a *Async) put(r *row, e *millracev1.Entry) error {
	value, err := proto.Marshal(e)
	if err != nil {
		return &Error{Class: ClassState, Step: a.cfg.Step, Err: fmt.Errorf("in-flight entry: %w", err)}
	}
	a.store(r, value)
	return nil
}

func (a *Async) store(r *row, value []byte) {
	a.rows.Put(r.key, value)
	size := len(r.key) + len(value)
	a.bytes += size - r.size
	r.size = size
}

func (a *Async) load(key []byte) (*millracev1.Entry, error) {
	value, err := a.rows.Get(key)
	if err == nil && value == nil {
		err = fmt.Errorf("the row %x is gone", key)
	}
	var e *millracev1.Entry
	if err == nil {
		e, err = decodeEntry(value)
	}
	if err != nil {
		return nil, &Error{Class: ClassState, Step: a.cfg.Step, Action: Stop, Err: err}
	}
	return e, nil
}

// add and take put a head into the structures its state belongs in, and out.
func (a *Async) add(h *head) {
	a.byID[h.id] = h
	a.bySeq.Set(h)
	switch h.state {
	case headReady:
		a.ready.Set(h)
	case headOurs:
		a.ours++
	case headInherited:
		a.inherited[h] = struct{}{}
	case headWaiting:
		a.queues.add(h)
	}
}

func (a *Async) take(h *head) {
	delete(a.byID, h.id)
	a.bySeq.Delete(h)
	switch h.state {
	case headReady:
		a.ready.Delete(h)
	case headOurs:
		a.ours--
	case headInherited:
		delete(a.inherited, h)
	case headWaiting:
		a.queues.take(h)
	}
}

func (a *Async) insert(h *head) {
	a.add(h)
	a.undo = append(a.undo, func() { a.take(h) })
}

func (a *Async) remove(h *head) {
	a.take(h)
	a.undo = append(a.undo, func() { a.add(h) })
}

// alter changes a head, undoably.
func (a *Async) alter(h *head, f func()) {
	old := *h
	a.take(h)
	f()
	a.add(h)
	a.undo = append(a.undo, func() { a.take(h); *h = old; a.add(h) })
}

func (a *Async) hasRoom() bool { return a.ours < a.cfg.window() }

// ask stores who asks for the head, with all that the answer depends on, and has
// the call dispatched when that is committed. It reports false, and has written
// nothing, if the head has to wait for a budget.
func (a *Async) ask(h *head, e *millracev1.Entry) (asked bool, err error) {
	fresh := a.typed.resolve != nil && e.Resolved == nil && e.Unresolved == ""
	if fresh {
		a.resolve(e)
	}
	if granted, err := a.reserve(h, e); !granted || err != nil {
		if fresh { // it is resolved when it can be asked
			e.Resolved, e.Unresolved = nil, ""
		}
		return false, err
	}
	me := a.task.Owner()
	e.Ask = &millracev1.Ask{Number: h.ask + 1, Instance: me.Instance, Incarnation: me.Incarnation}
	value, err := proto.Marshal(e)
	if err != nil {
		return false, &Error{Class: ClassState, Step: a.cfg.Step, Err: fmt.Errorf("in-flight entry: %w", err)}
	}
	if len(h.key)+len(value) > a.task.MaxRowBytes() && (e.Resolved != nil || e.Unresolved != "") {
		e.Unresolved = fmt.Sprintf("event and what its call depends on have %d bytes, more than the %d of a row", len(value), a.task.MaxRowBytes())
		e.Resolved = nil
		if value, err = proto.Marshal(e); err != nil {
			return false, &Error{Class: ClassState, Step: a.cfg.Step, Err: fmt.Errorf("in-flight entry: %w", err)}
		}
	}
	abandoned := h.abandoned
	a.alter(h, func() { h.ask, h.state, h.abandoned = e.Ask.Number, headOurs, false })
	a.store(&h.row, value)
	a.dispatch(e, abandoned)
	return true, nil
}

// resolve fixes what the call depends on. A failure is that of the call.
func (a *Async) resolve(e *millracev1.Entry) {
	defer func() {
		if p := recover(); p != nil {
			e.Unresolved = truncate(Panicked(ClassAsync, a.cfg.Step, p).Error())
		}
	}()
	resolved, err := a.typed.resolve(e)
	if err != nil {
		e.Unresolved = truncate(err.Error())
		return
	}
	e.Resolved = append([]byte{}, resolved...)
}

func (a *Async) dispatch(e *millracev1.Entry, abandoned bool) {
	q := &request{
		id: e.Id, round: e.Round, ask: e.Ask.Number, owner: a.task.Owner(),
		event: e.Event, resolved: e.Resolved, unresolved: e.Unresolved, progress: e.Progress, reserved: e.Reserved,
	}
	maxWait := a.cfg.MaxWait
	call := Call{
		Step: a.cfg.Step, Entry: q.id, Round: int(q.round), Ask: int(q.ask), Abandoned: abandoned,
		Slots: a.cfg.Slots, MaxWait: maxWait, HandoverWait: a.cfg.HandoverWait,
		Run: func(ctx context.Context) Raw {
			if o := a.typed.call(ctx, q); o != nil {
				return encodeOutcome(o)
			}
			return Raw{}
		},
		Waited: func() Raw {
			if q.waited != nil {
				return encodeOutcome(q.waited)
			}
			return encodeOutcome(q.failure(millracev1.Failure_REASON_MAX_WAIT, ClassAsync, fmt.Sprintf("no slot was free within %s", maxWait)))
		},
		Released: func() Raw {
			o := q.outcome()
			o.Kind = &millracev1.Outcome_Released{Released: &millracev1.Released{Unsent: !q.sent.Load()}}
			return encodeOutcome(o)
		},
		Failed: func(err error) Raw {
			return encodeOutcome(q.failure(millracev1.Failure_REASON_TOO_LARGE, ClassProduce, err.Error()))
		},
	}
	if a.typed.admit != nil {
		a.typed.admit(q, &call)
	}
	a.task.Dispatch(call)
}

// prefixEnd returns the smallest key behind all those with the prefix, which does
// not end in 0xff.
func prefixEnd(prefix []byte) []byte {
	end := slices.Clone(prefix)
	end[len(end)-1]++
	return end
}

// behind returns the bounds of the rows of the lane behind the given one.
func (l *lane) behind(seq int64) (from, to []byte) {
	return rowKey(l.prefix, seq+1), binary.BigEndian.AppendUint64([]byte(l.prefix), 1<<63)
}
