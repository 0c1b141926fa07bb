package topology_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	supportv1 "github.com/millrace/millrace/examples/support/proto/support/v1"
	"github.com/millrace/millrace/llm"
	"github.com/millrace/millrace/processors"
	millracev1 "github.com/millrace/millrace/proto/millrace/v1"
	"github.com/millrace/millrace/serde"
	"github.com/millrace/millrace/topology"
	"github.com/millrace/millrace/topologytest"
)

type limits = topology.Budget[string, ticket]

// callCost is what an answer of [fakeModel] costs with testPrices.
const callCost = 300

// bank is a topology of one enrichment with budgets, driven. Its events are of the
// topics tickets and mails, and all of the same size.
type bank struct {
	*desk
	build func(...limits) *topology.Builder
	told  []processors.BudgetStatus

	results int
}

func newBank(t *testing.T, e enrich, opts []topologytest.Option, budgets ...limits) *bank {
	t.Helper()
	k := &bank{desk: &desk{t: t}}
	e.Prompt, e.MaxTokens = triagePrompt, 50
	if e.Prices == nil {
		e.Prices = testPrices
	}
	e.OnBudget = func(s processors.BudgetStatus) { k.told = append(k.told, s) }
	k.build = func(budgets ...limits) *topology.Builder {
		e.Budgets = budgets
		b := topology.New("app")
		one := serde.Proto[ticket]()
		s := topology.Stream(b, "tickets", serde.String(), one).Merge(topology.Stream(b, "mails", serde.String(), one))
		res := topology.Enrich(s, "triage", e, topology.Retries(0, 0, 0))
		res.Enriched().To("triaged")
		if slices.ContainsFunc(budgets, func(b limits) bool { return b.AtLimit == processors.BudgetFallback }) {
			res.Fallbacks().To("untriaged")
		}
		return b
	}
	k.Driver = topologytest.New(t, k.build(budgets...), opts...)
	return k
}

// event pipes an event of a tenant.
func (k *bank) event(topic, key, tenant string) {
	k.n++
	topologytest.Input(k.Driver, topic, serde.String(), serde.Proto[ticket]()).Pipe(key, &supportv1.Ticket{Subject: tenant, Text: "help"}, k.n)
}

func (k *bank) calls(want int, when string) {
	k.t.Helper()
	if n := len(k.Calls()); n != want {
		k.t.Fatalf("%s: %d calls are out, want %d", when, n, want)
	}
}

// spending adds up the rows of a budget with one key over all partitions.
func (k *bank) spending(budget, of string) *millracev1.Spending {
	k.t.Helper()
	sum := &millracev1.Spending{}
	rows := topologytest.KeyValue(k.Driver, "triage-"+budget+"-spending", serde.String(), serde.Proto[*millracev1.Spending]()).Rows()
	for _, r := range rows {
		if r.Key == of {
			sum.SpentMicros += r.Value.SpentMicros
			sum.ReservedMicros += r.Value.ReservedMicros
			sum.SpentTokens += r.Value.SpentTokens
			sum.ReservedTokens += r.Value.ReservedTokens
			sum.TotalMicros += r.Value.TotalMicros
			sum.TotalTokens += r.Value.TotalTokens
		}
	}
	return sum
}

func (k *bank) spent(budget, of string, spent, reserved int64) {
	k.t.Helper()
	if s := k.spending(budget, of); s.SpentMicros != spent || s.ReservedMicros != reserved {
		k.t.Fatalf("budget %s of %s has %d spent and %d reserved, want %d and %d", budget, of, s.SpentMicros, s.ReservedMicros, spent, reserved)
	}
}

// ended counts the records written to a topic.
func (k *bank) ended(topic string) int {
	k.results += len(k.RawOutput(topic))
	return k.results
}

func byTenant(_ string, t ticket) string { return t.GetSubject() }

// worstCall is what the call of an event of a bank may cost.
func worstCall(t *testing.T) (micros llm.Micros, tokens int64) {
	t.Helper()
	k := newBank(t, enrich{Model: answers("m", goodAnswer)}, nil, limits{Name: "all", Money: llm.Dollars(1)})
	k.event("tickets", "a", "x")
	s := k.spending("all", "app")
	if s.ReservedMicros <= callCost || s.ReservedTokens <= 120 {
		t.Fatalf("reserved %v", s)
	}
	return llm.Micros(s.ReservedMicros), s.ReservedTokens
}

