package kafka

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"slices"
	"sync"

	"github.com/IBM/sarama"
	"github.com/lovoo/goka"
	"github.com/lovoo/goka/storage"
)

// Errors of a [Feed].
var (
	// ErrFeedBusy means that a batch was handed over before the one before it was
	// done: a task runs its batches one after another.
	ErrFeedBusy = errors.New("the feed still processes the batch before this one")
	// ErrFeedClosed means that the feed was closed, or not started yet.
	ErrFeedClosed = errors.New("the feed is not running")
)

// A PanicError is a panic of [FeedConfig.Handle], handed to the caller of
// [Feed.Process].
type PanicError struct {
	Value any
	Stack []byte // the goroutine's stack where it panicked
}

// Error returns the value of the panic and its stack.
func (e *PanicError) Error() string {
	return fmt.Sprintf("panic while processing a batch: %v\n%s", e.Value, e.Stack)
}

// Unwrap returns the value of the panic if it is an error, else nil.
func (e *PanicError) Unwrap() error {
	err, _ := e.Value.(error)
	return err
}

// FeedConfig describes the goka processor of one task.
type FeedConfig struct {
	// Group is goka's group name: it names the loop topic <Group>-loop and the
	// table topic <Group>-table. Kafka's group may have another name.
	Group string
	// Inputs are the topics of the Input edges, at least one, each once.
	Inputs []string
	// Loop adds the Loop edge.
	Loop bool
	// Outputs are the topics of the Output edges.
	Outputs []string
	// Persist adds the Persist edge. The table counts as recovered at once, since
	// restoring is the engine's.
	Persist bool
	// Partition is the one partition the processor owns.
	Partition int32
	// Logger gets goka's messages at debug level; nil drops them.
	Logger *slog.Logger
	// Handle gets each batch, on the processor's goroutine, one after another. A
	// panic reaches the caller of Process and leaves the feed running. Handle must
	// not call Close.
	Handle func(batch any)
}

// LoopTopic returns the name of goka's loop topic of a group.
func LoopTopic(group string) string { return group + "-loop" }

// TableTopic returns the name of goka's table topic of a group.
func TableTopic(group string) string { return group + "-table" }

