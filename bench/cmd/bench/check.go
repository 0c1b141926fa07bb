package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
)

// A checker compares a job's output with what its input demands. Input and
// output are partitioned alike, so every output partition must hold exactly one
// record for each input record of that partition, in order: the same record for
// pass, the key's running count for count. It shares no code with any arm.
type checker struct {
	job   string
	data  *dataset
	limit int   // records of the data set that were fed
	next  []int // by partition, position in data.order
	key   []byte
	value []byte

	records int   // output records seen
	first   error // the first deviation
}

func newChecker(job string, data *dataset, limit int) *checker {
	return &checker{
		job: job, data: data, limit: limit,
		next:  make([]int, len(data.order)),
		value: make([]byte, valueSize),
	}
}

// record takes the next output record of a partition.
func (c *checker) record(partition int32, offset int64, key, value []byte) {
	c.records++
	if c.first == nil {
		if err := c.compare(partition, key, value); err != nil {
			c.first = fmt.Errorf("partition %d offset %d: %w", partition, offset, err)
		}
	}
}

func (c *checker) compare(partition int32, key, value []byte) error {
	order := c.data.order[partition]
	at := c.next[partition]
	if at >= len(order) || int(order[at]) >= c.limit {
		return fmt.Errorf("key %q after the last expected record", key)
	}
	c.next[partition]++
	i := int(order[at])
	c.key = appendKey(c.key[:0], c.data.key[i])
	if !bytes.Equal(key, c.key) {
		return fmt.Errorf("key %q instead of %q, input record %d", key, c.key, i)
	}
	switch c.job {
	case "pass":
		fillValue(c.value, i)
		if c.data.stamped && len(value) == valueSize {
			copy(c.value[stampAt:stampAt+8], value[stampAt:])
		}
		if !bytes.Equal(value, c.value) {
			return fmt.Errorf("key %q: another value than input record %d", key, i)
		}
	case "count":
		if len(value) != 8 {
			return fmt.Errorf("key %q: count of %d bytes instead of 8", key, len(value))
		}
		if n := binary.BigEndian.Uint64(value); n != uint64(c.data.nth[i]) {
			return fmt.Errorf("key %q: count %d instead of %d", key, n, c.data.nth[i])
		}
	default:
		return fmt.Errorf("no check for job %q", c.job)
	}
	return nil
}

// result returns nil if the output was exact.
func (c *checker) result() error {
	if c.first != nil {
		return fmt.Errorf("output is not exact (%d records for %d inputs): %w", c.records, c.limit, c.first)
	}
	if c.records != c.limit {
		return fmt.Errorf("output is not exact: %d records for %d inputs", c.records, c.limit)
	}
	return nil
}

// check reads the output topic, committed records only, to its end.
func (c *checker) check(ctx context.Context, brokers, topic string) error {
	if err := readCommitted(ctx, brokers, topic, func(r *kgo.Record) {
		c.record(r.Partition, r.Offset, r.Key, r.Value)
	}); err != nil {
		return err
	}
	return c.result()
}

// readCommitted calls fn with every committed record of a topic up to its end
// as of now.
func readCommitted(ctx context.Context, brokers, topic string, fn func(*kgo.Record)) error {
	cl, err := kgo.NewClient(
		kgo.SeedBrokers(brokers),
		kgo.ConsumeTopics(topic),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()),
		kgo.FetchIsolationLevel(kgo.ReadCommitted()),
		kgo.KeepControlRecords(), // else a trailing marker would hide the end
	)
	if err != nil {
		return err
	}
	defer cl.Close()
	ends, err := kadm.NewClient(cl).ListCommittedOffsets(ctx, topic)
	if err := errors.Join(err, ends.Error()); err != nil {
		return fmt.Errorf("end of %s: %w", topic, err)
	}
	open := make(map[int32]int64)
	ends.Each(func(o kadm.ListedOffset) {
		if o.Offset > 0 {
			open[o.Partition] = o.Offset
		}
	})
	for len(open) > 0 {
		fetches := cl.PollFetches(ctx)
		if err := fetches.Err(); err != nil {
			return fmt.Errorf("read %s: %w", topic, err)
		}
		fetches.EachRecord(func(r *kgo.Record) {
			end, ok := open[r.Partition]
			if !ok || r.Offset >= end {
				return
			}
			if r.Offset == end-1 {
				delete(open, r.Partition)
			}
			if !r.Attrs.IsControl() {
				fn(r)
			}
		})
	}
	return nil
}
