package processors

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	millracev1 "github.com/millrace/millrace/proto/millrace/v1"
)

// settleIn lets a reopened task read its loop and look after its entries.
func (r *rig) settleIn() {
	r.cycle()
	r.tick(tickInterval)
	r.commit()
}

// Rule 4.4 of the design: what was answered is not asked again after a crash.
func TestAsyncCrashAfterAnswer(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.event("a", "a1")
	r := w.open(w.process("i"), config(OrderKey)).start()
	r.cycle()
	r.answer(0) // appended; the process dies before it is processed
	r = w.open(w.process("i"), config(OrderKey)).start()
	r.tick(time.Minute) // before the loop has been read
	r.commit()
	if r.isAsked(0) {
		t.Fatal("an entry was asked before the loop had been read")
	}
	r.settleIn()
	r.expect("results a=a1>A1")
}

// An earlier process of this instance is dead: its calls are asked again as soon
// as the loop has been read.
func TestAsyncCrashBeforeAnswer(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.event("a", "a1")
	w.open(w.process("i"), config(OrderKey)).start().cycle()
	r := w.open(w.process("i"), config(OrderKey)).start()
	r.settleIn()
	c := r.call(0, 0)
	if !c.Abandoned || c.Ask != 1 || c.Round != 0 {
		t.Errorf("asked again as %+v", c.Call)
	}
	r.answer(0)
	r.cycle()
	r.expect("results a=a1>A1")
	if r.async.unschedule != nil || r.timers.Any() {
		t.Error("the task ticks on without work")
	}
}

// Rule 4.7: the entries of another instance are asked again after HandoverWait
// and a second, not before.
func TestAsyncInheritedEntriesWait(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.event("a", "a1")
	w.open(w.process("old"), config(OrderKey)).start().cycle()
	r := w.open(w.process("new"), config(OrderKey)).start()
	r.settleIn()
	r.tick(6*time.Second - 2*tickInterval)
	r.commit()
	r.abort() // does not begin the wait anew
	if r.isAsked(0) {
		t.Fatal("asked before the old owner's time was over")
	}
	r.tick(2 * tickInterval)
	r.commit()
	if !r.isAsked(0) {
		t.Fatal("not asked after the old owner's time was over")
	}
}

// ... or on its word.
func TestAsyncReleased(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.event("a", "a1")
	old := w.process("old")
	w.open(old, config(OrderKey)).start().cycle()
	r := w.open(w.process("new"), config(OrderKey)).start()
	released := old.running()[0].Released()
	w.loop = append(w.loop, released, released)
	r.cycle()
	c := r.call(0, 0)
	if c.Abandoned || c.Ask != 1 {
		t.Errorf("asked again as %+v", c.Call)
	}
	if want := []string{"stale-release"}; !slices.Equal(r.drops, want) {
		t.Errorf("drops %q: the second word is one for an ask that is over", r.drops)
	}
	r.answer(0)
	r.cycle()
	r.expect("results a=a1>A1")
	r.same()
}

// A release that was processed is remembered: the owner that gave the call up may
// be this process.
func TestAsyncReleasedBySelf(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for range 16 {
		w.event("", "old")
	}
	w.open(w.process("old"), config(OrderKey)).start().cycle()
	for range 16 {
		w.event("", "new")
	}
	p := w.process("i")
	r := w.open(p, config(OrderKey)).start()
	r.cycle()
	r.tick(time.Minute) // the inherited ones wait for room, and come first
	r.commit()
	c := r.call(20, 0)
	p.end(w, c, c.Released())
	r.cycle()
	if r.isAsked(20) || !r.isAsked(0) {
		t.Fatal("the room did not go to the oldest entry")
	}
	r.abort() // memory is gone, the process still knows the ask that it released
	r.same()
	for range 40 {
		if running := p.running(); len(running) > 0 {
			p.end(w, running[0], running[0].Run(t.Context()))
		}
		r.settleIn()
	}
	if len(w.out) != 32 {
		t.Errorf("%d results of 32", len(w.out))
	}
}