func (c *FeedConfig) validate() error {
	var errs []error
	if c.Group == "" {
		errs = append(errs, errors.New("no group name"))
	}
	if c.Handle == nil {
		errs = append(errs, errors.New("no Handle function"))
	}
	if len(c.Inputs) == 0 {
		errs = append(errs, errors.New("no input topic"))
	}
	if c.Partition < 0 {
		errs = append(errs, fmt.Errorf("partition %d is negative", c.Partition))
	}
	reserved := []string{LoopTopic(c.Group), TableTopic(c.Group)}
	for i, t := range c.Inputs {
		if t == "" || slices.Contains(reserved, t) || slices.Contains(c.Inputs[:i], t) {
			errs = append(errs, fmt.Errorf("input topic %q is empty, a topic of the group itself, or named twice", t))
		}
	}
	for _, t := range c.Outputs {
		if t == "" || slices.Contains(reserved, t) {
			errs = append(errs, fmt.Errorf("output topic %q is empty or a topic of the group itself", t))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("feed %q partition %d: %w", c.Group, c.Partition, err)
	}
	return nil
}

// A Feed runs one goka.Processor over exactly one partition, all its input and
// output replaced: batches come from [Feed.Process], results go wherever
// [FeedConfig.Handle] puts them. It costs four goroutines and opens no connection.
//
// Process and Begin are for one goroutine at a time, the worker that owns the
// task. Close may be called from anywhere but Handle.
type Feed struct {
	cfg    FeedConfig
	proc   *goka.Processor
	cancel context.CancelFunc // set by Start, guarded by mu
	msgs   chan *sarama.ConsumerMessage
	ready  chan struct{} // closed when the processor takes messages
	done   chan struct{} // closed when every goroutine of the processor has ended

	mu      sync.Mutex
	started bool
	closed  bool
	current *flight // the batch being processed
	err     error   // why the processor ended
}

// A flight is one batch on its way through goka.
type flight struct {
	batch any
	done  chan error // holds one value
}

// NewFeed builds the processor. It starts nothing.
func NewFeed(cfg FeedConfig) (*Feed, error) {
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	f := &Feed{
		cfg:   cfg,
		msgs:  make(chan *sarama.ConsumerMessage, 1),
		ready: make(chan struct{}),
		done:  make(chan struct{}),
	}
	proc, err := goka.NewProcessor(nil, f.graph(),
		goka.WithLogger(gokaLogger{cfg.Logger}),
		goka.WithPartitionChannelSize(0),
		goka.WithConsumerGroupBuilder(func(_ []string, _, _ string) (sarama.ConsumerGroup, error) {
			return feedGroup{f}, nil
		}),
		goka.WithProducerBuilder(noProducer),
		goka.WithStorageBuilder(func(string, int32) (storage.Storage, error) { return storage.NewNull(), nil }),
		goka.WithTopicManagerBuilder(func([]string) (goka.TopicManager, error) { return emptyTopics{}, nil }),
		goka.WithConsumerSaramaBuilder(func([]string, string) (sarama.Consumer, error) { return noConsumer{}, nil }),
	)
	if err != nil {
		return nil, fmt.Errorf("feed %q partition %d: build the goka processor: %w", cfg.Group, cfg.Partition, err)
	}
	f.proc = proc
	return f, nil
}

// graph builds the group graph. Every input has the codec that passes the batch
// by reference, and the same callback.
func (f *Feed) graph() *goka.GroupGraph {
	codec := batchCodec{f}
	var edges []goka.Edge
	for _, t := range f.cfg.Inputs {
		edges = append(edges, goka.Input(goka.Stream(t), codec, f.callback))
	}
	if f.cfg.Loop {
		edges = append(edges, goka.Loop(codec, f.callback))
	}
	for _, t := range f.cfg.Outputs {
		edges = append(edges, goka.Output(goka.Stream(t), codec))
	}
	if f.cfg.Persist {
		edges = append(edges, goka.Persist(codec))
	}
	return goka.DefineGroup(goka.Group(f.cfg.Group), edges...)
}

// Start runs the processor and returns when it takes batches. The feed then lives
// until [Feed.Close]; ctx bounds only the start and passes its values on. After an
// error the feed is closed.
func (f *Feed) Start(ctx context.Context) error {
	runCtx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	f.mu.Lock()
	if f.started || f.closed {
		f.mu.Unlock()
		cancel()
		return fmt.Errorf("feed %q partition %d: started twice or closed: %w", f.cfg.Group, f.cfg.Partition, ErrFeedClosed)
	}
	f.started = true
	f.cancel = cancel
	f.mu.Unlock()

	go f.run(runCtx) // ended by Close; Close waits for it

	select {
	case <-f.ready:
		return nil
	case <-f.done:
	case <-ctx.Done():
	}
	closeErr := f.Close()
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("feed %q partition %d: start: %w", f.cfg.Group, f.cfg.Partition, err)
	}
	return closeErr
}

// run owns the processor. When it ends, a batch under way fails.
func (f *Feed) run(ctx context.Context) {
	defer close(f.done)
	err := f.proc.Run(ctx)
	f.mu.Lock()
	defer f.mu.Unlock()
	if err != nil {
		f.err = fmt.Errorf("feed %q partition %d: the goka processor ended: %w", f.cfg.Group, f.cfg.Partition, err)
	}
	f.closed = true
	if f.current != nil {
		f.current.done <- f.endedLocked()
		f.current = nil
	}
}

func (f *Feed) endedLocked() error {
	if f.err != nil {
		return f.err
	}
	return fmt.Errorf("feed %q partition %d: %w", f.cfg.Group, f.cfg.Partition, ErrFeedClosed)
}

// Process hands one goka message that carries batch to the processor, as a
// message of topic, and returns when Handle has returned. The error is a
// [*PanicError] if Handle panicked, else why the processor ended without calling
// it. It does not wait for a processor that has died.
func (f *Feed) Process(topic string, batch any) error { return <-f.Begin(topic, batch) }

// Begin is Process without the waiting: the channel gets exactly one value, so
// that a worker can run the batches of several tasks at once.
func (f *Feed) Begin(topic string, batch any) <-chan error {
	fl := &flight{batch: batch, done: make(chan error, 1)}
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case f.closed || !f.started:
		fl.done <- f.endedLocked()
	case f.current != nil:
		fl.done <- fmt.Errorf("feed %q partition %d: %w", f.cfg.Group, f.cfg.Partition, ErrFeedBusy)
	default:
		f.current = fl
		// Never blocks: the channel holds one message, and the message of the
		// flight before this one was taken before that flight was done.
		f.msgs <- &sarama.ConsumerMessage{Topic: topic, Partition: f.cfg.Partition, Value: batchMarker}
	}
	return fl.done
}

