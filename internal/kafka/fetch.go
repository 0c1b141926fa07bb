package kafka

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// A lane fetches from one broker.
type lane struct {
	r      *Reader
	broker int32
	wake   chan struct{}
	turn   int // rotates the partitions, so that none starves
	// queued counts answers on their way to Deliver. A partition changes lanes only
	// when there are none, or its batches could overtake each other.
	queued sync.WaitGroup
}

// A delivery is a decoded part of an answer on its way to Deliver.
type delivery struct {
	p     *readPart
	batch Batch
}

// lane returns the broker's lane, starting it if need be. r.mu is held.
func (r *Reader) lane(broker int32) *lane {
	l := r.lanes[broker]
	if l == nil {
		l = &lane{r: r, broker: broker, wake: make(chan struct{}, 1)}
		r.lanes[broker] = l
		out := make(chan []delivery, 1)
		r.wg.Go(func() { defer close(out); l.fetch(out) }) // ends with r.ctx
		r.wg.Go(func() { l.deliver(out) })                 // ends when fetch does
	}
	return l
}

func (l *lane) wakeUp() {
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// fetch asks for all partitions the broker leads, over and over.
func (l *lane) fetch(out chan<- []delivery) {
	r := l.r
	decompressor := kgo.DefaultDecompressor()
	for r.ctx.Err() == nil {
		parts := l.claim()
		if len(parts) == 0 {
			select {
			case <-l.wake:
			case <-r.ctx.Done():
			}
			continue
		}
		start, resp, err := time.Now(), (*kmsg.FetchResponse)(nil), l.findStarts(parts)
		if err == nil {
			resp, err = l.request(parts)
		}
		if err == nil {
			err = kerr.ErrorForCode(resp.ErrorCode)
		}
		if err != nil {
			if r.ctx.Err() == nil {
				r.cfg.Logger.Warn("a fetch failed, looking for the leaders anew", "broker", l.broker, "error", err)
			}
			l.queued.Wait()
			l.rest(retryPause)
			r.unlead(parts...)
			continue
		}
		batch := l.decode(parts, resp, decompressor)
		if len(batch) == 0 {
			// Brokers that do not wait, as throttling ones, must not be hammered.
			l.rest(r.cfg.MaxWait/10 - time.Since(start))
			continue
		}
		l.queued.Add(1)
		out <- batch // deliver takes everything until out is closed
	}
}

func (l *lane) rest(d time.Duration) {
	if d <= 0 {
		return
	}
	select {
	case <-time.After(d):
	case <-l.r.ctx.Done():
	}
}

// claim returns the partitions to fetch, another one first each time.
func (l *lane) claim() []*readPart {
	l.r.mu.Lock()
	defer l.r.mu.Unlock()
	var parts []*readPart
	for _, p := range l.r.parts {
		if p.leader != l.broker {
			continue
		}
		if p.alone {
			return []*readPart{p}
		}
		parts = append(parts, p)
	}
	slices.SortFunc(parts, func(a, b *readPart) int {
		if a.Topic != b.Topic {
			if a.Topic < b.Topic {
				return -1
			}
			return 1
		}
		return int(a.Partition - b.Partition)
	})
	if n := len(parts); n > 0 {
		l.turn++
		k := l.turn % n
		parts = append(slices.Clone(parts[k:]), parts[:k]...)
	}
	return parts
}

// findStarts replaces the offset -2 by the start of the log.
func (l *lane) findStarts(parts []*readPart) error {
	want := make(map[string][]int32)
	for _, p := range parts {
		if p.pos < 0 {
			want[p.Topic] = append(want[p.Topic], p.Partition)
		}
	}
	starts, err := ListOffsets(l.r.ctx, l.r.cl, LogStart, want)
	if err != nil {
		return err
	}
	for _, p := range parts {
		if p.pos < 0 {
			p.pos = starts[p.Topic][p.Partition]
		}
	}
	return nil
}

func (l *lane) request(parts []*readPart) (*kmsg.FetchResponse, error) {
	req := kmsg.NewPtrFetchRequest()
	req.MaxWaitMillis = int32(l.r.cfg.MaxWait.Milliseconds())
	req.MinBytes = 1
	req.MaxBytes = l.r.cfg.MaxBytes
	req.IsolationLevel = 1
	req.SessionEpoch = -1
	for _, p := range parts {
		// The broker serves partitions in this order, so a topic may come twice.
		if n := len(req.Topics); n == 0 || req.Topics[n-1].Topic != p.Topic {
			rt := kmsg.NewFetchRequestTopic()
			rt.Topic, rt.TopicID = p.Topic, p.TopicID
			req.Topics = append(req.Topics, rt)
		}
		rp := kmsg.NewFetchRequestTopicPartition()
		rp.Partition, rp.FetchOffset, rp.PartitionMaxBytes = p.Partition, p.pos, l.r.cfg.PartitionBytes
		rt := &req.Topics[len(req.Topics)-1]
		rt.Partitions = append(rt.Partitions, rp)
	}
	resp, err := l.r.cl.Broker(int(l.broker)).Request(l.r.ctx, req)
	if err != nil {
		return nil, err
	}
	return resp.(*kmsg.FetchResponse), nil
}

// decode turns an answer into deliveries and moves the positions.
func (l *lane) decode(parts []*readPart, resp *kmsg.FetchResponse, decompressor kgo.Decompressor) []delivery {
	type key struct {
		topic     string
		id        [16]byte
		partition int32
	}
	byKey := make(map[key]*readPart, len(parts))
	for _, p := range parts {
		if resp.Version >= 13 {
			byKey[key{id: p.TopicID, partition: p.Partition}] = p
		} else {
			byKey[key{topic: p.Topic, partition: p.Partition}] = p
		}
	}
	size := 0
	for i := range resp.Topics {
		for j := range resp.Topics[i].Partitions {
			size += len(resp.Topics[i].Partitions[j].RecordBatches)
		}
	}
	// A partition may be empty for lack of room, because the broker throttles, or,
	// unless it is the only one, because its next batch exceeds PartitionBytes.
	complete := resp.ThrottleMillis == 0 && size == 0 && len(parts) == 1
	var out []delivery
	for i := range resp.Topics {
		t := &resp.Topics[i]
		for j := range t.Partitions {
			k := key{topic: t.Topic, id: t.TopicID, partition: t.Partitions[j].Partition}
			if resp.Version >= 13 {
				k.topic = ""
			} else {
				k.id = [16]byte{}
			}
			p := byKey[k]
			if p == nil {
				continue
			}
			if b, ok := l.decodePart(p, &t.Partitions[j], decompressor, complete); ok {
				out = append(out, delivery{p, b})
			}
		}
	}
	return out
}

func (l *lane) decodePart(p *readPart, rp *kmsg.FetchResponseTopicPartition, decompressor kgo.Decompressor, complete bool) (Batch, bool) {
	if err := kerr.ErrorForCode(rp.ErrorCode); err != nil {
		l.partFailed(p, err)
		return Batch{}, false
	}
	fp, next := kgo.ProcessFetchPartition(kgo.ProcessFetchPartitionOpts{
		Offset: p.pos, IsolationLevel: kgo.ReadCommitted(), Topic: p.Topic, Partition: p.Partition,
	}, rp, decompressor, nil)
	if fp.Err != nil {
		l.fail(p, fp.Err)
		return Batch{}, false
	}
	empty := len(rp.RecordBatches) == 0 && rp.LastStableOffset > next
	p.alone = empty && !complete
	if empty && complete {
		// Nothing is left up to the last stable offset: compaction removed the tail
		// with its batches, and no record will ever move the position past it.
		next = rp.LastStableOffset
	}
	if p.started && len(fp.Records) == 0 && next == p.pos && rp.HighWatermark == p.hwm && rp.LastStableOffset == p.lso {
		return Batch{}, false
	}
	p.started, p.pos, p.hwm, p.lso = true, next, rp.HighWatermark, rp.LastStableOffset
	return Batch{
		Records: fp.Records, Position: next, HighWatermark: rp.HighWatermark, LastStable: rp.LastStableOffset,
		CaughtUp: next >= p.Target, TopicID: p.TopicID,
	}, true
}

// partFailed reacts to an error the broker answered for one partition.
func (l *lane) partFailed(p *readPart, err error) {
	switch {
	case errors.Is(err, kerr.OffsetOutOfRange):
		e := &RangeError{Topic: p.Topic, Partition: p.Partition, Offset: p.pos, LogStart: -1, HighWatermark: -1}
		ctx, cancel := context.WithTimeout(l.r.ctx, 2*time.Second)
		defer cancel()
		one := map[string][]int32{p.Topic: {p.Partition}}
		if at, err := ListOffsets(ctx, l.r.cl, LogStart, one); err == nil {
			e.LogStart = at[p.Topic][p.Partition]
		}
		if at, err := ListOffsets(ctx, l.r.cl, HighWatermark, one); err == nil {
			e.HighWatermark = at[p.Topic][p.Partition]
		}
		l.fail(p, e)
	case passing(err), errors.Is(err, kerr.InconsistentTopicID):
		l.queued.Wait()
		l.r.unlead(p)
	default:
		l.fail(p, err)
	}
}

// fail ends the reading of p after what was read before.
func (l *lane) fail(p *readPart, err error) {
	l.queued.Wait()
	l.r.fail(p, err)
}

// deliver hands decoded batches out while the next ones are fetched.
func (l *lane) deliver(in <-chan []delivery) {
	for batch := range in {
		for _, d := range batch {
			if l.r.ctx.Err() != nil {
				continue
			}
			d.p.delivered.Lock()
			var err error
			if !d.p.removed {
				err = d.p.Deliver(d.batch)
			}
			d.p.delivered.Unlock()
			switch {
			case errors.Is(err, ErrStop):
				l.r.fail(d.p, nil)
			case err != nil:
				l.r.fail(d.p, err)
			}
		}
		l.queued.Done()
	}
}