// Each scope bounds its own, and only that: while one call of it has all of the budget
// reserved, others of it wait, and those of another go on.
func TestBudgetScopes(t *testing.T) {
	t.Parallel()
	worst, tokens := worstCall(t)
	for _, tc := range []struct {
		scope        processors.BudgetScope
		mine, others [3]string // topic, key, tenant
		of           string
		out          int // calls while one of mine waits, with one of others
	}{
		{processors.BudgetApp, [3]string{"tickets", "b", "x"}, [3]string{"mails", "c", "y"}, "app", 1},
		{processors.BudgetTopic, [3]string{"tickets", "b", "x"}, [3]string{"mails", "c", "x"}, "tickets", 2},
		{processors.BudgetTenant, [3]string{"mails", "b", "x"}, [3]string{"tickets", "c", "y"}, "x", 2},
		{processors.BudgetPrompt, [3]string{"mails", "b", "x"}, [3]string{"tickets", "c", "y"}, "triage/" + triagePrompt.Version(), 1},
		{processors.BudgetKey, [3]string{"mails", "a", "x"}, [3]string{"tickets", "c", "x"}, "a", 2},
	} {
		for _, by := range []limits{{Money: worst}, {Tokens: tokens}} {
			t.Run(fmt.Sprint(tc.scope, by.Money > 0), func(t *testing.T) {
				t.Parallel()
				by.Name, by.Scope, by.Window = "b", tc.scope, time.Hour
				if tc.scope == processors.BudgetTenant {
					by.Tenant = byTenant
				}
				k := newBank(t, enrich{Model: answers("m", goodAnswer)}, nil, by)
				k.event("tickets", "a", "x")
				k.event(tc.mine[0], tc.mine[1], tc.mine[2])
				k.event(tc.others[0], tc.others[1], tc.others[2])
				k.calls(tc.out, "at first")
				k.spent("b", tc.of, 0, int64(worst))
				k.run()
				// What is left does not cover a second one.
				k.spent("b", tc.of, callCost, 0)
				if n := len(k.RawOutput("triaged")); n != tc.out {
					t.Errorf("%d are enriched, want %d", n, tc.out)
				}
				k.Advance(time.Hour)
				k.calls(1, "in the next window")
				k.run()
				if s := k.spending("b", tc.of); s.SpentMicros != callCost || s.TotalMicros != 2*callCost || s.TotalTokens != 240 {
					t.Errorf("in the next window: %v", s)
				}
			})
		}
	}
}

// At the limit events wait in the order in which they came, until calls give back what
// they did not use, or the window ends.
func TestBudgetStops(t *testing.T) {
	t.Parallel()
	worst, _ := worstCall(t)
	k := newBank(t, enrich{Model: answers("m", goodAnswer)}, nil, limits{Name: "day", Money: worst + callCost, Window: 24 * time.Hour})
	for i := range 5 {
		k.event("tickets", fmt.Sprint("k", i), "x")
	}
	k.calls(1, "at first")
	k.Calls()[0].Run()
	k.calls(1, "after the first gave back") // worst is left
	k.spent("day", "app", callCost, int64(worst))
	k.Calls()[0].Run()
	k.calls(0, "when the limit is reached")
	k.event("tickets", "late", "x")
	k.Advance(24*time.Hour - time.Millisecond)
	k.calls(0, "at the end of the day")
	k.Advance(time.Millisecond)
	k.calls(1, "at midnight")
	k.run()
	k.Advance(24 * time.Hour)
	k.run()
	k.calls(0, "at the end")
	var keys []string
	for _, r := range k.RawOutput("triaged") {
		keys = append(keys, string(r.Key))
	}
	if got := strings.Join(keys, " "); got != "k0 k1 k2 k3 k4 late" || len(k.DeadLetters()) > 0 {
		t.Errorf("enriched %s, dead letters %d", got, len(k.DeadLetters()))
	}
	exhausted := slices.IndexFunc(k.told, func(s processors.BudgetStatus) bool { return s.Exhausted })
	if exhausted < 0 {
		t.Fatal("nobody was told that the budget is exhausted")
	}
	s := k.told[exhausted]
	if s.Step != "triage" || s.Budget != "day" || s.Of != "app" || s.State.Limit.Money != worst+callCost || s.State.Reserved.Money == 0 {
		t.Errorf("told %+v", s)
	}
}

