package processors

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	millracev1 "github.com/millrace/millrace/proto/millrace/v1"
	"github.com/millrace/millrace/serde"
	"github.com/millrace/millrace/state"
)

// A world is what outlives a process: the topics, the committed rows and offsets.
type world struct {
	t         testing.TB
	db        state.Backend
	source    []Raw
	loop      []Raw
	out       []Raw  // committed outputs
	at        [2]int // committed offsets of source and loop
	now       time.Time
	processes int
	finished  map[string]bool // entry/round whose outcome a living owner appended
	asked     map[string]int  // entry/round -> calls started
}

func newWorld(t testing.TB) *world {
	return &world{t: t, db: state.NewMemory(), now: time.UnixMilli(1_000_000), finished: map[string]bool{}, asked: map[string]int{}}
}

func (w *world) event(key, value string) {
	r := Raw{Topic: "in", Offset: int64(len(w.source)), Value: []byte(value), Timestamp: int64(len(w.source))}
	if key != "" {
		r.Key = []byte(key)
	}
	w.source = append(w.source, r)
}

// outputs returns the committed outputs as "topic key=value".
func (w *world) outputs() []string {
	var lines []string
	for _, r := range w.out {
		lines = append(lines, fmt.Sprintf("%s %s=%s", r.Topic, r.Key, r.Value))
	}
	return lines
}

// A process is one life of an instance: it remembers the calls it was given.
type process struct {
	owner Owner
	calls map[string]*rigCall // by entry
}

type rigCall struct {
	Call
	ended bool
}

func (w *world) process(instance string) *process {
	w.processes++
	return &process{owner: Owner{instance, fmt.Sprint(w.processes)}, calls: map[string]*rigCall{}}
}

// A rig is a task of a process, with the engine's half of the contract.
type rig struct {
	*world
	proc   *process
	cfg    AsyncConfig
	part   *state.Partition
	step   *AsyncStep[string, string, string]
	async  *Async
	in     Forward[string, string]
	timers Punctuations
	pos    [2]int
	goal   int // what of the loop has to be read before inherited entries are asked

	raw        Raw
	outs       []Raw
	calls      []Call
	retired    []string
	told       []Report
	recOuts    int
	recCalls   int
	recRetired int
	recTold    int
	drops      []string
	maxRow     int
	policy     Action
	broken     func(value string) error // of the step behind
}

func config(order Order) AsyncConfig {
	return AsyncConfig{
		Step: "ask", DeadLetters: "app.ask.dlq", Order: order, Slots: 2, MaxEntries: 100, MaxBytes: 1 << 20, HandoverWait: 5 * time.Second,
		Attempts: AttemptPolicy{Timeout: time.Second, Deadline: time.Minute, Attempts: 1},
	}
}

// open starts the task in a process: the one way back after everything but a
// known abort.
func (w *world) open(p *process, cfg AsyncConfig) *rig {
	r := &rig{world: w, proc: p, cfg: cfg, maxRow: 10_000, policy: DeadLetter, pos: w.at, goal: len(w.loop)}
	r.part = state.NewPartition(w.db, state.TaskID{SubTopology: "ask"}, nil)
	r.step = &AsyncStep[string, string, string]{
		AsyncConfig: cfg, Key: serde.String(), Value: serde.String(), Result: serde.String(),
		Call: func(_ context.Context, rec Record[string, string], _ []byte) (string, error) {
			return strings.ToUpper(rec.Value), nil
		},
	}
	return r
}

func (r *rig) start() *rig {
	results := func(rec Record[string, Answer[string, string]]) error {
		if err := r.Produce("results", -1, raw(rec.Key, rec.NoKey, rec.Value.Event+">"+rec.Value.Result)); err != nil {
			return err
		}
		if r.broken != nil {
			return r.broken(rec.Value.Event)
		}
		return nil
	}
	fallbacks := func(rec Record[string, string]) error {
		return r.Produce("fallbacks", -1, raw(rec.Key, rec.NoKey, rec.Value))
	}
	var err error
	if r.async, r.in, err = r.step.Start(r, results, fallbacks); err != nil {
		r.t.Fatal(err)
	}
	if err := r.async.Reset(); err != nil {
		r.t.Fatal(err)
	}
	return r
}

func raw(key string, noKey bool, value string) Raw {
	out := Raw{Value: []byte(value)}
	if !noKey {
		out.Key = []byte(key)
	}
	return out
}

