package topology_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/millrace/millrace/llm"
	"github.com/millrace/millrace/processors"
	"github.com/millrace/millrace/topology"
)

// What was under way when a program ended is finished by one that is configured
// otherwise: without its models, its conversations, its summaries.
func TestEnrichChangesUnderWay(t *testing.T) {
	t.Parallel()
	talk := &topology.Conversation{MaxTurns: 2, Summary: &topology.Summary{}}
	model := func(name string) *fakeModel {
		m := summing(func(int) (string, error) { return "it burns", nil })
		m.id.Model = name
		return m
	}
	for _, row := range []struct {
		name string
		// before is the step as it was, begin what happens then.
		before enrich
		begin  func(d *desk)
		after  enrich
		want   int // results
	}{
		{
			"an answer of the cache, whose model is gone",
			enrich{Cache: &topology.Cache{MaxEntries: 10}},
			func(d *desk) { d.pipe("a", "x"); d.run(); d.pipe("b", "x") },
			enrich{Model: model("other"), Cache: &topology.Cache{MaxEntries: 10}},
			3,
		},
		{
			"an answer of the cache, which is gone",
			enrich{Cache: &topology.Cache{MaxEntries: 10}},
			func(d *desk) { d.pipe("a", "x"); d.run(); d.pipe("b", "x") },
			enrich{},
			3,
		},
		{
			"a summary that is not to be made any more",
			enrich{Conversation: talk},
			func(d *desk) { d.pipe("a", "x"); d.Calls()[0].Run(); d.pipe("a", "y"); d.Calls()[0].Run() },
			enrich{Conversation: &topology.Conversation{MaxTurns: 2}},
			3,
		},
		{
			"a summary of a conversation that is not kept any more",
			enrich{Conversation: talk},
			func(d *desk) { d.pipe("a", "x"); d.Calls()[0].Run(); d.pipe("a", "y"); d.Calls()[0].Run() },
			enrich{},
			3,
		},
		{
			"a control record of a conversation that is not kept any more",
			enrich{Conversation: talk},
			func(d *desk) { d.pipe("a", "x"); d.Calls()[0].Run(); d.control("a", processors.ResetConversation()) },
			enrich{},
			2,
		},
		{
			"control records that wait",
			enrich{Conversation: talk},
			func(d *desk) {
				d.pipe("a", "x")
				d.control("a", processors.ResetConversation())
				d.control("a", processors.ResetConversation())
			},
			enrich{},
			2,
		},
	} {
		for _, priced := range []bool{false, true} {
			t.Run(row.name, func(t *testing.T) {
				t.Parallel()
				shape := func(e enrich) enrich {
					if e.Model == nil {
						e.Model = model("m")
					}
					if e.Prompt = triagePrompt; priced {
						e.MaxTokens = 50
						e.Budgets = []limits{{Name: "all", Tokens: 1e6}}
					}
					return e
				}
				d := newDesk(t, shape(row.before))
				row.begin(d)
				d.RestartWith(deskTopology(shape(row.after)))
				d.Advance(10 * time.Second)
				d.pipe("a", "z") // comes after what was under way
				d.run()
				if n := len(d.RawOutput("triaged")); n != row.want {
					t.Errorf("%d results, want %d; dead letters %v", n, row.want, d.DeadLetters())
				}
				if dead, failures := d.DeadLetters(), d.Failures(); len(dead)+len(failures) > 0 {
					t.Errorf("dead letters %v, failures %v", dead, failures)
				}
			})
		}
	}
}

// A model whose answers panic what reads them fails the call, not the process.
func TestEnrichPanics(t *testing.T) {
	t.Parallel()
	d := newDesk(t, enrich{
		Model: answers("m", goodAnswer), MaxReasks: -1,
		Check: func(ticket, triage) error { panic("check") },
	})
	d.pipe("a", "x")
	d.run()
	one(t, d.DeadLetters())
	d = newDesk(t, enrich{Model: &fakeModel{id: llm.ID{Provider: "openai", Model: "m"}}}) // its nil function panics
	d.pipe("a", "x")
	d.run()
	one(t, d.DeadLetters())
	k := newBank(t, enrich{Model: answers("m", goodAnswer), OnAttempt: func(context.Context, llm.Attempt) { panic("attempt") }}, nil, limits{Name: "day", Money: llm.Dollars(1)})
	k.event("tickets", "a", "x")
	worst := k.spending("day", "app").ReservedMicros
	k.run()
	if r := one(t, k.DeadLetters()); !strings.Contains(headersOf(r)["millrace.message"], "panic") {
		t.Errorf("dead letter %v", headersOf(r))
	}
	k.spent("day", "app", worst, 0)
}
