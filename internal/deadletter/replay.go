package deadletter

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/millrace/millrace/internal/kafka"
	"github.com/millrace/millrace/processors"
)

// A ReplayConfig says which letters to replay, and how.
type ReplayConfig struct {
	// Filter chooses the letters. With a Limit they are the first ones that were not
	// replayed before.
	Filter
	// To is the topic that gets the events; empty means the one that each came from, and
	// the same partition.
	To string
	// Rate bounds the events per second. It must be positive.
	Rate float64
	// PromptVersion is the version of the prompt that the step is to ask with, of the
	// prompt that the letter names, or of Prompt for letters that name none.
	PromptVersion, Prompt string
	// StampNow gives the events the present time; without it they keep their own.
	StampNow bool
	// DryRun writes nothing.
	DryRun bool
	// Each, if not nil, is told of each letter when it was replayed (err is nil) or
	// refused. It is called by one goroutine at a time.
	Each func(l *Letter, to string, err error)
}

// A ReplayResult counts letters.
type ReplayResult struct {
	Replayed int
	Already  int // replayed before
	Refused  int // they cannot be replayed
}

// What a transaction of replayed events holds at most.
const (
	maxBatch      = 100
	maxBatchBytes = 512 << 10
	maxBatchAge   = 500 * time.Millisecond
	// maxEvent is the largest event that is written, as far as the topic takes it.
	maxEvent = 64 << 20
	// endTime bounds the end of a transaction.
	endTime = 30 * time.Second
)

// ErrTakenOver ends a replay of an application because another one has begun.
var ErrTakenOver = errors.New("another replay of the application has begun and goes on in place of this one; nothing is replayed twice")

// Replay writes the events of letters back, bytes and headers as they were, with the
// headers [processors.ReplayOfHeader] and [processors.ReplaySourceHeader]. An event and
// the record that it was replayed are written in one transaction, and there is one
// replay of an application at a time: so no letter is ever replayed twice, whatever
// ends a replay. An event that fails again makes another letter.
func (s *Store) Replay(ctx context.Context, cfg ReplayConfig) (ReplayResult, error) {
	if cfg.Rate <= 0 {
		return ReplayResult{}, fmt.Errorf("rate %v: it must be positive", cfg.Rate)
	}
	r := &replay{store: s, cfg: cfg, topics: map[string]int{}}
	opts := []kgo.Opt{kgo.ProducerBatchMaxBytes(maxEvent)}
	if !cfg.DryRun {
		opts = append(opts, kgo.TransactionalID(s.marksTopic()), kgo.TransactionTimeout(2*endTime))
	}
	err := s.with(func(cl *kgo.Client) error {
		r.cl = cl
		return r.run(ctx)
	}, opts...)
	for _, fenced := range []error{kerr.ProducerFenced, kerr.InvalidProducerEpoch, kerr.InvalidTxnState} {
		if errors.Is(err, fenced) {
			err = fmt.Errorf("%w (%w)", ErrTakenOver, fenced)
			break
		}
	}
	return r.result, err
}

// replay is a replay under way.
type replay struct {
	store  *Store
	cfg    ReplayConfig
	cl     *kgo.Client
	next   time.Time      // when the rate allows another event
	topics map[string]int // partitions of the topics that get events; 0 if there is none
	result ReplayResult

	batch []item
	size  int
	began time.Time
}

// item is an event to be written, and its mark.
type item struct {
	letter      *Letter
	event, mark *kgo.Record
}

var errEnough = errors.New("enough")

func (r *replay) run(ctx context.Context) error {
	if !r.cfg.DryRun {
		if err := r.store.createMarks(ctx, r.cl); err != nil {
			return err
		}
		// This ends the transaction of a replay that was killed, and fences one that
		// runs: what is read after it is all that was replayed.
		if _, _, err := r.cl.ProducerID(ctx); err != nil {
			return fmt.Errorf("transactional id %q: %w: grant Write and Describe on it", r.store.marksTopic(), err)
		}
	}
	marks, err := r.store.readMarks(ctx, r.cl)
	if err != nil {
		return err
	}
	ids, err := r.store.letterTopics(ctx, r.cl)
	if err != nil {
		return err
	}
	taken := 0
	err = r.store.scan(ctx, r.cl, r.cfg.Filter, marks, func(l *Letter, err error) error {
		if !l.Replayed.IsZero() {
			r.result.Already++
			return nil
		}
		if r.cfg.Limit > 0 && taken == r.cfg.Limit {
			return errEnough
		}
		it := item{letter: l}
		if err == nil {
			err = r.prepare(ctx, &it, ids[l.Topic])
		}
		if err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			r.refuse(l, err)
			return nil
		}
		taken++
		return r.add(ctx, it)
	})
	if errors.Is(err, errEnough) {
		err = nil
	}
	if err != nil && ctx.Err() == nil {
		return err
	}
	return errors.Join(err, r.flush(ctx))
}

func (r *replay) refuse(l *Letter, err error) {
	r.result.Refused++
	if r.cfg.Each != nil {
		r.cfg.Each(l, r.target(l), err)
	}
}

func (r *replay) target(l *Letter) string {
	if r.cfg.To != "" {
		return r.cfg.To
	}
	return l.Source.Topic
}

