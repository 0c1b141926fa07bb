package engine

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"

	"github.com/millrace/millrace/processors"
	"github.com/millrace/millrace/state"
)

var callTask = state.TaskID{SubTopology: "ask", Partition: 3}

// A callRig is a set of calls with a loop topic in memory. It lives in a bubble.
type callRig struct {
	*Calls
	t *testing.T

	mu          sync.Mutex
	loop        []string
	fail        error // of appends
	appends     int
	running     int
	most        int
	interrupted int
	ended       []string
	ran         map[string]int
}

func newCallRig(t *testing.T) *callRig {
	r := &callRig{t: t, ran: map[string]int{}}
	r.Calls = NewCalls(CallsConfig{Append: r.append, Observer: r})
	t.Cleanup(func() {
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		r.Drain(ctx)
	})
	return r
}

func (r *callRig) append(_ context.Context, topic string, partition int32, rec processors.Raw) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.appends++
	if r.fail != nil {
		return r.fail
	}
	if topic != "loop" || partition != 3 {
		r.t.Errorf("append to %s/%d", topic, partition)
	}
	r.loop = append(r.loop, string(rec.Value))
	return nil
}

func (r *callRig) CallEnded(step, kind string, ran time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.ended = append(r.ended, fmt.Sprint(kind, " ", ran))
}

func (r *callRig) CallInterrupted(string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.interrupted++
}

// call returns a call that takes d and honours its context.
func (r *callRig) call(entry string, ask int, d time.Duration) processors.Call {
	rec := func(what string) processors.Raw {
		return processors.Raw{Value: []byte(entry + " " + what), Headers: []processors.Header{{Key: "millrace.outcome", Value: []byte(what)}}}
	}
	return processors.Call{
		Step: "ask", Entry: entry, Ask: ask, Slots: 2,
		Run: func(ctx context.Context) processors.Raw {
			r.mu.Lock()
			r.running++
			r.ran[entry]++
			r.most = max(r.most, r.running)
			r.mu.Unlock()
			defer func() {
				r.mu.Lock()
				r.running--
				r.mu.Unlock()
			}()
			select {
			case <-time.After(d):
				return rec("answer")
			case <-ctx.Done():
				return processors.Raw{}
			}
		},
		Waited:   func() processors.Raw { return rec("waited") },
		Released: func() processors.Raw { return rec(fmt.Sprint("released ", ask)) },
		Failed:   func(error) processors.Raw { return rec("failed") },
	}
}

func (r *callRig) start(c processors.Call) { r.Start(callTask, "loop", c) }

// after lets d pass and what is due happen.
func (r *callRig) after(d time.Duration) {
	<-time.After(d)
	synctest.Wait()
}

func (r *callRig) expect(want ...string) {
	r.t.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	if !slices.Equal(r.loop, want) {
		r.t.Errorf("loop %q, want %q", r.loop, want)
	}
}

func (r *callRig) stats(running, waiting int) {
	r.t.Helper()
	if got := r.Stats()["ask"]; got.Running != running || got.Waiting != waiting {
		r.t.Errorf("%+v, want %d running, %d waiting", got, running, waiting)
	}
}

func callTest(t *testing.T, name string, f func(t *testing.T, r *callRig)) {
	t.Run(name, func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) { f(t, newCallRig(t)) })
	})
}

