package kafka

import (
	"context"
	"errors"
	"fmt"
	"math"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// readAll reads a partition up to the high watermark and returns the values.
func (b *fakeBroker) readAll(topic string, from int64) ([]string, int64) {
	b.t.Helper()
	ends, err := ListOffsets(b.t.Context(), b.cl, HighWatermark, map[string][]int32{topic: {0}})
	if err != nil {
		b.t.Fatal(err)
	}
	var got []string
	var at int64
	err = b.conf.Read(b.t.Context(), []ReadRange{{Topic: topic, From: from, To: ends[topic][0]}}, func(_ string, _ int32, rs []*kgo.Record, next int64) error {
		for _, r := range rs {
			got = append(got, string(r.Value))
		}
		at = next
		return nil
	})
	if err != nil {
		b.t.Fatal(err)
	}
	if at != ends[topic][0] {
		b.t.Fatalf("read up to %d of %d", at, ends[topic][0])
	}
	return got, at
}

// Whatever lies before the high watermark: a reader that waits for a data record
// at its end hangs behind each of these (goka does).
func TestReadEndsBehind(t *testing.T) {
	for name, tc := range map[string]struct {
		write func(b *fakeBroker)
		want  []string
	}{
		"data":             {func(b *fakeBroker) { b.produce("t", 0, "a", "b") }, []string{"a", "b"}},
		"a commit marker":  {func(b *fakeBroker) { b.transact("x", kgo.TryCommit, "t", 0, "a") }, []string{"a"}},
		"an aborted batch": {func(b *fakeBroker) { b.produce("t", 0, "a"); b.transact("x", kgo.TryAbort, "t", 0, "b", "c") }, []string{"a"}},
		"aborts only":      {func(b *fakeBroker) { b.transact("x", kgo.TryAbort, "t", 0, "b") }, nil},
		"aborted among committed": {func(b *fakeBroker) {
			b.transact("x", kgo.TryCommit, "t", 0, "a")
			b.transact("x", kgo.TryAbort, "t", 0, "b")
			b.transact("x", kgo.TryCommit, "t", 0, "c")
		}, []string{"a", "c"}},
		"a compacted tail": {func(b *fakeBroker) {
			b.produce("t", 0, "a", "b")
			b.compactedTail("t", 40)
		}, []string{"a", "b"}},
		"an emptied batch": {func(b *fakeBroker) {
			b.produce("t", 0, "a")
			b.emptyBatches("t", 12)
		}, []string{"a"}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newBroker(t, kfake.SeedTopics(1, "t"))
				defer b.stop()
				tc.write(b)
				start := time.Now()
				got, _ := b.readAll("t", 0)
				mustEqualSlices(t, "values", got, tc.want)
				if d := time.Since(start); d > time.Second {
					t.Fatalf("it took %v", d)
				}
			})
		})
	}
}

// compactedTail makes the partition end at end without a batch there, as when
// compaction removed a tail of tombstones with its segments.
func (b *fakeBroker) compactedTail(topic string, end int64) {
	b.Control(func(kreq kmsg.Request) (kmsg.Response, error, bool) {
		b.KeepControl()
		switch req := kreq.(type) {
		case *kmsg.ListOffsetsRequest:
			if req.Topics[0].Partitions[0].Timestamp != -1 {
				return nil, nil, false
			}
			resp := req.ResponseKind().(*kmsg.ListOffsetsResponse)
			rt := kmsg.NewListOffsetsResponseTopic()
			rt.Topic = topic
			rp := kmsg.NewListOffsetsResponseTopicPartition()
			rp.Offset = end
			rt.Partitions = append(rt.Partitions, rp)
			resp.Topics = append(resp.Topics, rt)
			return resp, nil, true
		case *kmsg.FetchRequest:
			if req.Topics[0].Partitions[0].FetchOffset < 2 {
				return nil, nil, false
			}
			return b.fetchAnswer(req, end, nil), nil, true
		}
		return nil, nil, false
	})
}

