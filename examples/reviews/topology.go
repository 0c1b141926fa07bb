package reviews

import (
	"fmt"
	"strings"
	"time"

	"buf.build/go/protovalidate"

	reviewsv1 "github.com/millrace/millrace/examples/reviews/proto/reviews/v1"
	"github.com/millrace/millrace/llm"
	"github.com/millrace/millrace/llm/prompt"
	"github.com/millrace/millrace/processors"
	"github.com/millrace/millrace/serde"
	"github.com/millrace/millrace/topology"
)

// Topics are the names of an application's topics.
type Topics struct {
	Sentences  string // input: events as JSON, by review
	Products   string // input: products, by review
	Enriched   string // output: EnrichedSentence, by review
	Fallbacks  string // output: Sentence, by review: those that no model could be asked about
	PerProduct string // output: ProductCount, by product
	PerMinute  string // output: ProductCount of a minute of event time, by product and minute

	// The application creates these itself.
	DeadLetters []string // events that could not be read, or have no valid answer
	Loop        string   // outcomes of model calls
}

// step is the name of the step that asks the model.
const step = "sentiment"

// TopicsOf returns the topics of the application named app.
func TopicsOf(app string) Topics {
	return Topics{
		Sentences: app + "-sentences", Products: app + "-products", Enriched: app + "-enriched", Fallbacks: app + "-fallbacks",
		PerProduct: app + "-per-product", PerMinute: app + "-per-minute",
		DeadLetters: []string{app + ".dlq", app + "." + step + ".dlq"},
		Loop:        app + "." + step + "-loop",
	}
}

// UnknownProduct is the product of reviews that no product claims.
const UnknownProduct = "unknown"

// Prompt is what the model is asked about a sentence. It sees the sentences of the
// review before this one, and their answers, as the conversation.
var Prompt = prompt.Must(prompt.Config{
	Name: "sentiment",
	System: `You judge the sentiment of one sentence of a product review. Sentences of the same review may come before it: ` +
		`they are context, judge the last one only. A positive label needs a score of at least 0, a negative one of at most 0.`,
	User: `{{with .Tables.product}}Product: {{.Name}}
{{end}}{{if eq .Event.Kind 2}}It is a question: judge the tone in which it is asked.
{{else if eq .Event.Kind 3}}It is long: judge it as a whole.
{{end}}Sentence: {{.Event.Text}}`,
})

// dayTokens is what the model may read and write in a day. Sentences that it does not
// cover go to the fallbacks.
const dayTokens = 100_000_000

// Build describes the application: every sentence is checked, put to the model,
// joined with its product, written to the enriched topic, and counted per product
// and per product and minute. Nothing is dropped: a sentence that has no valid
// answer ends in a dead-letter topic, and one that no model could be asked about, since
// the breaker is open or the budget used up, in the topic of fallbacks.
func Build(app string, model llm.Model, opts ...topology.LookupOption) *topology.Builder {
	b := topology.New(app)
	topics := TopicsOf(app)
	events := topology.Stream(b, topics.Sentences, serde.String(), serde.JSON[Event](), topology.OnDecodeError(processors.DeadLetter))
	sentences := topology.TryMapValues(events, check, topology.Named("check")).WithValueSerde(serde.Proto[*reviewsv1.Sentence]())

	kinds := sentences.Split(topology.Named("route"))
	routed := as(kinds.Branch("questions", isQuestion), reviewsv1.Kind_KIND_QUESTION).Merge(
		as(kinds.Branch("long", isLong), reviewsv1.Kind_KIND_LONG),
		as(kinds.Default("statements"), reviewsv1.Kind_KIND_STATEMENT),
	)

	products := topology.GlobalTable(b, topics.Products, "products", serde.String(), serde.Proto[*reviewsv1.Product]())
	judged := topology.Enrich(routed, step, topology.Enrichment[string, *reviewsv1.Sentence, *reviewsv1.Sentiment]{
		Model:  model,
		Prompt: Prompt,
		Tables: map[string]topology.PromptTable[string, *reviewsv1.Sentence]{
			"product": topology.GlobalRow(products, func(review string, _ *reviewsv1.Sentence) string { return review }),
		},
		MaxTokens:     200,
		MaxReasks:     5,
		OnOpenBreaker: processors.OpenFallback,
		Conversation:  &topology.Conversation{MaxTurns: 6, MaxTokens: 600},
		Budgets: []topology.Budget[string, *reviewsv1.Sentence]{
			{Name: "day", Tokens: dayTokens, Window: 24 * time.Hour, AtLimit: processors.BudgetFallback},
		},
	}, opts...)
	judged.Fallbacks().To(topics.Fallbacks)

	answers := topology.MapValues(judged.Answers(), withSentiment)
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