func TestCalls(t *testing.T) {
	t.Parallel()
	callTest(t, "slots are granted first come, first served", func(t *testing.T, r *callRig) {
		for i := range 5 {
			r.start(r.call(fmt.Sprint("e", i), 0, time.Second+time.Duration(i)*time.Millisecond))
		}
		r.after(500 * time.Millisecond)
		r.stats(2, 3)
		r.after(time.Second)
		r.expect("e0 answer", "e1 answer")
		r.after(2 * time.Second)
		if len(r.loop) != 5 || r.loop[4] != "e4 answer" || r.most != 2 {
			t.Errorf("loop %q, at most %d ran at once", r.loop, r.most)
		}
		if r.ended[0] != "answer 1s" {
			t.Errorf("observed %q", r.ended)
		}
	})
	callTest(t, "steps have slots of their own", func(t *testing.T, r *callRig) {
		for i := range 3 {
			c := r.call(fmt.Sprint("e", i), 0, time.Second)
			c.Step, c.Slots = fmt.Sprint("step", i), 1
			r.start(c)
		}
		r.after(time.Second)
		if r.most != 3 {
			t.Errorf("%d ran at once, want 3", r.most)
		}
	})
	callTest(t, "a call is never made twice", func(t *testing.T, r *callRig) {
		c := r.call("e", 0, time.Second)
		r.start(c)
		r.start(c)
		r.after(500 * time.Millisecond)
		r.start(r.call("e", 1, time.Second)) // another ask of the same round
		r.after(time.Second)
		r.start(c)
		r.start(r.call("e", 2, time.Second))
		r.after(time.Minute)
		r.expect("e answer")
		if r.ran["e"] != 1 {
			t.Errorf("made %d times", r.ran["e"])
		}
	})
	callTest(t, "the next round is another call", func(t *testing.T, r *callRig) {
		r.start(r.call("e", 0, time.Second))
		r.after(2 * time.Second)
		c := r.call("e", 0, time.Second)
		c.Round = 1
		r.start(c)
		r.after(2 * time.Second)
		r.expect("e answer", "e answer")
	})
	callTest(t, "max wait", func(t *testing.T, r *callRig) {
		r.start(r.call("e0", 0, time.Minute))
		r.start(r.call("e1", 0, time.Minute))
		late := r.call("e2", 0, time.Second)
		late.MaxWait = 10 * time.Second
		r.start(late)
		in := r.call("e3", 0, time.Second)
		in.MaxWait = 2 * time.Minute
		r.start(in)
		r.after(10*time.Second - 1)
		r.expect()
		r.after(1)
		r.expect("e2 waited")
		r.after(3 * time.Minute)
		slices.Sort(r.loop)
		r.expect("e0 answer", "e1 answer", "e2 waited", "e3 answer")
		if r.ran["e2"] != 0 {
			t.Error("a call ran after it had waited too long")
		}
	})
	callTest(t, "retired calls leave nothing", func(t *testing.T, r *callRig) {
		for i := range 3 {
			r.start(r.call(fmt.Sprint("e", i), 0, time.Second))
		}
		r.after(500 * time.Millisecond)
		r.Retire(callTask, "ask", "e0") // runs
		r.Retire(callTask, "ask", "e2") // waits
		r.Retire(callTask, "ask", "e9")
		r.after(time.Minute)
		r.expect("e1 answer")
		r.stats(0, 0)
		r.Retire(callTask, "ask", "e1")
		if len(r.tasks[callTask].calls) != 0 {
			t.Errorf("%d calls are remembered", len(r.tasks[callTask].calls))
		}
		if r.interrupted != 0 {
			t.Error("the end of an entry counts as an interruption")
		}
	})
}