// fetchAnswer answers the first partition of a fetch request.
func (b *fakeBroker) fetchAnswer(req *kmsg.FetchRequest, end int64, batches []byte) *kmsg.FetchResponse {
	resp := req.ResponseKind().(*kmsg.FetchResponse)
	rt := kmsg.NewFetchResponseTopic()
	rt.Topic, rt.TopicID = req.Topics[0].Topic, req.Topics[0].TopicID
	rp := kmsg.NewFetchResponseTopicPartition()
	rp.Partition, rp.HighWatermark, rp.LastStableOffset = req.Topics[0].Partitions[0].Partition, end, end
	rp.RecordBatches = batches
	rt.Partitions = append(rt.Partitions, rp)
	resp.Topics = append(resp.Topics, rt)
	return resp
}

// emptyBatches makes compaction leave a batch without records up to end: brokers
// keep the last one of a producer so that its sequence number survives.
func (b *fakeBroker) emptyBatches(topic string, end int64) {
	b.Control(func(kreq kmsg.Request) (kmsg.Response, error, bool) {
		b.KeepControl()
		switch req := kreq.(type) {
		case *kmsg.ListOffsetsRequest:
			resp := req.ResponseKind().(*kmsg.ListOffsetsResponse)
			rt := kmsg.NewListOffsetsResponseTopic()
			rt.Topic = topic
			rp := kmsg.NewListOffsetsResponseTopicPartition()
			rp.Offset = end
			rt.Partitions = append(rt.Partitions, rp)
			resp.Topics = append(resp.Topics, rt)
			return resp, nil, true
		case *kmsg.FetchRequest:
			at := req.Topics[0].Partitions[0].FetchOffset
			if at < 1 || at >= end {
				return nil, nil, false
			}
			rb := kmsg.RecordBatch{FirstOffset: at, Magic: 2, LastOffsetDelta: int32(end - 1 - at), ProducerID: 5, FirstSequence: -1}
			return b.fetchAnswer(req, end, sealBatch(rb)), nil, true
		}
		return nil, nil, false
	})
}

// An open transaction before the target is waited for, not skipped: what it
// commits later belongs to the state (KAFKA-10167).
func TestReadWaitsForOpenTransactions(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBroker(t, kfake.SeedTopics(1, "t"))
		defer b.stop()
		b.produce("t", 0, "a")
		open := b.client(append(b.conf.base(), kgo.TransactionalID("x"))...)
		defer open.Close()
		if err := open.BeginTransaction(); err != nil {
			t.Fatal(err)
		}
		if err := open.ProduceSync(t.Context(), &kgo.Record{Topic: "t", Value: []byte("late")}).FirstErr(); err != nil {
			t.Fatal(err)
		}
		done := make(chan []string)
		go func() {
			got, _ := b.readAll("t", 0)
			done <- got
		}()
		select {
		case got := <-done:
			t.Fatalf("it did not wait: %v", got)
		case <-time.After(20 * time.Second):
		}
		if err := open.EndTransaction(t.Context(), kgo.TryCommit); err != nil {
			t.Fatal(err)
		}
		mustEqualSlices(t, "values", <-done, []string{"a", "late"})
	})
}

func TestReadRanges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBroker(t, kfake.SeedTopics(2, "t", "u"))
		defer b.stop()
		b.produce("t", 0, "a", "b", "c", "d")
		b.produce("u", 1, "x", "y")
		got := make(map[string]string)
		err := b.conf.Read(t.Context(), []ReadRange{{"t", 0, 1, 3}, {"u", 1, 0, 2}, {"u", 0, 5, 5}, {"t", 1, 3, 2}}, func(topic string, p int32, rs []*kgo.Record, next int64) error {
			for _, r := range rs {
				got[topic] += string(r.Value)
			}
			got[topic+"@"] = fmt.Sprint(p, next)
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		if want := map[string]string{"t": "bc", "t@": "0 3", "u": "xy", "u@": "1 2"}; fmt.Sprint(got) != fmt.Sprint(want) {
			t.Fatalf("%v", got)
		}
		boom := errors.New("boom")
		err = b.conf.Read(t.Context(), []ReadRange{{"t", 0, 0, 4}}, func(string, int32, []*kgo.Record, int64) error { return boom })
		if !errors.Is(err, boom) {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		err = b.conf.Read(ctx, []ReadRange{{"t", 0, 0, 40}}, func(string, int32, []*kgo.Record, int64) error { return nil })
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Fatal(err)
		}
	})
}

// collector is a subscription that keeps what it gets.
type collector struct {
	mu     sync.Mutex
	values []string
	last   Batch
	failed chan error
}

