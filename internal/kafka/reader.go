package kafka

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"golang.org/x/sync/errgroup"
)

// Errors of a [Reader].
var (
	// ErrStop is returned by a Deliver function that wants no more.
	ErrStop = errors.New("stop reading this partition")
	// ErrOutOfRange is what every [RangeError] is.
	ErrOutOfRange = errors.New("the offset is not in the log")
	// ErrTopicGone says that a topic or a partition does not exist any more.
	ErrTopicGone = errors.New("the topic or partition does not exist any more")
)

// A RangeError says that an offset is not in the log: records were deleted by
// retention or purging, or lost by the broker.
type RangeError struct {
	Topic     string
	Partition int32
	Offset    int64
	// LogStart and HighWatermark bound the log, -1 if they could not be read.
	LogStart, HighWatermark int64
}

// Error names the offset and the log's bounds.
func (e *RangeError) Error() string {
	return fmt.Sprintf("%s/%d: offset %d is not in the log, which reaches from %d to %d", e.Topic, e.Partition, e.Offset, e.LogStart, e.HighWatermark)
}

// Is reports whether target is ErrOutOfRange.
func (*RangeError) Is(target error) bool { return target == ErrOutOfRange }

// A RecreatedError says that a topic was deleted and created again: its offsets
// mean other records now.
type RecreatedError struct {
	Topic   string
	Was, Is [16]byte
}

// Error names the topic and both ids.
func (e *RecreatedError) Error() string {
	return fmt.Sprintf("topic %s was deleted and created again: its id is %x, not %x; what was read from it is void", e.Topic, e.Is, e.Was)
}

// ReaderConfig tunes a [Reader]; zero values mean the defaults.
type ReaderConfig struct {
	// MaxBytes bounds an answer, default 16 MiB, PartitionBytes what it holds of a
	// partition, default 2 MiB. Two answers per broker are in memory at a time.
	MaxBytes, PartitionBytes int32
	// MaxWait is how long the broker waits for new records, default 100 ms. A
	// partition that is added waits as long at most.
	MaxWait time.Duration
	// Logger gets retried errors; nil drops them.
	Logger *slog.Logger
}

// A Subscription is one partition to be read.
type Subscription struct {
	Topic     string
	Partition int32
	// TopicID refuses a topic with another id; zero accepts what is there first.
	TopicID [16]byte
	// Offset is the first to be read, or -2 for the start of the log.
	Offset int64
	// Target sets Batch.CaughtUp when the position passes it: the high watermark
	// as read after the reader became entitled to the partition.
	Target int64
	// Deliver gets the batches of the partition in order, one at a time, on a
	// goroutine of the reader that it holds up. An error ends the reading: ErrStop
	// silently, others through Failed. It must not call Remove or Close.
	Deliver func(Batch) error
	// Failed is called once if the reading ends by an error: a *RangeError, a
	// *RecreatedError, ErrTopicGone, a *kerr.Error that does not pass, what Deliver
	// returned. It must not call Remove or Close. nil ignores it.
	Failed func(error)
}

// A Batch is what one fetch found in a partition. Records may be empty: markers,
// aborted transactions and compaction move the position alone.
type Batch struct {
	// Records are committed data records. They and what they point to may be kept.
	Records []*kgo.Record
	// Position is the offset behind everything read.
	Position int64
	// HighWatermark and LastStable are the log's ends when it was fetched.
	HighWatermark, LastStable int64
	// CaughtUp says that Position has passed the target.
	CaughtUp bool
	TopicID  [16]byte
}

// A Reader reads partitions directly and read_committed, outside any group, any
// number of them, added and removed at will. It issues its own fetch requests,
// because franz-go's consumer tells nothing of a partition without records: the
// position passes transaction markers, aborted batches and compacted gaps here.
//
// One goroutine per broker fetches and decodes, another one delivers. All methods
// are safe for concurrent use.
type Reader struct {
	cl     *kgo.Client
	cfg    ReaderConfig
	ctx    context.Context // ends with Close; guards the goroutines only
	cancel context.CancelFunc
	wg     sync.WaitGroup
	lost   chan struct{} // asks for the leaders of partitions without one

	mu    sync.Mutex
	parts map[topicPartition]*readPart
	lanes map[int32]*lane
}

// A readPart is one partition under way.
type readPart struct {
	Subscription
	leader int32     // -1 if unknown; guarded by Reader.mu
	since  time.Time // since when the leader is unknown; guarded by Reader.mu

	// Owned by the lane that has the leader.
	pos       int64
	hwm, lso  int64
	started   bool // something was delivered
	alone     bool // it came back empty without being at the end: to be asked for alone
	delivered sync.Mutex
	removed   bool // guarded by delivered
}

