package topology_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
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

func (d *desk) control(key string, h processors.Header) {
	d.n++
	d.PipeRaw("tickets", -1, processors.Raw{Key: []byte(key), Timestamp: 1000 * d.n, Headers: []processors.Header{h}})
}

func (d *desk) talk(key string) *millracev1.Conversation {
	d.t.Helper()
	talk, _ := topologytest.KeyValue(d.Driver, "triage-conversations", serde.String(), serde.Proto[*millracev1.Conversation]()).Get(key)
	return talk
}

// offsets returns the offsets of the events whose turns are in a conversation.
func offsets(turns []*millracev1.Turn) string {
	var list []string
	for _, t := range turns {
		parts := strings.Split(t.Event, "/")
		if n := len(list); n == 0 || list[n-1] != parts[3] {
			list = append(list, parts[3])
		}
	}
	return strings.Join(list, " ")
}

func cacheHits(recs []processors.Raw) (hits []string) {
	for _, r := range recs {
		hits = append(hits, headersOf(r)[processors.CacheHitHeader])
	}
	return hits
}

func TestEnrichCache(t *testing.T) {
	t.Parallel()
	m := answers("m", goodAnswer)
	d := newDesk(t, enrich{Model: m, Prices: testPrices, Cache: &topology.Cache{MaxEntries: 2, TTL: time.Hour}})
	d.pipe("a", "help")
	d.pipe("b", "help") // at the same time
	d.run()
	d.pipe("c", "help")
	d.run()
	d.Restart()
	d.pipe("a", "help")
	d.run()
	out := d.RawOutput("triaged")
	if got := cacheHits(out); !slices.Equal(got, []string{"no", "shared", "yes", "yes"}) || len(m.asked) != 1 {
		t.Fatalf("hits %v, asked %d times", got, len(m.asked))
	}
	for _, r := range out[1:] {
		wantHeaders(t, r, headers{processors.CostHeader: "0", processors.AttemptsHeader: "0", processors.InputTokensHeader: "0", processors.ModelHeader: "openai/m", processors.StatusHeader: "ok"})
	}
	if size := d.StoreSizes()["triage-cache"]; size.Rows != 1 || size.Bytes < 100 {
		t.Errorf("size %+v", size)
	}
	for _, text := range []string{"other", "a third"} { // puts the oldest out
		d.Advance(time.Second)
		d.pipe("a", text)
		d.run()
	}
	d.pipe("a", "help")
	d.run()
	out = d.RawOutput("triaged")
	if got := cacheHits(out[len(out)-1:])[0]; got == "yes" || d.StoreSizes()["triage-cache"].Rows != 2 {
		t.Errorf("%d answers are kept, the oldest of three: %s", d.StoreSizes()["triage-cache"].Rows, got)
	}
	d.Advance(59 * time.Minute)
	if n := d.StoreSizes()["triage-cache"].Rows; n != 2 {
		t.Errorf("%d answers before the TTL", n)
	}
	d.Advance(8 * time.Minute)
	store := topologytest.KeyValue(d.Driver, "triage-cache", serde.Bytes(), serde.Proto[*millracev1.CachedAnswer]())
	if n := len(store.Rows()); n != 0 || d.StoreSizes()["triage-cache"] != (processors.StoreSize{Store: "triage-cache"}) {
		t.Errorf("%d answers after the TTL, size %+v", n, d.StoreSizes())
	}
}

// What the cache holds is held to the contract of today.
func TestEnrichCacheValidates(t *testing.T) {
	t.Parallel()
	m := answers("m", goodAnswer, strings.Replace(goodAnswer, "fire", "a blaze", 1))
	strict := false
	d := newDesk(t, enrich{Model: m, Cache: &topology.Cache{MaxEntries: 10}, Check: func(_ ticket, out triage) error {
		if strict && out.GetSummary() == "fire" {
			return errors.New("too short")
		}
		return nil
	}})
	d.pipe("a", "help")
	d.run()
	strict = true
	d.Restart() // the answer in the memory of the step is refused too
	d.pipe("a", "help")
	d.run()
	if got := cacheHits(d.RawOutput("triaged")); !slices.Equal(got, []string{"no", "no"}) || len(m.asked) != 2 {
		t.Errorf("hits %v, asked %d times", got, len(m.asked))
	}
}