func (c *collector) sub(topic string, p int32, from, target int64) Subscription {
	c.failed = make(chan error, 1)
	return Subscription{
		Topic: topic, Partition: p, Offset: from, Target: target,
		Deliver: func(b Batch) error {
			c.mu.Lock()
			defer c.mu.Unlock()
			for _, r := range b.Records {
				c.values = append(c.values, string(r.Value))
			}
			c.last = b
			return nil
		},
		Failed: func(err error) { c.failed <- err },
	}
}

func (c *collector) got() (string, Batch) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return strings.Join(c.values, ""), c.last
}

func (c *collector) want(t *testing.T, values string, position int64) {
	t.Helper()
	for start := time.Now(); ; <-time.After(10 * time.Millisecond) { // fake time
		got, last := c.got()
		if got == values && last.Position == position && last.TopicID != [16]byte{} {
			return
		}
		if time.Since(start) > time.Minute {
			t.Fatalf("got %q at %d, want %q at %d", got, last.Position, values, position)
		}
	}
}

func TestReaderFollowsAddsAndRemoves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBroker(t, kfake.SeedTopics(2, "t"))
		defer b.stop()
		r := NewReader(t.Context(), b.cl, ReaderConfig{})
		defer r.Close()
		b.produce("t", 0, "a")
		var c0, c1 collector
		s0 := c0.sub("t", 0, -2, 2)
		if err := r.Add(s0); err != nil {
			t.Fatal(err)
		}
		if err := r.Add(s0); err == nil {
			t.Fatal("a partition was added twice")
		}
		c0.want(t, "a", 1)
		if _, last := c0.got(); last.CaughtUp || last.TopicID == [16]byte{} {
			t.Fatalf("%+v", last)
		}
		if err := r.Add(c1.sub("t", 1, 0, math.MaxInt64)); err != nil {
			t.Fatal(err)
		}
		b.produce("t", 0, "b")
		b.transact("x", kgo.TryCommit, "t", 1, "z")
		c0.want(t, "ab", 2)
		c1.want(t, "z", 2) // the marker counts
		if _, last := c0.got(); !last.CaughtUp || last.HighWatermark != 2 {
			t.Fatalf("%+v", last)
		}
		r.Remove("t", 0)
		r.Remove("t", 0)
		b.produce("t", 0, "c")
		b.produce("t", 1, "y")
		c1.want(t, "zy", 3)
		c0.want(t, "ab", 2)
		if err := r.Add(c0.sub("t", 0, 2, 3)); err != nil {
			t.Fatal(err)
		}
		c0.want(t, "abc", 3)
		r.Close()
		if err := r.Add(s0); err == nil {
			t.Fatal("a closed reader takes partitions")
		}
	})
}

func TestReaderFailures(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBroker(t, kfake.SeedTopics(1, "t", "gone", "again", "short"))
		defer b.stop()
		r := NewReader(t.Context(), b.cl, ReaderConfig{})
		defer r.Close()
		add := func(s Subscription) {
			t.Helper()
			if err := r.Add(s); err != nil {
				t.Fatal(err)
			}
		}
		b.produce("short", 0, "a", "b", "c")
		if err := b.DeleteRecords("short", 0, 2); err != nil {
			t.Fatal(err)
		}
		var before, behind, gone, again, stopped, deny collector
		add(before.sub("short", 0, 1, 3))
		err := <-before.failed
		var re *RangeError
		if !errors.As(err, &re) || !errors.Is(err, ErrOutOfRange) || re.LogStart != 2 || re.HighWatermark != 3 || re.Offset != 1 {
			t.Fatalf("%v", err)
		}
		add(behind.sub("short", 0, 30, 30))
		if err := <-behind.failed; !errors.Is(err, ErrOutOfRange) {
			t.Fatal(err)
		}

		add(gone.sub("gone", 0, 0, 1))
		add(again.sub("again", 0, 0, 1))
		gone.want(t, "", 0)
		again.want(t, "", 0)
		for _, topic := range []string{"gone", "again"} {
			if err := b.DeleteTopic(topic); err != nil {
				t.Fatal(err)
			}
		}
		if err := b.CreateTopic("again", 1, nil); err != nil {
			t.Fatal(err)
		}
		if err := <-gone.failed; !errors.Is(err, ErrTopicGone) {
			t.Fatal(err)
		}
		var rc *RecreatedError
		if err := <-again.failed; !errors.As(err, &rc) || rc.Was == rc.Is {
			t.Fatal(err)
		}

		boom := errors.New("boom")
		s := stopped.sub("t", 0, 0, 1)
		s.Deliver = func(Batch) error { return boom }
		add(s)
		if err := <-stopped.failed; !errors.Is(err, boom) || !strings.Contains(err.Error(), "t/0") {
			t.Fatal(err)
		}
		b.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Fetch}, Topic: "t", Err: kerr.TopicAuthorizationFailed, Count: -1})
		add(deny.sub("t", 0, 0, 1))
		if err := <-deny.failed; !errors.Is(err, kerr.TopicAuthorizationFailed) {
			t.Fatal(err)
		}
	})
}

