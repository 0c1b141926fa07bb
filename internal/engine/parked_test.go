package engine_test

import (
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/millrace/millrace/internal/engine"
	"github.com/millrace/millrace/processors"
	"github.com/millrace/millrace/serde"
	"github.com/millrace/millrace/topology"
)

// §2.6: a task that stops is parked alone, and is opened again, with backoff, from
// the offset before the record that stopped it.
func TestParkedTaskComesBack(t *testing.T) {
	bubble(t, func(r *rig) {
		var broken atomic.Bool
		broken.Store(true)
		b := topology.New("app")
		topology.TryMapValues(topology.Stream(b, "in", serde.String(), serde.String()), func(rec processors.Record[string, string]) (string, error) {
			if rec.Value == "bad" && broken.Load() {
				return "", processors.WithAction(processors.Stop, errors.New("the database is down"))
			}
			return rec.Value, nil
		}).WithValueSerde(serde.String()).To("out")
		a := r.start(b, vfs.NewMem())
		defer a.stop()
		for _, v := range []string{"a", "bad", "b"} {
			r.produce("in", &kgo.Record{Key: []byte("k"), Value: []byte(v)})
		}
		r.await("out", 1)
		r.pass(10 * time.Second)
		if tasks := a.Tasks(); len(tasks) != 1 || tasks[0].State != engine.Parked || !strings.Contains(tasks[0].Err.Error(), "the database is down") {
			t.Fatalf("the task is not parked with its reason: %+v", tasks)
		}
		r.await("out", 1)
		broken.Store(false)
		r.pass(2 * time.Minute)
		var got []string
		for _, rec := range r.await("out", 3) {
			got = append(got, string(rec.Value))
		}
		if strings.Join(got, " ") != "a bad b" {
			t.Errorf("output %q, want a bad b", got)
		}
	}, "in", "out")
}

// A task that opens well and stops at its first record every time is not tried every
// second for ever.
func TestParkedTaskBacksOff(t *testing.T) {
	bubble(t, func(r *rig) {
		var tries atomic.Int32
		b := topology.New("app")
		topology.TryMapValues(topology.Stream(b, "in", serde.String(), serde.String()), func(processors.Record[string, string]) (string, error) {
			tries.Add(1)
			return "", processors.WithAction(processors.Stop, errors.New("the database is down"))
		}).WithValueSerde(serde.String()).To("out")
		a := r.start(b, vfs.NewMem())
		defer a.stop()
		r.produce("in", &kgo.Record{Key: []byte("k"), Value: []byte("v")})
		r.pass(10 * time.Minute)
		if n := tries.Load(); n < 8 || n > 20 {
			t.Errorf("%d tries in ten minutes", n)
		}
	}, "in", "out")
}

// A rebalance does not bring a parked task back where it was when it was assigned:
// what was polled behind the record that stopped it would be skipped.
func TestParkedTaskOutlivesRebalance(t *testing.T) {
	bubble(t, func(r *rig) {
		var broken atomic.Bool
		broken.Store(true)
		b := topology.New("app")
		topology.TryMapValues(topology.Stream(b, "in", serde.String(), serde.String()), func(rec processors.Record[string, string]) (string, error) {
			if rec.Value == "bad" && broken.Load() {
				return "", processors.WithAction(processors.Stop, errors.New("the database is down"))
			}
			return rec.Value, nil
		}).WithValueSerde(serde.String()).To("out")
		a := r.start(b, vfs.NewMem())
		defer a.stop()
		send := func(values ...string) {
			for _, v := range values {
				r.produce("in", &kgo.Record{Key: []byte("k"), Value: []byte(v)})
			}
		}
		send("a", "bad", "b")
		r.await("out", 1)
		offsets := r.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.OffsetFetch}, Err: kerr.GroupAuthorizationFailed, Count: -1})
		r.pass(3 * time.Minute) // the pauses between attempts are long by now
		broken.Store(false)
		other := r.start(b, vfs.NewMem())
		defer other.stop()
		r.pass(10 * time.Second)
		send("c")
		r.pass(10 * time.Second)
		offsets.Remove()
		r.pass(2 * time.Minute)
		var got []string
		for _, rec := range r.read("out") {
			got = append(got, string(rec.Value))
		}
		if strings.Join(got, " ") != "a bad b c" {
			t.Errorf("output %q, want a bad b c", got)
		}
	}, "in", "out")
}

// A changelog that was deleted while nobody ran leaves the local rows as the only
// copy: the task refuses, and deletes nothing.
func TestRefuseLostChangelog(t *testing.T) {
	bubble(t, func(r *rig) {
		fs := vfs.NewMem()
		a := r.start(counting(), fs)
		r.produce("in", &kgo.Record{Key: []byte("k"), Value: []byte("v")})
		r.await("out", 1)
		a.stop()
		for _, topic := range []string{"app.counts-table"} {
			if _, err := r.adm.DeleteTopic(r.t.Context(), topic); err != nil {
				r.t.Fatal(err)
			}
		}
		a = r.start(counting(), fs)
		defer a.stop()
		r.produce("in", &kgo.Record{Key: []byte("k"), Value: []byte("v")})
		r.pass(10 * time.Second)
		if tasks := a.Tasks(); len(tasks) != 1 || tasks[0].State != engine.Parked || !strings.Contains(tasks[0].Err.Error(), "deleted or recreated") {
			r.t.Errorf("it does not refuse: %+v", tasks)
		}
		r.await("out", 1)
	}, "in", "out")
}
