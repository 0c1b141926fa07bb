package audit

import (
	"context"
	"fmt"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"google.golang.org/protobuf/proto"

	reviewsv1 "github.com/millrace/millrace/examples/reviews/proto/reviews/v1"
)

var topics = Topics{
	Source: "in", Enriched: "enriched", Fallbacks: "fallbacks", PerProduct: "per-product", PerMinute: "per-minute",
	DeadLetters: []string{"dlq", "step.dlq"},
}

// bench is a broker with a transactional producer and an audit of it.
type bench struct {
	t        *testing.T
	audit    *Audit
	producer *kgo.Client
	outcomes []string
}

var start = time.Date(2003, 1, 1, 0, 0, 0, 0, time.UTC)

func newBench(t *testing.T) *bench {
	t.Helper()
	cluster, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.SeedTopics(1, "in", "enriched", "fallbacks", "per-product", "per-minute", "dlq", "step.dlq"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cluster.Close)
	b := &bench{t: t}
	b.producer, err = kgo.NewClient(kgo.SeedBrokers(cluster.ListenAddrs()...), kgo.TransactionalID("writer"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.producer.Close)
	clock := start
	b.audit, err = New(Config{
		Brokers: cluster.ListenAddrs(), Topics: topics,
		OnOutcome: func(line int64, first bool) { b.outcomes = append(b.outcomes, fmt.Sprint(line, " ", first)) },
		Now:       func() time.Time { return clock.Add(time.Second) },
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- b.audit.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return b
}

// write produces records in one transaction.
func (b *bench) write(commit bool, records ...*kgo.Record) {
	b.t.Helper()
	if err := b.producer.BeginTransaction(); err != nil {
		b.t.Fatal(err)
	}
	if err := b.producer.ProduceSync(b.t.Context(), records...).FirstErr(); err != nil {
		b.t.Fatal(err)
	}
	if err := b.producer.EndTransaction(b.t.Context(), kgo.TransactionEndTry(commit)); err != nil {
		b.t.Fatal(err)
	}
}

func (b *bench) catchUp() Tally {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.t.Context(), 20*time.Second)
	defer cancel()
	if err := b.audit.CatchUp(ctx); err != nil {
		b.t.Fatal(err)
	}
	return b.audit.Tally()
}

func source(line int) *kgo.Record {
	return &kgo.Record{Topic: "in", Value: []byte("x"), Headers: []kgo.RecordHeader{{Key: HeaderLine, Value: fmt.Append(nil, line)}}}
}

func message(topic, key string, at time.Time, m proto.Message) *kgo.Record {
	b, err := proto.Marshal(m)
	if err != nil {
		panic(err)
	}
	return &kgo.Record{Topic: topic, Key: []byte(key), Value: b, Timestamp: at}
}

func enrichedSentence(line int, rating, score float64) *reviewsv1.EnrichedSentence {
	label := reviewsv1.Label_LABEL_POSITIVE
	if score < 0 {
		label = reviewsv1.Label_LABEL_NEGATIVE
	}
	return &reviewsv1.EnrichedSentence{
		Sentence:  &reviewsv1.Sentence{Id: fmt.Sprint(line), Review: "r", Text: "x", Rating: &rating, Line: int64(line)},
		Sentiment: &reviewsv1.Sentiment{Label: label, Score: score},
		Product:   &reviewsv1.Product{Id: "p", Name: "P"},
	}
}

func enriched(line int, rating, score float64) *kgo.Record {
	return message("enriched", "r", start.Add(time.Duration(line)*time.Second), enrichedSentence(line, rating, score))
}

func deadLetter(topic string, offset int) *kgo.Record {
	return &kgo.Record{Topic: topic, Headers: []kgo.RecordHeader{
		{Key: "millrace.topic", Value: []byte("in")},
		{Key: "millrace.partition", Value: []byte("0")},
		{Key: "millrace.offset", Value: fmt.Append(nil, offset)},
	}}
}

func productCount(topic string, n int64, from, to time.Time) *kgo.Record {
	m := &reviewsv1.ProductCount{ProductId: "p", Sentences: n}
	if !from.IsZero() {
		m.WindowStartMs, m.WindowEndMs = from.UnixMilli(), to.UnixMilli()
	}
	return message(topic, "p", start, m)
}

func TestCleanRun(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.audit.Sent(1, start)
	b.write(true, source(1), source(2), source(3), source(4))
	b.write(true, enriched(1, -2, -0.4), deadLetter("step.dlq", 1), message("fallbacks", "r", start, &reviewsv1.Sentence{Line: 3}))
	// An aborted transaction is as if it had not been.
	b.write(false, enriched(1, 1, 1), enriched(4, 1, 1), productCount("per-product", 9, time.Time{}, time.Time{}))
	b.write(true, enriched(4, 3, 0.6),
		productCount("per-product", 1, time.Time{}, time.Time{}), productCount("per-product", 2, time.Time{}, time.Time{}),
		productCount("per-minute", 2, start, start.Add(time.Minute)))
	got := b.catchUp()
	want := Tally{Events: 4, Enriched: 2, DeadLettered: 1, Fallbacks: 1, Correlation: got.Correlation, Rated: 2, P50: time.Second, P99: time.Second}
	if got != want || math.Abs(got.Correlation-1) > 1e-9 || got.Done() != 4 {
		t.Errorf("tally %+v, want %+v; %v", got, want, b.audit.Problems())
	}
	if n, example := b.audit.WrongCounts(); n != 0 {
		t.Errorf("%d wrong counts: %s", n, example)
	}
	if there, done := b.audit.InSource(4); !there || !done {
		t.Error("line 4 is not seen")
	}
	if p := b.audit.PerProduct(); len(p) != 1 || p[0] != (ProductCount{"p", 2}) {
		t.Errorf("per product %v", p)
	}
}

// Whatever goes wrong in an application is found.
func TestFindsFaults(t *testing.T) {
	t.Parallel()
	invalid := enrichedSentence(1, 0, 0.5)
	invalid.Sentiment.Score = 7
	tests := []struct {
		name    string
		records []*kgo.Record
		check   func(t Tally) bool
		problem string
		wrong   bool // counts
	}{
		{"lost", nil, func(t Tally) bool { return t.Lost == 2 && t.Duplicates == 0 && t.Problems == 0 }, "", false},
		{"written twice", []*kgo.Record{enriched(1, 1, 1), enriched(1, 1, 1)}, func(t Tally) bool { return t.Duplicates == 1 && t.Enriched == 1 && t.Lost == 1 }, "", true},
		{"written and dead-lettered", []*kgo.Record{enriched(1, 1, 1), deadLetter("dlq", 0)}, func(t Tally) bool { return t.Duplicates == 1 && t.Done() == 1 }, "", true},
		{"dead-lettered twice", []*kgo.Record{deadLetter("dlq", 0), deadLetter("step.dlq", 0)}, func(t Tally) bool { return t.Duplicates == 1 && t.DeadLettered == 1 }, "", false},
		{"of no event", []*kgo.Record{enriched(77, 1, 1), deadLetter("dlq", 55)}, func(t Tally) bool { return t.Stray == 2 && t.Lost == 2 }, "", true},
		{"invalid message", []*kgo.Record{message("enriched", "r", start, invalid)}, func(t Tally) bool { return t.Problems == 1 }, "invalid message", true},
		{"no message", []*kgo.Record{{Topic: "enriched", Value: []byte{0xff}}}, func(t Tally) bool { return t.Problems == 1 }, "not an EnrichedSentence", false},
		{"wrong key", []*kgo.Record{message("enriched", "q", start, enrichedSentence(1, 1, 1))}, func(t Tally) bool { return t.Problems == 1 }, `key "q"`, true},
		{"dead letter of a later step", []*kgo.Record{{Topic: "dlq"}}, func(t Tally) bool { return t.Problems == 1 }, "no event's", false},
		{"counted too often", []*kgo.Record{productCount("per-product", 1, time.Time{}, time.Time{})}, func(t Tally) bool { return t.Problems == 0 }, "", true},
		{"count repeated", []*kgo.Record{productCount("per-product", 1, time.Time{}, time.Time{}), productCount("per-product", 1, time.Time{}, time.Time{})}, func(t Tally) bool { return t.Problems == 1 }, "went from 1 to 1", true},
		{"line repeated", []*kgo.Record{source(1)}, func(t Tally) bool { return t.Problems == 1 && t.Events == 2 }, "second time", false},
		{"no line", []*kgo.Record{{Topic: "in"}}, func(t Tally) bool { return t.Problems == 1 }, "without the number", false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			b := newBench(t)
			b.write(true, source(1), source(2))
			if tt.records != nil {
				b.write(true, tt.records...)
			}
			got := b.catchUp()
			problems := strings.Join(b.audit.Problems(), "; ")
			if !tt.check(got) || !strings.Contains(problems, tt.problem) || tt.problem == "" && problems != "" {
				t.Errorf("tally %+v, problems %q", got, problems)
			}
			if n, _ := b.audit.WrongCounts(); (n > 0) != tt.wrong {
				t.Errorf("%d wrong counts", n)
			}
		})
	}
}

// A dead letter may be read before the record it is about.
func TestDeadLetterFirst(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.write(true, deadLetter("dlq", 0))
	if got := b.catchUp(); got.Stray != 1 {
		t.Errorf("tally %+v", got)
	}
	b.write(true, source(1))
	if got := b.catchUp(); got.Stray != 0 || got.DeadLettered != 1 || got.Lost != 0 {
		t.Errorf("tally %+v", got)
	}
	if len(b.outcomes) != 1 || b.outcomes[0] != "1 true" {
		t.Errorf("outcomes %q", b.outcomes)
	}
}

// While a transaction is open, the audit does not claim to have read everything.
func TestOpenTransaction(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	if err := b.producer.BeginTransaction(); err != nil {
		t.Fatal(err)
	}
	if err := b.producer.ProduceSync(t.Context(), source(1)).FirstErr(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if err := b.audit.CatchUp(ctx); err == nil || !strings.Contains(err.Error(), "transaction") {
		t.Errorf("error %v", err)
	}
	if err := b.producer.EndTransaction(t.Context(), kgo.TryCommit); err != nil {
		t.Fatal(err)
	}
	if got := b.catchUp(); got.Events != 1 {
		t.Errorf("tally %+v", got)
	}
}

func TestStatistics(t *testing.T) {
	t.Parallel()
	for name, pairs := range map[string][]pair{"none": nil, "one": {{1, 1}}, "constant": {{1, 1}, {1, 2}}} {
		if got := pearson(pairs); !math.IsNaN(got) {
			t.Errorf("%s: %v", name, got)
		}
	}
	// Anscombe's first set.
	var set []pair
	x := []float64{10, 8, 13, 9, 11, 14, 6, 4, 12, 7, 5}
	y := []float64{8.04, 6.95, 7.58, 8.81, 8.33, 9.96, 7.24, 4.26, 10.84, 4.82, 5.68}
	for i := range x {
		set = append(set, pair{x[i], y[i]})
	}
	if got := pearson(set); math.Abs(got-0.81642) > 1e-5 {
		t.Errorf("correlation %v", got)
	}
	sorted := []time.Duration{1, 2, 3, 4, 5, 6, 7, 8, 9, 10}
	for q, want := range map[float64]time.Duration{0.5: 5, 0.99: 10, 0.1: 1, 1: 10, 0: 1} {
		if got := percentile(sorted, q); got != want {
			t.Errorf("percentile %v: %v, want %v", q, got, want)
		}
	}
	if percentile(nil, 0.5) != 0 {
		t.Error("percentile of nothing")
	}
}
