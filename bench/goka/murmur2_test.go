package main

import (
	"fmt"
	"testing"

	"github.com/twmb/franz-go/pkg/kgo"
)

func TestMurmur2PartitionsAsKafkaDoes(t *testing.T) {
	t.Parallel()
	const partitions = 7
	kafka := kgo.StickyKeyPartitioner(nil).ForTopic("t")
	for i := range 1000 {
		key := []byte(fmt.Sprintf("key-%d", i*i*i)) // of 5 to 13 bytes: every tail length
		var h murmur2
		if _, err := h.Write(key); err != nil {
			t.Fatal(err)
		}
		// As sarama's hash partitioner does.
		got := int32(h.Sum32()) % partitions
		if want := kafka.Partition(&kgo.Record{Key: key}, partitions); got != int32(want) {
			t.Fatalf("key %q: partition %d, want %d", key, got, want)
		}
	}
}
