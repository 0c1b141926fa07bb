package engine_test

import (
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
