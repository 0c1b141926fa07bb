package topology

import (
	"fmt"
	"time"

	"github.com/millrace/millrace/processors"
)

// A BatchOption configures [Batch].
type BatchOption interface{ batch(*processors.Batching) }

type batchOption func(*processors.Batching)

func (f batchOption) batch(b *processors.Batching) { f(b) }

// AcrossKeys makes batches of all records of a partition, whatever their keys.
func AcrossKeys() BatchOption {
	return batchOption(func(b *processors.Batching) { b.AcrossKeys = true })
}

// Batch collects the records of each key and forwards them as one: as soon as there are
// size of them, or when wait has passed, by the wall clock, since the first one. They are
// in the order in which they came, with their timestamps and headers, so that the order
// of every key is kept; batches do not overlap, and every record is in one. A batch has
// the key, the largest timestamp and the headers of the last record. Records without a
// key are dropped ("null-key").
//
// With [AcrossKeys] a batch holds records of any keys, without one too, and has no key
// itself: what bulk calls and embeddings want. In an [AsyncLookup] behind it give the
// order PARTITION if keys must keep theirs.
//
// The records wait in the store named name, with the changelog <app>.<name>-table, and
// survive restarts. If a step before may have changed the key, the records go through the
// repartition topic <app>.<name>-repartition first, but not with AcrossKeys.
func Batch[K, V any](s *KStream[K, V], name string, size int, wait time.Duration, opts ...BatchOption) *KStream[K, []processors.Record[K, V]] {
	cfg := processors.Batching{Size: size, Wait: wait}
	for _, opt := range opts {
		opt.batch(&cfg)
	}
	b, what := s.b, fmt.Sprintf("batch %q", name)
	if size < 1 {
		b.fail("%s: a size of %d; it must be at least 1", what, size)
	}
	if wait < time.Millisecond {
		b.fail("%s: a wait of %s; it must be at least 1 ms, after which a smaller batch goes", what, wait)
	}
	in := s
	if !cfg.AcrossKeys || s.from.n.behind(kindAsync) {
		in = repartitioned(s, name, cfg.AcrossKeys)
	}
	out := &KStream[K, []processors.Record[K, V]]{b: b, key: in.key, changed: in.changed}
	n := &node{kind: kindStateful, op: "batch", name: name, detail: fmt.Sprintf("%d records or %s", size, wait), inputs: []input{inputOf(in)}}
	if cfg.AcrossKeys {
		n.detail += ", across keys"
	}
	if !needSerdes(in, what) {
		out.from = port{n: b.addNode(n, in.from)}
		return out
	}
	out.value = processors.BatchSerde(in.key, in.value)
	rows := processors.RecordSerde(in.key, in.value)
	n.stores = b.keyValueSpec(n.op, name, processors.QueueKeySerde(), rows)
	n.run = func(task processors.Task, to [][]any) (*operator, error) {
		store, err := openKeyValue(task, name, processors.QueueKeySerde(), rows)
		if err != nil {
			return nil, err
		}
		start, reset, closing := processors.Batch(task, name, cfg, in.key, store, forwards[K, []processors.Record[K, V]](to[0]))
		return &operator{
			inputs: []any{processors.Guard(name, start)},
			reset:  func() error { reset(); return nil },
			close:  func() error { closing(); return nil },
		}, nil
	}
	out.from = port{n: b.addNode(n, in.from)}
	return out
}