// Close stops the processor and returns when all its goroutines have ended; a
// batch that Handle is working on is waited for. It returns the error the
// processor died of, if it did, each time it is called.
func (f *Feed) Close() error {
	f.mu.Lock()
	f.closed = true
	started, cancel := f.started, f.cancel
	f.mu.Unlock()
	if !started {
		return nil
	}
	cancel()
	<-f.done
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.err
}

// callback is goka's ProcessCallback of every edge.
func (f *Feed) callback(_ goka.Context, msg any) {
	fl := msg.(*flight)
	returned := false
	defer func() {
		var err error
		goexit := false
		if v := recover(); v != nil {
			err = &PanicError{Value: v, Stack: debug.Stack()}
		} else if !returned {
			goexit = true
			err = &PanicError{Value: "Handle ended its goroutine (runtime.Goexit)", Stack: debug.Stack()}
		}
		f.mu.Lock()
		f.current = nil
		f.mu.Unlock()
		fl.done <- err
		if goexit {
			// The processor's goroutine is lost. goka counts the message as under way
			// until it sees a panic, and would wait a minute for it.
			panic(err)
		}
	}()
	f.cfg.Handle(fl.batch)
	returned = true
}

// batchMarker is the payload of every message: goka ignores messages without one.
var batchMarker = []byte{0}

// batchCodec passes the batch under way by reference; there is only one.
type batchCodec struct{ f *Feed }

func (c batchCodec) Decode([]byte) (any, error) {
	c.f.mu.Lock()
	defer c.f.mu.Unlock()
	if c.f.current == nil {
		return nil, ErrFeedClosed
	}
	return c.f.current, nil
}

func (batchCodec) Encode(any) ([]byte, error) {
	return nil, errors.New("batches are not written through goka")
}

// feedGroup is the consumer group goka sees: one session, one claim, which
// carries the messages of all topics.
type feedGroup struct{ f *Feed }

var _ sarama.ConsumerGroup = feedGroup{}

func (g feedGroup) Consume(ctx context.Context, topics []string, h sarama.ConsumerGroupHandler) error {
	s := feedSession{ctx: ctx, f: g.f, topics: topics}
	if err := h.Setup(s); err != nil {
		return errors.Join(fmt.Errorf("set up: %w", err), h.Cleanup(s))
	}
	close(g.f.ready)
	err := h.ConsumeClaim(s, feedClaim{g.f, topics[0]})
	err = errors.Join(err, h.Cleanup(s))
	if err == nil && ctx.Err() == nil {
		// Without an error goka would sleep five seconds and consume again.
		err = errors.New("the partition processor stopped by itself")
	}
	return err
}

func (feedGroup) Errors() <-chan error      { return nil }
func (feedGroup) Close() error              { return nil }
func (feedGroup) Pause(map[string][]int32)  {}
func (feedGroup) Resume(map[string][]int32) {}
func (feedGroup) PauseAll()                 {}
func (feedGroup) ResumeAll()                {}

type feedSession struct {
	ctx    context.Context
	f      *Feed
	topics []string
}

var _ sarama.ConsumerGroupSession = feedSession{}

func (s feedSession) Claims() map[string][]int32 {
	claims := make(map[string][]int32, len(s.topics))
	for _, t := range s.topics {
		claims[t] = []int32{s.f.cfg.Partition}
	}
	return claims
}

func (s feedSession) MemberID() string                            { return s.f.cfg.Group }
func (s feedSession) GenerationID() int32                         { return 1 }
func (s feedSession) MarkOffset(string, int32, int64, string)     {} // the ledger commits
func (s feedSession) Commit()                                     {}
func (s feedSession) ResetOffset(string, int32, int64, string)    {}
func (s feedSession) MarkMessage(*sarama.ConsumerMessage, string) {}
func (s feedSession) Context() context.Context                    { return s.ctx }

type feedClaim struct {
	f     *Feed
	topic string
}

var _ sarama.ConsumerGroupClaim = feedClaim{}

func (c feedClaim) Topic() string                            { return c.topic }
func (c feedClaim) Partition() int32                         { return c.f.cfg.Partition }
func (c feedClaim) InitialOffset() int64                     { return 0 }
func (c feedClaim) HighWaterMarkOffset() int64               { return 0 }
func (c feedClaim) Messages() <-chan *sarama.ConsumerMessage { return c.f.msgs }
