package topology

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/millrace/millrace/processors"
	"github.com/millrace/millrace/serde"
	"github.com/millrace/millrace/state"
)

func ask(_ context.Context, r processors.Record[string, string]) (string, error) {
	return r.Value + "!", nil
}

func event(a processors.Answer[string, string]) string { return a.Event + ">" + a.Result }

var asyncCases = []goldenCase{
	{"lookup with stateless neighbours", func(b *Builder) {
		l := AsyncLookup(textStream(b).Filter(pass), "ask", ask, serde.String())
		MapValues(l.Results(), event).To("out")
	}},
	{"fallbacks", func(b *Builder) {
		l := AsyncLookup(textStream(b), "ask", ask, serde.String(), OnFailure(FallbackEvent), Order(processors.OrderStrict))
		MapValues(l.Results(), event).To("out")
		l.Fallbacks().To("plain")
	}},
	{"a changed key is repartitioned for the order of keys", func(b *Builder) {
		l := AsyncLookup(SelectKey(textStream(b), first), "ask", ask, serde.String())
		MapValues(l.Results(), event).To("out")
	}},
	{"a changed key is not repartitioned without order", func(b *Builder) {
		l := AsyncLookup(SelectKey(textStream(b), first), "ask", ask, serde.String(), Order(processors.OrderNone))
		MapValues(l.Results(), event).To("out")
	}},
	{"lookups in a row and a count", func(b *Builder) {
		l := AsyncLookup(textStream(b), "ask", ask, serde.String())
		m := AsyncLookup(MapValues(l.Results(), event), "check", ask, serde.String())
		counted(MapValues(m.Results(), event), "per-key").To("out")
	}},
	{"mistakes", func(b *Builder) {
		s := textStream(b)
		l := AsyncLookup[string, string, string](s, "a", nil, nil,
			Concurrency(0), AttemptTimeout(0), Deadline(-time.Second), Retries(-1, 0, 0), MaxWait(-1), Capacity(0, 1), HandoverWait(time.Minute), Order(9))
		l.Fallbacks().To("out")
		AsyncLookup(s, "b", ask, serde.String(), OnFailure(FallbackEvent))
		AsyncLookup(s, "", ask, serde.String())
		AsyncLookup(MapValues(s, func(string) struct{} { return struct{}{} }), "c",
			func(context.Context, processors.Record[string, struct{}]) (string, error) { return "", nil }, serde.String())
	}},
}

func TestAsyncLookupTopologies(t *testing.T) { golden(t, "async.txt", asyncCases) }

// asyncTask adds to a driverTask what an asynchronous step needs. It is one
// process for ever.
type asyncTask struct {
	*driverTask
	calls []processors.Call
}

var _ processors.AsyncTask = (*asyncTask)(nil)

func (t *asyncTask) Dispatch(c processors.Call) { t.calls = append(t.calls, c) }
func (t *asyncTask) Owner() processors.Owner {
	return processors.Owner{Instance: "i", Incarnation: "p"}
}
func (t *asyncTask) Observer() processors.Observer              { return processors.Unobserved{} }
func (t *asyncTask) Report(processors.Report)                   {}
func (t *asyncTask) Retire(string, string)                      {}
func (t *asyncTask) LoopCaughtUp() bool                         { return true }
func (t *asyncTask) Undo()                                      { t.part.Rollback(); t.part.Begin(); t.sent = nil }
func (t *asyncTask) TopicID(topic string) string                { return topic }
func (t *asyncTask) MaxRowBytes() int                           { return 10_000 }
func (t *asyncTask) Decide(*processors.Error) processors.Action { return processors.DeadLetter }
func (t *asyncTask) Adopt(_ string, asked []processors.AskedCall) []bool {
	known := make([]bool, len(asked))
	for i := range known {
		known[i] = true
	}
	return known
}

