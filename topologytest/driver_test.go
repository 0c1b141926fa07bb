package topologytest_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/millrace/millrace/processors"
	"github.com/millrace/millrace/serde"
	"github.com/millrace/millrace/topology"
	"github.com/millrace/millrace/topologytest"
)

var str = serde.String()

// ask describes a lookup whose function answers "v!" for v; it counts its calls.
func ask(t *testing.T, calls *int, opts ...topology.LookupOption) (*topologytest.Driver, *topologytest.InputTopic[string, string], *topologytest.OutputTopic[string, string]) {
	b := topology.New("app")
	l := topology.AsyncLookup(topology.Stream(b, "in", str, str), "ask", func(_ context.Context, r processors.Record[string, string]) (string, error) {
		*calls++
		return r.Value + "!", nil
	}, str, opts...)
	topology.MapValues(l.Results(), func(a processors.Answer[string, string]) string { return a.Event + "=" + a.Result }).WithValueSerde(str).To("out")
	d := topologytest.New(t, b)
	return d, topologytest.Input(d, "in", str, str), topologytest.Output(d, "out", str, str)
}

func TestCallsWaitForTheTest(t *testing.T) {
	calls := 0
	d, in, out := ask(t, &calls)
	in.Pipe("a", "1", 10)
	in.Pipe("a", "2", 11)
	in.Pipe("b", "3", 12)
	if got := out.Text(); len(got) > 0 || calls > 0 {
		t.Fatalf("%d calls and %v before the test answered", calls, got)
	}
	// One call per key runs at once.
	if n := len(d.Calls()); n != 2 {
		t.Fatalf("%d calls wait, want the heads of both keys", n)
	}
	d.Calls()[1].Run()
	if got := out.Text(); !slices.Equal(got, []string{"b:3=3!@12"}) || calls != 1 {
		t.Errorf("got %v after %d calls", got, calls)
	}
	first := d.Calls()[0]
	first.Answer("by hand")
	if got := out.Text(); !slices.Equal(got, []string{"a:1=by hand@10"}) || calls != 1 {
		t.Errorf("got %v after %d calls", got, calls)
	}
	second := d.Calls()[0]
	if second.Entry == first.Entry {
		t.Error("the second event of the key has no call of its own")
	}
	second.Fail(errors.New("no idea"))
	letters := d.DeadLetters()
	if len(letters) != 1 || letters[0].Topic != "app.ask.dlq" || string(letters[0].Value) != "2" {
		t.Errorf("dead letters %v, want event 2", letters)
	}
	if n := len(d.Calls()); n > 0 {
		t.Errorf("%d calls left", n)
	}
}

func TestCallsThatEndOtherwise(t *testing.T) {
	for _, tt := range []struct {
		name string
		end  func(*topologytest.Call)
		want string // in the dead letter's message; empty for no dead letter
	}{
		{"timed out", (*topologytest.Call).TimeOut, "deadline"},
		{"no slot", (*topologytest.Call).NoSlot, "slot"},
		{"skipped", func(c *topologytest.Call) { c.Fail(processors.WithAction(processors.Skip, errors.New("never mind"))) }, ""},
		{"answered with another type", func(c *topologytest.Call) { c.Answer(7) }, "answered with a int"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			calls := 0
			d, in, out := ask(t, &calls, topology.MaxWait(time.Second))
			in.Pipe("a", "1", 10)
			tt.end(d.Calls()[0])
			if got := out.Text(); len(got) > 0 || len(d.Calls()) > 0 || calls > 0 {
				t.Errorf("results %v, calls %d", got, len(d.Calls()))
			}
			var messages []string
			for _, l := range d.DeadLetters() {
				for _, h := range l.Headers {
					if h.Key == "millrace.message" {
						messages = append(messages, string(h.Value))
					}
				}
			}
			switch {
			case tt.want == "" && len(messages) > 0:
				t.Errorf("dead letters %q", messages)
			case tt.want != "" && (len(messages) != 1 || !strings.Contains(messages[0], tt.want)):
				t.Errorf("dead letters %q, want one with %q", messages, tt.want)
			}
		})
	}
}