func TestCallAppends(t *testing.T) {
	t.Parallel()
	callTest(t, "an append is retried without limit and keeps its slot", func(t *testing.T, r *callRig) {
		r.fail = kerr.NotLeaderForPartition
		for i := range 3 {
			r.start(r.call(fmt.Sprint("e", i), 0, time.Second))
		}
		r.after(time.Hour)
		r.stats(2, 1)
		if r.ran["e2"] != 0 {
			t.Error("a slot was passed on before the answer was acknowledged")
		}
		if r.appends < 100 || r.appends > 1000 {
			t.Errorf("%d appends in an hour", r.appends)
		}
		r.mu.Lock()
		r.fail = nil
		r.mu.Unlock()
		r.after(time.Minute)
		if len(r.loop) != 3 || r.ran["e0"] != 1 {
			t.Errorf("loop %q, e0 made %d times", r.loop, r.ran["e0"])
		}
	})
	callTest(t, "of a batch that the broker refuses only the guilty answer fails", func(t *testing.T, r *callRig) {
		type batch struct{ bad bool }
		var open *batch // what is appended at the same time is one batch
		lone := r.append
		r.cfg.Append = func(ctx context.Context, topic string, partition int32, rec processors.Raw) error {
			r.mu.Lock()
			if open == nil {
				open = new(batch)
			}
			b := open
			b.bad = b.bad || string(rec.Value) == "e1 answer"
			r.mu.Unlock()
			<-time.After(time.Millisecond)
			r.mu.Lock()
			open = nil
			r.mu.Unlock()
			if b.bad {
				return fmt.Errorf("produce: %w", kerr.InvalidRecord)
			}
			return lone(ctx, topic, partition, rec)
		}
		for i := range 4 {
			c := r.call(fmt.Sprint("e", i), 0, time.Second)
			c.Slots = 4
			r.start(c)
		}
		r.after(time.Minute)
		slices.Sort(r.loop)
		r.expect("e0 answer", "e1 failed", "e2 answer", "e3 answer")
		r.stats(0, 0)
	})
	callTest(t, "an answer that the broker refuses becomes a failure", func(t *testing.T, r *callRig) {
		r.fail = fmt.Errorf("produce: %w", kerr.MessageTooLarge)
		r.start(r.call("e0", 0, time.Second))
		r.after(time.Second)
		r.mu.Lock()
		r.fail = nil
		r.mu.Unlock()
		r.after(time.Minute)
		r.expect("e0 failed")
	})
}

func TestCallHandOver(t *testing.T) {
	t.Parallel()
	closed := func(ch <-chan struct{}) bool {
		select {
		case <-ch:
			return true
		default:
			return false
		}
	}
	callTest(t, "what ends in time is answered, the rest is released", func(t *testing.T, r *callRig) {
		r.start(r.call("quick", 0, 4*time.Second))
		r.start(r.call("slow", 0, time.Minute))
		r.start(r.call("waits", 0, time.Second))
		r.after(time.Second)
		done := r.HandOver(callTask)
		r.after(0)
		r.expect("waits released 0")
		r.start(r.call("late", 0, time.Second)) // not dispatched any more
		r.after(0)
		r.expect("waits released 0", "late released 0")
		r.after(5*time.Second - 1)
		if closed(done) {
			t.Error("the hand-over ended while a call runs")
		}
		r.after(1)
		r.expect("waits released 0", "late released 0", "quick answer", "slow released 0")
		if !closed(done) || r.interrupted != 1 || r.ran["waits"]+r.ran["late"] != 0 {
			t.Errorf("done %v, interrupted %d, ran %v", closed(done), r.interrupted, r.ran)
		}
		if !closed(r.HandOver(callTask)) {
			t.Error("a second hand-over waits")
		}
	})
	callTest(t, "the step's own wait", func(t *testing.T, r *callRig) {
		c := r.call("e", 0, time.Minute)
		c.HandoverWait = 2 * time.Second
		r.start(c)
		r.HandOver(callTask)
		r.after(2 * time.Second)
		r.expect("e released 0")
	})
	callTest(t, "it ends when the answer is acknowledged, not before", func(t *testing.T, r *callRig) {
		r.fail = errors.New("broker down")
		r.start(r.call("e", 0, time.Second))
		done := r.HandOver(callTask)
		r.after(time.Minute)
		if closed(done) {
			t.Error("the hand-over ended without a record")
		}
		r.mu.Lock()
		r.fail = nil
		r.mu.Unlock()
		r.after(time.Minute)
		r.expect("e answer")
		if !closed(done) {
			t.Error("the hand-over goes on")
		}
	})
	callTest(t, "a task that comes back keeps its running calls", func(t *testing.T, r *callRig) {
		r.start(r.call("e0", 0, time.Minute))
		r.start(r.call("e1", 0, time.Second))
		r.start(r.call("e2", 0, time.Second))
		done := r.HandOver(callTask)
		r.after(3 * time.Second)
		known := r.Adopt(callTask, "ask", []processors.AskedCall{{Entry: "e0"}, {Entry: "e1"}, {Entry: "e2"}, {Entry: "e3"}, {Entry: "e0", Ask: 1}})
		if want := []bool{true, true, true, false, false}; !slices.Equal(known, want) {
			t.Errorf("known %v, want %v", known, want)
		}
		if !closed(done) {
			t.Error("the hand-over goes on")
		}
		r.after(2 * time.Minute)
		r.expect("e2 released 0", "e1 answer", "e0 answer")
		r.start(r.call("e2", 1, time.Second)) // the task processed the release
		r.after(2 * time.Second)
		r.expect("e2 released 0", "e1 answer", "e0 answer", "e2 answer")
	})
	callTest(t, "a running call answers a later ask, too", func(t *testing.T, r *callRig) {
		r.start(r.call("e", 0, time.Minute))
		r.start(r.call("e", 2, time.Minute)) // another owner asked in between
		r.HandOver(callTask)
		r.after(10 * time.Second)
		r.expect("e released 2")
	})
	callTest(t, "a task that has left leaves nothing", func(t *testing.T, r *callRig) {
		r.start(r.call("answers", 0, time.Second))
		r.start(r.call("slow", 0, time.Minute))
		done := r.HandOver(callTask)
		r.after(10 * time.Second)
		r.expect("answers answer", "slow released 0")
		if !closed(done) || len(r.tasks) != 0 {
			t.Errorf("done %v, %d tasks are remembered", closed(done), len(r.tasks))
		}
		// It comes back, and finds in the loop what became of its calls.
		if known := r.Adopt(callTask, "ask", []processors.AskedCall{{Entry: "answers"}, {Entry: "slow"}}); slices.Contains(known, true) {
			t.Errorf("known %v", known)
		}
		if r.HandOver(state.TaskID{SubTopology: "other"}); len(r.tasks) != 1 {
			t.Errorf("%d tasks are remembered, one is here", len(r.tasks))
		}
	})
	callTest(t, "adopting forgets ended calls whose entries are gone", func(t *testing.T, r *callRig) {
		r.start(r.call("gone", 0, time.Second))
		r.start(r.call("lives", 0, time.Second))
		r.start(r.call("runs", 0, time.Minute))
		r.after(2 * time.Second)
		r.Adopt(callTask, "ask", []processors.AskedCall{{Entry: "lives"}})
		if calls := r.tasks[callTask].calls; len(calls) != 2 || calls[callKey{"ask", "gone"}] != nil {
			t.Errorf("%d calls are remembered", len(calls))
		}
	})
}