// Leaders move while a partition is read: nothing is lost, repeated or reordered.
func TestReaderSurvivesMovingLeaders(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBroker(t, kfake.SeedTopics(3, "t"), kfake.NumBrokers(3), kfake.Ports(9092, 9093, 9094))
		defer b.stop()
		r := NewReader(t.Context(), b.cl, ReaderConfig{PartitionBytes: 200, MaxBytes: 2000})
		defer r.Close()
		var cs [3]collector
		for p := range cs {
			if err := r.Add(cs[p].sub("t", int32(p), 0, math.MaxInt64)); err != nil {
				t.Fatal(err)
			}
		}
		var want [3]string
		for i := range 40 {
			for p := range cs {
				v := fmt.Sprintf("%d,", i)
				b.produce("t", int32(p), v)
				want[p] += v
			}
			if i%4 == 0 {
				b.ShufflePartitionLeaders()
			}
			if i%10 == 5 {
				b.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Fetch}, Err: kerr.NotLeaderForPartition, Count: 3})
			}
		}
		for p := range cs {
			cs[p].want(t, want[p], 40)
		}
	})
}

func BenchmarkRead(b *testing.B) {
	c, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.SeedTopics(4, "t"))
	if err != nil {
		b.Fatal(err)
	}
	defer c.Close()
	conf := Config{Brokers: c.ListenAddrs()}
	cl, err := kgo.NewClient(append(conf.PlainOpts(nil), kgo.ProducerBatchMaxBytes(1<<20))...)
	if err != nil {
		b.Fatal(err)
	}
	defer cl.Close()
	const n = 1_000_000
	value := make([]byte, 100)
	for i := range n {
		cl.Produce(context.Background(), &kgo.Record{Topic: "t", Partition: int32(i % 4), Key: fmt.Appendf(nil, "key-%d", i%100_000), Value: value}, nil)
	}
	if err := cl.Flush(context.Background()); err != nil {
		b.Fatal(err)
	}
	var ranges []ReadRange
	for p := range int32(4) {
		ranges = append(ranges, ReadRange{"t", p, 0, n / 4})
	}
	for b.Loop() {
		count := 0
		if err := conf.Read(b.Context(), ranges, func(_ string, _ int32, rs []*kgo.Record, _ int64) error { count += len(rs); return nil }); err != nil || count != n {
			b.Fatal(count, err)
		}
	}
	b.ReportMetric(float64(n)*float64(b.N)/b.Elapsed().Seconds()/1e6, "Mrecords/s")
}

// A batch larger than what a partition may take of an answer comes only when its
// partition is asked for alone; with others it comes back empty, which is not the
// end of the log.
func TestReadTakesOversizedBatches(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newBroker(t, kfake.SeedTopics(2, "t"), kfake.BrokerConfigs(map[string]string{"message.max.bytes": "8388608"}))
		defer b.stop()
		big := b.client(b.conf.PlainOpts(func(string) int32 { return 8 << 20 })...)
		defer big.Close()
		for p := range int32(2) {
			if err := big.ProduceSync(t.Context(), &kgo.Record{Topic: "t", Partition: p, Key: []byte("k"), Value: make([]byte, 3<<20)}).FirstErr(); err != nil {
				t.Fatal(err)
			}
		}
		got := map[int32]int{}
		err := b.conf.Read(t.Context(), []ReadRange{{"t", 0, 0, 1}, {"t", 1, 0, 1}}, func(_ string, p int32, rs []*kgo.Record, _ int64) error {
			got[p] += len(rs)
			return nil
		})
		if err != nil || got[0] != 1 || got[1] != 1 {
			t.Fatalf("read %v records (%v), want one of each partition", got, err)
		}
	})
}