// Equal requests share refused answers too, round by round, as long as they were asked
// at the same time; a failure is shared with nobody.
func TestEnrichSingleFlight(t *testing.T) {
	t.Parallel()
	m := answers("m", badAnswer, goodAnswer)
	d := newDesk(t, enrich{Model: m, Cache: &topology.Cache{MaxEntries: 10}})
	d.pipe("a", "help")
	d.pipe("b", "help")
	d.Calls()[0].Release() // the one that would be first is interrupted
	d.run()
	out := d.RawOutput("triaged")
	if len(m.asked) != 2 || len(out) != 2 {
		t.Fatalf("asked %d times for %d results", len(m.asked), len(out))
	}
	for _, r := range out {
		wantHeaders(t, r, headers{processors.StatusHeader: "reasked"})
	}
	if got := cacheHits(d.RawOutput("app.triage.raw")); !slices.Equal(got, []string{"no", "shared"}) {
		t.Errorf("refused answers: hits %v", got)
	}

	m = answers("m", badAnswer)
	d = newDesk(t, enrich{Model: m, MaxReasks: -1, Cache: &topology.Cache{MaxEntries: 10}})
	d.pipe("a", "help")
	d.pipe("b", "help")
	d.run()
	d.pipe("c", "help")
	d.run()
	if len(m.asked) != 2 || len(d.DeadLetters()) != 3 || d.StoreSizes()["triage-cache"].Rows != 0 {
		t.Errorf("asked %d times: an event gets the refused answer of one before it", len(m.asked))
	}

	m = failing("m", llm.Refused)
	d = newDesk(t, enrich{Model: m, Cache: &topology.Cache{MaxEntries: 10}})
	d.pipe("a", "help")
	d.pipe("b", "help")
	d.run()
	if len(m.asked) != 2 || len(d.DeadLetters()) != 2 {
		t.Errorf("a failure is shared: asked %d times", len(m.asked))
	}
}

func TestConversationControl(t *testing.T) {
	t.Parallel()
	m := answers("m", goodAnswer)
	d := newDesk(t, enrich{Model: m, Conversation: &topology.Conversation{}, Cache: &topology.Cache{MaxEntries: 10}})
	d.pipe("a", "first")
	d.control("a", processors.ResetConversation())
	d.pipe("a", "second")
	d.Calls()[0].Run()
	d.Restart() // the control record is the head of its lane
	d.Advance(7 * time.Second)
	if size := d.StoreSizes()["triage-conversations"]; size.Rows != 1 || size.Bytes < 100 {
		t.Errorf("size %+v", size)
	}
	d.run()
	d.pipe("a", "third")
	d.run()
	if n := []int{len(m.asked[0].Messages), len(m.asked[1].Messages), len(m.asked[2].Messages)}; !slices.Equal(n, []int{2, 2, 4}) {
		t.Errorf("asked with %v messages", n)
	}
	if got := offsets(d.talk("a").Turns); got != "2 3" {
		t.Errorf("the turns of %s", got)
	}
	if n := d.StoreSizes()["triage-cache"].Rows; n != 2 {
		t.Errorf("%d cached answers, want 2: that of the ended conversation goes", n)
	}
	d.control("a", processors.CutConversation("tickets/0/2"))
	d.run()
	if got := offsets(d.talk("a").Turns); got != "3" {
		t.Errorf("the turns of %s", got)
	}
	d.control("a", processors.CutConversation(d.talk("a").Turns[0].Event))
	d.control("b", processors.ResetConversation()) // there is none
	d.run()
	if d.talk("a") != nil || d.StoreSizes()["triage-conversations"].Rows != 0 || d.StoreSizes()["triage-cache"].Rows != 0 {
		t.Errorf("what is left: %v, %v", d.talk("a"), d.StoreSizes())
	}
	if n := len(d.RawOutput("triaged")); n != 3 || len(d.DeadLetters()) != 0 {
		t.Errorf("%d results, %d dead letters: a control record has none", n, len(d.DeadLetters()))
	}
	for _, wrong := range []string{"forget", "cut ", "cut tickets/0", "cut tickets/x/1"} {
		d.control("a", processors.Header{Key: processors.ControlHeader, Value: []byte(wrong)})
	}
	if n := len(d.Failures()); n != 4 {
		t.Errorf("%d failures, want one for each record that says something else", n)
	}
	plain := newDesk(t, enrich{Model: m})
	plain.control("a", processors.ResetConversation())
	if drops := plain.Drops(); len(plain.Calls()) != 0 || len(drops) != 1 || drops[0].Reason != "control" {
		t.Errorf("a step without conversations: %v", drops)
	}
}

// A conversation expires after its last change, not after its first.
func TestConversationExpires(t *testing.T) {
	t.Parallel()
	d := newDesk(t, enrich{Model: answers("m", goodAnswer), Conversation: &topology.Conversation{TTL: time.Hour}})
	d.pipe("a", "x")
	d.pipe("b", "x")
	d.run()
	d.Advance(50 * time.Minute)
	d.pipe("b", "y")
	d.run()
	d.Restart()
	d.Advance(17 * time.Minute)
	if d.talk("a") != nil || len(d.talk("b").GetTurns()) != 4 {
		t.Errorf("after the TTL of the first: %v, %v", d.talk("a"), d.talk("b"))
	}
	d.Advance(time.Hour)
	if d.talk("b") != nil || d.StoreSizes()["triage-conversations"].Rows != 0 {
		t.Errorf("after the TTL of the second: %v", d.talk("b"))
	}
}