// One that needs much is not passed for ever by those that need little.
func TestBudgetIsFair(t *testing.T) {
	t.Parallel()
	worst, _ := worstCall(t)
	k := newBank(t, enrich{Model: answers("m", goodAnswer)}, nil, limits{Name: "day", Money: worst + 600, Window: 24 * time.Hour})
	k.event("tickets", "first", "x")
	k.n++
	in := topologytest.Input(k.Driver, "tickets", serde.String(), serde.Proto[ticket]())
	in.Pipe("large", &supportv1.Ticket{Subject: "x", Text: strings.Repeat("help", 50)}, k.n)
	k.event("tickets", "small", "x")
	k.calls(1, "at first")
	k.Calls()[0].Run()
	if c := k.Calls(); len(c) != 1 || c[0].Entry != "triage/tickets/0/1/0" {
		t.Fatalf("asked %v, want the large one", c)
	}
}

func TestBudgetFallsBack(t *testing.T) {
	t.Parallel()
	worst, _ := worstCall(t)
	k := newBank(t, enrich{Model: answers("m", goodAnswer)}, nil, limits{Name: "day", Money: worst, Window: 24 * time.Hour, AtLimit: processors.BudgetFallback})
	k.event("tickets", "a", "x")
	k.event("tickets", "b", "x")
	k.run()
	r := one(t, k.RawOutput("untriaged"))
	wantHeaders(t, r, headers{processors.FallbackHeader: "over-budget", processors.StatusHeader: "fallback", processors.AttemptsHeader: "0"})
	if string(r.Key) != "b" || len(k.RawOutput("triaged")) != 1 || len(k.DeadLetters()) > 0 {
		t.Errorf("%s is a fallback", r.Key)
	}
	k.spent("day", "app", callCost, 0)
}

func TestBudgetAsksACheaperModel(t *testing.T) {
	t.Parallel()
	prices, err := llm.LoadPrices(strings.NewReader(`{"models": {"openai/big": [{"from": "2000-01-01", "input": 100, "output": 100}], "openai/*": [{"from": "2000-01-01", "input": 1, "output": 10}]}}`))
	if err != nil {
		t.Fatal(err)
	}
	worst, _ := worstCall(t)
	big, other, small := answers("big", goodAnswer), answers("other", goodAnswer), answers("small", badAnswer, goodAnswer)
	e := enrich{Model: big, Prices: prices, Fallbacks: []llm.Link{{Model: other}, {Model: small, For: []llm.Class{llm.OverBudget}}}}
	// Big covers nothing; small covers one call and its re-ask, and not a second one.
	k := newBank(t, e, nil, limits{Name: "day", Money: 2*worst + 1000, Window: 24 * time.Hour, AtLimit: processors.BudgetCheaper})
	k.event("tickets", "a", "x")
	k.event("tickets", "b", "x")
	k.event("tickets", "c", "x")
	k.calls(2, "at first")
	k.Calls()[0].Run()
	k.run()
	for _, r := range k.RawOutput("triaged") {
		wantHeaders(t, r, headers{processors.ModelHeader: "openai/small"})
	}
	if len(big.asked) > 0 || len(other.asked) > 0 || len(small.asked) < 3 {
		t.Errorf("asked big %d times, other %d, small %d", len(big.asked), len(other.asked), len(small.asked))
	}
}

// What is reserved and spent is restored; a call whose owner died stays spent, and is
// reserved anew; a new limit counts at once.
func TestBudgetSurvivesRestart(t *testing.T) {
	t.Parallel()
	worst, _ := worstCall(t)
	day := limits{Name: "day", Money: 2*worst + callCost, Window: 24 * time.Hour}
	k := newBank(t, enrich{Model: answers("m", goodAnswer)}, nil, day)
	k.event("tickets", "a", "x")
	k.Calls()[0].Run()
	k.event("tickets", "b", "x")
	k.spent("day", "app", callCost, int64(worst))
	k.Restart()
	k.spent("day", "app", callCost, int64(worst))
	k.Advance(time.Second)
	k.calls(1, "after a crash")
	k.spent("day", "app", callCost+int64(worst), int64(worst))
	k.Restart()
	k.Advance(time.Second)
	k.calls(0, "after a second crash, with nothing left")
	day.Money += worst
	k.RestartWith(k.build(day))
	k.Advance(time.Second)
	k.calls(1, "after the limit was raised")
	k.run()
	k.spent("day", "app", 2*callCost+2*int64(worst), 0)
	if n := len(k.RawOutput("triaged")); n != 2 {
		t.Errorf("%d are enriched, want 2", n)
	}
}

