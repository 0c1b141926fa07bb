package engine

import (
	"context"
	"fmt"
	"math"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/millrace/millrace/processors"
)

// A calls' gate that a test opens and closes.
type testGate struct{ calls atomic.Int64 }

func (g *testGate) admit() (int, time.Time) { return int(g.calls.Load()), time.Time{} }

func (r *callRig) gated(g *testGate, n int) {
	for i := range n {
		c := r.call(fmt.Sprint("g", i), 0, time.Second)
		c.Slots, c.Gate = 4, g.admit
		r.start(c)
	}
}

func (r *callRig) held(want int) {
	r.t.Helper()
	if got := r.Stats()["ask"].Held; got != want {
		r.t.Errorf("%d calls are held, want %d", got, want)
	}
}

func TestAdmission(t *testing.T) {
	t.Parallel()
	callTest(t, "a closed gate lets no call into a slot, and others pass", func(t *testing.T, r *callRig) {
		g := &testGate{}
		r.gated(g, 8)
		r.stats(0, 8)
		r.held(8)
		free := r.call("free", 0, time.Second)
		free.Slots = 4
		r.start(free)
		r.after(1500 * time.Millisecond)
		r.expect("free answer")
		g.calls.Store(2) // probes
		r.after(time.Second + 100*time.Millisecond)
		r.stats(2, 6)
		g.calls.Store(math.MaxInt)
		r.after(10 * time.Second)
		if len(r.loop) != 9 || r.most != 4 {
			t.Errorf("%d calls ended, at most %d at once; want 9 and 4", len(r.loop), r.most)
		}
		r.held(0)
	})
	callTest(t, "held calls are released at once when their task leaves", func(t *testing.T, r *callRig) {
		r.gated(&testGate{}, 2)
		began := time.Now()
		<-r.HandOver(callTask)
		if d := time.Since(began); d > 0 {
			t.Errorf("it took %s", d)
		}
		if len(r.loop) != 2 || !strings.Contains(r.loop[0], "released") {
			t.Errorf("loop %q", r.loop)
		}
		if r.interrupted != 0 {
			t.Error("a call that did not run was interrupted")
		}
	})
	callTest(t, "a call that cannot be made gives its slot back and runs again", func(t *testing.T, r *callRig) {
		g := &testGate{}
		g.calls.Store(math.MaxInt)
		c := r.call("a", 0, 0)
		answer, runs := c.Run, 0
		c.Slots, c.Gate = 1, g.admit
		c.Run = func(ctx context.Context) processors.Raw {
			if runs++; runs == 1 {
				g.calls.Store(0)
				return processors.Raw{}
			}
			return answer(ctx)
		}
		r.start(c)
		b := r.call("b", 0, time.Second)
		b.Slots = 1
		r.start(b)
		r.after(1500 * time.Millisecond)
		r.expect("b answer")
		g.calls.Store(1)
		r.after(time.Second)
		r.expect("b answer", "a answer")
	})
	callTest(t, "MaxWait bounds how long a call waits that gave its slot back", func(t *testing.T, r *callRig) {
		g := &testGate{}
		c := r.call("a", 0, 0)
		c.Gate, c.MaxWait = g.admit, 5*time.Second
		c.Run = func(context.Context) processors.Raw { g.calls.Store(0); return processors.Raw{} }
		g.calls.Store(math.MaxInt)
		r.start(c)
		r.after(4 * time.Second)
		g.calls.Store(math.MaxInt) // it runs once more
		r.after(900 * time.Millisecond)
		r.expect()
		r.after(200 * time.Millisecond)
		r.expect("a waited")
	})
	callTest(t, "equal calls follow the one that runs", func(t *testing.T, r *callRig) {
		for i := range 4 {
			c := r.call(fmt.Sprint("e", i), 0, time.Second)
			c.Slots, c.Flight = 4, "same"
			r.start(c)
		}
		other := r.call("other", 0, time.Second)
		other.Slots = 4
		r.start(other)
		r.after(500 * time.Millisecond)
		r.stats(2, 3)
		r.after(600 * time.Millisecond)
		if len(r.loop) != 2 || r.ran["e0"] != 1 || r.ran["e2"]+r.ran["e3"] != 0 {
			t.Errorf("loop %q, ran %v", r.loop, r.ran)
		}
		r.stats(1, 2)
		<-r.HandOver(callTask) // a follower leaves as any other call
		if len(r.loop) != 5 {
			t.Errorf("loop %q", r.loop)
		}
	})
	callTest(t, "those that follow a failure run on their own", func(t *testing.T, r *callRig) {
		for i := range 4 {
			c := r.call(fmt.Sprint("e", i), 0, time.Second)
			c.Slots, c.Flight = 4, "same"
			if i == 0 {
				c.Run = func(context.Context) processors.Raw {
					<-time.After(time.Second)
					return processors.Raw{Value: []byte("no"), Headers: []processors.Header{{Key: "millrace.outcome", Value: []byte("error")}}}
				}
			}
			r.start(c)
		}
		r.after(1500 * time.Millisecond)
		r.stats(3, 0)
	})
}