func (r *rig) Context() context.Context       { return context.Background() }
func (r *rig) Logger() *slog.Logger           { return slog.New(slog.DiscardHandler) }
func (r *rig) Partition() int32               { return 0 }
func (r *rig) Source() *Raw                   { return &r.raw }
func (r *rig) StreamTime() int64              { return 0 }
func (r *rig) Now() time.Time                 { return r.now }
func (r *rig) Store(name string) *state.Store { return r.part.Store(name) }
func (r *rig) Global(string) *state.Store     { return nil }
func (r *rig) Cell(name string) *state.Cell   { return r.part.Cell(name) }
func (r *rig) Dispatch(c Call)                { r.calls = append(r.calls, c) }
func (r *rig) Drop(_, reason string)          { r.drops = append(r.drops, reason) }
func (r *rig) Owner() Owner                   { return r.proc.owner }
func (r *rig) Retire(_, entry string)         { r.retired = append(r.retired, entry) }
func (r *rig) Observer() Observer             { return Unobserved{} }
func (r *rig) Report(rep Report)              { r.told = append(r.told, rep) }
func (r *rig) LoopCaughtUp() bool             { return r.pos[1] >= r.goal }
func (r *rig) TopicID(topic string) string    { return topic }
func (r *rig) MaxRowBytes() int               { return r.maxRow }
func (r *rig) Decide(e *Error) Action {
	if e.Action != Default {
		return e.Action
	}
	return r.policy
}

func (r *rig) Produce(topic string, _ int32, rec Raw) error {
	rec.Topic = topic
	r.outs = append(r.outs, rec)
	return nil
}

func (r *rig) Schedule(kind PunctuationKind, interval time.Duration, next *state.Cell, fn func(int64) error) func() {
	return r.timers.Add(kind, interval, r.now, next, fn)
}

func (r *rig) Adopt(_ string, asked []AskedCall) []bool {
	known := make([]bool, len(asked))
	live := map[string]bool{}
	for i, a := range asked {
		c := r.proc.calls[a.Entry]
		known[i] = c != nil && c.Round == a.Round && c.Ask == a.Ask
		live[a.Entry] = known[i]
	}
	for entry, c := range r.proc.calls {
		if c.ended && !live[entry] {
			delete(r.proc.calls, entry)
		}
	}
	return known
}

func (r *rig) begin(raw Raw) {
	r.part.Begin()
	r.raw, r.recOuts, r.recCalls, r.recRetired, r.recTold = raw, len(r.outs), len(r.calls), len(r.retired), len(r.told)
}

func (r *rig) Undo() {
	r.part.Rollback()
	r.part.Begin()
	r.outs, r.calls, r.retired, r.told = r.outs[:r.recOuts], r.calls[:r.recCalls], r.retired[:r.recRetired], r.told[:r.recTold]
}

// feed processes the next source record: each of the comma-separated values is an
// event. If fail, a sibling of the step fails, and the record is dead-lettered.
// It reports whether there was a record.
func (r *rig) feed(fail bool) bool {
	if r.pos[0] == len(r.source) || !r.async.Capacity() {
		return false
	}
	rec := r.source[r.pos[0]]
	r.pos[0]++
	r.begin(rec)
	if r.async.Seen(&rec) {
		return true
	}
	var err error
	for v := range strings.SplitSeq(string(rec.Value), ",") {
		err = errors.Join(err, r.in(Record[string, string]{Key: string(rec.Key), NoKey: rec.Key == nil, Value: v, Timestamp: rec.Timestamp}))
	}
	if err != nil || fail {
		r.Undo()
		r.outs = append(r.outs, Raw{Topic: "app.ask.dlq", Key: rec.Key, Value: rec.Value})
	}
	return true
}

// take processes the next record of the loop.
func (r *rig) take() bool {
	if r.pos[1] == len(r.loop) {
		return false
	}
	rec := r.loop[r.pos[1]]
	r.begin(rec)
	if err := r.async.Loop(&rec); err != nil {
		r.Undo()
		r.t.Fatalf("loop record %d: %v", r.pos[1], err)
	}
	r.pos[1]++
	return true
}

// tick moves the wall clock and runs what is due.
func (r *rig) tick(d time.Duration) {
	r.now = r.now.Add(d)
	r.begin(Raw{Offset: -1})
	if err := r.timers.WallClock(r.now); err != nil {
		r.t.Fatal(err)
	}
}

// apply makes the cycle durable, as a committed transaction does.
func (r *rig) apply() {
	held := int(r.async.Hold("in", int64(r.pos[0])))
	if held > r.pos[0] {
		r.t.Fatalf("Hold gives %d, beyond %d", held, r.pos[0])
	}
	if err := errors.Join(r.part.Commit(), r.part.WriteBack(&state.Batch{})); err != nil {
		r.t.Fatal(err)
	}
	r.at = [2]int{held, r.pos[1]}
	r.checkReports()
	r.out = append(r.out, r.outs...)
}

// commit ends the cycle and starts its calls.
func (r *rig) commit() {
	r.apply()
	for _, c := range r.calls {
		r.started(c)
	}
	for _, entry := range r.retired {
		delete(r.proc.calls, entry)
	}
	r.outs, r.calls, r.retired, r.told = nil, nil, nil, nil
}

// checkReports checks that a cycle reports what it writes, as often.
func (r *rig) checkReports() {
	r.t.Helper()
	count := map[string]int{}
	for _, o := range r.outs {
		switch o.Topic {
		case "results":
			count[StatusOK]++
		case "fallbacks":
			count[StatusFallback]++
		}
	}
	for _, rep := range r.told {
		if count[rep.Status]--; rep.Step != r.cfg.Step {
			r.t.Errorf("a report of step %q", rep.Step)
		}
	}
	if count[StatusOK] != 0 || count[StatusFallback] != 0 {
		r.t.Errorf("reports do not fit what is written: %v too many or few", count)
	}
}

