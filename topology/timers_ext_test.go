package topology_test

import (
	"errors"
	"fmt"
	"iter"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/millrace/millrace/processors"
	"github.com/millrace/millrace/serde"
	"github.com/millrace/millrace/topology"
	"github.com/millrace/millrace/topologytest"
)

// alarm sets a timer for each record "clock:ms:payload", cancels it for "clock:cancel",
// and forwards what fires.
type alarm struct {
	ctx    *processors.Context[string, string]
	timers map[string]*processors.Timers[string]
}

func (a *alarm) Init(ctx *processors.Context[string, string]) (err error) {
	a.ctx, a.timers = ctx, map[string]*processors.Timers[string]{}
	for name, kind := range map[string]processors.PunctuationKind{"event": processors.StreamTime, "wall": processors.WallClock} {
		a.timers[name], err = processors.NewTimers(ctx, name, kind, serde.String(), func(key string, at int64, payload []byte) error {
			if string(payload) == "again" {
				if err := a.timers[name].Set(key, at+10, []byte("once more")); err != nil {
					return err
				}
			}
			return ctx.Forward(processors.Record[string, string]{Key: key, Value: name + " " + string(payload), Timestamp: at})
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func (a *alarm) Process(r processors.Record[string, string]) error {
	var at int64
	part := strings.Split(r.Value, ":")
	if part[1] == "cancel" {
		return a.timers[part[0]].Cancel(r.Key)
	}
	if _, err := fmt.Sscan(part[1], &at); err != nil {
		return err
	}
	if err := a.timers[part[0]].Set(r.Key, at, []byte(part[2])); err != nil {
		return err
	}
	if part[2] == "bad" {
		return errors.New("bad")
	}
	return nil
}
func (a *alarm) Close() error { return nil }

func alarms() *topology.Builder {
	b := topology.New("app")
	topology.ProcessValues(topology.Stream(b, "in", str, str), "alarm", func() processors.Processor[string, string, string, string] { return &alarm{} }).To("out")
	return b
}

func TestEventTimers(t *testing.T) {
	t.Parallel()
	d := topologytest.New(t, alarms())
	in, out := topologytest.Input(d, "in", str, str), topologytest.Output(d, "out", str, str)
	in.Pipe("b", "event:50:x", 1)
	in.Pipe("a", "event:50:x", 2)
	in.Pipe("c", "event:40:x", 3)
	in.Pipe("d", "event:45:x", 4)
	in.Pipe("d", "event:cancel", 5)
	in.Pipe("e", "event:30:x", 6)
	in.Pipe("e", "event:60:moved", 7)
	in.Pipe("f", "event:20:bad", 8) // undone
	in.Pipe("g", "event:44:again", 9)
	d.Restart()
	in.Pipe("z", "event:1000:x", 39)
	expect(t, out.Text())
	in.Pipe("z", "event:1000:x", 59)
	expect(t, out.Text(), "c:event x@40", "g:event again@44", "a:event x@50", "b:event x@50", "g:event once more@54")
	in.Pipe("z", "event:70:x", 80) // has passed
	expect(t, out.Text(), "e:event moved@60", "z:event x@70")
	d.Advance(time.Hour)
	in.Pipe("y", "event:cancel", 2000)
	expect(t, out.Text())
}

func TestWallClockTimers(t *testing.T) {
	t.Parallel()
	d := topologytest.New(t, alarms())
	in, out := topologytest.Input(d, "in", str, str), topologytest.Output(d, "out", str, str)
	start := d.Now().UnixMilli()
	set := func(key string, after int64, payload string) {
		in.Pipe(key, fmt.Sprintf("wall:%d:%s", start+after, payload), 0)
	}
	at := func(key, payload string, after int64) string {
		return fmt.Sprintf("%s:wall %s@%d", key, payload, start+after)
	}
	set("b", 500, "x")
	set("a", 500, "x")
	set("c", 300, "again")
	set("d", 200, "bad") // undone
	in.Pipe("z", "event:1:x", 1_000_000)
	d.Advance(299 * time.Millisecond)
	expect(t, out.Text(), "z:event x@1")
	d.Restart()
	d.Advance(time.Millisecond)
	expect(t, out.Text(), at("c", "again", 300))
	d.Restart()
	d.Advance(time.Second)
	expect(t, out.Text(), at("c", "once more", 310), at("a", "x", 500), at("b", "x", 500))
	d.Advance(time.Hour)
	expect(t, out.Text())
	set("a", 0, "has passed")
	d.Advance(time.Millisecond)
	expect(t, out.Text(), at("a", "has passed", 0))
}

func expect(t *testing.T, got []string, want ...string) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestRetryKeepsTheOrderOfKeys(t *testing.T) {
	t.Parallel()
	b := topology.New("app")
	fails := map[string]int{}
	policy := topology.RetryPolicy{Attempts: 3, Backoff: time.Second, MaxBackoff: time.Minute}
	results := topology.Retry(topology.Stream(b, "in", str, str), "call", policy, func(r processors.Record[string, string]) (string, error) {
		if r.Value == "panic" {
			panic("no")
		}
		if r.Value == "skip" {
			return "", processors.WithAction(processors.Skip, errors.New("not wanted"))
		}
		if fails[r.Value] > 0 {
			fails[r.Value]--
			return "", errors.New("not now")
		}
		return strings.ToUpper(r.Value), nil
	})
	results.To("out")
	topology.Dropped[string, string](results).To("skipped")
	d := topologytest.New(t, b)
	in, out := topologytest.Input(d, "in", str, str), topologytest.Output(d, "out", str, str)
	fails["a"], fails["e"] = 2, 99
	in.Pipe("k", "a", 1)
	in.Pipe("k", "b", 2)
	in.Pipe("other", "c", 3)
	in.Pipe("k", "e", 4)
	in.Pipe("k", "skip", 5)
	in.Pipe("k", "f", 6)
	in.PipeRecord(processors.Record[string, string]{NoKey: true, Value: "g", Timestamp: 7})
	expect(t, out.Text(), "other:C@3", "null:G@7")
	d.Advance(time.Second) // the second attempt fails
	d.Restart()
	in.Pipe("k", "h", 8)
	expect(t, out.Text())
	d.Advance(1999 * time.Millisecond)
	expect(t, out.Text())
	d.Advance(time.Millisecond) // doubled
	expect(t, out.Text(), "k:A@1", "k:B@2")
	for range 2 {
		expect(t, out.Text())
		d.Advance(2 * time.Second)
	}
	expect(t, out.Text(), "k:F@6", "k:H@8")
	expect(t, topologytest.Output(d, "skipped", str, str).Text(), "k:skip@5")
	in.Pipe("k", "i", 9)
	expect(t, out.Text(), "k:I@9")
	letters := d.DeadLetters()
	if len(letters) != 1 || string(letters[0].Value) != "e" || len(d.Failures()) != 0 {
		t.Fatalf("dead letters %v, failures %v", letters, d.Failures())
	}
	for _, h := range letters[0].Headers {
		if want, ok := map[string]string{"millrace.topic": "in", "millrace.offset": "3", "millrace.step": "call", "millrace.message": "not now"}[h.Key]; ok && string(h.Value) != want {
			t.Errorf("header %s is %q, want %q", h.Key, h.Value, want)
		}
	}
	in.Pipe("p", "panic", 10)
	d.Advance(time.Hour)
	d.Advance(time.Hour)
	if n := len(d.DeadLetters()); n != 2 {
		t.Errorf("%d dead letters, want 2", n)
	}
}

func TestRetryIsBounded(t *testing.T) {
	t.Parallel()
	b := topology.New("app")
	down := true
	policy := topology.RetryPolicy{Attempts: 9, Backoff: time.Second, MaxWaiting: 2}
	topology.Retry(topology.Stream(b, "in", str, str), "call", policy, func(r processors.Record[string, string]) (string, error) {
		if down {
			return "", errors.New("down")
		}
		return r.Value, nil
	}).To("out")
	d := topologytest.New(t, b)
	in := topologytest.Input(d, "in", str, str)
	for i := range int64(5) {
		in.Pipe("k", fmt.Sprint(i), i)
	}
	if rows := topologytest.KeyValue(d, "call", processors.QueueKeySerde(), processors.SourcedSerde(str, str)).Rows(); len(rows) != 2 {
		t.Errorf("%d records wait, want 2", len(rows))
	}
	down = false
	d.Advance(time.Second)
	expect(t, topologytest.Output(d, "out", str, str).Text(), "k:0@0", "k:1@1", "k:2@2", "k:3@3", "k:4@4")
}

func texts(recs []processors.Record[string, []processors.Record[string, string]]) []string {
	var lines []string
	for _, r := range recs {
		line := fmt.Sprintf("%s@%d", r.Key, r.Timestamp)
		if r.NoKey {
			line = fmt.Sprintf("null@%d", r.Timestamp)
		}
		for _, one := range r.Value {
			line += fmt.Sprintf(" %s:%s@%d", one.Key, one.Value, one.Timestamp)
		}
		lines = append(lines, line)
	}
	return lines
}

func TestBatch(t *testing.T) {
	t.Parallel()
	b := topology.New("app")
	s := topology.Stream(b, "in", str, str)
	topology.Batch(s, "per-key", 3, time.Second).To("keys")
	topology.Batch(s, "all", 4, time.Minute, topology.AcrossKeys()).To("all-out")
	d := topologytest.New(t, b)
	in := topologytest.Input(d, "in", str, str)
	keys := topologytest.Output(d, "keys", str, processors.BatchSerde(str, str))
	all := topologytest.Output(d, "all-out", str, processors.BatchSerde(str, str))
	in.Pipe("a", "1", 5)
	in.Pipe("b", "2", 2)
	in.Pipe("a", "3", 3)
	d.Restart()
	expect(t, texts(keys.Read()))
	in.Pipe("a", "4", 4)
	expect(t, texts(keys.Read()), "a@5 a:1@5 a:3@3 a:4@4")
	expect(t, texts(all.Read()), "null@5 a:1@5 b:2@2 a:3@3 a:4@4")
	d.Advance(900 * time.Millisecond)
	in.Pipe("a", "5", 6)
	d.Advance(100 * time.Millisecond)
	expect(t, texts(keys.Read()), "b@2 b:2@2")
	d.Restart()
	d.Advance(900 * time.Millisecond)
	expect(t, texts(keys.Read()), "a@6 a:5@6")
	d.Advance(time.Minute)
	expect(t, texts(all.Read()), "null@6 a:5@6")
}

func ExampleNewTimers() {
	// reminder forwards the orders that are not paid within an hour.
	reminder := func(ctx *processors.Context[string, string]) (func(processors.Record[string, string]) error, error) {
		due, err := processors.NewTimers(ctx, "unpaid", processors.StreamTime, serde.String(), func(order string, at int64, customer []byte) error {
			return ctx.Forward(processors.Record[string, string]{Key: order, Value: "remind " + string(customer), Timestamp: at})
		})
		return func(r processors.Record[string, string]) error {
			if r.Value == "paid" {
				return due.Cancel(r.Key)
			}
			return due.Set(r.Key, r.Timestamp+time.Hour.Milliseconds(), []byte(r.Value))
		}, err
	}
	b := topology.New("shop")
	orders := topology.Stream(b, "orders", serde.String(), serde.String())
	topology.ProcessValues(orders, "reminders", func() processors.Processor[string, string, string, string] { return &step{start: reminder} }).To("out")

	d := topologytest.New(topologytest.NoTest(), b)
	defer d.Close()
	in := topologytest.Input(d, "orders", serde.String(), serde.String())
	minute := time.Minute.Milliseconds()
	in.Pipe("order-1", "ada", 0)
	in.Pipe("order-2", "bob", 10*minute)
	in.Pipe("order-1", "paid", 30*minute)
	in.Pipe("order-3", "cem", 80*minute)
	printOut(d, serde.String(), serde.String())
	// Output:
	// order-2:remind bob@4200000
}

// step is a processor made of a function that starts it.
type step struct {
	start   func(*processors.Context[string, string]) (func(processors.Record[string, string]) error, error)
	process func(processors.Record[string, string]) error
}

func (s *step) Init(ctx *processors.Context[string, string]) (err error) {
	s.process, err = s.start(ctx)
	return err
}
func (s *step) Process(r processors.Record[string, string]) error { return s.process(r) }
func (s *step) Close() error                                      { return nil }

func ExampleRetry() {
	b := topology.New("shop")
	orders := topology.Stream(b, "orders", serde.String(), serde.String())
	policy := topology.RetryPolicy{Attempts: 5, Backoff: time.Second, MaxBackoff: time.Minute}
	locked := true
	topology.Retry(orders, "book", policy, func(r processors.Record[string, string]) (string, error) {
		if locked && r.Key == "ada" {
			return "", errors.New("the account is locked")
		}
		return "booked " + r.Value, nil
	}).To("out")

	d := topologytest.New(topologytest.NoTest(), b)
	defer d.Close()
	in := topologytest.Input(d, "orders", serde.String(), serde.String())
	in.Pipe("ada", "tea", 1) // fails, and waits
	in.Pipe("ada", "milk", 2)
	in.Pipe("bob", "tea", 3)
	locked = false
	d.Advance(time.Second)
	printOut(d, serde.String(), serde.String())
	// Output:
	// bob:booked tea@3
	// ada:booked tea@1
	// ada:booked milk@2
}

func ExampleBatch() {
	b := topology.New("shop")
	texts := topology.Stream(b, "texts", serde.String(), serde.String())
	batches := topology.Batch(texts, "for-embedding", 3, time.Second, topology.AcrossKeys())
	topology.FlatMap(batches, func(_ string, batch []processors.Record[string, string]) iter.Seq2[string, string] {
		return func(yield func(string, string) bool) { // one call for all of them
			for i, r := range batch {
				if !yield(r.Key, fmt.Sprintf("%s, %d of %d", r.Value, i+1, len(batch))) {
					return
				}
			}
		}
	}).To("out")

	d := topologytest.New(topologytest.NoTest(), b)
	defer d.Close()
	in := topologytest.Input(d, "texts", serde.String(), serde.String())
	in.Pipe("ada", "tea", 1)
	in.Pipe("bob", "milk", 2)
	in.Pipe("ada", "cake", 3)
	in.Pipe("ada", "more", 4)
	d.Advance(time.Second)
	printOut(d, serde.String(), serde.String())
	// Output:
	// ada:tea, 1 of 3@3
	// bob:milk, 2 of 3@3
	// ada:cake, 3 of 3@3
	// ada:more, 1 of 1@4
}
