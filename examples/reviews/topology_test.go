package reviews

import (
	"context"
	"errors"
	"fmt"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	reviewsv1 "github.com/millrace/millrace/examples/reviews/proto/reviews/v1"
	"github.com/millrace/millrace/internal/modelserver"
	"github.com/millrace/millrace/llm"
	"github.com/millrace/millrace/llm/openai"
	"github.com/millrace/millrace/processors"
	"github.com/millrace/millrace/serde"
	"github.com/millrace/millrace/topologytest"
)

// A judge is a model that finds everything neutral, but for what it cannot read.
type judge struct{ asked []*llm.Request }

func (*judge) ID() llm.ID { return llm.ID{Provider: "openai-compatible", Model: "judge"} }

func (j *judge) Generate(_ context.Context, req *llm.Request) (*llm.Response, error) {
	j.asked = append(j.asked, req)
	if strings.Contains(req.Messages[len(req.Messages)-1].Text, "<data>broken</data>") {
		return nil, &llm.Error{Class: llm.Refused, Model: j.ID(), Err: errors.New("the model is broken")}
	}
	return &llm.Response{Text: `{"label": "LABEL_NEUTRAL", "score": 0}`, Finish: llm.FinishStop}, nil
}

func newDriver(t *testing.T, model llm.Model) (*topologytest.Driver, *topologytest.InputTopic[string, Event]) {
	d := topologytest.New(t, Build("reviews", model))
	products := topologytest.Input(d, "reviews-products", serde.String(), serde.Proto[*reviewsv1.Product]())
	products.Pipe("1", &reviewsv1.Product{Id: "p1", Name: "One", Category: "phone"}, 0)
	products.Pipe("2", &reviewsv1.Product{Id: "p2", Name: "Two"}, 0)
	return d, topologytest.Input(d, "reviews-sentences", serde.String(), serde.JSON[Event]())
}

func pipe(in *topologytest.InputTopic[string, Event], line int64, review, text string) {
	e := Event{ID: fmt.Sprintf("%s_%d", review, line), Review: review, Text: text, Line: line}
	in.Pipe(review, e, Line{Number: line}.Time().UnixMilli())
}

func answerAll(d *topologytest.Driver) {
	for calls := d.Calls(); len(calls) > 0; calls = d.Calls() {
		calls[0].Run()
	}
}

func TestTopology(t *testing.T) {
	t.Parallel()
	model := &judge{}
	d, in := newDriver(t, model)
	pipe(in, 1, "1", "it is good.")
	pipe(in, 2, "1", "is it good?")
	pipe(in, 3, "2", strings.Repeat("very ", 30)+"good.")
	pipe(in, 61, "1", "it broke.")
	pipe(in, 62, "3", "nobody knows this product")
	pipe(in, 63, "2", "broken")
	pipe(in, 64, "2", "")
	d.PipeRaw("reviews-sentences", 0, processors.Raw{Value: []byte("no event"), Timestamp: 1})
	if n := len(d.Calls()); n != 3 {
		t.Errorf("%d calls run at once, want one per review", n)
	}
	answerAll(d)
	second := model.asked[slices.IndexFunc(model.asked, func(r *llm.Request) bool {
		return strings.Contains(r.Messages[len(r.Messages)-1].Text, "is it good?")
	})]
	var said []string
	for _, m := range second.Messages[1:] {
		said = append(said, string(m.Role)+": "+m.Text)
	}
	wantSaid := []string{
		"user: Product: <data>One</data>\nSentence: <data>it is good.</data>", `assistant: {"label":"LABEL_NEUTRAL","score":0}`,
		"user: Product: <data>One</data>\nIt is a question: judge the tone in which it is asked.\nSentence: <data>is it good?</data>",
	}
	if !slices.Equal(said, wantSaid) {
		t.Errorf("asked %q, want %q", said, wantSaid)
	}

	enriched := topologytest.Output(d, "reviews-enriched", serde.String(), serde.Proto[*reviewsv1.EnrichedSentence]())
	got := map[int64]string{}
	for _, r := range enriched.Read() {
		s := r.Value.GetSentence()
		got[s.GetLine()] = fmt.Sprint(r.Key, " ", s.GetKind(), " ", r.Value.GetProduct().GetId(), " ", r.Value.GetSentiment().GetLabel())
		if want := (Line{Number: s.GetLine()}).Time().UnixMilli(); r.Timestamp != want {
			t.Errorf("line %d: timestamp %d, want %d", s.GetLine(), r.Timestamp, want)
		}
	}
	want := map[int64]string{
		1: "1 KIND_STATEMENT p1 LABEL_NEUTRAL", 2: "1 KIND_QUESTION p1 LABEL_NEUTRAL", 3: "2 KIND_LONG p2 LABEL_NEUTRAL",
		61: "1 KIND_STATEMENT p1 LABEL_NEUTRAL", 62: "3 KIND_STATEMENT unknown LABEL_NEUTRAL",
	}
	if len(got) != len(want) {
		t.Errorf("enriched %v", got)
	}
	for line, w := range want {
		if got[line] != w {
			t.Errorf("line %d: %q, want %q", line, got[line], w)
		}
	}

	reasons := map[string]string{}
	for _, r := range d.DeadLetters() {
		for _, h := range r.Headers {
			if h.Key == "millrace.message" {
				reasons[string(r.Value)] = string(h.Value)
			}
		}
	}
	if len(reasons) != 3 || !strings.Contains(reasons["no event"], "json") {
		t.Errorf("dead letters %v", reasons)
	}
	for value, reason := range reasons {
		if strings.Contains(value, "63") && !strings.Contains(reason, "the model is broken") || strings.Contains(value, "64") && !strings.Contains(reason, "text") {
			t.Errorf("dead letter of %s: %s", value, reason)
		}
	}

	last := map[string]int64{}
	counts := serde.Proto[*reviewsv1.ProductCount]()
	for _, topic := range []string{"reviews-per-product", "reviews-per-minute"} {
		for _, r := range topologytest.Output(d, topic, serde.String(), counts).Read() {
			if r.Value.GetSentences() != last[r.Key]+1 {
				t.Errorf("%s: %s went from %d to %d", topic, r.Key, last[r.Key], r.Value.GetSentences())
			}
			last[r.Key] = r.Value.GetSentences()
		}
	}
	wantCounts := map[string]int64{
		"p1": 3, "p2": 1, "unknown": 1, "p1@2003-01-01T00:00:00Z": 2, "p1@2003-01-01T00:01:00Z": 1,
		"p2@2003-01-01T00:00:00Z": 1, "unknown@2003-01-01T00:01:00Z": 1,
	}
	if fmt.Sprint(last) != fmt.Sprint(wantCounts) {
		t.Errorf("counts %v, want %v", last, wantCounts)
	}
}