func TestCallsAcrossRestart(t *testing.T) {
	calls := 0
	d, in, out := ask(t, &calls)
	in.Pipe("a", "1", 10)
	before := d.Calls()[0].Entry
	d.Restart()
	d.Advance(time.Second)
	if n := len(d.Calls()); n != 1 || d.Calls()[0].Entry != before {
		t.Fatalf("%d calls after the restart, want that of entry %s again", n, before)
	}
	d.Calls()[0].Run()
	if got := out.Text(); !slices.Equal(got, []string{"a:1=1!@10"}) {
		t.Errorf("got %v", got)
	}
}

func TestPartitions(t *testing.T) {
	b := topology.New("app")
	counts := topology.GroupBy(topology.Stream(b, "in", str, str), "by-value", func(_, v string) string { return v }).Count("counts")
	counts.ToStream().To("out")
	d := topologytest.New(t, b, topologytest.Partitions(4))
	in := topologytest.Input(d, "in", str, str)
	for i := range 40 {
		in.Pipe(fmt.Sprint("key", i), fmt.Sprint("value", i%10), int64(i))
	}
	counted := topologytest.KeyValue(d, "counts", str, serde.Int64())
	if rows := counted.Rows(); len(rows) != 10 {
		t.Errorf("%d rows, want 10", len(rows))
	}
	if n, ok := counted.Get("value3"); n != 4 || !ok {
		t.Errorf("value3: %d %t, want 4", n, ok)
	}
	if _, ok := counted.Get("value10"); ok {
		t.Error("value10 was counted")
	}
	partition := map[string]int32{}
	for _, raw := range d.RawOutput("app.by-value-repartition") {
		if p, ok := partition[string(raw.Key)]; ok && p != raw.Partition {
			t.Errorf("%s is in partitions %d and %d", raw.Key, p, raw.Partition)
		}
		partition[string(raw.Key)] = raw.Partition
	}
	if len(partition) != 10 {
		t.Errorf("%d keys in the repartition topic, want 10", len(partition))
	}
	if got := topologytest.Output(d, "out", str, serde.Int64()).Read(); len(got) != 40 {
		t.Errorf("%d updates, want 40", len(got))
	}
}

// failing fails on the value "bad" with the given action, and "good" turns it off.
func failing(action processors.Action, on *bool) func(b *topology.Builder) {
	return func(b *topology.Builder) {
		s := topology.Stream(b, "in", str, str)
		s.GroupByKey().Count("counts").ToStream().To("counts")
		s.TryPeek(func(r processors.Record[string, string]) error {
			if r.Value == "bad" && *on {
				return processors.WithAction(action, errors.New("bad value"))
			}
			return nil
		}, topology.Named("peek")).To("out")
	}
}

func TestFailures(t *testing.T) {
	for _, tt := range []struct {
		name   string
		action processors.Action
		policy processors.Action
		want   processors.Action
		out    []string // after a, bad, c
		dead   int
	}{
		{"by default a record is dead-lettered", processors.Default, processors.DeadLetter, processors.DeadLetter, []string{"k:a@1", "k:c@3"}, 1},
		{"the policy decides", processors.Default, processors.Skip, processors.Skip, []string{"k:a@1", "k:c@3"}, 0},
		{"the step decides", processors.Skip, processors.Stop, processors.Skip, []string{"k:a@1", "k:c@3"}, 0},
		{"stop", processors.Stop, processors.Skip, processors.Stop, []string{"k:a@1"}, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b, on := topology.New("app"), true
			failing(tt.action, &on)(b)
			d := topologytest.New(t, b, topologytest.OnError(func(*processors.Error) processors.Action { return tt.policy }))
			in := topologytest.Input(d, "in", str, str)
			in.Pipe("k", "a", 1)
			in.Pipe("k", "bad", 2)
			in.Pipe("k", "c", 3)
			if got := topologytest.Output(d, "out", str, str).Text(); !slices.Equal(got, tt.out) {
				t.Errorf("got %v, want %v", got, tt.out)
			}
			f := d.Failures()
			if len(f) != 1 || f[0].Action != tt.want || f[0].Err.Step != "peek" || string(f[0].Record.Value) != "bad" {
				t.Errorf("failures %+v", f)
			}
			// The count before the failing step was undone with it.
			if n, _ := topologytest.KeyValue(d, "counts", str, serde.Int64()).Get("k"); n != int64(len(tt.out)) {
				t.Errorf("count %d, want %d", n, len(tt.out))
			}
			if got := len(d.DeadLetters()); got != tt.dead {
				t.Errorf("%d dead letters, want %d", got, tt.dead)
			}
		})
	}
}

