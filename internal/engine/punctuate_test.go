package engine_test

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/millrace/millrace/processors"
	"github.com/millrace/millrace/serde"
	"github.com/millrace/millrace/topology"
)

// TestRetryOnTheEngine takes the disk of an application whose records wait, and fails a
// commit: what was tried, and what waits behind it, goes on where it was.
func TestRetryOnTheEngine(t *testing.T) {
	bubble(t, func(r *rig) {
		calls := 0
		start := func() *app {
			b := topology.New("app")
			s := serde.String()
			policy := topology.RetryPolicy{Attempts: 9, Backoff: 10 * time.Second}
			topology.Retry(topology.Stream(b, "in", s, s), "call", policy, func(rec processors.Record[string, string]) (string, error) {
				if rec.Value == "a" {
					if calls++; calls <= 2 {
						return "", errors.New("not now")
					}
				}
				return rec.Value, nil
			}).To("out")
			a := r.start(b, vfs.NewMem())
			a.running(1)
			return a
		}
		a := start()
		for _, rec := range []string{"ka", "kb", "xc"} {
			r.produce("in", &kgo.Record{Key: []byte(rec[:1]), Value: []byte(rec[1:])})
		}
		r.pass(5 * time.Second)
		a.stop()
		a = start()
		r.pass(10 * time.Second) // the second call
		got := ""
		for _, rec := range r.read("out") {
			got += string(rec.Value) + " "
		}
		if calls != 2 || got != "c " {
			r.t.Errorf("after %d calls: out %q", calls, got)
		}
		r.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.TxnOffsetCommit}, Err: kerr.UnknownServerError})
		r.pass(time.Minute)
		a.stop()
		got = ""
		for _, rec := range r.read("out") {
			got += string(rec.Value) + " "
		}
		if got != "c a b " {
			r.t.Errorf("out %q, want c a b", got)
		}
	}, "in", "out")
}

// metronome forwards the time of its punctuations: every 10 s of stream time.
type metronome struct{}

func (metronome) Init(ctx *processors.Context[string, string]) error {
	ctx.Schedule(processors.StreamTime, 10*time.Second, func(at int64) error {
		return ctx.Forward(processors.Record[string, string]{Key: "k", Value: fmt.Sprint(at / 1000), Timestamp: at})
	})
	return nil
}
func (metronome) Process(processors.Record[string, string]) error { return nil }
func (metronome) Close() error                                    { return nil }

// Neither an abort nor a restart makes a stream-time punctuation fire twice.
func TestStreamTimePunctuations(t *testing.T) {
	bubble(t, func(r *rig) {
		start := func(fs vfs.FS) *app {
			b := topology.New("app")
			topology.Process(topology.Stream(b, "in", serde.String(), serde.String()), "metronome",
				func() processors.Processor[string, string, string, string] { return metronome{} }).WithKeySerde(serde.String()).WithValueSerde(serde.String()).To("out")
			return r.start(b, fs)
		}
		fs := vfs.NewMem()
		a := start(fs)
		at := func(seconds ...int64) {
			for _, s := range seconds {
				r.produce("in", &kgo.Record{Key: []byte("k"), Value: []byte("v"), Timestamp: time.Unix(s, 0)})
				r.pass(time.Second)
			}
		}
		at(3, 8)
		r.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.TxnOffsetCommit}, Err: kerr.UnknownServerError})
		at(12)
		a.stop()
		a = start(fs)
		at(15)
		a.stop()
		a = start(vfs.NewMem()) // a lost disk
		at(19, 20)
		r.pass(5 * time.Second)
		a.stop()
		got := ""
		for _, rec := range r.read("out") {
			got += string(rec.Value) + " "
		}
		if got != "3 12 20 " {
			r.t.Errorf("fired at %s, want 3 12 20", got)
		}
	}, "in", "out")
}