// A call that was given up before it asked a model gives back what it had reserved.
func TestBudgetOfAReleasedCall(t *testing.T) {
	t.Parallel()
	worst, _ := worstCall(t)
	k := newBank(t, enrich{Model: answers("m", goodAnswer)}, nil, limits{Name: "day", Money: worst})
	k.event("tickets", "a", "x")
	k.Calls()[0].Release()
	k.calls(1, "after the release")
	k.spent("day", "app", 0, int64(worst))
	k.Calls()[0].NoSlot()
	k.spent("day", "app", 0, 0)
}

// A re-ask reserves anew, and its answer and all before it are spent.
func TestBudgetOfRounds(t *testing.T) {
	t.Parallel()
	worst, _ := worstCall(t)
	k := newBank(t, enrich{Model: answers("m", badAnswer, goodAnswer)}, nil, limits{Name: "day", Money: worst + 100, Window: 24 * time.Hour})
	k.event("tickets", "a", "x")
	k.run() // the re-ask is longer than the first question: no window covers it
	wantHeaders(t, one(t, k.DeadLetters()), headers{"millrace.class": "over_budget", processors.AttemptsHeader: "1", processors.AnswerHeader: badAnswer})
	if raw := k.RawOutput("app.triage.raw"); len(raw) != 1 {
		t.Errorf("the refused answer is kept %d times", len(raw))
	}

	k = newBank(t, enrich{Model: answers("m", badAnswer, goodAnswer)}, nil, limits{Name: "day", Money: 2 * worst, Window: 24 * time.Hour})
	k.event("tickets", "a", "x")
	k.Calls()[0].Run()
	k.calls(1, "in the second round")
	if s := k.spending("day", "app"); s.SpentMicros != callCost || s.ReservedMicros <= int64(worst) {
		t.Errorf("in the second round: %v", s)
	}
	k.run()
	k.spent("day", "app", 2*callCost, 0)
}

// A call that its reservation does not cover to the end makes a round that reserves
// anew; it is no failure.
func TestBudgetOfAttempts(t *testing.T) {
	t.Parallel()
	worst, _ := worstCall(t)
	m := answers("m", goodAnswer)
	answer := m.answer
	m.answer = func(ctx context.Context, req *llm.Request) (string, error) {
		if len(m.asked) == 1 { // it may have been paid
			return "", &llm.Error{Class: llm.Timeout, Model: m.id, Err: errors.New("scripted")}
		}
		return answer(ctx, req)
	}
	b := topology.New("app")
	s := topology.Stream(b, "tickets", serde.String(), serde.Proto[ticket]())
	topology.Enrich(s, "triage", enrich{
		Model: m, Prompt: triagePrompt, MaxTokens: 50, Prices: testPrices,
		Budgets: []limits{{Name: "day", Money: worst + 10, Window: 24 * time.Hour}},
	}, topology.Retries(3, 0, 0)).Enriched().To("triaged")
	k := &bank{desk: &desk{t: t, Driver: topologytest.New(t, b)}}
	k.event("tickets", "a", "x")
	k.spent("day", "app", 0, int64(worst)+10) // of four attempts, what there is
	k.Calls()[0].Run()
	k.spent("day", "app", int64(worst), 0)
	k.calls(0, "with nothing left for the second attempt")
	k.Advance(24 * time.Hour)
	k.calls(1, "the next day")
	k.run()
	wantHeaders(t, one(t, k.RawOutput("triaged")), headers{processors.AttemptsHeader: "2", processors.StatusHeader: "ok"})
	if raw := k.RawOutput("app.triage.raw"); len(raw) > 0 {
		t.Errorf("%d refused answers", len(raw))
	}
	k.spent("day", "app", callCost, 0)
}

// Events without a key are not bounded by a budget of keys.
func TestBudgetOfNoKey(t *testing.T) {
	t.Parallel()
	worst, _ := worstCall(t)
	k := newBank(t, enrich{Model: answers("m", goodAnswer)}, nil, limits{Name: "key", Scope: processors.BudgetKey, Money: worst})
	in := topologytest.Input(k.Driver, "tickets", serde.String(), serde.Proto[ticket]())
	for range 3 {
		in.PipeRecord(processors.Record[string, ticket]{NoKey: true, Value: &supportv1.Ticket{Subject: "x", Text: "help"}, Timestamp: 1})
	}
	k.calls(3, "without keys")
	k.run()
	if n := len(k.RawOutput("triaged")); n != 3 {
		t.Errorf("%d are enriched, want 3", n)
	}
}

