package processors

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	millracev1 "github.com/millrace/millrace/proto/millrace/v1"
)

func TestAsyncOrders(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		order  Order
		asked  []int // of events a1 a2 b1, with two slots
		answer []int // in this order
		want   []string
	}{
		{OrderKey, []int{0, 2}, []int{2, 0, 1}, []string{"results b=b1>B1", "results a=a1>A1", "results a=a2>A2"}},
		{OrderPartition, []int{0, 2}, []int{2, 0, 1}, []string{"results a=a1>A1", "results a=a2>A2", "results b=b1>B1"}},
		{OrderStrict, []int{0, 2}, []int{2, 0, 1}, []string{"results a=a1>A1", "results a=a2>A2", "results b=b1>B1"}},
		{OrderNone, []int{0, 1, 2}, []int{2, 1, 0}, []string{"results b=b1>B1", "results a=a2>A2", "results a=a1>A1"}},
	} {
		t.Run(tc.order.String(), func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			w.event("a", "a1")
			w.event("a", "a2")
			w.event("b", "b1")
			r := w.open(w.process("i"), config(tc.order)).start()
			r.cycle()
			for i := range 3 {
				if got, want := r.isAsked(i), slices.Contains(tc.asked, i); got != want {
					t.Errorf("event %d asked: %v, want %v", i, got, want)
				}
			}
			for _, i := range tc.answer {
				r.answer(i)
				r.cycle()
				r.same()
			}
			r.expect(tc.want...)
			if n, _ := r.async.Pending(); n != 0 {
				t.Errorf("%d entries are left", n)
			}
			for kv, err := range r.part.Store("").Scan([]byte("e"), []byte("f"), false) {
				t.Errorf("row %q is left (%v)", kv.Key, err)
			}
		})
	}
}

func TestAsyncNullKeysHaveNoOrder(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.event("", "x")
	w.event("", "y")
	r := w.open(w.process("i"), config(OrderKey)).start()
	r.cycle()
	r.answer(1)
	r.answer(0)
	r.cycle()
	r.expect("results =y>Y", "results =x>X")
	if r.out[0].Key != nil {
		t.Error("the null key became an empty one")
	}
}

// Rule 4.3: nothing is asked before the transaction that stored it has committed.
func TestAsyncDispatchesAfterCommit(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.event("a", "a1")
	r := w.open(w.process("i"), config(OrderKey)).start()
	r.feed(false)
	r.abort()
	if len(r.proc.calls) != 0 || len(r.calls) != 0 {
		t.Fatal("an aborted transaction left a call")
	}
	r.cycle()
	r.answer(0)
	r.cycle()
	r.expect("results a=a1>A1")
}

// Rule 4.1: several events of one record have ids of their own.
func TestAsyncOrdinals(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.event("", "x,y")
	r := w.open(w.process("i"), config(OrderKey)).start()
	r.feed(true) // a sibling fails, the record is processed again
	r.pos[0], r.outs = 0, nil
	r.cycle()
	for i := range 2 {
		c := r.call(0, i)
		r.proc.end(w, c, c.Run(t.Context()))
	}
	r.cycle()
	r.expect("results =x>X", "results =y>Y")
}

// Rule 4.4: an outcome is dropped unless its entry is live, was asked, and is in
// the same round.
func TestAsyncDropsStaleOutcomes(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.event("a", "a1")
	w.event("a", "a2")
	r := w.open(w.process("i"), config(OrderKey)).start()
	r.cycle()
	c := r.call(0, 0)
	answer := func(id string, round int32) Raw {
		q := &request{id: id, round: round}
		o := q.outcome()
		o.Kind = &millracev1.Outcome_Answer{Answer: &millracev1.Answer{Value: []byte("LATE")}}
		return encodeOutcome(o)
	}
	w.loop = append(w.loop, answer(c.Entry, 1), answer("ask/in/0/1/0", 0), answer("ask/in/0/9/0", 0))
	r.cycle()
	r.expect()
	if want := []string{"stale-outcome", "stale-outcome", "stale-outcome"}; !slices.Equal(r.drops, want) {
		t.Errorf("drops %q, want %q", r.drops, want)
	}
	good := c.Run(t.Context())
	r.proc.end(w, c, good)
	w.loop = append(w.loop, good, good)
	r.cycle()
	r.answer(1)
	r.cycle()
	r.expect("results a=a1>A1", "results a=a2>A2")
}

