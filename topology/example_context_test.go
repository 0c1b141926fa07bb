package topology_test

import (
	"context"
	"fmt"
	"strings"
	"time"

	supportv1 "github.com/millrace/millrace/examples/support/proto/support/v1"
	"github.com/millrace/millrace/llm"
	"github.com/millrace/millrace/llm/prompt"
	"github.com/millrace/millrace/processors"
	millracev1 "github.com/millrace/millrace/proto/millrace/v1"
	"github.com/millrace/millrace/serde"
	"github.com/millrace/millrace/topology"
	"github.com/millrace/millrace/topologytest"
)

// listener stands for a model that notes how much it is told, and summarizes when no
// schema is asked for.
type listener struct{}

func (listener) ID() llm.ID { return llm.ID{Provider: "openai", Model: "listener"} }

func (listener) Generate(_ context.Context, req *llm.Request) (*llm.Response, error) {
	text := `{"evidence": "e", "urgency": "URGENCY_LOW", "summary": "s"}`
	if req.Schema == nil {
		text = "it burns"
	}
	fmt.Printf("asked with %d messages, summary: %v, for one: %v\n", len(req.Messages), strings.Contains(req.Messages[1].Text, "What was said before"), req.Schema == nil)
	return &llm.Response{Text: text, Finish: llm.FinishStop, Usage: llm.Usage{Input: 90, Output: 20}}, nil
}

// A conversation of four turns at most is summarized beyond that. A control record ends
// it, in the order of the key's events; an equal request costs nothing.
func ExampleConversation() {
	b := topology.New("support")
	tickets := topology.Stream(b, "tickets", serde.String(), serde.Proto[*supportv1.Ticket]())
	triage := topology.Enrich(tickets, "triage", topology.Enrichment[string, *supportv1.Ticket, *supportv1.Triage]{
		Model:  listener{},
		Prompt: prompt.Must(prompt.Config{Name: "triage", User: "{{.Event.Text}}"}),
		Conversation: &topology.Conversation{
			MaxTurns: 4, SessionGap: time.Hour, TTL: 7 * 24 * time.Hour,
			Summary: &topology.Summary{},
		},
		Cache: &topology.Cache{MaxEntries: 10_000, TTL: time.Hour},
	})
	triage.Enriched().To("tickets.triaged")

	d := topologytest.New(topologytest.NoTest(), b)
	defer d.Close()
	in := topologytest.Input(d, "tickets", serde.String(), serde.Proto[*supportv1.Ticket]())
	for i, text := range []string{"it burns", "it burns more", "help", "now"} {
		in.Pipe("ann", &supportv1.Ticket{Text: text}, int64(i))
	}
	reset := processors.ResetConversation()
	d.PipeRaw("tickets", -1, processors.Raw{Key: []byte("ann"), Timestamp: 4, Headers: []processors.Header{reset}})
	in.Pipe("ann", &supportv1.Ticket{Text: "it burns"}, 5)
	for len(d.Calls()) > 0 {
		d.Calls()[0].Run()
	}
	talks := topologytest.KeyValue(d, "triage-conversations", serde.String(), serde.Proto[*millracev1.Conversation]())
	talk, _ := talks.Get("ann")
	fmt.Println(len(talk.Turns), "turns")
	for _, r := range d.RawOutput("tickets.triaged")[4:] {
		for _, h := range r.Headers {
			if h.Key == processors.CacheHitHeader {
				fmt.Printf("%s: %s\n", h.Key, h.Value)
			}
		}
	}
	// Output:
	// asked with 2 messages, summary: false, for one: false
	// asked with 4 messages, summary: false, for one: false
	// asked with 6 messages, summary: false, for one: false
	// asked with 2 messages, summary: false, for one: true
	// asked with 4 messages, summary: true, for one: false
	// 2 turns
	// millrace.cache-hit: yes
}