// A task that has room for more heads than before asks without being prompted.
func TestAsyncRoomAfterReset(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for range 30 {
		w.event("", "v")
	}
	p := w.process("i")
	w.open(p, config(OrderKey)).start().cycle()
	cfg := config(OrderKey)
	cfg.Slots = 15
	r := w.open(p, cfg).start()
	r.tick(tickInterval)
	r.commit()
	if n := len(p.running()); n != 30 {
		t.Errorf("%d calls are out, want 30", n)
	}
}

// Rule 4.6: a reopened task adopts its running calls.
func TestAsyncAdoptsRunningCalls(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.event("a", "a1")
	w.event("b", "b1")
	p := w.process("i")
	r := w.open(p, config(OrderKey)).start()
	r.cycle()
	r.answer(1) // ended, not processed
	r.abort()
	r.tick(time.Minute)
	r.commit()
	r = w.open(p, config(OrderKey)).start() // another worker, another client
	r.tick(time.Minute)
	r.settleIn()
	r.answer(0)
	r.cycle()
	r.expect("results b=b1>B1", "results a=a1>A1")
	for call, n := range w.asked {
		if n != 1 {
			t.Errorf("%s was asked %d times", call, n)
		}
	}
}

// A commit whose outcome is unknown drops its calls although the entries say that
// they were asked: the process never had them, and asks.
func TestAsyncUnknownCommit(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.event("a", "a1")
	p := w.process("i")
	r := w.open(p, config(OrderKey)).start()
	r.feed(false)
	r.apply() // it did commit; the client is thrown away
	r = w.open(p, config(OrderKey)).start()
	r.settleIn()
	r.answer(0)
	r.cycle()
	r.expect("results a=a1>A1")
}

// A late answer of an old owner counts, and ends the new owner's call.
func TestAsyncLateAnswerOfOldOwner(t *testing.T) {
	t.Parallel()
	for _, order := range []Order{OrderKey, OrderPartition} {
		w := newWorld(t)
		w.event("a", "a1")
		old := w.process("old")
		w.open(old, config(order)).start().cycle()
		r := w.open(w.process("new"), config(order)).start()
		r.tick(time.Minute)
		r.commit()
		if !r.isAsked(0) {
			t.Fatal("not asked again")
		}
		c := old.running()[0]
		w.loop = append(w.loop, c.Run(t.Context()))
		r.cycle()
		r.expect("results a=a1>A1")
		if len(r.proc.calls) != 0 {
			t.Error("the call goes on though its entry has ended")
		}
	}
}

// Rule 4.1, strict: the source offset stays, what is read again is skipped, and
// output and offset move together in offset order.
func TestAsyncStrict(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.event("a", "a1")
	w.event("", "b1,b2")
	w.event("c", "c1")
	r := w.open(w.process("i"), config(OrderStrict)).start()
	r.feed(false)
	r.feed(false)
	r.feed(true) // dead-lettered by the policy
	r.commit()
	offset := func(want int) {
		t.Helper()
		if w.at[0] != want {
			t.Errorf("committed offset %d, want %d", w.at[0], want)
		}
	}
	offset(0)
	b2 := r.call(1, 1)
	r.proc.end(w, b2, b2.Run(t.Context()))
	r.cycle()
	offset(0)
	r.expect("app.ask.dlq c=c1")
	r = w.open(r.proc, config(OrderStrict)).start() // reads all again
	r.settleIn()
	r.answer(0)
	r.cycle()
	offset(1)
	r = w.open(w.process("i"), config(OrderStrict)).start()
	r.settleIn()
	offset(1)
	r.answer(1)
	r.cycle()
	offset(3)
	r.expect("app.ask.dlq c=c1", "results a=a1>A1", "results =b1>B1", "results =b2>B2")
	r = w.open(w.process("i"), config(OrderStrict)).start()
	r.settleIn()
	if len(w.out) != 4 || len(r.proc.calls) != 0 {
		t.Errorf("%d outputs and %d calls after a restart", len(w.out), len(r.proc.calls))
	}
}

