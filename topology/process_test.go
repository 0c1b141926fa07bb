package topology

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/millrace/millrace/processors"
	"github.com/millrace/millrace/serde"
	"github.com/millrace/millrace/state"
)

// counter counts keys in a store and reports them by punctuation.
type counter struct {
	log    *[]string
	ctx    *processors.Context[string, string]
	counts state.KeyValueStore[string, int64]
	seen   state.WindowStore[string, int64]
	memory int // of this processor, not of its task
}

func (c *counter) Init(ctx *processors.Context[string, string]) (err error) {
	*c.log = append(*c.log, "init")
	c.ctx = ctx
	if c.counts, err = processors.KeyValueStore[string, int64](ctx, "counts"); err != nil {
		return err
	}
	if c.seen, err = processors.WindowStore[string, int64](ctx, "seen"); err != nil {
		return err
	}
	ctx.Schedule(processors.StreamTime, time.Second, func(at int64) error {
		for row, err := range c.counts.Range(nil, nil) {
			if err != nil {
				return err
			}
			if err := ctx.Forward(processors.Record[string, string]{Key: row.Key, Value: fmt.Sprint(row.Value), Timestamp: at}); err != nil {
				return err
			}
		}
		if at == 13 {
			panic("unlucky")
		}
		return nil
	})
	return nil
}

func (c *counter) Process(r processors.Record[string, string]) error {
	n, _, err := c.counts.Get(r.Key)
	if err != nil {
		return err
	}
	c.memory++
	if err := c.counts.Put(r.Key, n+1, r.Timestamp); err != nil {
		return err
	}
	if err := c.seen.Put(r.Key, r.Timestamp, n, r.Timestamp); err != nil {
		return err
	}
	if r.Value == "bad" {
		return errors.New("bad value")
	}
	r.Key = "other"
	r.Value = fmt.Sprintf("%s %d", c.ctx.Source().Topic, c.memory)
	r.Headers = append(slices.Clip(r.Headers), processors.Header{Key: "step", Value: []byte(c.ctx.Step())})
	return c.ctx.Forward(r)
}

func (c *counter) Close() error {
	*c.log = append(*c.log, "close")
	return nil
}

func counting(log *[]string, values bool) *Builder {
	b := New("app")
	AddKeyValueStore(b, "counts", serde.String(), serde.Int64())
	AddWindowStore(b, "seen", serde.String(), serde.Int64(), time.Minute, time.Hour)
	newCounter := func() processors.Processor[string, string, string, string] { return &counter{log: log} }
	if values {
		ProcessValues(textStream(b), "counter", newCounter, Stores("counts", "seen")).To("out")
	} else {
		Process(textStream(b), "counter", newCounter, Stores("counts", "seen")).To("out")
	}
	return b
}

func TestProcessor(t *testing.T) {
	t.Parallel()
	var log []string
	d := newDriver(t, counting(&log, false))
	task := d.tasks[0]
	for _, v := range []string{"x", "bad", "y"} {
		err := d.text("in", "a", v, 5)
		if (err != nil) != (v == "bad") {
			t.Fatal(err)
		}
	}
	// The failed record changed the processor's field but not its store.
	d.want("out", "other=in 1@5", "other=in 3@5")
	if h := d.out["out"][0].Headers; len(h) != 1 || string(h[0].Value) != "counter" {
		t.Errorf("headers %v", h)
	}
	if err := task.punctuate(processors.StreamTime, 12); err != nil {
		t.Fatal(err)
	}
	d.want("out", "other=in 1@5", "other=in 3@5", "a=2@12")

	err := task.punctuate(processors.StreamTime, 13)
	if e, ok := errors.AsType[*processors.Error](err); !ok || e.Step != "counter" || e.Class != processors.ClassProcess {
		t.Errorf("panic of a punctuation gave %v", err)
	}
	if len(d.out["out"]) != 3 {
		t.Error("a failed punctuation left output")
	}

	if err := task.pipe.Reset(); err != nil {
		t.Fatal(err)
	}
	if err := d.text("in", "a", "z", 5); err != nil {
		t.Fatal(err)
	}
	if got := d.texts("out")[3]; got != "other=in 1@5" {
		t.Errorf("after a reset: %s, want a fresh processor", got)
	}
	if live := slices.DeleteFunc(task.timers, func(t *driverTimer) bool { return t.cancelled }); len(live) != 1 {
		t.Errorf("%d live punctuations after a reset, want 1", len(live))
	}
	if err := task.pipe.Close(); err != nil {
		t.Fatal(err)
	}
	if want := []string{"init", "close", "init", "close"}; !slices.Equal(log, want) {
		t.Errorf("lifecycle %q, want %q", log, want)
	}
}

