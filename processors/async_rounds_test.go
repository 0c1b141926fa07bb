package processors

import (
	"errors"
	"slices"
	"strings"
	"testing"

	millracev1 "github.com/millrace/millrace/proto/millrace/v1"
)

// again is an outcome that asks for another round.
func again(c *rigCall, progress string) Raw {
	q := &request{id: c.Entry, round: int32(c.Round), ask: int32(c.Ask)}
	o := q.outcome()
	o.Kind, o.Progress = &millracev1.Outcome_Again{Again: &millracev1.Again{}}, []byte(progress)
	return encodeOutcome(o)
}

func (r *rig) entry(offset int) *millracev1.Entry {
	r.t.Helper()
	for h := range r.async.byID {
		if strings.HasSuffix(h, "/"+string(rune('0'+offset))+"/0") {
			e, err := r.async.load(r.async.byID[h].key)
			if err != nil {
				r.t.Fatal(err)
			}
			return e
		}
	}
	r.t.Fatalf("event %d has no entry that is a head", offset)
	return nil
}

// An answer that does not do makes the next round of its entry, in every order; the
// rounds before it are over for good.
func TestAsyncNextRound(t *testing.T) {
	t.Parallel()
	for _, order := range []Order{OrderKey, OrderPartition, OrderStrict, OrderNone} {
		t.Run(order.String(), func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			w.event("a", "a1")
			w.event("a", "a2")
			r := w.open(w.process("i"), config(order)).start()
			r.cycle()
			c := r.call(0, 0)
			first := again(c, "one")
			r.proc.end(w, c, first)
			w.loop = append(w.loop, first, failed(c, millracev1.Failure_REASON_ERROR)) // late
			r.cycle()
			if got := r.call(0, 0); got.Round != 1 || got.Abandoned || string(r.entry(0).Progress) != "one" {
				t.Fatalf("asked as %+v with %q", got.Call, r.entry(0).Progress)
			}
			if want := []string{"stale-outcome", "stale-outcome"}; !slices.Equal(r.drops, want) {
				t.Errorf("drops %q", r.drops)
			}
			r.same()
			r.abort()
			r = w.open(w.process("i"), config(order)).start() // a crash
			r.settleIn()
			if got := r.call(0, 0); got.Round != 1 {
				t.Errorf("after a crash asked in round %d", got.Round)
			}
			r.answer(0)
			r.cycle()
			r.answer(1)
			r.cycle()
			r.expect("results a=a1>A1", "results a=a2>A2")
			r.same()
		})
	}
}

// A round whose outcome does not fit into the row, or cannot be noted, ends the entry
// as a failure; so does one whose note the broker refuses.
func TestAsyncRoundThatCannotBe(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		progress string
		failed   func(*rig) error
		reject   error
		class    string
		notes    int
	}{
		"too large for the row": {progress: strings.Repeat("x", 20_000), class: "state", notes: 1},
		"a note that fails":     {failed: func(*rig) error { return errors.New("no") }, class: "process"},
		"a note that panics":    {failed: func(*rig) error { panic("no") }, class: "process"},
		"a note that is refused": {
			reject: &Error{Class: ClassProduce, Step: "ask", Err: errors.New("too large for the broker")}, class: "produce",
		},
	} {
		for _, order := range []Order{OrderKey, OrderPartition} {
			t.Run(name+"/"+order.String(), func(t *testing.T) {
				t.Parallel()
				w := newWorld(t)
				w.event("a", "a1")
				w.event("b", "b1")
				r := w.open(w.process("i"), config(order)).start()
				r.async.typed.failed = func(_ *millracev1.Entry, o *millracev1.Outcome) error {
					if o.Progress == nil {
						return nil
					}
					if err := r.Produce("raw", -1, Raw{}); err != nil || tc.failed == nil {
						return err
					}
					return tc.failed(r)
				}
				r.cycle()
				offset := 0
				if order == OrderPartition {
					offset = 1 // it waits for the first
				}
				rec := again(r.call(offset, 0), tc.progress)
				c := r.call(offset, 0)
				c.ended = true
				r.begin(rec)
				var err error
				if tc.reject != nil {
					err = r.async.Reject(&rec, tc.reject)
				} else {
					err = r.async.Loop(&rec)
				}
				if err != nil {
					t.Fatal(err)
				}
				r.commit()
				if order == OrderPartition {
					r.answer(0)
					r.cycle()
				}
				var topics []string
				for _, o := range r.out {
					topics = append(topics, o.Topic)
					if o.Topic == "app.ask.dlq" && !slices.ContainsFunc(o.Headers, func(h Header) bool { return h.Key == "millrace.class" && string(h.Value) == tc.class }) {
						t.Errorf("dead letter %+v", o.Headers)
					}
				}
				notes := slices.DeleteFunc(slices.Clone(topics), func(s string) bool { return s != "raw" })
				if len(notes) != tc.notes || !slices.Contains(topics, "app.ask.dlq") {
					t.Errorf("outputs %q", topics)
				}
				r.same()
			})
		}
	}
}