// A flush of more results than one record may end is gone on with by the ticks.
func TestAsyncLongFlush(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	const n = 2*maxFlush + 10
	for i := range n {
		w.event(fmt.Sprint("k", i), "v")
	}
	cfg := config(OrderPartition)
	cfg.Slots, cfg.MaxEntries, cfg.MaxBytes = n, n, 1<<30
	r := w.open(w.process("i"), cfg).start()
	r.cycle()
	for i := n - 1; i >= 0; i-- {
		r.answer(i)
	}
	r.cycle()
	if len(w.out) != maxFlush {
		t.Fatalf("%d outputs in one go, want %d", len(w.out), maxFlush)
	}
	r.tick(tickInterval)
	r.commit()
	if len(w.out) != 2*maxFlush {
		t.Fatalf("%d outputs after a tick, want %d", len(w.out), 2*maxFlush)
	}
	r.same()
	r = w.open(w.process("i"), cfg).start() // a crash in between
	r.tick(tickInterval)
	r.commit()
	if len(w.out) != n {
		t.Errorf("%d outputs, want %d", len(w.out), n)
	}
	for i, o := range w.out {
		if want := fmt.Sprint("k", i); string(o.Key) != want {
			t.Fatalf("output %d is that of %s", i, o.Key)
		}
	}
	r.same()
}

// TestAsyncModel runs random interleavings of everything that may happen against
// a model: every event ends exactly once, the promised order is kept, memory
// follows the rows, and a finished call is never asked again.
func TestAsyncModel(t *testing.T) {
	t.Parallel()
	runs := 200
	if testing.Short() {
		runs = 20
	}
	for seed := range runs {
		for _, order := range []Order{OrderKey, OrderPartition, OrderStrict, OrderNone} {
			if !t.Run(fmt.Sprintf("%s/%d", order, seed), func(t *testing.T) { modelRun(t, order, uint64(seed)) }) {
				return
			}
		}
	}
}

type modelState struct {
	t   *testing.T
	rng *rand.Rand
	w   *world
	cfg AsyncConfig
	r   *rig
	n   int
	// zombies are processes that lost the task and may yet say a last word.
	zombies []*process
}

func modelRun(t *testing.T, order Order, seed uint64) {
	m := &modelState{t: t, rng: rand.New(rand.NewPCG(seed, uint64(order))), w: newWorld(t), cfg: config(order)}
	m.cfg.MaxEntries = 5 + m.rng.IntN(30)
	m.cfg.Slots = 1 + m.rng.IntN(12)
	m.cfg.Fallback = m.rng.IntN(2) == 0
	m.r = m.open(m.w.process("a"))
	for range 60 + m.rng.IntN(150) {
		m.step()
		if t.Failed() {
			return
		}
	}
	// The end: no more faults.
	for i := 0; ; i++ {
		m.r.cycle()
		m.r.tick(10 * time.Second)
		m.r.commit()
		running := m.r.proc.running()
		for _, c := range running {
			m.r.proc.end(m.w, c, m.outcome(c))
		}
		if n, _ := m.r.async.Pending(); n == 0 && len(running) == 0 && m.r.pos[0] == len(m.w.source) && m.r.pos[1] == len(m.w.loop) {
			break
		}
		if i > 300 {
			t.Fatalf("entries that never end: %d", m.r.async.entries)
		}
	}
	m.r.same()
	m.check()
}

func (m *modelState) open(p *process) *rig {
	r := m.w.open(p, m.cfg)
	r.broken = func(v string) error {
		if strings.Contains(v, "!") {
			return fmt.Errorf("%s is broken", v)
		}
		return nil
	}
	return r.start()
}

func (m *modelState) outcome(c *rigCall) Raw {
	switch n := m.rng.IntN(5); {
	case n == 0:
		return failed(c, millracev1.Failure_REASON_ERROR)
	case n == 1 && c.Round < 3:
		return again(c, "so far")
	}
	return c.Run(m.t.Context())
}