func TestProcessValuesKeepsTheKey(t *testing.T) {
	t.Parallel()
	var log []string
	b := counting(&log, true)
	d := newDriver(t, b)
	if err := d.text("in", "a", "x", 5); err != nil {
		t.Fatal(err)
	}
	if err := d.tasks[0].punctuate(processors.StreamTime, 12); err != nil {
		t.Fatal(err)
	}
	d.want("out", "a=in 1@5", "a=1@12")
}

func TestProcessorMarksTheKey(t *testing.T) {
	t.Parallel()
	b := New("app")
	s := textStream(b)
	if !Process(s, "one", noProcessor).changed {
		t.Error("Process must mark the key as changed")
	}
	if ProcessValues(s, "two", noProcessor).changed {
		t.Error("ProcessValues must not mark the key")
	}
	if MapValues(s, strings.ToUpper).changed || s.Filter(pass).changed || !SelectKey(s, first).changed {
		t.Error("only steps that may change the key mark it")
	}
}

// failing is a processor whose parts fail as its name says.
type failing struct{ at string }

func (f *failing) Init(ctx *processors.Context[string, string]) error {
	switch f.at {
	case "init":
		return errors.New("cannot start")
	case "init panics":
		panic("cannot start")
	case "unconnected":
		_, err := processors.KeyValueStore[string, string](ctx, "elsewhere")
		return err
	case "types":
		_, err := processors.KeyValueStore[string, string](ctx, "counts")
		return err
	case "kind":
		_, err := processors.WindowStore[string, int64](ctx, "counts")
		return err
	}
	return nil
}
func (f *failing) Process(processors.Record[string, string]) error { return nil }
func (f *failing) Close() error                                    { panic("cannot end") }

func TestProcessorFailures(t *testing.T) {
	t.Parallel()
	for at, want := range map[string]string{
		"init":        "init: cannot start",
		"init panics": "panic: cannot start",
		"none":        "made no processor",
		"unconnected": `store "elsewhere" is not connected to step "step"; pass topology.Stores("elsewhere")`,
		"types":       "its serdes are string and int64",
		"kind":        "is of the other kind",
		"close":       "panic: cannot end",
	} {
		b := New("app")
		AddKeyValueStore(b, "counts", serde.String(), serde.Int64())
		AddKeyValueStore(b, "elsewhere", serde.String(), serde.Int64())
		Process(textStream(b), "step", func() processors.Processor[string, string, string, string] {
			if at == "none" {
				return nil
			}
			return &failing{at}
		}, Stores("counts"))
		Process(textStream(b), "other", noProcessor, Stores("elsewhere"))
		top, err := b.Build()
		if err != nil {
			t.Fatal(err)
		}
		task := &driverTask{sub: top.Subs[0], time: -1}
		task.part = state.NewPartition(state.NewMemory(), state.TaskID{}, top.Subs[0].Stores)
		pipe, err := top.Subs[0].Start(task)
		if err != nil {
			t.Fatal(err)
		}
		if err = pipe.Reset(); at == "close" && err == nil {
			err = pipe.Close()
		}
		if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), `"step"`) {
			t.Errorf("%s: error %v, want %q of step", at, err, want)
		}
	}
}