func TestAsyncFailures(t *testing.T) {
	t.Parallel()
	const skip = millracev1.Failure_REASON_SKIP
	for _, tc := range []struct {
		name     string
		reason   millracev1.Failure_Reason
		fallback bool
		want     []string
	}{
		{"dead letter", millracev1.Failure_REASON_ERROR, false, []string{"app.ask.dlq a=a1", "results a=a2>A2"}},
		{"fallback", millracev1.Failure_REASON_DEADLINE, true, []string{"fallbacks a=a1", "results a=a2>A2"}},
		{"skip", skip, false, []string{"results a=a2>A2"}},
		{"skip beats fallback", skip, true, []string{"results a=a2>A2"}},
	} {
		for _, order := range []Order{OrderKey, OrderStrict} {
			t.Run(tc.name+" "+order.String(), func(t *testing.T) {
				t.Parallel()
				w := newWorld(t)
				w.event("a", "a1")
				w.event("a", "a2")
				cfg := config(order)
				cfg.Fallback = tc.fallback
				r := w.open(w.process("i"), cfg).start()
				r.cycle()
				c := r.call(0, 0)
				r.proc.end(w, c, failed(c, tc.reason))
				r.cycle()
				r.answer(1)
				r.cycle()
				r.same()
				r.expect(tc.want...)
			})
		}
	}
}

func TestAsyncDeadLetterHeaders(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.source = []Raw{{
		Topic: "in", Partition: 3, Offset: 7, Key: []byte("k"), Value: []byte("v"), Timestamp: 1 << 50,
		Headers: []Header{{Key: "own", Value: []byte("1")}, {Key: "bad\xff", Value: nil}},
	}}
	r := w.open(w.process("i"), config(OrderKey)).start()
	r.begin(w.source[0])
	// The step before changed the value: the dead letter holds the record as read.
	if err := r.in(Record[string, string]{Key: "k", Value: "changed", Timestamp: 5}); err != nil {
		t.Fatal(err)
	}
	r.pos[0]++
	r.commit()
	c := r.proc.running()[0]
	long := strings.Repeat("x", 3*maxMessage)
	q := &request{id: c.Entry}
	o := q.failure(millracev1.Failure_REASON_ERROR, ClassAsync, long)
	o.Attempts = 4
	r.proc.end(w, c, encodeOutcome(o))
	r.cycle()
	if len(w.out) != 1 {
		t.Fatalf("outputs %q", w.outputs())
	}
	d := w.out[0]
	if string(d.Key) != "k" || string(d.Value) != "v" || d.Topic != "app.ask.dlq" || d.Timestamp != w.now.UnixMilli() {
		t.Errorf("dead letter %+v", d)
	}
	got := map[string]string{}
	for _, h := range d.Headers {
		got[h.Key] = string(h.Value)
	}
	for key, want := range map[string]string{
		"own": "1", "bad\xff": "", "millrace.topic": "in", "millrace.partition": "3", "millrace.offset": "7", "millrace.timestamp": fmt.Sprint(1 << 50),
		"millrace.step": "ask", "millrace.class": "async", "millrace.attempts": "4",
	} {
		if v, ok := got[key]; !ok || v != want {
			t.Errorf("header %s is %q, want %q", key, v, want)
		}
	}
	if m := got["millrace.message"]; len(m) > maxMessage+200 || !strings.Contains(m, fmt.Sprintf("%d bytes, SHA-256", len(long))) {
		t.Errorf("message of %d bytes: ...%s", len(m), m[max(0, len(m)-120):])
	}
}

// A step behind that fails on a result is the event's error: it must not leave
// the entry waiting for ever, nor part of its outputs.
func TestAsyncErrorsBehindTheStep(t *testing.T) {
	t.Parallel()
	boom := errors.New("boom")
	for _, tc := range []struct {
		name   string
		order  Order
		broken func(string) error
		policy Action
		want   []string
	}{
		{"dead letter", OrderKey, func(string) error { return boom }, DeadLetter, []string{"app.ask.dlq a=a1", "app.ask.dlq a=a2"}},
		{"skip", OrderKey, func(string) error { return boom }, Skip, nil},
		{"own action", OrderKey, func(string) error { return Fail(ClassProduce, "sink", WithAction(Skip, boom)) }, DeadLetter, nil},
		{"panic", OrderKey, func(string) error { panic("oh") }, DeadLetter, []string{"app.ask.dlq a=a1", "app.ask.dlq a=a2"}},
		{"one in a row of results", OrderPartition, func(v string) error {
			if v == "a1" {
				return boom
			}
			return nil
		}, DeadLetter, []string{"app.ask.dlq a=a1", "results a=a2>A2"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			w.event("a", "a1")
			w.event("a", "a2")
			r := w.open(w.process("i"), config(tc.order)).start()
			r.broken, r.policy = tc.broken, tc.policy
			r.cycle()
			r.answer(0)
			r.cycle()
			r.answer(1)
			r.cycle()
			r.same()
			r.expect(tc.want...)
			if n, _ := r.async.Pending(); n != 0 {
				t.Errorf("%d entries are left", n)
			}
		})
	}
}