func (m *modelState) step() {
	r := m.r
	switch m.rng.IntN(24) {
	case 0, 1, 2, 3:
		key := ""
		if m.rng.IntN(4) > 0 {
			key = fmt.Sprint("k", m.rng.IntN(5))
		}
		values := make([]string, 1+m.rng.IntN(2))
		for i := range values {
			values[i] = fmt.Sprintf("v%03d", m.n)
			if m.rng.IntN(10) == 0 {
				values[i] += "!"
			}
			m.n++
		}
		m.w.event(key, strings.Join(values, ","))
	case 4, 5, 6, 7:
		r.feed(m.rng.IntN(8) == 0)
	case 8, 9, 10:
		r.take()
	case 11: // processed, and undone after all
		if r.take() {
			r.pos[1]--
			r.Undo()
		}
	case 12, 13, 14, 15:
		if running := r.proc.running(); len(running) > 0 {
			c := running[m.rng.IntN(len(running))]
			r.proc.end(m.w, c, m.outcome(c))
		}
	case 16, 17, 18:
		r.commit()
		r.same()
	case 19:
		r.abort()
	case 20:
		r.tick(time.Duration(m.rng.IntN(8000)) * time.Millisecond)
		if m.rng.IntN(4) == 0 {
			r.Undo()
		}
	case 21: // duplicates, late rounds
		if len(m.w.loop) > 0 {
			rec := m.w.loop[m.rng.IntN(len(m.w.loop))]
			if m.rng.IntN(2) == 0 {
				o, _ := decodeOutcome(rec.Value)
				o.Round += 10 // one that nobody asked
				rec = encodeOutcome(o)
			}
			m.w.loop = append(m.w.loop, rec)
		}
	case 22:
		m.lose()
	case 23: // a last word of the dead
		if len(m.zombies) > 0 {
			p := m.zombies[m.rng.IntN(len(m.zombies))]
			if running := p.running(); len(running) > 0 {
				c := running[m.rng.IntN(len(running))]
				c.ended = true
				m.w.loop = append(m.w.loop, m.outcome(c))
			}
		}
	}
}

// lose ends the rig in one of the ways in which a task goes.
func (m *modelState) lose() {
	p := m.r.proc
	switch m.rng.IntN(5) {
	case 0: // kill -9, same directory
		m.zombies = append(m.zombies, p)
		m.r = m.open(m.w.process(p.owner.Instance))
	case 1: // kill -9 or eviction, another instance takes over
		m.zombies = append(m.zombies, p)
		m.r = m.open(m.w.process(map[string]string{"a": "b", "b": "a"}[p.owner.Instance]))
	case 2: // orderly hand-over to another instance
		m.r.commit()
		for _, c := range p.running() {
			if m.rng.IntN(2) == 0 {
				p.end(m.w, c, m.outcome(c))
			} else {
				p.end(m.w, c, c.Released())
			}
		}
		m.r = m.open(m.w.process("c"))
	case 3: // commit with unknown outcome: it did
		m.r.apply()
		m.r = m.open(p)
	case 4: // ... it did not; or another worker of this process takes over
		m.r = m.open(p)
	}
}

// check compares the outputs with the events.
func (m *modelState) check() {
	ended := map[string][]string{}
	var order []string
	byKey := map[string][]string{}
	for _, o := range m.w.out {
		value, _, _ := strings.Cut(string(o.Value), ">")
		for v := range strings.SplitSeq(value, ",") {
			ended[v] = append(ended[v], o.Topic)
			if o.Topic == "results" {
				order = append(order, v)
				if o.Key != nil {
					byKey[string(o.Key)] = append(byKey[string(o.Key)], v)
				}
			}
		}
	}
	// A dead letter holds the record as read, with all its events: those that were
	// answered, too, so each event of it counts once per failed one.
	for _, e := range m.w.source {
		values := strings.Split(string(e.Value), ",")
		total := 0
		for _, v := range values {
			results := 0
			for _, topic := range ended[v] {
				if topic != "app.ask.dlq" {
					results++
				}
			}
			if results > 1 {
				m.t.Errorf("event %s has outputs %q", v, ended[v])
			}
			total += results
		}
		dead := len(ended[values[0]])
		for _, topic := range ended[values[0]] {
			if topic != "app.ask.dlq" {
				dead--
			}
		}
		if total+dead != len(values) && !(total == 0 && dead == 1) {
			m.t.Errorf("record %q: %d results and %d dead letters", e.Value, total, dead)
		}
	}
	sorted := func(what string, values []string) {
		if !slices.IsSorted(values) {
			m.t.Errorf("%s out of order: %q", what, values)
		}
	}
	if m.cfg.Order != OrderNone {
		for key, values := range byKey {
			sorted("key "+key, values)
		}
	}
	if m.cfg.Order == OrderPartition || m.cfg.Order == OrderStrict {
		sorted("partition", order)
	}
}