// Wide budgets are split by partition, those of the application by step too.
func TestBudgetIsSplit(t *testing.T) {
	t.Parallel()
	worst, _ := worstCall(t)
	limit := 3*worst + worst/2
	b := topology.New("app")
	s := topology.Stream(b, "tickets", serde.String(), serde.Proto[ticket]())
	shares := map[string]llm.Micros{}
	for _, step := range []string{"one", "two"} {
		topology.Enrich(s, step, enrich{
			Model: answers("m", goodAnswer), Prompt: triagePrompt, MaxTokens: 50, Prices: testPrices, Budgets: []limits{{Name: "all", Money: limit}},
			OnBudget: func(s processors.BudgetStatus) { shares[fmt.Sprint(s.Step, s.Partition)] = s.State.Limit.Money },
		}, topology.Retries(0, 0, 0)).Enriched().To(step + "-out")
	}
	d := topologytest.New(t, b, topologytest.Partitions(3))
	in := topologytest.Input(d, "tickets", serde.String(), serde.Proto[ticket]())
	for i := range 30 {
		in.Pipe(fmt.Sprint("k", i), &supportv1.Ticket{Subject: "x", Text: "help"}, 1)
	}
	sum := llm.Micros(0)
	for _, m := range shares {
		sum += m
	}
	if len(shares) != 6 || sum != limit {
		t.Errorf("shares %v add up to %s, want %s", shares, sum, limit)
	}
}

// TestBudgetNeverOverspends plays random events, answers, failures, crashes and days:
// in no window is more paid than the limit, and all events end at last.
func TestBudgetNeverOverspends(t *testing.T) {
	t.Parallel()
	worst, _ := worstCall(t)
	for seed := range uint64(25) {
		rnd := rand.New(rand.NewPCG(seed, 11))
		m := &fakeModel{id: llm.ID{Provider: "openai", Model: "m"}}
		m.answer = func(context.Context, *llm.Request) (string, error) {
			switch rnd.IntN(4) {
			case 0:
				return badAnswer, nil
			case 1:
				return "", &llm.Error{Class: llm.Unavailable, Model: m.id, Err: errors.New("scripted")}
			}
			return goodAnswer, nil
		}
		limit := worst*llm.Micros(3+rnd.IntN(6)) + llm.Micros(rnd.IntN(1000))
		k := newBank(t, enrich{Model: m}, []topologytest.Option{topologytest.Partitions(2)},
			limits{Name: "tenant", Scope: processors.BudgetTenant, Tenant: byTenant, Money: limit, Window: time.Hour},
			limits{Name: "key", Scope: processors.BudgetKey, Money: 2*worst + 500, Window: time.Hour})
		events := 0
		check := func() {
			for _, tenant := range []string{"x", "y"} {
				if s := k.spending("tenant", tenant); s.SpentMicros+s.ReservedMicros > int64(limit) {
					t.Fatalf("seed %d: tenant %s has %v of %s", seed, tenant, s, limit)
				}
			}
		}
		for range 120 {
			switch calls := k.Calls(); {
			case rnd.IntN(3) == 0:
				events++
				k.event([]string{"tickets", "mails"}[rnd.IntN(2)], fmt.Sprint("k", rnd.IntN(8)), []string{"x", "y"}[rnd.IntN(2)])
			case rnd.IntN(12) == 0:
				k.Advance(time.Duration(rnd.IntN(60)) * time.Minute)
			case rnd.IntN(20) == 0:
				k.Restart()
				k.Advance(time.Second)
			case len(calls) > 0 && rnd.IntN(8) == 0:
				calls[rnd.IntN(len(calls))].Release()
			case len(calls) > 0:
				calls[rnd.IntN(len(calls))].Run()
			}
			check()
		}
		ended := 0
		for hour := 0; hour < 200 && ended < events; hour++ {
			k.run()
			k.Advance(time.Hour)
			check()
			ended = k.ended("triaged") + len(k.DeadLetters())
		}
		if ended != events {
			t.Errorf("seed %d: %d of %d events have ended", seed, ended, events)
		}
	}
}

