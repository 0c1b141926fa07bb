package topology_test

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"google.golang.org/protobuf/proto"

	supportv1 "github.com/millrace/millrace/examples/support/proto/support/v1"
	"github.com/millrace/millrace/llm"
	"github.com/millrace/millrace/llm/prompt"
	"github.com/millrace/millrace/processors"
	"github.com/millrace/millrace/serde"
	"github.com/millrace/millrace/topology"
	"github.com/millrace/millrace/topologytest"
)

// moody stands for a model, as openai.New makes one: it forgets the rules at times.
type moody struct{}

func (moody) ID() llm.ID { return llm.ID{Provider: "openai", Model: "moody"} }

func (moody) Generate(_ context.Context, req *llm.Request) (*llm.Response, error) {
	text := `{"evidence": "it burns", "urgency": "URGENCY_CRITICAL", "summary": "a fire"}`
	if last := req.Messages[len(req.Messages)-1].Text; strings.Contains(last, "mumble") {
		text = `{"evidence": "", "urgency": "NONE", "summary": "?"}`
	}
	return &llm.Response{Text: text, Finish: llm.FinishStop, Usage: llm.Usage{Input: 90, Output: 20}}, nil
}

func ExampleEnrich() {
	b := topology.New("support")
	tickets := topology.Stream(b, "tickets", serde.String(), serde.Proto[*supportv1.Ticket]())
	triage := topology.Enrich(tickets, "triage", topology.Enrichment[string, *supportv1.Ticket, *supportv1.Triage]{
		Model: moody{},
		Prompt: prompt.Must(prompt.Config{
			Name:   "triage",
			System: "You triage the tickets of a support desk.",
			User:   "{{.Event.Subject}}\n{{.Event.Text}}",
		}),
		Check: func(in *supportv1.Ticket, out *supportv1.Triage) error {
			if !strings.Contains(in.GetText(), out.GetEvidence()) {
				return errors.New("evidence has to be words of the ticket")
			}
			return nil
		},
	})
	triage.Enriched().To("tickets.triaged") // valid *supportv1.Triage, or nothing

	d := topologytest.New(topologytest.NoTest(), b)
	defer d.Close()
	in := topologytest.Input(d, "tickets", serde.String(), serde.Proto[*supportv1.Ticket]())
	in.Pipe("ann", &supportv1.Ticket{Subject: "help", Text: "it burns here"}, 1)
	in.Pipe("ben", &supportv1.Ticket{Subject: "hm", Text: "mumble it burns"}, 2)
	for len(d.Calls()) > 0 {
		d.Calls()[0].Run()
	}
	for _, r := range d.RawOutput("tickets.triaged") {
		var out supportv1.Triage
		if err := proto.Unmarshal(r.Value, &out); err != nil {
			fmt.Println(err)
		}
		fmt.Println(string(r.Key), out.GetUrgency(), out.GetSummary())
		for _, h := range r.Headers {
			if h.Key == processors.ModelHeader || h.Key == processors.StatusHeader || h.Key == processors.OutputTokensHeader {
				fmt.Printf("  %s: %s\n", h.Key, h.Value)
			}
		}
	}
	// Output:
	// ann URGENCY_CRITICAL a fire
	//   millrace.status: ok
	//   millrace.model: openai/moody
	//   millrace.output-tokens: 20
	// ben URGENCY_CRITICAL a fire
	//   millrace.status: reasked
	//   millrace.model: openai/moody
	//   millrace.output-tokens: 40
}