func TestAsyncRetryAndStopLeaveTheEntry(t *testing.T) {
	t.Parallel()
	for _, action := range []Action{Retry, Stop} {
		w := newWorld(t)
		w.event("a", "a1")
		r := w.open(w.process("i"), config(OrderKey)).start()
		r.broken = func(string) error { return errors.New("boom") }
		r.policy = action
		r.cycle()
		r.answer(0)
		r.begin(w.loop[0])
		err := r.async.Loop(&w.loop[0])
		e, ok := errors.AsType[*Error](err)
		if !ok || e.Action != action {
			t.Fatalf("%s: error %v", action, err)
		}
		r.Undo()
		r.same()
		r.broken = nil
		r.cycle()
		r.expect("results a=a1>A1")
	}
}

func TestAsyncRejectedOutputEndsTheEvent(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.event("a", "a1")
	r := w.open(w.process("i"), config(OrderKey)).start()
	r.cycle()
	r.answer(0)
	r.begin(w.loop[0])
	if err := r.async.Reject(&w.loop[0], &Error{Class: ClassProduce, Step: "out", Err: errors.New("too large")}); err != nil {
		t.Fatal(err)
	}
	r.pos[1]++
	r.commit()
	r.expect("app.ask.dlq a=a1")
}

func TestAsyncCapacity(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for i := range 6 {
		w.event("a", fmt.Sprint("a", i))
	}
	cfg := config(OrderKey)
	cfg.MaxEntries = 3
	r := w.open(w.process("i"), cfg).start()
	r.cycle()
	if n, oldest := r.async.Pending(); n != 3 || oldest != 0 || r.async.Capacity() {
		t.Fatalf("pending %d, oldest %d, capacity %v", n, oldest, r.async.Capacity())
	}
	// What is polled is still admitted.
	r.begin(w.source[3])
	if err := r.in(Record[string, string]{Key: "a", Value: "a3", Timestamp: 3}); err != nil {
		t.Fatal(err)
	}
	r.pos[0]++
	r.commit()
	r.answer(0)
	r.cycle() // the loop is always taken
	if n, oldest := r.async.Pending(); n != 3 || oldest != 1 {
		t.Errorf("pending %d, oldest %d", n, oldest)
	}
	cfg.MaxEntries, cfg.MaxBytes = 100, 100
	r = w.open(r.proc, cfg).start()
	if r.async.Capacity() {
		t.Errorf("%d bytes of entries are within a capacity of 100", r.async.bytes)
	}
}

// Only heads are asked, and of those only as many as keep the slots busy.
func TestAsyncWindow(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for i := range 30 {
		w.event(fmt.Sprint("k", i), "v")
	}
	r := w.open(w.process("i"), config(OrderKey)).start()
	r.cycle()
	if n := len(r.proc.running()); n != 16 {
		t.Fatalf("%d calls are out, want 16", n)
	}
	q := &request{id: "ask/in/0/20/0"} // an outcome of what was never asked
	w.loop = append(w.loop, encodeOutcome(q.failure(millracev1.Failure_REASON_ERROR, ClassAsync, "forged")))
	r.cycle()
	r.expect()
	r.answer(3)
	r.answer(5)
	r.cycle()
	if n := len(r.proc.running()); n != 16 || !r.isAsked(16) || !r.isAsked(17) {
		t.Errorf("%d calls are out; the oldest heads are asked: %v %v", n, r.isAsked(16), r.isAsked(17))
	}
	r.same()
	cfg := config(OrderKey)
	cfg.MaxWait = time.Second
	w2 := newWorld(t)
	w2.source = w.source
	r = w2.open(w2.process("i"), cfg).start()
	r.cycle()
	if n := len(r.proc.running()); n != 30 {
		t.Errorf("with MaxWait %d calls are out, want all 30", n)
	}
}