func TestCallDrain(t *testing.T) {
	t.Parallel()
	callTest(t, "drain waits for the calls", func(t *testing.T, r *callRig) {
		r.start(r.call("e0", 0, 3*time.Second))
		r.start(r.call("e1", 0, time.Minute))
		start := time.Now()
		r.Drain(t.Context())
		r.expect("e0 answer", "e1 released 0")
		if took := time.Since(start); took != 5*time.Second {
			t.Errorf("took %s", took)
		}
		r.start(r.call("e2", 0, time.Second))
		r.after(time.Minute)
		r.expect("e0 answer", "e1 released 0")
		r.Drain(t.Context())
	})
	callTest(t, "drain gives up with its context", func(t *testing.T, r *callRig) {
		r.fail = errors.New("broker down")
		r.start(r.call("e0", 0, time.Second))
		r.start(r.call("e1", 0, time.Minute))
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		defer cancel()
		start := time.Now()
		r.Drain(ctx)
		if took := time.Since(start); took != 3*time.Second {
			t.Errorf("took %s", took)
		}
		if r.interrupted != 2 {
			t.Errorf("%d interrupted, want the lost answer and the cancelled call", r.interrupted)
		}
	})
}

func TestCallsCountAbandoned(t *testing.T) {
	t.Parallel()
	callTest(t, "abandoned", func(t *testing.T, r *callRig) {
		c := r.call("e", 1, time.Second)
		c.Abandoned = true
		r.start(c)
		r.after(time.Minute)
		if r.interrupted != 1 {
			t.Errorf("interrupted %d", r.interrupted)
		}
	})
}
