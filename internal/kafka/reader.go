package kafka

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// A ReadRange is a piece of a partition: from an offset up to, not including, a
// target, which is normally a high watermark.
type ReadRange struct {
	Topic     string
	Partition int32
	From, To  int64
}

// ErrOutOfRange says that a range begins before the log does, or behind its end.
var ErrOutOfRange = errors.New("the offset is not in the log")

// probeAfter is how long a reader waits for a record before it asks whether there
// can be one: behind a compacted tail there is none.
const probeAfter = 200 * time.Millisecond

// Read reads ranges with a client of its own, committed records only, and calls fn
// with the records of one partition at a time and the offset behind the last thing
// read, control records included. It returns when every range has been read: when
// the position has passed the target, whatever lies before it: a transaction
// marker, an aborted batch, or a tail that compaction has emptied. It waits for
// transactions that are open. fn must not keep the slice.
func (c *Config) Read(ctx context.Context, ranges []ReadRange, fn func(topic string, partition int32, records []*kgo.Record, next int64) error) error {
	parts := map[string]map[int32]kgo.Offset{}
	open := map[string]map[int32]*ReadRange{}
	left := 0
	for i := range ranges {
		r := &ranges[i]
		if r.From >= r.To {
			continue
		}
		put(parts, r.Topic, r.Partition, kgo.NewOffset().At(r.From))
		put(open, r.Topic, r.Partition, r)
		left++
	}
	if left == 0 {
		return nil
	}
	cl, err := kgo.NewClient(append(c.PlainOpts(nil), kgo.ConsumePartitions(parts), kgo.FetchMaxWait(100*time.Millisecond))...)
	if err != nil {
		return err
	}
	defer cl.Close()
	last := time.Now()
	for left > 0 {
		pollCtx, cancel := context.WithTimeout(ctx, probeAfter)
		fetches := cl.PollFetches(pollCtx)
		cancel()
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err := readError(fetches); err != nil {
			return err
		}
		var failed error
		fetches.EachPartition(func(p kgo.FetchTopicPartition) {
			r := open[p.Topic][p.Partition]
			if failed != nil || len(p.Records) == 0 || r == nil || r.From >= r.To {
				return
			}
			last = time.Now()
			n := len(p.Records)
			for n > 0 && p.Records[n-1].Offset >= r.To {
				n--
			}
			r.From = p.Records[len(p.Records)-1].Offset + 1
			if r.From >= r.To {
				left--
			}
			failed = fn(p.Topic, p.Partition, dataRecords(p.Records[:n]), min(r.From, r.To))
		})
		if failed != nil {
			return failed
		}
		if left > 0 && time.Since(last) >= probeAfter {
			if left, err = c.probe(ctx, cl, ranges, fn); err != nil {
				return err
			}
			last = time.Now()
		}
	}
	return nil
}

// dataRecords removes control records in place.
func dataRecords(rs []*kgo.Record) []*kgo.Record {
	out := rs[:0]
	for _, r := range rs {
		if !r.Attrs.IsControl() {
			out = append(out, r)
		}
	}
	return out
}

func readError(fetches kgo.Fetches) error {
	var failed error
	fetches.EachError(func(topic string, partition int32, err error) {
		switch {
		case failed != nil, errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled), kerr.IsRetriable(err):
		case errors.Is(err, kerr.OffsetOutOfRange):
			failed = fmt.Errorf("read %s/%d: %w: %w", topic, partition, ErrOutOfRange, err)
		default:
			failed = fmt.Errorf("read %s/%d: %w", topic, partition, err)
		}
	})
	return failed
}

// probe asks the leaders what follows the positions of the ranges that make no
// progress, and moves them over what holds no records. It returns how many ranges
// are left.
func (c *Config) probe(ctx context.Context, cl *kgo.Client, ranges []ReadRange, fn func(string, int32, []*kgo.Record, int64) error) (left int, err error) {
	for i := range ranges {
		r := &ranges[i]
		if r.From >= r.To {
			continue
		}
		end, err := emptyUpTo(ctx, cl, r.Topic, r.Partition, r.From)
		if err != nil {
			return 0, err
		}
		if end >= r.To {
			r.From = r.To
			if err := fn(r.Topic, r.Partition, nil, r.To); err != nil {
				return 0, err
			}
			continue
		}
		left++
	}
	return left, nil
}

// emptyUpTo returns the offset up to which the log holds nothing more from an
// offset on: the end of the batches the leader answers with if they are without
// records, or the last stable offset if it has none. A log that holds records, or
// a leader that cannot be asked just now, gives from.
func emptyUpTo(ctx context.Context, cl *kgo.Client, topic string, partition int32, from int64) (int64, error) {
	meta, err := kadm.NewClient(cl).Metadata(ctx, topic)
	if err != nil {
		return from, nil //nolint:nilerr // asked again soon
	}
	leader := meta.Topics[topic].Partitions[partition].Leader
	req := kmsg.NewPtrFetchRequest()
	req.ReplicaID, req.MaxBytes, req.IsolationLevel, req.SessionEpoch = -1, 1<<20, 1, -1
	rt := kmsg.NewFetchRequestTopic()
	rt.Topic, rt.TopicID = topic, meta.Topics[topic].ID
	rp := kmsg.NewFetchRequestTopicPartition()
	rp.Partition, rp.FetchOffset, rp.PartitionMaxBytes = partition, from, 1<<20
	rt.Partitions = append(rt.Partitions, rp)
	req.Topics = append(req.Topics, rt)
	resp, err := cl.Broker(int(leader)).RetriableRequest(ctx, req)
	if err != nil {
		return from, nil //nolint:nilerr // asked again soon
	}
	fetched, ok := resp.(*kmsg.FetchResponse)
	if !ok || len(fetched.Topics) != 1 || len(fetched.Topics[0].Partitions) != 1 {
		return from, nil
	}
	p := fetched.Topics[0].Partitions[0]
	if err := kerr.ErrorForCode(p.ErrorCode); err != nil {
		if errors.Is(err, kerr.OffsetOutOfRange) {
			return from, fmt.Errorf("read %s/%d at %d: %w", topic, partition, from, ErrOutOfRange)
		}
		return from, nil
	}
	got, next := kgo.ProcessFetchPartition(kgo.ProcessFetchPartitionOpts{
		KeepControlRecords: true, Offset: from, IsolationLevel: kgo.ReadCommitted(), Topic: topic, Partition: partition,
	}, &p, kgo.DefaultDecompressor(), nil)
	switch {
	case got.Err != nil || len(got.Records) > 0:
		return from, nil // the client has yet to deliver it
	case len(p.RecordBatches) == 0:
		return max(from, p.LastStableOffset), nil
	}
	return max(from, next), nil
}
