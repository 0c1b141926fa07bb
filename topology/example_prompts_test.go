package topology_test

import (
	"fmt"

	supportv1 "github.com/millrace/millrace/examples/support/proto/support/v1"
	"github.com/millrace/millrace/llm/prompt"
	"github.com/millrace/millrace/processors"
	"github.com/millrace/millrace/serde"
	"github.com/millrace/millrace/topology"
	"github.com/millrace/millrace/topologytest"
)

// A prompt that reads a table, and a version of it that is put into use while the
// application runs: in production by millrace.NewPrompts or "millrace prompts".
func ExampleEnrichment_prompt() {
	b := topology.New("support")
	plans := topology.GlobalTable(b, "plans", "plans", serde.String(), serde.String())
	tickets := topology.Stream(b, "tickets", serde.String(), serde.Proto[*supportv1.Ticket]())
	triage := topology.Enrich(tickets, "triage", topology.Enrichment[string, *supportv1.Ticket, *supportv1.Triage]{
		Model: moody{},
		Prompt: prompt.Must(prompt.Config{
			Name:   "triage",
			System: "You triage the tickets of a support desk.",
			User:   "{{.Event.Text}}{{with .Tables.plan}} Plan: {{.}}{{end}}",
		}),
		Tables: map[string]topology.PromptTable[string, *supportv1.Ticket]{
			"plan": topology.GlobalRow(plans, func(customer string, _ *supportv1.Ticket) string { return customer }),
		},
	})
	triage.Enriched().To("tickets.triaged")

	d := topologytest.New(topologytest.NoTest(), b)
	defer d.Close()
	topologytest.Input(d, "plans", serde.String(), serde.String()).Pipe("ann", "gold", 1)
	in := topologytest.Input(d, "tickets", serde.String(), serde.Proto[*supportv1.Ticket]())
	triaged := func() {
		in.Pipe("ann", &supportv1.Ticket{Text: "it burns here"}, 1)
		d.Calls()[0].Run()
		for _, h := range d.RawOutput("tickets.triaged")[0].Headers {
			if h.Key == processors.PromptVersionHeader || h.Key == processors.PromptLabelHeader {
				fmt.Printf("%s: %s\n", h.Key, h.Value)
			}
		}
	}
	triaged()

	shorter := prompt.Must(prompt.Config{Name: "triage", System: "Triage tickets.", User: "{{.Event.Text}}"})
	var registry prompt.Registry // of what is in the topic
	write := func(records []prompt.Record, err error) {
		for _, r := range records {
			d.PipeRaw(prompt.Topic("support"), 0, processors.Raw{Key: []byte(r.Key), Value: r.Value})
			err = registry.Apply(r)
		}
		if err != nil {
			fmt.Println(err)
		}
	}
	write(registry.Publish(shorter, d.Now(), "shorter"))
	write(registry.SetLabel("triage", prompt.Prod, shorter.Version(), 0, d.Now(), ""))
	triaged()
	// Output:
	// millrace.prompt-version: e5d425ac590d0362554ec763
	// millrace.prompt-label: built-in
	// millrace.prompt-version: b063e3bfcd69219bae73b3f9
	// millrace.prompt-label: prod
}