// In strict order what is read again is skipped before any step sees it, be it
// filtered, dead-lettered or admitted; and the engine's seams reach the step.
func TestStrictLookupSkipsWhatItHasSeen(t *testing.T) {
	t.Parallel()
	b := New("app")
	seen := 0
	s := textStream(b).TryPeek(func(r processors.Record[string, string]) error {
		seen++
		if r.Value == "bad" {
			return errors.New("bad")
		}
		return nil
	})
	l := AsyncLookup(s, "ask", ask, serde.String(), Order(processors.OrderStrict))
	MapValues(l.Results(), event).To("out")
	top, err := b.Build()
	if err != nil {
		t.Fatal(err)
	}
	sub := top.Subs[0]
	db := state.NewMemory()
	d := &driver{t: t, out: map[string][]processors.Raw{}}
	open := func() (*asyncTask, Pipeline) {
		task := &asyncTask{driverTask: &driverTask{d: d, sub: sub, now: time.UnixMilli(0)}}
		task.part = state.NewPartition(db, state.TaskID{SubTopology: sub.Name}, sub.Stores)
		pipe, err := sub.Start(task)
		if err != nil {
			t.Fatal(err)
		}
		task.pipe = pipe
		if err := pipe.Reset(); err != nil {
			t.Fatal(err)
		}
		return task, pipe
	}
	records := []processors.Raw{
		{Topic: "in", Offset: 0, Key: []byte("a"), Value: []byte("x")},
		{Topic: "in", Offset: 1, Key: []byte("a"), Value: []byte("bad")},
		{Topic: "in", Offset: 2, Key: []byte("b"), Value: []byte("y")},
	}
	task, pipe := open()
	for _, r := range records {
		if err := task.process(0, r); (err != nil) != (string(r.Value) == "bad") {
			t.Fatalf("%s: %v", r.Value, err)
		}
	}
	if n, _ := pipe.Pending(); n != 2 || seen != 3 {
		t.Fatalf("%d entries of %d records", n, seen)
	}
	if at := pipe.(Holder).Hold(0, 3); at != 0 {
		t.Errorf("offset %d is committed before the first result is out", at)
	}
	if err := errors.Join(task.part.Commit(), task.part.WriteBack(&state.Batch{})); err != nil {
		t.Fatal(err)
	}
	calls := task.calls
	task, pipe = open()
	for _, r := range records {
		if err := task.process(0, r); err != nil {
			t.Errorf("%s, read again: %v", r.Value, err)
		}
	}
	if n, _ := pipe.Pending(); n != 2 || seen != 3 {
		t.Errorf("read again: %d entries, %d records seen", n, seen)
	}
	loop := func(c processors.Call) processors.Raw {
		raw := c.Run(t.Context())
		raw.Topic = sub.LoopTopic
		return raw
	}
	if err := task.process(len(sub.Sources), loop(calls[0])); err != nil {
		t.Fatal(err)
	}
	d.want("out", "a=x>x!@0")
	if at := pipe.(Holder).Hold(0, 3); at != 2 {
		t.Errorf("offset %d is committed, want that of the second event", at)
	}
	rejected := loop(calls[1])
	task.source = rejected
	if err := task.atomic(func() error { return pipe.(Rejecter).Reject(&rejected, errors.New("the broker said no")) }); err != nil {
		t.Fatal(err)
	}
	d.want("app.ask.dlq", "b=y@0")
	if at := pipe.(Holder).Hold(0, 3); at != 3 {
		t.Errorf("offset %d is committed when all is out", at)
	}
}

func TestPipelineWithoutLookupHoldsNothing(t *testing.T) {
	t.Parallel()
	b := New("app")
	textStream(b).To("out")
	d := newDriver(t, b)
	pipe := d.tasks[0].pipe
	if at := pipe.(Holder).Hold(0, 7); at != 7 {
		t.Errorf("offset %d, want 7", at)
	}
	cause := errors.New("no")
	if err := pipe.(Rejecter).Reject(&processors.Raw{}, cause); !errors.Is(err, cause) {
		t.Errorf("reject: %v", err)
	}
}