// A restart in the middle loses nothing and repeats nothing.
func TestTopologyRestart(t *testing.T) {
	t.Parallel()
	d, in := newDriver(t, &judge{})
	for line := int64(1); line <= 4; line++ {
		pipe(in, line, "1", "it is good.")
	}
	d.Calls()[0].Run()
	d.Restart()
	d.Advance(time.Second) // the step looks for calls to make again
	answerAll(d)
	var lines []int
	for _, r := range topologytest.Output(d, "reviews-enriched", serde.String(), serde.Proto[*reviewsv1.EnrichedSentence]()).Read() {
		lines = append(lines, int(r.Value.GetSentence().GetLine()))
	}
	slices.Sort(lines) // no order is kept
	if fmt.Sprint(lines) != "[1 2 3 4]" {
		t.Errorf("lines %v", lines)
	}
}

// The calls of the topology reach a server over HTTP, labelled.
func TestTopologyOverHTTP(t *testing.T) {
	t.Parallel()
	server, err := modelserver.New(modelserver.Config{})
	if err != nil {
		t.Fatal(err)
	}
	ts := httptest.NewServer(server)
	defer ts.Close()
	model, err := openai.New("vader", openai.Config{Endpoint: llm.Endpoint{URL: ts.URL + "/v1"}})
	if err != nil {
		t.Fatal(err)
	}
	d, in := newDriver(t, model)
	pipe(in, 1, "1", "i love it!")
	d.Calls()[0].Run()
	got := topologytest.Output(d, "reviews-enriched", serde.String(), serde.Proto[*reviewsv1.EnrichedSentence]()).Read()
	if len(got) != 1 || got[0].Value.GetSentiment().GetScore() != 0.6696 || got[0].Value.GetSentiment().GetLabel() != reviewsv1.Label_LABEL_POSITIVE {
		t.Errorf("enriched %v", got)
	}
	if s := server.Ledger().Stats(); s.Calls != 1 || s.Unlabeled != 0 || s.PaidTwice != 0 {
		t.Errorf("stats %+v", s)
	}
}

// A model that is down costs no sentence: once its breaker is open they go on without
// an answer.
func TestTopologyFallsBack(t *testing.T) {
	t.Parallel()
	d, in := newDriver(t, downModel{})
	for line := range int64(4) {
		pipe(in, line, fmt.Sprint(line), "it is good.")
	}
	answerAll(d)
	fallbacks := topologytest.Output(d, "reviews-fallbacks", serde.String(), serde.Proto[*reviewsv1.Sentence]()).Read()
	if len(fallbacks) != 4 || fallbacks[0].Value.GetText() != "it is good." {
		t.Errorf("fallbacks %v", fallbacks)
	}
}

// downModel refuses its key.
type downModel struct{}

func (downModel) ID() llm.ID { return llm.ID{Provider: "openai-compatible", Model: "down"} }

func (m downModel) Generate(context.Context, *llm.Request) (*llm.Response, error) {
	return nil, &llm.Error{Class: llm.Auth, Model: m.ID(), Err: errors.New("no key")}
}

// The topics that others are told of are those of the topology.
func TestTopicsOf(t *testing.T) {
	t.Parallel()
	top, err := Build("reviews", &judge{}).Build()
	if err != nil {
		t.Fatal(err)
	}
	text := top.Describe()
	topics := TopicsOf("reviews")
	for _, name := range append([]string{topics.Sentences, topics.Products, topics.Enriched, topics.PerProduct, topics.PerMinute, topics.Fallbacks, topics.Loop}, topics.DeadLetters...) {
		if !strings.Contains(text, " "+name) {
			t.Errorf("topic %s does not occur in:\n%s", name, text)
		}
	}
}