// prepare makes the records of a letter.
func (r *replay) prepare(ctx context.Context, it *item, from kadm.TopicDetail) error {
	l, to := it.letter, r.target(it.letter)
	if strings.HasPrefix(l.Source.Topic, r.store.app+".") && strings.HasSuffix(l.Source.Topic, "-loop") {
		return errors.New("it is an outcome of a call, not an event: there is nothing to replay")
	}
	partitions, err := r.partitions(ctx, to)
	if err != nil {
		return err
	}
	headers := slices.DeleteFunc(slices.Clone(l.Headers), func(h processors.Header) bool {
		return h.Key == processors.ReplayOfHeader || h.Key == processors.ReplaySourceHeader || h.Key == processors.ReplayPromptHeader
	})
	source := last(l.Headers, processors.ReplaySourceHeader)
	if source == "" {
		source = l.Source.String()
	}
	headers = append(headers,
		processors.Header{Key: processors.ReplayOfHeader, Value: []byte(l.Position.String())},
		processors.Header{Key: processors.ReplaySourceHeader, Value: []byte(source)})
	m := mark{Letter: l.Position.String(), To: to, At: time.Now().UnixMilli()}
	if r.cfg.PromptVersion != "" {
		if m.Prompt, m.PromptVersion = l.Prompt, r.cfg.PromptVersion; m.Prompt == "" {
			m.Prompt = r.cfg.Prompt
		}
		if m.Prompt == "" {
			return errors.New("the letter names no prompt that the version could be of: name the prompt too, or leave the version out")
		}
		headers = append(headers, processors.Header{Key: processors.ReplayPromptHeader, Value: []byte(m.Prompt + "@" + m.PromptVersion)})
	}
	it.event = &kgo.Record{Topic: to, Partition: -1, Key: l.Key, Value: l.Value, Timestamp: l.EventTime}
	if r.cfg.To == "" && l.Source.Partition >= 0 && int(l.Source.Partition) < partitions {
		it.event.Partition = l.Source.Partition // whatever placed it there
	}
	if now := time.Now(); r.cfg.StampNow || l.EventTime.UnixMilli() < 0 || l.EventTime.After(now) {
		it.event.Timestamp = now
	}
	for _, h := range headers {
		it.event.Headers = append(it.event.Headers, kgo.RecordHeader{Key: h.Key, Value: h.Value})
	}
	value, err := json.Marshal(m)
	if err != nil {
		return err
	}
	it.mark = &kgo.Record{Topic: r.store.marksTopic(), Partition: -1, Key: []byte(markKey(from, l.Partition, l.Offset)), Value: value, Timestamp: time.Now()}
	return nil
}

// partitions returns how many a topic has.
func (r *replay) partitions(ctx context.Context, topic string) (int, error) {
	if topic == "" {
		return 0, errors.New("it names no topic that it came from: name one to replay to")
	}
	n, known := r.topics[topic]
	if !known {
		found, err := kadm.NewClient(r.cl).ListTopics(ctx, topic)
		if err != nil {
			return 0, fmt.Errorf("topic %s: %w", topic, err)
		}
		if d := found[topic]; d.Err == nil {
			n = len(d.Partitions)
		}
		r.topics[topic] = n
	}
	if n == 0 {
		return 0, fmt.Errorf("topic %s does not exist, or we may not describe it: name another one to replay to", topic)
	}
	return n, nil
}

// add takes an event when the rate allows it.
func (r *replay) add(ctx context.Context, it item) error {
	size := len(it.event.Key) + len(it.event.Value) + 512
	for _, h := range it.event.Headers {
		size += len(h.Key) + len(h.Value)
	}
	now := time.Now()
	if r.next.Before(now) {
		r.next = now
	}
	wait := r.next.Sub(now)
	r.next = r.next.Add(time.Duration(float64(time.Second) / r.cfg.Rate))
	if len(r.batch) > 0 && (len(r.batch) == maxBatch || r.size+size > maxBatchBytes || time.Since(r.began)+wait > maxBatchAge) {
		if err := r.flush(ctx); err != nil {
			return err
		}
	}
	if wait > 0 && !r.cfg.DryRun {
		timer := time.NewTimer(wait)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if len(r.batch) == 0 {
		r.began = time.Now()
	}
	r.batch, r.size = append(r.batch, it), r.size+size
	return nil
}

// flush writes the batch, also when ctx has ended.
func (r *replay) flush(ctx context.Context) error {
	batch := r.batch
	r.batch, r.size = nil, 0
	if len(batch) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), endTime)
	defer cancel()
	err := r.write(ctx, batch)
	if err == nil || !kafka.IsRecordError(err) {
		return err
	}
	// One of them is refused: each goes alone.
	for _, it := range batch {
		err := r.write(ctx, []item{it})
		switch {
		case err == nil:
		case kafka.IsRecordError(err):
			r.refuse(it.letter, fmt.Errorf("topic %s does not take it: %w", it.event.Topic, err))
		default:
			return err
		}
	}
	return nil
}

// write writes events and their marks in one transaction.
func (r *replay) write(ctx context.Context, batch []item) error {
	if !r.cfg.DryRun {
		if err := r.cl.BeginTransaction(); err != nil {
			return fmt.Errorf("begin a transaction: %w", err)
		}
		var records []*kgo.Record
		for _, it := range batch {
			event, m := *it.event, *it.mark // a record that failed cannot be sent again
			records = append(records, &event, &m)
		}
		failed := r.cl.ProduceSync(ctx, records...).FirstErr()
		if failed != nil {
			if err := r.cl.AbortBufferedRecords(ctx); err != nil {
				return errors.Join(failed, err)
			}
		}
		if err := r.cl.EndTransaction(ctx, kgo.TransactionEndTry(failed == nil)); err != nil {
			return errors.Join(failed, fmt.Errorf("end a transaction: %w; run the replay again: what was replayed is remembered", err))
		}
		if failed != nil {
			return fmt.Errorf("write %d events: %w", len(batch), failed)
		}
	}
	for _, it := range batch {
		r.result.Replayed++
		if r.cfg.Each != nil {
			r.cfg.Each(it.letter, it.event.Topic, nil)
		}
	}
	return nil
}
