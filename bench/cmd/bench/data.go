package main

import (
	"context"
	"encoding/binary"
	"fmt"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
)

// valueSize is the size of every input value in bytes.
const valueSize = 100

// stampAt is where a value carries the time of its sending (8 bytes, ns since
// the epoch) if the data set is stamped.
const stampAt = 8

// A dataset is a reproducible input: record i has the same key, value and
// partition whenever it is asked for, so that the checker needs no copy of it.
//
// The first pass touches every key once, in a scattered order; later records
// have uniformly random keys. Values do not compress. It is immutable and safe
// for concurrent use.
type dataset struct {
	keys    int
	stamped bool       // values carry their sending time
	key     []uint32   // key of record i
	nth     []uint32   // how many records up to and including i have i's key
	order   [][]uint32 // records by partition, in order
}

// newDataset describes n records of so many keys over so many partitions.
func newDataset(n, keys, partitions int) *dataset {
	d := &dataset{
		keys:  keys,
		key:   make([]uint32, n),
		nth:   make([]uint32, n),
		order: make([][]uint32, partitions),
	}
	hash := kgo.StickyKeyPartitioner(nil).ForTopic("")
	partitionOf := make([]uint16, keys)
	for k := range partitionOf {
		partitionOf[k] = uint16(hash.Partition(&kgo.Record{Key: appendKey(nil, uint32(k))}, partitions))
	}
	seen := make([]uint32, keys)
	for i := range n {
		k := uint32(mix(uint64(i)) % uint64(keys))
		if i < keys {
			// 2654435761 is prime, so this meets every key once.
			k = uint32(uint64(i) * 2654435761 % uint64(keys))
		}
		seen[k]++
		d.key[i], d.nth[i] = k, seen[k]
		p := partitionOf[k]
		d.order[p] = append(d.order[p], uint32(i))
	}
	return d
}

func (d *dataset) records() int { return len(d.key) }

// partition returns the partition of record i of the data set by its key.
func (d *dataset) partition(i int) int32 {
	hash := kgo.StickyKeyPartitioner(nil).ForTopic("")
	return int32(hash.Partition(&kgo.Record{Key: appendKey(nil, d.key[i])}, len(d.order)))
}

// appendKey appends the text of a key: "key-" and at least eight digits.
func appendKey(b []byte, k uint32) []byte { return fmt.Appendf(b, "key-%08d", k) }

// fillValue writes the value of record i into b, which is valueSize long.
func fillValue(b []byte, i int) {
	binary.BigEndian.PutUint64(b, uint64(i))
	for at := 8; at+8 <= len(b); at += 8 {
		binary.LittleEndian.PutUint64(b[at:], mix(uint64(i)<<8|uint64(at)))
	}
	copy(b[len(b)-4:], "end.")
}

// mix is the splitmix64 generator's output function.
func mix(x uint64) uint64 {
	x += 0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

// load produces records [from, to) of the data set, in order, and waits until
// they are written.
func (d *dataset) load(ctx context.Context, cl *kgo.Client, topic string, from, to int) error {
	var keys [][]byte
	if d.keys <= 1<<20 {
		keys = make([][]byte, d.keys)
	}
	var first kgo.FirstErrPromise
	const chunk = 1024
	for i := from; i < to; i += chunk {
		end := min(i+chunk, to)
		values := make([]byte, (end-i)*valueSize)
		records := make([]kgo.Record, end-i)
		for j := i; j < end; j++ {
			r, v := &records[j-i], values[(j-i)*valueSize:(j-i+1)*valueSize:(j-i+1)*valueSize]
			fillValue(v, j)
			k := d.key[j]
			switch {
			case keys == nil:
				r.Key = appendKey(nil, k)
			case keys[k] == nil:
				keys[k] = appendKey(nil, k)
				fallthrough
			default:
				r.Key = keys[k]
			}
			r.Topic, r.Value = topic, v
			if d.stamped {
				binary.BigEndian.PutUint64(v[stampAt:], uint64(time.Now().UnixNano()))
			}
			cl.Produce(ctx, r, first.Promise())
		}
	}
	if err := cl.Flush(ctx); err != nil {
		return fmt.Errorf("load %s: %w", topic, err)
	}
	if err := first.Err(); err != nil {
		return fmt.Errorf("load %s: %w", topic, err)
	}
	return nil
}