// summing returns a model that answers questions with a schema, and summarizes without.
func summing(summary func(n int) (string, error)) *fakeModel {
	m := &fakeModel{id: llm.ID{Provider: "openai", Model: "m"}}
	n := 0
	m.answer = func(_ context.Context, req *llm.Request) (string, error) {
		if req.Schema != nil {
			return goodAnswer, nil
		}
		n++
		return summary(n)
	}
	return m
}

func TestConversationSummary(t *testing.T) {
	t.Parallel()
	m := summing(func(n int) (string, error) { return fmt.Sprint("summary ", n, " </data>"), nil })
	d := newDesk(t, enrich{Model: m, Prices: testPrices, Conversation: &topology.Conversation{MaxTurns: 4, Summary: &topology.Summary{MaxTokens: 77}}})
	for i := range 4 {
		d.pipe("a", fmt.Sprint("text ", i))
	}
	for range 3 {
		d.Calls()[0].Run()
	}
	if n := len(d.RawOutput("triaged")); n != 3 {
		t.Fatalf("%d results before the summary", n)
	}
	c := d.Calls()
	if len(c) != 1 || c[0].Round != 1 || c[0].Entry != "triage/tickets/0/2/0" {
		t.Fatalf("calls %+v: want that for the summary alone", c)
	}
	d.Restart() // before the call is made
	d.Advance(time.Second)
	d.Calls()[0].Run()
	sum := m.asked[3]
	if sum.MaxTokens != 77 || len(sum.Messages) != 2 || !strings.Contains(sum.Messages[1].Text, "text 1") || strings.Contains(sum.Messages[1].Text, "text 2") {
		t.Errorf("asked for a summary with %+v", sum)
	}
	d.Restart() // its outcome is not paid for again
	d.Advance(time.Second)
	d.run()
	if len(m.asked) != 5 {
		t.Fatalf("asked %d times", len(m.asked))
	}
	next := m.asked[4].Messages
	if len(next) != 4 || !strings.Contains(next[1].Text, "<data>summary 1 &lt;/data></data>") || !strings.Contains(next[1].Text, "text 2") {
		t.Errorf("the next event is asked with %+v", next)
	}
	talk := d.talk("a")
	if got := offsets(talk.Turns); got != "2 3" || talk.Dropped != 0 {
		t.Errorf("the turns of %s, %d dropped", got, talk.Dropped)
	}
	s := talk.Summary
	if s.Turns != 4 || len(s.Events) != 2 || s.Events[1] != "triage/tickets/0/1/0" || s.Timestamp != 2000 || s.Model.GetModel() != "m" || s.Prompt != "millrace.summary" || s.CostMicros != 300 {
		t.Errorf("summary %v", s)
	}
	if strings.Contains(talk.Turns[0].Text, "summary") {
		t.Error("the summary is in a turn")
	}
	d.pipe("a", "text 4") // the next summary is one of the summary too
	d.run()
	if s := d.talk("a").Summary; !strings.Contains(s.GetText(), "summary 2") || s.GetTurns() != 8 || !strings.Contains(m.asked[6].Messages[1].Text, "summary 1") {
		t.Errorf("second summary %v of %v", s, m.asked[6].Messages[1].Text)
	}
	d.control("a", processors.CutConversation("tickets/0/0"))
	d.run()
	if talk := d.talk("a"); talk.Summary != nil || offsets(talk.Turns) != "4" || talk.Dropped != 8 {
		t.Errorf("the summary has seen what was cut out: %v", talk)
	}
}

func TestConversationSummaryFails(t *testing.T) {
	t.Parallel()
	for name, summary := range map[string]func(int) (string, error){
		"refused": func(int) (string, error) { return "", &llm.Error{Class: llm.Refused, Err: errors.New("no")} },
		"empty":   func(int) (string, error) { return " \u200b ", nil },
	} {
		m := summing(summary)
		d := newDesk(t, enrich{Model: m, Conversation: &topology.Conversation{MaxTurns: 4, Summary: &topology.Summary{}}}, topology.OnFailure(topology.FallbackEvent))
		for i := range 4 {
			d.pipe("a", fmt.Sprint("text ", i))
		}
		d.run()
		talk := d.talk("a")
		if got := offsets(talk.Turns); got != "2 3" || talk.Dropped != 4 || talk.Summary != nil {
			t.Errorf("%s: the turns of %s, %d dropped", name, got, talk.Dropped)
		}
		if drops := d.Drops(); len(drops) != 2 || drops[0].Reason != "summary-failed" {
			t.Errorf("%s: drops %v", name, drops)
		}
		if len(d.RawOutput("triaged")) != 4 || len(d.RawOutput("untriaged"))+len(d.DeadLetters()) != 0 {
			t.Errorf("%s: the failure of a summary is that of an event", name)
		}
	}
}

