package topology_test

import (
	"fmt"
	"time"

	supportv1 "github.com/millrace/millrace/examples/support/proto/support/v1"
	"github.com/millrace/millrace/llm"
	"github.com/millrace/millrace/llm/prompt"
	"github.com/millrace/millrace/processors"
	"github.com/millrace/millrace/serde"
	"github.com/millrace/millrace/topology"
	"github.com/millrace/millrace/topologytest"
)

// Every customer has 2,400 tokens an hour, and the application 20 dollars a day.
// What a call can use at most is reserved while it runs, so that not all of a customer's
// run at once; one that used its tokens up waits for the next hour, and others go on.
func ExampleBudget() {
	b := topology.New("support")
	tickets := topology.Stream(b, "tickets", serde.String(), serde.Proto[*supportv1.Ticket]())
	triage := topology.Enrich(tickets, "triage", topology.Enrichment[string, *supportv1.Ticket, *supportv1.Triage]{
		Model:     moody{},
		Prompt:    prompt.Must(prompt.Config{Name: "triage", User: "{{.Event.Text}}"}),
		MaxTokens: 200,
		Prices:    testPrices,
		Budgets: []topology.Budget[string, *supportv1.Ticket]{
			{
				Name: "customer", Scope: processors.BudgetTenant, Tokens: 2_400, Window: time.Hour,
				Tenant: func(_ string, t *supportv1.Ticket) string { return t.GetCustomer() },
			},
			{Name: "day", Money: llm.Dollars(20), Window: 24 * time.Hour},
		},
	}, topology.Retries(0, 0, 0))
	triage.Enriched().To("tickets.triaged")

	d := topologytest.New(topologytest.NoTest(), b)
	defer d.Close()
	in := topologytest.Input(d, "tickets", serde.String(), serde.Proto[*supportv1.Ticket]())
	for i, customer := range []string{"acme", "acme", "acme", "acme", "bolt"} {
		in.Pipe(fmt.Sprint("t", i), &supportv1.Ticket{Customer: customer, Text: "it burns"}, int64(i))
	}
	fmt.Println(len(d.Calls()), "calls at once")
	for len(d.Calls()) > 0 {
		d.Calls()[0].Run()
	}
	day := triage.SpendingBy("day")
	key, value := day.StoreSerdes()
	row, _ := topologytest.KeyValue(d, day.StoreSpec().Name, key, value).Get("app") // in a program: state.View(app, day)
	fmt.Println(len(d.RawOutput("tickets.triaged")), "answers for", llm.Micros(row.SpentMicros))
	// Output:
	// 3 calls at once
	// 5 answers for $0.001450
}