// started checks the rules on calls.
func (r *rig) started(c Call) {
	key := fmt.Sprintf("%s#%d", c.Entry, c.Round)
	if r.finished[key] {
		r.t.Errorf("%s is asked again though its outcome is in the loop", key)
	}
	if old := r.proc.calls[c.Entry]; old != nil && old.Round == c.Round {
		if old.Ask == c.Ask {
			r.t.Errorf("%s is given twice to a process as ask %d", key, c.Ask)
		}
		if !old.ended {
			old.Ask, old.Released = c.Ask, c.Released // as the running set does
			return
		}
	}
	r.asked[key]++
	r.proc.calls[c.Entry] = &rigCall{Call: c}
}

// abort undoes the cycle: a known abort.
func (r *rig) abort() {
	r.part.Abort()
	r.pos = r.at
	r.outs, r.calls, r.retired, r.told = nil, nil, nil, nil
	if err := r.async.Reset(); err != nil {
		r.t.Fatal(err)
	}
}

// answer ends a call of the process.
func (p *process) end(w *world, c *rigCall, rec Raw) {
	c.ended = true
	if OutcomeKind(&rec) != "released" {
		w.finished[fmt.Sprintf("%s#%d", c.Entry, c.Round)] = true
	}
	w.loop = append(w.loop, rec)
}

// running returns the calls that have no outcome, in order of entry.
func (p *process) running() []*rigCall {
	var running []*rigCall
	for _, c := range p.calls {
		if !c.ended {
			running = append(running, c)
		}
	}
	slices.SortFunc(running, func(a, b *rigCall) int { return strings.Compare(a.Entry, b.Entry) })
	return running
}

// call returns the running call of an event, by its offset and ordinal.
func (r *rig) call(offset, ordinal int) *rigCall {
	r.t.Helper()
	c := r.proc.calls[fmt.Sprintf("ask/in/0/%d/%d", offset, ordinal)]
	if c == nil || c.ended {
		r.t.Fatalf("event %d/%d is not being asked", offset, ordinal)
	}
	return c
}

func (r *rig) isAsked(offset int) bool {
	c := r.proc.calls[fmt.Sprintf("ask/in/0/%d/0", offset)]
	return c != nil && !c.ended
}

// answer runs the call of an event and appends its outcome.
func (r *rig) answer(offset int) {
	r.t.Helper()
	c := r.call(offset, 0)
	r.proc.end(r.world, c, c.Run(context.Background()))
}

// cycle feeds and takes all there is, and commits.
func (r *rig) cycle() {
	for r.take() || r.feed(false) {
	}
	r.commit()
}

func (r *rig) expect(want ...string) {
	r.t.Helper()
	if got := r.outputs(); !slices.Equal(got, want) {
		r.t.Errorf("outputs\n got %q\nwant %q", got, want)
	}
}

// same checks that memory is what a reset would make of the rows.
func (r *rig) same() {
	r.t.Helper()
	a := r.async
	a.sync()
	fresh := newAsync(&silent{r}, a.cfg, a.typed)
	if err := fresh.Reset(); err != nil {
		r.t.Fatal(err)
	}
	if a.entries != fresh.entries || a.bytes != fresh.bytes {
		r.t.Errorf("memory counts %d entries, %d bytes; the rows hold %d, %d", a.entries, a.bytes, fresh.entries, fresh.bytes)
	}
	if !slices.Equal(a.live, fresh.live) {
		r.t.Errorf("live entries %v; the rows hold %v", a.live, fresh.live)
	}
	heads := func(x *Async) (ids []string) {
		x.bySeq.Scan(func(h *head) bool {
			ids = append(ids, fmt.Sprintf("%s round %d ask %d size %d waiting %d", h.id, h.round, h.ask, h.size, h.lane.waiting))
			return true
		})
		return ids
	}
	if x, y := heads(a), heads(fresh); !slices.Equal(x, y) {
		r.t.Errorf("heads\n%q; the rows make\n%q", x, y)
	}
	if len(a.finished) != len(fresh.finished) || len(a.lanes) != len(fresh.lanes) || len(a.byID) != len(fresh.byID) {
		r.t.Errorf("memory has %d finished, %d lanes, %d ids; the rows make %d, %d, %d",
			len(a.finished), len(a.lanes), len(a.byID), len(fresh.finished), len(fresh.lanes), len(fresh.byID))
	}
}

// silent is a rig on which a reset leaves no trace.
type silent struct{ *rig }

func (s *silent) Adopt(_ string, asked []AskedCall) []bool { return make([]bool, len(asked)) }
func (s *silent) Schedule(PunctuationKind, time.Duration, *state.Cell, func(int64) error) func() {
	return func() {}
}

func failed(c *rigCall, reason millracev1.Failure_Reason) Raw {
	q := &request{id: c.Entry, round: int32(c.Round), ask: int32(c.Ask)}
	return encodeOutcome(q.failure(reason, ClassAsync, "no luck"))
}
