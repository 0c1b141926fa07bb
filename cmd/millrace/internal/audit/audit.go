// Package audit reads what a run of the reviews example wrote, with a Kafka
// client of its own, and says whether every event came out once. It shares no
// code with the engine: only the names of the topics and their messages.
package audit

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"buf.build/go/protovalidate"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"google.golang.org/protobuf/proto"

	reviewsv1 "github.com/millrace/millrace/examples/reviews/proto/reviews/v1"
)

// HeaderLine is the header of source records that holds the number of the input
// line.
const HeaderLine = "line"

// Topics names what is read; Fallbacks may be empty. Topics that do not exist yet are picked up when
// they do.
type Topics struct {
	Source, Enriched, Fallbacks, PerProduct, PerMinute string
	DeadLetters                                        []string
}

func (t Topics) all() []string {
	names := append([]string{t.Source, t.Enriched, t.PerProduct, t.PerMinute}, t.DeadLetters...)
	if t.Fallbacks != "" {
		names = append(names, t.Fallbacks)
	}
	return names
}

// Kind is what became of an event.
type Kind uint8

// The outcomes of an event.
const (
	Enriched Kind = iota
	DeadLettered
	Fallback
)

// Config sets up an [Audit].
type Config struct {
	Brokers []string
	Topics  Topics
	// OnOutcome, if not nil, is called in the reading goroutine for every outcome
	// of an event. It must not call the audit.
	OnOutcome func(line int64, first bool)
	// Now is the clock of latencies; nil means [time.Now].
	Now func() time.Time
}

// position is where a source record lies.
type position struct {
	partition int32
	offset    int64
}

type topicPartition struct {
	topic     string
	partition int32
}

type event struct {
	sent     time.Time // zero if it was sent by an earlier process
	inSource bool
	outcomes int
}

// An Audit reads committed records only. Its methods are safe for concurrent use.
type Audit struct {
	cfg    Config
	client *kgo.Client

	mu        sync.Mutex
	joined    map[string]bool
	positions map[topicPartition]int64 // next offset
	moved     chan struct{}            // closed and replaced when positions move
	lines     map[position]int64
	early     map[position]int // dead letters whose source record was not read yet
	events    map[int64]*event
	tally     Tally
	latencies []time.Duration
	pairs     []pair
	counts    counts
	problems  []string
}

// pair is a human rating and the model's score.
type pair struct{ rating, score float64 }

// New returns an audit; nothing is read before [Audit.Run].
func New(cfg Config) (*Audit, error) {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	client, err := kgo.NewClient(
		kgo.SeedBrokers(cfg.Brokers...),
		kgo.ClientID("millrace-audit"),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()),
		kgo.FetchIsolationLevel(kgo.ReadCommitted()),
		kgo.KeepControlRecords(), // or the position would stay before a marker at the end
		kgo.FetchMaxWait(time.Second),
		kgo.MetadataMinAge(50*time.Millisecond), // topics that are added wait for it
	)
	if err != nil {
		return nil, fmt.Errorf("audit: %w", err)
	}
	return &Audit{
		cfg: cfg, client: client,
		joined: map[string]bool{}, positions: map[topicPartition]int64{}, moved: make(chan struct{}),
		lines: map[position]int64{}, early: map[position]int{}, events: map[int64]*event{},
		counts: newCounts(),
	}, nil
}

// Run reads until ctx ends, which is no error, and closes the client.
func (a *Audit) Run(ctx context.Context) error {
	defer a.client.Close()
	for ctx.Err() == nil {
		if err := a.join(ctx); err != nil {
			return err
		}
		// New topics appear at any time: look for them between two polls.
		poll, cancel := context.WithTimeout(ctx, 250*time.Millisecond)
		fetches := a.client.PollFetches(poll)
		cancel()
		for _, e := range fetches.Errors() {
			if errors.Is(e.Err, context.DeadlineExceeded) || errors.Is(e.Err, context.Canceled) || kerr.IsRetriable(e.Err) {
				continue
			}
			return fmt.Errorf("audit: topic %s partition %d: %w", e.Topic, e.Partition, e.Err)
		}
		a.take(fetches)
	}
	return nil
}

