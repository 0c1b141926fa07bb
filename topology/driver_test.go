package topology

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"testing"
	"time"

	"github.com/millrace/millrace/processors"
	"github.com/millrace/millrace/state"
)

// A driver runs a compiled topology without a broker, on one partition. It is for
// the tests of this package, which topologytest imports.
type driver struct {
	t     *testing.T
	top   *Topology
	tasks []*driverTask
	out   map[string][]processors.Raw
}

// A driverTask is one sub-topology of a driver.
type driverTask struct {
	d      *driver
	sub    *SubTopology
	part   *state.Partition
	pipe   Pipeline
	source processors.Raw
	time   int64
	now    time.Time
	drops  []string
	timers []*driverTimer
	sent   []driverRecord // by the record in progress
}

type driverRecord struct {
	topic     string
	partition int32
	raw       processors.Raw
}

type driverTimer struct {
	kind      processors.PunctuationKind
	interval  time.Duration
	fn        func(int64) error
	cancelled bool
}

func newDriver(t *testing.T, b *Builder) *driver {
	t.Helper()
	top, err := b.Build()
	if err != nil {
		t.Fatal(err)
	}
	d := &driver{t: t, top: top, out: map[string][]processors.Raw{}}
	for _, s := range top.Subs {
		task := &driverTask{d: d, sub: s, time: -1, now: time.UnixMilli(0)}
		task.part = state.NewPartition(state.NewMemory(), state.TaskID{SubTopology: s.Name}, s.Stores)
		if task.pipe, err = s.Start(task); err != nil {
			t.Fatal(err)
		}
		if err := task.pipe.Reset(); err != nil {
			t.Fatal(err)
		}
		d.tasks = append(d.tasks, task)
	}
	return d
}

// pipe hands a record to every sub-topology that reads its topic and follows what
// they produce. It returns the first error.
func (d *driver) pipe(raw processors.Raw) error {
	for _, task := range d.tasks {
		for i, src := range task.sub.Sources {
			if src.Topic != raw.Topic {
				continue
			}
			if err := task.process(i, raw); err != nil {
				return err
			}
		}
	}
	return nil
}

// text pipes a record of strings.
func (d *driver) text(topic, key, value string, ts int64) error {
	return d.pipe(processors.Raw{Topic: topic, Key: []byte(key), Value: []byte(value), Timestamp: ts})
}

func (t *driverTask) process(source int, raw processors.Raw) error {
	t.source, t.time = raw, max(t.time, raw.Timestamp)
	return t.atomic(func() error { return t.pipe.Process(source, &t.source) })
}

// atomic runs f as the engine runs a record: its outputs and changes count only
// if it succeeds.
func (t *driverTask) atomic(f func() error) error {
	t.part.Begin()
	t.sent = nil
	if err := f(); err != nil {
		t.part.Rollback()
		return err
	}
	for _, r := range t.sent {
		r.raw.Topic = r.topic
		r.raw.Partition = r.partition
		t.d.out[r.topic] = append(t.d.out[r.topic], r.raw)
		if err := t.d.pipe(r.raw); err != nil {
			return err
		}
	}
	return nil
}

// punctuate fires the live timers of a kind.
func (t *driverTask) punctuate(kind processors.PunctuationKind, at int64) error {
	t.source = processors.Raw{}
	for _, timer := range slices.Clone(t.timers) {
		if timer.kind == kind && !timer.cancelled {
			if err := t.atomic(func() error { return timer.fn(at) }); err != nil {
				return err
			}
		}
	}
	return nil
}

func (t *driverTask) Context() context.Context         { return context.Background() }
func (t *driverTask) Logger() *slog.Logger             { return slog.New(slog.DiscardHandler) }
func (t *driverTask) Partition() int32                 { return 0 }
func (t *driverTask) Source() *processors.Raw          { return &t.source }
func (t *driverTask) StreamTime() int64                { return t.time }
func (t *driverTask) Now() time.Time                   { return t.now }
func (t *driverTask) Store(name string) *state.Store   { return t.part.Store(name) }
func (t *driverTask) Global(string) *state.Store       { return nil }
func (t *driverTask) Cell(name string) *state.Cell     { return t.part.Cell(name) }
func (t *driverTask) Dispatch(processors.Call)         {}
func (t *driverTask) Drop(step, reason string)         { t.drops = append(t.drops, step+": "+reason) }
func (t *driverTask) Partitions(string) (int32, error) { return 4, nil }

func (t *driverTask) Produce(topic string, partition int32, raw processors.Raw) error {
	t.sent = append(t.sent, driverRecord{topic, partition, raw})
	return nil
}

func (t *driverTask) Schedule(kind processors.PunctuationKind, interval time.Duration, _ *state.Cell, fn func(int64) error) func() {
	timer := &driverTimer{kind: kind, interval: interval, fn: fn}
	t.timers = append(t.timers, timer)
	return func() { timer.cancelled = true }
}

// texts returns what a topic got as "key=value@time", null as "-".
func (d *driver) texts(topic string) []string {
	var lines []string
	for _, r := range d.out[topic] {
		lines = append(lines, fmt.Sprintf("%s=%s@%d", null(r.Key), null(r.Value), r.Timestamp))
	}
	return lines
}

func null(b []byte) string {
	if b == nil {
		return "-"
	}
	return string(b)
}

func (d *driver) want(topic string, lines ...string) {
	d.t.Helper()
	if got := d.texts(topic); !slices.Equal(got, lines) {
		d.t.Errorf("topic %s:\n got %q\nwant %q", topic, got, lines)
	}
}
