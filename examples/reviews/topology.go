package reviews

import (
	"context"
	"fmt"
	"strings"
	"time"

	"buf.build/go/protovalidate"

	reviewsv1 "github.com/millrace/millrace/examples/reviews/proto/reviews/v1"
	"github.com/millrace/millrace/processors"
	"github.com/millrace/millrace/serde"
	"github.com/millrace/millrace/topology"
)

// Topics are the names of an application's topics.
type Topics struct {
	Sentences  string // input: events as JSON, by review
	Products   string // input: products, by review
	Enriched   string // output: EnrichedSentence, by review
	PerProduct string // output: ProductCount, by product
	PerMinute  string // output: ProductCount of a minute of event time, by product and minute

	// The application creates these itself.
	DeadLetters []string // events that could not be read or enriched
	Loop        string   // outcomes of model calls
}

// step is the name of the asynchronous step.
const step = "sentiment"

// TopicsOf returns the topics of the application named app.
func TopicsOf(app string) Topics {
	return Topics{
		Sentences: app + "-sentences", Products: app + "-products", Enriched: app + "-enriched",
		PerProduct: app + "-per-product", PerMinute: app + "-per-minute",
		DeadLetters: []string{app + ".dlq", app + "." + step + ".dlq"},
		Loop:        app + "." + step + "-loop",
	}
}

// UnknownProduct is the product of reviews that no product claims.
const UnknownProduct = "unknown"

// Build describes the application: every sentence is checked, routed by its kind,
// put to the model, joined with its product, written to the enriched topic, and
// counted per product and per product and minute. Nothing is dropped: a sentence
// that fails anywhere ends in a dead-letter topic.
func Build(app string, ask func(context.Context, *reviewsv1.Sentence) (*reviewsv1.Sentiment, error), opts ...topology.LookupOption) *topology.Builder {
	b := topology.New(app)
	topics := TopicsOf(app)
	events := topology.Stream(b, topics.Sentences, serde.String(), serde.JSON[Event](), topology.OnDecodeError(processors.DeadLetter))
	sentences := topology.TryMapValues(events, check, topology.Named("check")).WithValueSerde(serde.Proto[*reviewsv1.Sentence]())

	kinds := sentences.Split(topology.Named("route"))
	routed := as(kinds.Branch("questions", isQuestion), reviewsv1.Kind_KIND_QUESTION).Merge(
		as(kinds.Branch("long", isLong), reviewsv1.Kind_KIND_LONG),
		as(kinds.Default("statements"), reviewsv1.Kind_KIND_STATEMENT),
	)

	call := func(ctx context.Context, r processors.Record[string, *reviewsv1.Sentence]) (*reviewsv1.Sentiment, error) {
		return ask(ctx, r.Value)
	}
	// A sentence is judged on its own: none waits for the one before it. With the
	// default, [processors.OrderKey], those of a review would keep their order.
	opts = append([]topology.LookupOption{topology.Order(processors.OrderNone)}, opts...)
	judged := topology.AsyncLookup(routed, step, call, serde.Proto[*reviewsv1.Sentiment](), opts...)

	products := topology.GlobalTable(b, topics.Products, "products", serde.String(), serde.Proto[*reviewsv1.Product]())
	answers := topology.MapValues(judged.Results(), withSentiment)
	enriched := topology.GlobalLeftJoin(answers, products, byReview, withProduct).WithValueSerde(serde.Proto[*reviewsv1.EnrichedSentence]())
	enriched.To(topics.Enriched)

	byProduct := topology.GroupBy(enriched, "by-product", productOf)
	perProduct := topology.TryMapValues(byProduct.Count("per-product").ToStream(), countOf)
	perProduct.WithValueSerde(serde.Proto[*reviewsv1.ProductCount]()).To(topics.PerProduct)

	// Answers overtake each other, and event time with them: a day is far more
	// than the data spans.
	minutes := topology.Tumbling(time.Minute, topology.Grace(24*time.Hour))
	perMinute := topology.Map(topology.Count(byProduct, "per-minute", minutes).ToStream(), minuteOf)
	perMinute.WithValueSerde(serde.Proto[*reviewsv1.ProductCount]()).To(topics.PerMinute)
	return b
}

// check turns an event into a message. An event that breaks the message's rules
// becomes a dead letter.
func check(r processors.Record[string, Event]) (*reviewsv1.Sentence, error) {
	s := r.Value.Sentence()
	if r.NoValue {
		return nil, processors.WithAction(processors.DeadLetter, fmt.Errorf("an event without a value"))
	}
	if err := protovalidate.Validate(s); err != nil {
		return nil, processors.WithAction(processors.DeadLetter, fmt.Errorf("event %q of line %d: %w", s.GetId(), s.GetLine(), err))
	}
	return s, nil
}

func isQuestion(_ string, s *reviewsv1.Sentence) bool {
	return strings.HasSuffix(strings.TrimSpace(s.GetText()), "?")
}

func isLong(_ string, s *reviewsv1.Sentence) bool { return len(strings.Fields(s.GetText())) > 30 }

// as marks the sentences of a branch.
func as(s *topology.KStream[string, *reviewsv1.Sentence], kind reviewsv1.Kind) *topology.KStream[string, *reviewsv1.Sentence] {
	return topology.MapValues(s, func(v *reviewsv1.Sentence) *reviewsv1.Sentence {
		v.Kind = kind // the message was made by check, in this record's own chain
		return v
	})
}

func withSentiment(a processors.Answer[*reviewsv1.Sentence, *reviewsv1.Sentiment]) *reviewsv1.EnrichedSentence {
	return &reviewsv1.EnrichedSentence{Sentence: a.Event, Sentiment: a.Result}
}

func byReview(_ string, e *reviewsv1.EnrichedSentence) string { return e.GetSentence().GetReview() }

func withProduct(e *reviewsv1.EnrichedSentence, p *reviewsv1.Product, ok bool) *reviewsv1.EnrichedSentence {
	if !ok {
		p = &reviewsv1.Product{Id: UnknownProduct, Name: UnknownProduct}
	}
	return &reviewsv1.EnrichedSentence{Sentence: e.GetSentence(), Sentiment: e.GetSentiment(), Product: p}
}

func productOf(_ string, e *reviewsv1.EnrichedSentence) string { return e.GetProduct().GetId() }

func countOf(r processors.Record[string, int64]) (*reviewsv1.ProductCount, error) {
	return &reviewsv1.ProductCount{ProductId: r.Key, Sentences: r.Value}, nil
}

func minuteOf(w topology.Windowed[string], n int64) (string, *reviewsv1.ProductCount) {
	key := w.Key + "@" + time.UnixMilli(w.Start).UTC().Format(time.RFC3339)
	return key, &reviewsv1.ProductCount{ProductId: w.Key, Sentences: n, WindowStartMs: w.Start, WindowEndMs: w.End}
}
