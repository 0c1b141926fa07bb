package kafka

import (
	"context"
	"errors"
	"fmt"
	"hash"
	"log/slog"
	"math"
	"sync"

	"github.com/IBM/sarama"
	"github.com/lovoo/goka"
	"github.com/lovoo/goka/storage"
	"github.com/twmb/franz-go/pkg/kgo"
)

// A ViewSource lets one goka.View read a topic through franz-go, read_committed,
// and knows when the view has really caught up.
//
// goka ends its recovery with the data record before the high watermark and so
// hangs behind a transaction marker, an aborted batch or a compacted tail. Here the
// view gets a message that changes nothing wherever the position passes such a
// place, and its stored offset moves along.
//
// Use it for one view; all methods are safe for concurrent use.
type ViewSource struct {
	cl     *kgo.Client
	reader *Reader
	topic  string
	id     [16]byte
	log    *slog.Logger
	target map[int32]int64 // the high watermarks to be reached, fixed by NewViewSource

	mu      sync.Mutex
	applied map[int32]int64   // offset behind what the view has applied
	highest map[int32]int64   // high watermark of the last fetch
	empty   map[int32][]int64 // offsets of messages under way that change nothing, in order
	err     error
	changed chan struct{} // closed and replaced when CaughtUp has to look again
}

// NewViewSource looks up the topic's partitions and high watermarks: the view has
// caught up when it has passed these. cl is a plain client, reader one made for it;
// both must outlive the view.
func NewViewSource(ctx context.Context, cl *kgo.Client, reader *Reader, topic string, log *slog.Logger) (*ViewSource, error) {
	found, err := describeLeaders(ctx, cl, []string{topic})
	if err != nil {
		return nil, err
	}
	if err := found[topic].err; err != nil {
		return nil, fmt.Errorf("view of topic %q: %w", topic, err)
	}
	var partitions []int32
	for p := range int32(len(found[topic].leaders)) {
		partitions = append(partitions, p)
	}
	ends, err := ListOffsets(ctx, cl, HighWatermark, map[string][]int32{topic: partitions})
	if err != nil {
		return nil, fmt.Errorf("view of topic %q: %w", topic, err)
	}
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &ViewSource{
		cl: cl, reader: reader, topic: topic, id: found[topic].id, log: log, target: ends[topic],
		applied: make(map[int32]int64), highest: make(map[int32]int64), empty: make(map[int32][]int64),
		changed: make(chan struct{}),
	}, nil
}

// Options returns the options of the view: store keeps its rows and offsets, keys
// are placed as [Partitioner] places them. update applies a record; nil means
// goka.DefaultUpdate. The view reconnects by itself.
func (s *ViewSource) Options(store storage.Builder, update goka.UpdateCallback) []goka.ViewOption {
	if update == nil {
		update = goka.DefaultUpdate
	}
	return []goka.ViewOption{
		goka.WithViewLogger(gokaLogger{s.log}),
		goka.WithViewHasher(func() hash.Hash32 { return NewKeyHash() }),
		goka.WithViewAutoReconnect(),
		goka.WithViewStorageBuilder(store),
		goka.WithViewTopicManagerBuilder(func([]string) (goka.TopicManager, error) { return viewTopics{s: s}, nil }),
		goka.WithViewConsumerSaramaBuilder(func([]string, string) (sarama.Consumer, error) { return viewConsumer{s: s}, nil }),
		goka.WithViewCallback(func(ctx goka.UpdateContext, st storage.Storage, key string, value []byte) error {
			if !s.isEmpty(ctx.Partition(), ctx.Offset()) {
				if err := update(ctx, st, key, value); err != nil {
					return err
				}
			}
			s.moved(ctx.Partition(), ctx.Offset()+1)
			return nil
		}),
	}
}

// CaughtUp waits until the view has applied everything up to the high watermarks
// NewViewSource saw. It fails when ctx ends or a partition cannot be read any more.
func (s *ViewSource) CaughtUp(ctx context.Context) error {
	for {
		s.mu.Lock()
		behind, err, changed := 0, s.err, s.changed
		for p, target := range s.target {
			if at, ok := s.applied[p]; !ok || at < target {
				behind++
			}
		}
		s.mu.Unlock()
		switch {
		case err != nil:
			return fmt.Errorf("view of topic %q: %w", s.topic, err)
		case behind == 0:
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("view of topic %q: %d of %d partitions have not caught up: %w", s.topic, behind, len(s.target), ctx.Err())
		}
	}
}

// Lag returns how many offsets the view is behind the high watermarks of the last
// fetches, and false if it has not reached every partition yet.
func (s *ViewSource) Lag() (offsets int64, known bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for p, target := range s.target {
		at, ok := s.applied[p]
		if !ok {
			return 0, false
		}
		offsets += max(0, max(target, s.highest[p])-at)
	}
	return offsets, true
}

// TopicID returns the id of the topic, zero on brokers before 2.8. goka cannot tell
// stored rows of a topic that was deleted and created again: keep the id with them
// and start from nothing if it differs.
func (s *ViewSource) TopicID() [16]byte { return s.id }

// signal makes CaughtUp look again; s.mu is held.
func (s *ViewSource) signal() {
	close(s.changed)
	s.changed = make(chan struct{})
}