func TestRetry(t *testing.T) {
	b, on := topology.New("app"), true
	failing(processors.Retry, &on)(b)
	d := topologytest.New(t, b)
	in, out := topologytest.Input(d, "in", str, str), topologytest.Output(d, "out", str, str)
	in.Pipe("k", "bad", 1)
	in.Pipe("k", "c", 2)
	d.Advance(time.Second)
	if got := out.Text(); len(got) > 0 || len(d.Failures()) != 2 {
		t.Fatalf("%v and %d failures, want the record to wait and fail twice", got, len(d.Failures()))
	}
	on = false
	d.Advance(time.Second)
	if got := out.Text(); !slices.Equal(got, []string{"k:bad@1", "k:c@2"}) {
		t.Errorf("got %v", got)
	}
}

func TestUndecodableRecord(t *testing.T) {
	b := topology.New("app")
	topology.Stream(b, "in", str, serde.Int64()).To("out")
	d := topologytest.New(t, b)
	topologytest.Input(d, "in", str, str).PipeRecord(processors.Record[string, string]{
		Key: "k", Value: "no number", Timestamp: 5, Headers: []processors.Header{{Key: "h", Value: []byte("v")}},
	})
	letters := d.DeadLetters()
	if len(letters) != 1 || string(letters[0].Key) != "k" || string(letters[0].Value) != "no number" || letters[0].Timestamp != 5 {
		t.Fatalf("dead letters %v", letters)
	}
	headers := map[string]string{}
	for _, h := range letters[0].Headers {
		headers[h.Key] = string(h.Value)
	}
	for k, want := range map[string]string{
		"h": "v", "millrace.topic": "in", "millrace.partition": "0", "millrace.offset": "0", "millrace.timestamp": "5", "millrace.class": "decode",
	} {
		if headers[k] != want {
			t.Errorf("header %s is %q, want %q", k, headers[k], want)
		}
	}
}

// ticker forwards the wall clock every second and stream time every 10 ms.
type ticker struct {
	processors.Processor[string, string, string, int64]
}

func (ticker) Init(ctx *processors.Context[string, int64]) error {
	for kind, name := range map[processors.PunctuationKind]string{processors.StreamTime: "stream", processors.WallClock: "wall"} {
		interval := 10 * time.Millisecond
		if kind == processors.WallClock {
			interval = time.Second
		}
		ctx.Schedule(kind, interval, func(at int64) error {
			return ctx.Forward(processors.Record[string, int64]{Key: name, Value: at, Timestamp: max(ctx.StreamTime(), 0)})
		})
	}
	return nil
}
func (ticker) Process(processors.Record[string, string]) error { return nil }
func (ticker) Close() error                                    { return nil }