// NewReader starts a reader on a client built with [Config.PlainOpts]. Close it
// before the client. ctx gives values only; its end does not end the reader.
func NewReader(ctx context.Context, cl *kgo.Client, cfg ReaderConfig) *Reader {
	if cfg.MaxBytes == 0 {
		cfg.MaxBytes = 16 << 20
	}
	if cfg.PartitionBytes == 0 {
		cfg.PartitionBytes = 2 << 20
	}
	if cfg.MaxWait == 0 {
		cfg.MaxWait = 100 * time.Millisecond
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	r := &Reader{cl: cl, cfg: cfg, lost: make(chan struct{}, 1), parts: make(map[topicPartition]*readPart), lanes: make(map[int32]*lane)}
	r.ctx, r.cancel = context.WithCancel(context.WithoutCancel(ctx))
	r.wg.Go(r.findLeaders) // ends with r.ctx
	return r
}

// Add starts reading a partition. One that is being read is an error, and so is a
// closed reader.
func (r *Reader) Add(sub Subscription) error {
	key := topicPartition{sub.Topic, sub.Partition}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.ctx.Err() != nil {
		return fmt.Errorf("read %s/%d: the reader is closed", sub.Topic, sub.Partition)
	}
	if r.parts[key] != nil {
		return fmt.Errorf("read %s/%d: it is being read already", sub.Topic, sub.Partition)
	}
	r.parts[key] = &readPart{Subscription: sub, leader: -1, since: time.Now(), pos: sub.Offset, hwm: -1, lso: -1}
	r.askLeaders()
	return nil
}

// Remove stops reading a partition; when it returns Deliver is not running and
// will not be called again. A partition that is not being read is ignored.
func (r *Reader) Remove(topic string, partition int32) {
	r.mu.Lock()
	p := r.parts[topicPartition{topic, partition}]
	delete(r.parts, topicPartition{topic, partition})
	r.mu.Unlock()
	if p != nil {
		p.delivered.Lock()
		p.removed = true
		p.delivered.Unlock()
	}
}

// Close ends the reader and waits for its goroutines. Nothing is reported as
// failed.
func (r *Reader) Close() {
	r.cancel()
	r.wg.Wait()
}

// ReadTo reads a partition from sub.Offset until the position has passed
// sub.Target, and returns nil then. Deliver gets every batch, the last one
// included. It also ends with ctx and with whatever ends the reading.
func (r *Reader) ReadTo(ctx context.Context, sub Subscription) error {
	done := make(chan error, 1)
	deliver := sub.Deliver
	sub.Deliver = func(b Batch) error {
		if err := deliver(b); err != nil {
			return err
		}
		if b.CaughtUp {
			done <- nil
			return ErrStop
		}
		return nil
	}
	sub.Failed = func(err error) { done <- err }
	if err := r.Add(sub); err != nil {
		return err
	}
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		r.Remove(sub.Topic, sub.Partition)
		return ctx.Err()
	case <-r.ctx.Done():
		return fmt.Errorf("read %s/%d: the reader was closed", sub.Topic, sub.Partition)
	}
}

// A ReadRange is a piece of a partition: from an offset up to, not including, a
// target, which is normally a high watermark.
type ReadRange struct {
	Topic     string
	Partition int32
	From, To  int64
}

// Read reads ranges with a client of its own, committed records only, and calls fn
// with the records of one partition at a time, never two at once, and the offset
// behind the last thing read, control records included. It returns when every
// range has been read: when the position has passed the target, whatever lies
// before it: a transaction marker, an aborted batch, or a tail that compaction has
// emptied. It waits for transactions that are open.
func (c *Config) Read(ctx context.Context, ranges []ReadRange, fn func(topic string, partition int32, records []*kgo.Record, next int64) error) error {
	left := slices.DeleteFunc(slices.Clone(ranges), func(r ReadRange) bool { return r.From >= r.To })
	if len(left) == 0 {
		return nil
	}
	cl, err := kgo.NewClient(c.PlainOpts(nil)...)
	if err != nil {
		return fmt.Errorf("read partitions: %w", err)
	}
	defer cl.Close()
	reader := NewReader(ctx, cl, ReaderConfig{Logger: c.Logger})
	defer reader.Close()
	var one sync.Mutex
	group, ctx := errgroup.WithContext(ctx)
	for _, r := range left {
		group.Go(func() error {
			return reader.ReadTo(ctx, Subscription{Topic: r.Topic, Partition: r.Partition, Offset: r.From, Target: r.To, Deliver: func(b Batch) error {
				records := b.Records
				for len(records) > 0 && records[len(records)-1].Offset >= r.To {
					records = records[:len(records)-1]
				}
				one.Lock()
				defer one.Unlock()
				if err := ctx.Err(); err != nil {
					return err
				}
				return fn(r.Topic, r.Partition, records, min(b.Position, r.To))
			}})
		})
	}
	return group.Wait()
}