// moved notes the offset behind what the view has applied.
func (s *ViewSource) moved(partition int32, to int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	was, known := s.applied[partition]
	s.applied[partition] = to
	if target := s.target[partition]; to >= target && (!known || was < target) {
		s.signal()
	}
}

// isEmpty reports, once, whether the message at offset changes nothing.
func (s *ViewSource) isEmpty(partition int32, offset int64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	q := s.empty[partition]
	if len(q) == 0 || q[0] != offset {
		return false
	}
	s.empty[partition] = q[1:]
	return true
}

// viewTopics is the topic manager of a view: it creates nothing.
type viewTopics struct {
	emptyTopics
	s *ViewSource
}

// Partitions returns the partitions as NewViewSource found them.
func (t viewTopics) Partitions(string) ([]int32, error) {
	all := make([]int32, len(t.s.target))
	for p := range all {
		all[p] = int32(p)
	}
	return all, nil
}

// GetOffset returns the start of the log or the high watermark.
func (t viewTopics) GetOffset(topic string, partition int32, at int64) (int64, error) {
	edge := LogStart
	if at == sarama.OffsetNewest {
		edge = HighWatermark
	}
	got, err := ListOffsets(t.s.reader.ctx, t.s.cl, edge, map[string][]int32{topic: {partition}})
	return got[topic][partition], err
}

// viewConsumer is the sarama consumer of a view.
type viewConsumer struct {
	noConsumer
	s *ViewSource
}

// ConsumePartition reads a partition from an offset until the result is closed.
func (c viewConsumer) ConsumePartition(topic string, partition int32, offset int64) (sarama.PartitionConsumer, error) {
	p := &viewPartition{
		s: c.s, partition: partition, next: offset,
		messages: make(chan *sarama.ConsumerMessage, 256), errors: make(chan *sarama.ConsumerError, 1), closing: make(chan struct{}),
	}
	c.s.mu.Lock()
	delete(c.s.empty, partition)
	c.s.mu.Unlock()
	c.s.moved(partition, offset)
	err := c.s.reader.Add(Subscription{Topic: topic, Partition: partition, Offset: offset, Target: math.MaxInt64, Deliver: p.deliver, Failed: p.failed})
	if err != nil {
		return nil, err
	}
	return p, nil
}

// viewPartition is what goka reads a partition from.
type viewPartition struct {
	s         *ViewSource
	partition int32
	next      int64 // offset behind the last message; owned by deliver
	messages  chan *sarama.ConsumerMessage
	errors    chan *sarama.ConsumerError
	closing   chan struct{}
	once      sync.Once
}

var _ sarama.PartitionConsumer = (*viewPartition)(nil)

// deliver hands records to goka, and behind them a message that changes nothing if
// the position is further on.
func (p *viewPartition) deliver(b Batch) error {
	p.s.mu.Lock()
	p.s.highest[p.partition] = b.HighWatermark
	p.s.mu.Unlock()
	for _, r := range b.Records {
		msg := &sarama.ConsumerMessage{Topic: r.Topic, Partition: r.Partition, Offset: r.Offset, Timestamp: r.Timestamp, Key: r.Key, Value: r.Value}
		for i := range r.Headers {
			msg.Headers = append(msg.Headers, &sarama.RecordHeader{Key: []byte(r.Headers[i].Key), Value: r.Headers[i].Value})
		}
		if err := p.send(msg); err != nil {
			return err
		}
	}
	if b.Position <= p.next {
		return nil
	}
	p.s.mu.Lock()
	p.s.empty[p.partition] = append(p.s.empty[p.partition], b.Position-1)
	p.s.mu.Unlock()
	return p.send(&sarama.ConsumerMessage{Topic: p.s.topic, Partition: p.partition, Offset: b.Position - 1})
}

func (p *viewPartition) send(msg *sarama.ConsumerMessage) error {
	select {
	case p.messages <- msg:
		p.next = msg.Offset + 1
		return nil
	case <-p.closing:
		return ErrStop
	}
}

// failed passes an error on to goka, which connects anew, and remembers those that
// connecting anew does not mend.
func (p *viewPartition) failed(err error) {
	if errors.Is(err, ErrTopicGone) || errors.Is(err, ErrOutOfRange) || errors.As(err, new(*RecreatedError)) {
		p.s.mu.Lock()
		p.s.err = err
		p.s.signal()
		p.s.mu.Unlock()
	}
	select {
	case p.errors <- &sarama.ConsumerError{Topic: p.s.topic, Partition: p.partition, Err: err}:
	case <-p.closing:
	}
}

// AsyncClose begins to close; both channels are closed afterwards.
func (p *viewPartition) AsyncClose() {
	p.once.Do(func() {
		close(p.closing)
		// deliver and failed return at once now, so this takes no time.
		p.s.reader.Remove(p.s.topic, p.partition)
		close(p.messages)
		close(p.errors)
	})
}

// Close closes and drops what is left.
func (p *viewPartition) Close() error {
	p.AsyncClose()
	for range p.messages {
	}
	return nil
}

func (p *viewPartition) Messages() <-chan *sarama.ConsumerMessage { return p.messages }
func (p *viewPartition) Errors() <-chan *sarama.ConsumerError     { return p.errors }
func (p *viewPartition) HighWaterMarkOffset() int64               { return 0 }
func (p *viewPartition) Pause()                                   {}
func (p *viewPartition) Resume()                                  {}
func (p *viewPartition) IsPaused() bool                           { return false }