func TestClocks(t *testing.T) {
	b := topology.New("app")
	ticks := topology.Process(topology.Stream(b, "in", str, str), "ticker", func() processors.Processor[string, string, string, int64] { return ticker{} })
	ticks.To("out")
	d := topologytest.New(t, b, topologytest.Now(time.UnixMilli(1_000_000)))
	in, out := topologytest.Input(d, "in", str, str), topologytest.Output(d, "out", str, serde.Int64())
	for _, tt := range []struct {
		name string
		do   func()
		want []string
	}{
		{"the first record", func() { in.Pipe("a", "x", 3) }, []string{"stream:3@3"}},
		{"before the interval", func() { in.Pipe("a", "x", 9) }, nil},
		{"missed ones collapse", func() { in.Pipe("a", "x", 35) }, []string{"stream:35@35"}},
		{"the past", func() { in.Pipe("a", "x", 20) }, nil},
		{"before a second", func() { d.Advance(999 * time.Millisecond) }, nil},
		{"a second", func() { d.Advance(time.Millisecond) }, []string{"wall:1001000@35"}},
		{"three seconds", func() { d.Advance(3 * time.Second) }, []string{"wall:1004000@35"}},
	} {
		tt.do()
		if got := out.Text(); !slices.Equal(got, tt.want) {
			t.Errorf("%s: got %v, want %v", tt.name, got, tt.want)
		}
	}
	if got := d.Now(); got != time.UnixMilli(1_004_000) {
		t.Errorf("the clock says %v", got)
	}
}

// fatal is a testing.TB that keeps what it is told.
type fatal struct {
	testing.TB
	message string
}

func (f *fatal) Helper()             {}
func (f *fatal) Cleanup(func())      {}
func (f *fatal) Logf(string, ...any) {}
func (f *fatal) Fatalf(format string, args ...any) {
	f.message = fmt.Sprintf(format, args...)
	panic(f)
}

func TestMisuseEndsTheTest(t *testing.T) {
	pass := func(b *topology.Builder) { topology.Stream(b, "in", str, str).To("out") }
	for _, tt := range []struct {
		name, want string
		build      func(b *topology.Builder)
		use        func(d *topologytest.Driver)
	}{
		{"a broken topology", "no topic", func(*topology.Builder) {}, nil},
		{"an unknown input", `does not read topic "inn"`, pass, func(d *topologytest.Driver) { topologytest.Input(d, "inn", str, str) }},
		{"an unknown input, raw", `does not read topic "out"`, pass, func(d *topologytest.Driver) { d.PipeRaw("out", 0, processors.Raw{}) }},
		{"an unknown partition", "has 1 partitions", pass, func(d *topologytest.Driver) { d.PipeRaw("in", 1, processors.Raw{}) }},
		{"an unknown store", `no store "s"`, pass, func(d *topologytest.Driver) { topologytest.KeyValue(d, "s", str, str) }},
		{"another serde", `topic "out" offset 0`, pass, func(d *topologytest.Driver) {
			topologytest.Input(d, "in", str, str).Pipe("k", "v", 1)
			topologytest.Output(d, "out", str, serde.Int64()).Read()
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := &fatal{}
			defer func() {
				if r := recover(); r != any(f) {
					t.Fatalf("recovered %v, want the test to have ended", r)
				}
				if !strings.Contains(f.message, tt.want) {
					t.Errorf("got %q, want it to contain %q", f.message, tt.want)
				}
			}()
			b := topology.New("app")
			tt.build(b)
			tt.use(topologytest.New(f, b))
		})
	}
}

func TestACallHasOneOutcome(t *testing.T) {
	b := topology.New("app")
	l := topology.AsyncLookup(topology.Stream(b, "in", str, str), "ask",
		func(context.Context, processors.Record[string, string]) (string, error) { return "", nil }, str)
	topology.MapValues(l.Results(), func(a processors.Answer[string, string]) string { return a.Result }).WithValueSerde(str).To("out")
	d := topologytest.New(topologytest.NoTest(), b)
	defer d.Close()
	topologytest.Input(d, "in", str, str).Pipe("a", "1", 1)
	call := d.Calls()[0]
	call.Run()
	defer func() {
		if err, ok := recover().(error); !ok || !strings.Contains(err.Error(), "has its outcome") {
			t.Errorf("a second outcome: %v", err)
		}
	}()
	call.Run()
}