// fail ends the reading of p with err, nil for silently. Its caller holds none of
// the locks.
func (r *Reader) fail(p *readPart, err error) {
	r.mu.Lock()
	key := topicPartition{p.Topic, p.Partition}
	if r.parts[key] == p {
		delete(r.parts, key)
	}
	r.mu.Unlock()
	p.delivered.Lock()
	defer p.delivered.Unlock()
	if p.removed {
		return
	}
	p.removed = true
	if err != nil && p.Failed != nil {
		p.Failed(fmt.Errorf("read %s/%d: %w", p.Topic, p.Partition, err))
	}
}

func (r *Reader) askLeaders() {
	select {
	case r.lost <- struct{}{}:
	default:
	}
}

// unlead takes partitions from their lane until their leader is found again.
func (r *Reader) unlead(parts ...*readPart) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, p := range parts {
		if p.leader >= 0 {
			p.leader, p.since = -1, time.Now()
		}
	}
	r.askLeaders()
}

// goneAfter is how long a topic may be unknown before it counts as deleted:
// brokers learn of new topics one after another.
const goneAfter = 10 * time.Second

// findLeaders gives partitions without a leader to a lane.
func (r *Reader) findLeaders() {
	for {
		select {
		case <-r.lost:
		case <-r.ctx.Done():
			return
		}
		for pause := 20 * time.Millisecond; r.lead(); pause = min(2*pause, time.Second) {
			select {
			case <-time.After(pause):
			case <-r.ctx.Done():
				return
			}
		}
	}
}

// lead asks once for the leaders of partitions that have none, and reports whether
// some still have none.
func (r *Reader) lead() (again bool) {
	r.mu.Lock()
	var topics []string
	for _, p := range r.parts {
		if p.leader < 0 && !slices.Contains(topics, p.Topic) {
			topics = append(topics, p.Topic)
		}
	}
	r.mu.Unlock()
	if len(topics) == 0 {
		return false
	}
	found, err := describeLeaders(r.ctx, r.cl, topics)
	if err != nil {
		if r.ctx.Err() == nil {
			r.cfg.Logger.Warn("cannot find the leaders of partitions to read, trying again", "error", err)
		}
		return r.ctx.Err() == nil
	}
	failed := make(map[*readPart]error)
	r.mu.Lock()
	for _, p := range r.parts {
		t, ok := found[p.Topic]
		if p.leader >= 0 || !ok {
			continue
		}
		leader, exists := t.leaders[p.Partition]
		switch {
		case t.err == nil && p.TopicID != [16]byte{} && t.id != p.TopicID:
			failed[p] = &RecreatedError{Topic: p.Topic, Was: p.TopicID, Is: t.id}
		case t.err == nil && exists && leader >= 0:
			p.TopicID, p.leader = t.id, leader
			r.lane(leader).wakeUp()
		case errors.Is(t.err, kerr.UnknownTopicOrPartition) || t.err == nil && !exists:
			if time.Since(p.since) > goneAfter {
				failed[p] = ErrTopicGone
			} else {
				again = true
			}
		case t.err != nil && !passing(t.err):
			failed[p] = t.err
		default:
			again = true
		}
	}
	r.mu.Unlock()
	for p, err := range failed {
		r.fail(p, err)
	}
	return again
}

// topicLeaders is what a reader needs of a topic.
type topicLeaders struct {
	id      [16]byte
	leaders map[int32]int32 // -1 if a partition has none now
	err     error
}

func describeLeaders(ctx context.Context, cl *kgo.Client, topics []string) (map[string]topicLeaders, error) {
	req := kmsg.NewPtrMetadataRequest()
	req.Topics = metadataTopics(topics)
	resp, err := req.RequestWith(ctx, cl)
	if err != nil {
		return nil, fmt.Errorf("describe topics: %w", err)
	}
	found := make(map[string]topicLeaders, len(topics))
	for _, t := range resp.Topics {
		if t.Topic == nil {
			continue
		}
		l := topicLeaders{id: t.TopicID, leaders: make(map[int32]int32, len(t.Partitions)), err: kerr.ErrorForCode(t.ErrorCode)}
		for _, p := range t.Partitions {
			l.leaders[p.Partition] = p.Leader
		}
		found[*t.Topic] = l
	}
	return found, nil
}