// join adds the topics that exist by now.
func (a *Audit) join(ctx context.Context) error {
	a.mu.Lock()
	var missing []string
	for _, t := range a.cfg.Topics.all() {
		if !a.joined[t] {
			missing = append(missing, t)
		}
	}
	a.mu.Unlock()
	if len(missing) == 0 {
		return nil
	}
	found, err := kadm.NewClient(a.client).ListTopics(ctx, missing...)
	if err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return fmt.Errorf("audit: look for topics: %w", err)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, t := range missing {
		if d, ok := found[t]; ok && d.Err == nil && len(d.Partitions) > 0 {
			a.joined[t] = true
			a.client.AddConsumeTopics(t)
		}
	}
	return nil
}

func (a *Audit) take(fetches kgo.Fetches) {
	if fetches.NumRecords() == 0 {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	now := a.cfg.Now()
	fetches.EachRecord(func(r *kgo.Record) {
		a.positions[topicPartition{r.Topic, r.Partition}] = r.Offset + 1
		if r.Attrs.IsControl() {
			return
		}
		switch t := a.cfg.Topics; r.Topic {
		case t.Source:
			a.source(r, now)
		case t.Enriched:
			a.enriched(r, now)
		case t.Fallbacks:
			a.fallback(r, now)
		case t.PerProduct, t.PerMinute:
			if err := a.counts.take(r, r.Topic == t.PerMinute); err != nil {
				a.problem(r, err)
			}
		default:
			a.deadLetter(r, now)
		}
	})
	close(a.moved)
	a.moved = make(chan struct{})
}

// problem keeps the first few things that must not be.
func (a *Audit) problem(r *kgo.Record, err error) {
	a.tally.Problems++
	if len(a.problems) < 20 {
		a.problems = append(a.problems, fmt.Sprintf("%s partition %d offset %d: %v", r.Topic, r.Partition, r.Offset, err))
	}
}

func (a *Audit) event(line int64) *event {
	e := a.events[line]
	if e == nil {
		e = &event{}
		a.events[line] = e
	}
	return e
}

func (a *Audit) source(r *kgo.Record, now time.Time) {
	line, ok := headerInt(r, HeaderLine)
	if !ok {
		a.problem(r, errors.New("a source record without the number of its line"))
		return
	}
	pos := position{r.Partition, r.Offset}
	a.lines[pos] = line
	e := a.event(line)
	if e.inSource {
		a.problem(r, fmt.Errorf("line %d is in the source a second time", line))
	} else {
		e.inSource = true
		a.tally.Events++
	}
	for range a.early[pos] {
		a.outcome(line, DeadLettered, now)
	}
	delete(a.early, pos)
}

func (a *Audit) outcome(line int64, kind Kind, now time.Time) {
	e := a.event(line)
	e.outcomes++
	if e.outcomes > 1 {
		a.tally.Duplicates++
	} else {
		switch kind {
		case Enriched:
			a.tally.Enriched++
		case DeadLettered:
			a.tally.DeadLettered++
		case Fallback:
			a.tally.Fallbacks++
		}
		if !e.sent.IsZero() {
			a.latencies = append(a.latencies, now.Sub(e.sent))
		}
	}
	if a.cfg.OnOutcome != nil {
		a.cfg.OnOutcome(line, e.outcomes == 1)
	}
}

func (a *Audit) enriched(r *kgo.Record, now time.Time) {
	var m reviewsv1.EnrichedSentence
	if err := proto.Unmarshal(r.Value, &m); err != nil {
		a.problem(r, fmt.Errorf("not an EnrichedSentence: %w", err))
		return
	}
	if err := protovalidate.Validate(&m); err != nil {
		a.problem(r, fmt.Errorf("an invalid message: %w", err))
	}
	line := m.GetSentence().GetLine()
	first := a.event(line).outcomes == 0
	a.outcome(line, Enriched, now)
	if string(r.Key) != m.GetSentence().GetReview() {
		a.problem(r, fmt.Errorf("key %q, but the sentence is of review %q", r.Key, m.GetSentence().GetReview()))
	}
	a.counts.expect(m.GetProduct().GetId(), r.Timestamp)
	if s := m.GetSentence(); first && s.Rating != nil {
		a.pairs = append(a.pairs, pair{s.GetRating(), m.GetSentiment().GetScore()})
	}
}

func (a *Audit) fallback(r *kgo.Record, now time.Time) {
	var m reviewsv1.Sentence
	if err := proto.Unmarshal(r.Value, &m); err != nil {
		a.problem(r, fmt.Errorf("not a Sentence: %w", err))
		return
	}
	a.outcome(m.GetLine(), Fallback, now)
}

func (a *Audit) deadLetter(r *kgo.Record, now time.Time) {
	partition, ok1 := headerInt(r, "millrace.partition")
	offset, ok2 := headerInt(r, "millrace.offset")
	if topic := header(r, "millrace.topic"); topic != a.cfg.Topics.Source || !ok1 || !ok2 {
		a.problem(r, fmt.Errorf("a dead letter that is no event's: from topic %q, step %q: %s", topic, header(r, "millrace.step"), header(r, "millrace.message")))
		return
	}
	if header(r, "millrace.class") == "violation" && header(r, "millrace.answer") == "" {
		a.problem(r, errors.New("a dead letter for a refused answer without the answer"))
	}
	pos := position{int32(partition), offset}
	if line, ok := a.lines[pos]; ok {
		a.outcome(line, DeadLettered, now)
	} else {
		a.early[pos]++
	}
}

// CatchUp returns when all that is in the topics now has been read. Topics that
// do not exist yet hold nothing. It fails when ctx ends first, as it does while a
// transaction stays open.
func (a *Audit) CatchUp(ctx context.Context) error {
	adm := kadm.NewClient(a.client)
	found, err := adm.ListTopics(ctx, a.cfg.Topics.all()...)
	if err != nil {
		return fmt.Errorf("audit: %w", err)
	}
	var names []string
	for _, d := range found.Sorted() {
		if d.Err == nil {
			names = append(names, d.Topic)
		}
	}
	if len(names) == 0 {
		return nil
	}
	ends, err := adm.ListEndOffsets(ctx, names...)
	if err == nil {
		err = ends.Error()
	}
	if err != nil {
		return fmt.Errorf("audit: end of the topics: %w", err)
	}
	for {
		a.mu.Lock()
		moved, behind := a.moved, ""
		ends.Each(func(o kadm.ListedOffset) {
			if at := a.positions[topicPartition{o.Topic, o.Partition}]; at < o.Offset {
				behind = fmt.Sprintf("%s partition %d at offset %d of %d", o.Topic, o.Partition, at, o.Offset)
			}
		})
		a.mu.Unlock()
		if behind == "" {
			return nil
		}
		select {
		case <-moved:
		case <-ctx.Done():
			return fmt.Errorf("audit: not read to the end, a transaction may be open: %s: %w", behind, context.Cause(ctx))
		}
	}
}

// Moved returns a channel that is closed when more has been read.
func (a *Audit) Moved() <-chan struct{} {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.moved
}

// Sent says when the event of a line was produced, for its latency.
func (a *Audit) Sent(line int64, at time.Time) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.event(line).sent = at
}

// InSource reports whether the source topic, as far as it was read, holds the
// line, and whether the event has an outcome.
func (a *Audit) InSource(line int64) (there, done bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	e := a.events[line]
	return e != nil && e.inSource, e != nil && e.outcomes > 0
}
