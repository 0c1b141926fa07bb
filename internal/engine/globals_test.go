package engine_test

import (
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/millrace/millrace/serde"
	"github.com/millrace/millrace/state"
	"github.com/millrace/millrace/topology"
)

// A global table follows its topic over transactions, committed ones and aborted ones.
// Its checkpoint is at the end of the topic then and stays young while nothing comes,
// so that the next start loads nothing.
func TestGlobalTableFollows(t *testing.T) {
	bubble(t, func(r *rig) {
		b := topology.New("app")
		prices := topology.GlobalTable(b, "prices", "prices", serde.String(), serde.String())
		topology.GlobalJoin(topology.Stream(b, "in", serde.String(), serde.String()), prices,
			func(_, v string) string { return v }, func(v, price string) string { return v + "=" + price },
		).WithValueSerde(serde.String()).To("out")
		a := r.start(b, vfs.NewMem())
		defer a.stop()
		a.running(1)

		cl, err := kgo.NewClient(append(r.opts(), kgo.TransactionalID("prices"), kgo.RecordPartitioner(kgo.ManualPartitioner()))...)
		if err != nil {
			t.Fatal(err)
		}
		defer cl.Close()
		set := func(price string, end kgo.TransactionEndTry) {
			t.Helper()
			if err := cl.BeginTransaction(); err != nil {
				t.Fatal(err)
			}
			rec := &kgo.Record{Topic: "prices", Key: []byte("tea"), Value: []byte(price), Timestamp: time.Now()}
			if err := cl.ProduceSync(r.t.Context(), rec).FirstErr(); err != nil {
				t.Fatal(err)
			}
			if err := cl.EndTransaction(r.t.Context(), end); err != nil {
				t.Fatal(err)
			}
			r.pass(5 * time.Second)
		}
		set("1", kgo.TryCommit)
		set("2", kgo.TryCommit)
		set("3", kgo.TryAbort)
		r.produce("in", &kgo.Record{Key: []byte("k"), Value: []byte("tea")})
		if out := r.await("out", 1); string(out[0].Value) != "tea=2" {
			t.Errorf("joined %q", out[0].Value)
		}
		r.pass(90 * time.Minute)
		check, err := state.LoadCheckpoint(a.Backend(), state.TaskID{SubTopology: "\x02prices"})
		if err != nil || check == nil {
			t.Fatal(check, err)
		}
		if at, end := check.Inputs[state.TopicPartition{Topic: "prices"}], r.PartitionInfo("prices", 0).HighWatermark; at != end {
			t.Errorf("the checkpoint is at offset %d of %d", at, end)
		}
		if age := time.Since(time.UnixMilli(check.Time)); age > time.Hour+time.Minute {
			t.Errorf("the checkpoint is %s old", age)
		}
	}, "in", "out", "prices")
}
