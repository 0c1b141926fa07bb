package reviews_test

import (
	"fmt"
	"net/http/httptest"

	"github.com/millrace/millrace/examples/reviews"
	reviewsv1 "github.com/millrace/millrace/examples/reviews/proto/reviews/v1"
	"github.com/millrace/millrace/internal/modelserver"
	"github.com/millrace/millrace/llm"
	"github.com/millrace/millrace/llm/openai"
	"github.com/millrace/millrace/serde"
	"github.com/millrace/millrace/topologytest"
)

// The application without a broker, but with the demo's model over HTTP.
func Example() {
	server, _ := modelserver.New(modelserver.Config{})
	http := httptest.NewServer(server)
	defer http.Close()
	model, err := openai.New(modelserver.ModelName, openai.Config{Endpoint: llm.Endpoint{URL: http.URL + "/v1"}})
	if err != nil {
		fmt.Println(err)
		return
	}
	topics := reviews.TopicsOf("reviews")
	d := topologytest.New(topologytest.NoTest(), reviews.Build("reviews", model))
	defer d.Close()
	products := topologytest.Input(d, topics.Products, serde.String(), serde.Proto[*reviewsv1.Product]())
	products.Pipe("7", &reviewsv1.Product{Id: "radio", Name: "A radio"}, 0)
	sentences := topologytest.Input(d, topics.Sentences, serde.String(), serde.JSON[reviews.Event]())
	for i, text := range []string{"i love this radio!", "but the antenna broke, which is terrible."} {
		sentences.Pipe("7", reviews.Event{ID: fmt.Sprint("7_", i), Review: "7", Text: text, Line: int64(i)}, int64(i))
	}
	for len(d.Calls()) > 0 {
		d.Calls()[0].Run()
	}
	for _, r := range topologytest.Output(d, topics.Enriched, serde.String(), serde.Proto[*reviewsv1.EnrichedSentence]()).Read() {
		s := r.Value.GetSentiment()
		fmt.Printf("%s: %s %.2f: %s\n", r.Value.GetProduct().GetName(), s.GetLabel(), s.GetScore(), r.Value.GetSentence().GetText())
	}
	// Output:
	// A radio: LABEL_POSITIVE 0.67: i love this radio!
	// A radio: LABEL_NEGATIVE -0.83: but the antenna broke, which is terrible.
}