func TestAsyncRowTooLarge(t *testing.T) {
	t.Parallel()
	big := strings.Repeat("x", 9_500)
	w := newWorld(t)
	w.event("a", big)
	r := w.open(w.process("i"), config(OrderKey)).start()
	r.begin(w.source[0])
	err := r.in(Record[string, string]{Key: "a", Value: big})
	if e, ok := errors.AsType[*Error](err); !ok || e.Class != ClassState {
		t.Fatalf("an event that does not fit a row: %v", err)
	}
	r.Undo()
	r.same()

	// A result that does not fit beside its event while it waits is a failure.
	w = newWorld(t)
	w.event("a", "a1")
	w.event("b", strings.Repeat("y", 8_000))
	r = w.open(w.process("i"), config(OrderPartition)).start()
	r.cycle()
	r.answer(1)
	r.cycle()
	r.same()
	if _, size := r.part.Largest(); size > r.maxRow {
		t.Errorf("a row of %d bytes was written", size)
	}
	r.answer(0)
	r.cycle()
	if len(w.out) != 2 || w.out[1].Topic != "app.ask.dlq" || len(w.out[1].Value) != 8_000 {
		t.Errorf("%d outputs", len(w.out))
	}
}

// Rule 4.2: what the answer depends on is resolved once and stored. A failure, a
// panic or a row too large is the error of the head's event.
func TestAsyncResolve(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name    string
		resolve func(n int) ([]byte, error)
		want    string
	}{
		{"value", func(n int) ([]byte, error) { return []byte(fmt.Sprint(n)), nil }, "results b=b1>1"},
		{"nothing", func(int) ([]byte, error) { return nil, nil }, "results b=b1>"},
		{"error", func(int) ([]byte, error) { return nil, errors.New("no prompt") }, "app.ask.dlq b=b1"},
		{"panic", func(int) ([]byte, error) { panic("oh") }, "app.ask.dlq b=b1"},
		{"too large", func(int) ([]byte, error) { return make([]byte, 20_000), nil }, "app.ask.dlq b=b1"},
		{"long error", func(int) ([]byte, error) { return nil, errors.New(strings.Repeat("e", 20_000)) }, "app.ask.dlq b=b1"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			w.event("b", "b1")
			n := 0
			open := func(p *process) *rig {
				r := w.open(p, config(OrderKey))
				r.step.Resolve = func(rec Record[string, string]) ([]byte, error) { n++; return tc.resolve(n) }
				r.step.Call = func(_ context.Context, _ Record[string, string], resolved []byte) (string, error) {
					return string(resolved), nil
				}
				return r.start()
			}
			open(w.process("i")).cycle() // the process dies
			r := open(w.process("i"))
			r.tick(time.Second)
			r.commit()
			r.answer(0)
			r.cycle()
			r.expect(tc.want)
			if n != 1 {
				t.Errorf("resolved %d times", n)
			}
			if _, size := r.part.Largest(); size > r.maxRow {
				t.Errorf("a row of %d bytes was written", size)
			}
		})
	}
}

func TestAsyncNeedsAnAsyncTask(t *testing.T) {
	t.Parallel()
	r := newWorld(t).open(&process{}, config(OrderKey))
	type plain struct{ Task }
	if _, _, err := r.step.Start(plain{r}, nil, nil); err == nil {
		t.Error("a task without calls starts an asynchronous step")
	}
}

func TestAsyncCorruptRowsStop(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.event("a", "a1")
	r := w.open(w.process("i"), config(OrderKey)).start()
	r.cycle()
	r.part.Store("").Put(rowKey(string(laneOf(entriesPrefix("ask"), true, []byte("a"))), 0), []byte("\xff"))
	err := r.async.Reset()
	if e, ok := errors.AsType[*Error](err); !ok || e.Action != Stop {
		t.Errorf("corrupt row: %v", err)
	}
	garbage := Raw{Value: []byte("\xff\xff")}
	r.abort()
	r.begin(garbage)
	if e, ok := errors.AsType[*Error](r.async.Loop(&garbage)); !ok || e.Class != ClassDecode {
		t.Errorf("garbage in the loop: %v", e)
	}
}
