package kafka

import (
	"hash"

	"github.com/twmb/franz-go/pkg/kgo"
)

// Partitioner places records like Kafka's Java producer: a key by its murmur2
// hash, no key on a partition that changes from batch to batch. A record whose
// Partition is not negative goes exactly there, so set it to -1 to have the key
// decide: the zero value means partition 0.
func Partitioner() kgo.Partitioner { return partitioner{} }

type partitioner struct{}

func (partitioner) ForTopic(topic string) kgo.TopicPartitioner {
	return topicPartitioner{kgo.StickyKeyPartitioner(nil).ForTopic(topic)}
}

type topicPartitioner struct{ byKey kgo.TopicPartitioner }

var _ kgo.TopicPartitionerOnNewBatch = topicPartitioner{}

func (p topicPartitioner) RequiresConsistency(r *kgo.Record) bool {
	return r.Partition >= 0 || p.byKey.RequiresConsistency(r)
}

func (p topicPartitioner) Partition(r *kgo.Record, n int) int {
	if r.Partition >= 0 {
		return int(r.Partition) // out of range fails the record
	}
	return p.byKey.Partition(r, n)
}

func (p topicPartitioner) OnNewBatch() {
	if b, ok := p.byKey.(kgo.TopicPartitionerOnNewBatch); ok {
		b.OnNewBatch()
	}
}

// PartitionOf returns the partition of a key among n > 0, as [Partitioner] and
// Java producers choose it. The key is never null.
func PartitionOf(key []byte, n int32) int32 { return int32(murmur2(key) % uint32(n)) }

// murmur2 is Kafka's hash with the sign bit cleared: franz-go's, asked for a
// partition among as many as there are such hashes.
func murmur2(key []byte) uint32 {
	if key == nil {
		key = []byte{}
	}
	return uint32(kgo.StickyKeyPartitioner(nil).ForTopic("").Partition(&kgo.Record{Key: key}, 1<<31))
}

// keyHash gives goka Kafka's hash: goka takes it modulo the partition count.
type keyHash struct{ b []byte }

// NewKeyHash returns a hasher for goka.WithViewHasher and the like that places
// keys as [Partitioner] does. The sign bit is clear, so that goka's own handling of
// negative hashes, which panics for one in four billion, never comes into play.
func NewKeyHash() hash.Hash32 { return &keyHash{} }

func (h *keyHash) Write(p []byte) (int, error) { h.b = append(h.b, p...); return len(p), nil }
func (h *keyHash) Sum32() uint32               { return murmur2(h.b) }
func (h *keyHash) Reset()                      { h.b = h.b[:0] }
func (h *keyHash) Size() int                   { return 4 }
func (h *keyHash) BlockSize() int              { return 1 }
func (h *keyHash) Sum(b []byte) []byte {
	s := h.Sum32()
	return append(b, byte(s>>24), byte(s>>16), byte(s>>8), byte(s))
}