func TestBudgetMistakes(t *testing.T) {
	t.Parallel()
	unpriced, err := llm.LoadPrices(strings.NewReader(`{"models": {"openai/m": [{"from": "2000-01-01", "input": 1, "output": 1}]}}`))
	if err != nil {
		t.Fatal(err)
	}
	b := topology.New("app")
	s := topology.Stream(b, "tickets", serde.String(), serde.Proto[ticket]())
	n := 0
	add := func(e enrich, budgets ...limits) {
		n++
		e.Prompt, e.Budgets = triagePrompt, budgets
		topology.Enrich(s, fmt.Sprint("step", n), e).Enriched().To(fmt.Sprint("out", n))
	}
	add(enrich{Model: answers("m", ""), MaxTokens: 5, Prices: unpriced, Fallbacks: []llm.Link{{Model: answers("dear", "")}}}, limits{Name: "unpriced", Money: 1})
	add(enrich{Model: answers("m", ""), MaxTokens: 5}, limits{Name: "no-table", Money: 1})
	add(enrich{Model: answers("m", "")}, limits{Name: "endless", Tokens: 1})
	add(enrich{Model: answers("m", ""), MaxTokens: 5}, limits{Name: "nothing"}, limits{Name: "short", Tokens: 1, Window: 1}, limits{Name: "nobody", Tokens: 1, Scope: processors.BudgetTenant},
		limits{Name: "cheap", Tokens: 1, AtLimit: processors.BudgetCheaper}, limits{Name: "what", Tokens: 1, Scope: 99}, limits{Tokens: 1}, limits{Name: "shared", Tokens: 1})
	add(enrich{Model: answers("m", ""), MaxTokens: 5}, limits{Name: "shared", Tokens: 2})
	_, err = b.Build()
	if err == nil {
		t.Fatal("built")
	}
	for _, want := range []string{
		`"unpriced": llm: no price of "openai/dear"`, `"no-table": llm: no price of "openai/m"`, `"endless": the enrichment has no MaxTokens`,
		`"nothing": Money 0, Tokens 0`, `"short": the Window of 1ns`, `"nobody": Tenant`, `"cheap": AtLimit is BudgetCheaper`, `"what": Scope`, `"":`, `"shared": another step has 1 tokens`,
	} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("no word of %q in\n%v", want, err)
		}
	}
}

// A share that covers no answer is refused when the task starts.
func TestBudgetTooSmall(t *testing.T) {
	t.Parallel()
	f := &failed{TB: t}
	func() {
		defer func() { _ = recover() }()
		b := topology.New("app")
		s := topology.Stream(b, "tickets", serde.String(), serde.Proto[ticket]())
		topology.Enrich(s, "triage", enrich{Model: answers("m", goodAnswer), Prompt: triagePrompt, MaxTokens: 50, Prices: testPrices, Budgets: []limits{{Name: "day", Money: 900}}}).Enriched().To("out")
		topologytest.New(f, b, topologytest.Partitions(2))
	}()
	if !strings.Contains(f.text, `budget "day" has $0.000450 for partition 0`) || !strings.Contains(f.text, "raise the limit") {
		t.Errorf("got %q", f.text)
	}
}

// failed keeps what ended a test.
type failed struct {
	testing.TB
	text string
}

func (f *failed) Fatalf(format string, args ...any) {
	f.text = fmt.Sprintf(format, args...)
	panic(f.text)
}

// A function that panics fails the call, and the stores are there for views.
func TestBudgetStores(t *testing.T) {
	t.Parallel()
	b := topology.New("app")
	s := topology.Stream(b, "tickets", serde.String(), serde.Proto[ticket]())
	res := topology.Enrich(s, "triage", enrich{
		Model: answers("m", goodAnswer), Prompt: triagePrompt, MaxTokens: 50,
		Budgets: []limits{
			{Name: "key", Scope: processors.BudgetKey, Tokens: 1e6},
			{Name: "tenant", Scope: processors.BudgetTenant, Tokens: 1e6, Tenant: func(string, ticket) string { panic("who?") }},
		},
	})
	res.Enriched().To("out")
	if k, n := res.Spending("key"), res.SpendingBy("tenant"); k == nil || n == nil || k.StoreSpec().Name != "triage-key-spending" || n.StoreSpec().Name != "triage-tenant-spending" {
		t.Errorf("stores %v, %v", k, n)
	}
	if res.Spending("tenant") != nil || res.SpendingBy("key") != nil {
		t.Error("a store of another type")
	}
	d := topologytest.New(t, b)
	topologytest.Input(d, "tickets", serde.String(), serde.Proto[ticket]()).Pipe("a", &supportv1.Ticket{Subject: "x"}, 1)
	for len(d.Calls()) > 0 {
		d.Calls()[0].Run()
	}
	if h := headersOf(one(t, d.DeadLetters())); !strings.Contains(h["millrace.message"], "who?") {
		t.Errorf("headers %v", slices.Collect(maps.Values(h)))
	}
}
