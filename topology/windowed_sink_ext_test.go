package topology_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/millrace/millrace/serde"
	"github.com/millrace/millrace/state"
	"github.com/millrace/millrace/topology"
	"github.com/millrace/millrace/topologytest"
)

// TestWindowedSinkPartitions: the windows of a key are in the partition of the
// key, so that who reads them can join them with other topics of the key.
func TestWindowedSinkPartitions(t *testing.T) {
	t.Parallel()
	const partitions = 7
	b := topology.New("app")
	w := topology.Tumbling(time.Second, topology.Grace(time.Hour))
	topology.Count(streamOf(b, "in").GroupByKey(), "n", w).ToStream().To("out")
	d := topologytest.New(t, b, topologytest.Partitions(partitions))
	in := topologytest.Input(d, "in", str, str)
	for i := range 20 {
		in.Pipe(fmt.Sprint("key", i%5), "", int64(i)*1000)
	}
	keys := topology.WindowedSerde(serde.String(), time.Second)
	for _, rec := range d.RawOutput("out") {
		w, err := keys.Decode(rec.Key)
		if err != nil {
			t.Fatal(err)
		}
		if want := state.PartitionOf([]byte(w.Key), partitions); rec.Partition != want {
			t.Errorf("%v is in partition %d, its key is in %d", w, rec.Partition, want)
		}
	}
}