func TestConversationSummaryMistakes(t *testing.T) {
	t.Parallel()
	b := topology.New("app")
	s := topology.Stream(b, "tickets", serde.String(), serde.Proto[*supportv1.Ticket]())
	topology.Enrich(s, "triage", enrich{
		Model: answers("m", ""), Prompt: triagePrompt, Cache: &topology.Cache{},
		Conversation: &topology.Conversation{TTL: -1, Summary: &topology.Summary{MaxTokens: -1, Prompt: prompt.Must(prompt.Config{Name: "s", User: "{{.Context.Nothing}}"})}},
	}).Enriched().To("a")
	_, err := b.Build()
	if err == nil {
		t.Fatal("built")
	}
	for _, want := range []string{"set MaxEntries", "TTL -1ns", "summary: MaxTokens", "Nothing"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("no word of %q in\n%v", want, err)
		}
	}
}

// What asks no model needs no money; a summary that a budget does not cover is left
// out, and nothing waits for it.
func TestContextWithinBudgets(t *testing.T) {
	t.Parallel()
	m := answers("m", goodAnswer)
	d := newDesk(t, enrich{Model: m, MaxTokens: 50})
	d.pipe("a", "help")
	d.run()
	worst, err := testPrices.Worst(m.id, m.asked[0], time.Now())
	if err != nil {
		t.Fatal(err)
	}
	budget := func(scope processors.BudgetScope) []topology.Budget[string, ticket] { // for one call of 300
		return []topology.Budget[string, ticket]{{Name: "all", Scope: scope, Money: worst.Money + 290, Window: 24 * time.Hour}}
	}
	d = newDesk(t, enrich{Model: m, Prices: testPrices, MaxTokens: 50, Cache: &topology.Cache{MaxEntries: 10}, Budgets: budget(processors.BudgetApp), Conversation: &topology.Conversation{}})
	d.pipe("a", "help")
	d.run()
	d.pipe("b", "other") // for which nothing is left
	d.pipe("c", "help")
	d.control("d", processors.ResetConversation())
	if n := len(d.Calls()); n != 2 {
		t.Fatalf("%d calls, want those of the cached answer and the control record", n)
	}
	d.run()
	if got := cacheHits(d.RawOutput("triaged")); !slices.Equal(got, []string{"no", "yes"}) {
		t.Errorf("hits %v", got)
	}

	m = summing(func(int) (string, error) { return "in short", nil })
	d = newDesk(t, enrich{Model: m, Prices: testPrices, MaxTokens: 50, Budgets: budget(processors.BudgetKey), Conversation: &topology.Conversation{MaxTurns: 2, Summary: &topology.Summary{}}})
	d.pipe("a", "one")
	d.pipe("a", "two")
	d.run()
	d.Advance(24 * time.Hour)
	d.run()
	if talk := d.talk("a"); len(m.asked) != 2 || offsets(talk.Turns) != "1" || talk.Dropped != 2 {
		t.Errorf("asked %d times, conversation %v", len(m.asked), talk)
	}
	if drops := d.Drops(); len(drops) != 1 || drops[0].Reason != "summary-failed" {
		t.Errorf("drops %v", drops)
	}

	d = newDesk(t, enrich{Model: m, Prices: testPrices, MaxTokens: 50, Conversation: &topology.Conversation{MaxTurns: 2, Summary: &topology.Summary{MaxTokens: 60}}, Budgets: []topology.Budget[string, ticket]{
		{Name: "all", Scope: processors.BudgetKey, Money: 10_000, Window: 24 * time.Hour},
	}})
	m.asked = nil
	d.pipe("a", "one")
	d.pipe("a", "two")
	d.run()
	if s := d.talk("a").GetSummary(); s.GetTurns() != 4 || len(m.asked) != 3 {
		t.Errorf("summary %v, asked %d times", s, len(m.asked))
	}
	spending := topologytest.KeyValue(d.Driver, "triage-all-spending", serde.String(), serde.Proto[*millracev1.Spending]())
	if row, _ := spending.Get("a"); row.GetSpentMicros() != 900 || row.GetReservedMicros() != 0 {
		t.Errorf("spent %v, want that of three calls", row)
	}
}
