package topology_test

import (
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/millrace/millrace/llm"
	"github.com/millrace/millrace/processors"
	millracev1 "github.com/millrace/millrace/proto/millrace/v1"
	"github.com/millrace/millrace/serde"
	"github.com/millrace/millrace/topology"
	"github.com/millrace/millrace/topologytest"
)

// Budgets without a limit keep accounts: what every key, tenant, topic and version of a
// prompt has cost is what the headers of its records add up to, re-asks included.
func TestAccounts(t *testing.T) {
	t.Parallel()
	m := answers("m", goodAnswer, `{"urgency":7}`, goodAnswer, goodAnswer)
	k := newBank(t, enrich{Model: m}, nil,
		limits{Name: "keys", Scope: processors.BudgetKey, Money: llm.NoLimit},
		limits{Name: "tenants", Scope: processors.BudgetTenant, Tenant: byTenant, Money: llm.NoLimit},
		limits{Name: "topics", Scope: processors.BudgetTopic, Money: llm.NoLimit, Window: 24 * time.Hour},
		limits{Name: "prompts", Scope: processors.BudgetPrompt, Money: llm.NoLimit})
	for _, e := range [][3]string{{"tickets", "a", "x"}, {"tickets", "b", "x"}, {"mails", "a", "y"}} {
		k.event(e[0], e[1], e[2])
		k.run()
	}
	perKey := map[string]int64{}
	for _, r := range k.RawOutput("triaged") {
		cost, err := strconv.ParseInt(headersOf(r)[processors.CostHeader], 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		perKey[string(r.Key)] += cost
	}
	if perKey["a"] != 2*callCost || perKey["b"] != 2*callCost { // the answer for b was asked for twice
		t.Errorf("headers say %v", perKey)
	}
	for _, row := range []struct {
		budget, of string
		want       int64
	}{
		{"keys", "a", perKey["a"]},
		{"keys", "b", perKey["b"]},
		{"tenants", "x", 3 * callCost},
		{"tenants", "y", callCost},
		{"topics", "tickets", 3 * callCost},
		{"topics", "mails", callCost},
		{"prompts", triagePrompt.Name() + "/" + triagePrompt.Version(), 4 * callCost},
	} {
		if s := k.spending(row.budget, row.of); s.TotalMicros != row.want || s.TotalTokens == 0 || s.ReservedMicros != 0 {
			t.Errorf("%s of %s: %v, want %d", row.budget, row.of, s, row.want)
		}
	}
	if slices.ContainsFunc(k.told, func(s processors.BudgetStatus) bool { return s.Exhausted }) {
		t.Error("accounts were exhausted")
	}
}

// rows returns the keys of a budget's rows.
func (k *bank) rows(budget string) (keys []string) {
	k.t.Helper()
	for _, r := range topologytest.KeyValue(k.Driver, "triage-"+budget+"-spending", serde.String(), serde.Proto[*millracev1.Spending]()).Rows() {
		keys = append(keys, r.Key)
	}
	return keys
}

// What was spent in old windows is deleted after its last change, not after its first,
// also after restarts, and never within its window.
func TestSpendingExpires(t *testing.T) {
	t.Parallel()
	hour := limits{Name: "hour", Scope: processors.BudgetTenant, Tenant: byTenant, Money: llm.Dollars(1), Window: time.Hour, Keep: 2 * time.Hour}
	k := newBank(t, enrich{Model: answers("m", goodAnswer)}, nil, hour)
	k.event("tickets", "a", "x")
	k.event("tickets", "b", "y")
	k.run()
	k.Advance(90 * time.Minute)
	k.event("tickets", "b", "y")
	k.run()
	k.Restart()
	k.Advance(40 * time.Minute)
	if rows := k.rows("hour"); !slices.Equal(rows, []string{"y"}) || k.StoreSizes()["triage-hour-spending"].Rows != 1 {
		t.Errorf("after x expired: %v, %v", rows, k.StoreSizes())
	}
	if s := k.spending("hour", "y"); s.TotalMicros != 2*callCost {
		t.Errorf("of y: %v", s)
	}
	k.event("tickets", "c", "z") // its call is out when its row expires
	k.Advance(3 * time.Hour)
	if rows := k.rows("hour"); len(rows) != 0 {
		t.Errorf("after all expired: %v", rows)
	}
	k.run()
	if s := k.spending("hour", "z"); s.TotalMicros != callCost || s.SpentMicros != 0 || s.ReservedMicros != 0 {
		t.Errorf("of a call that was out meanwhile: %v", s)
	}
}

// Rows of a time when a budget kept them for ever are not taken for expired, and expire
// after their next change.
func TestSpendingOfBefore(t *testing.T) {
	t.Parallel()
	ever := limits{Name: "ever", Scope: processors.BudgetTenant, Tenant: byTenant, Money: llm.Dollars(1)}
	k := newBank(t, enrich{Model: answers("m", goodAnswer)}, nil, ever)
	k.event("tickets", "a", "x")
	k.run()
	k.Advance(40 * 24 * time.Hour)
	k.spent("ever", "x", callCost, 0)
	ever.Window = time.Hour
	k.RestartWith(k.build(ever))
	k.event("tickets", "a", "x")
	k.run()
	if s := k.spending("ever", "x"); s.TotalMicros != 2*callCost || s.SpentMicros != callCost {
		t.Errorf("in the first window: %v", s)
	}
	k.Advance(29 * 24 * time.Hour)
	if rows := k.rows("ever"); len(rows) != 1 {
		t.Errorf("after 29 days: %v", rows)
	}
	k.Advance(24*time.Hour + time.Minute)
	if rows := k.rows("ever"); len(rows) != 0 {
		t.Errorf("after 30 days: %v", rows)
	}
}

func TestSpendingMistakes(t *testing.T) {
	t.Parallel()
	b := topology.New("app")
	s := topology.Stream(b, "tickets", serde.String(), serde.Proto[ticket]())
	topology.Enrich(s, "triage", enrich{Model: answers("m", ""), Prompt: triagePrompt, MaxTokens: 5, Budgets: []limits{
		{Name: "short", Tokens: 1e6, Window: time.Hour, Keep: time.Minute}, {Name: "ever", Tokens: 1e6, Keep: time.Minute}, {Name: "negative", Tokens: 1e6, Window: time.Hour, Keep: -1},
	}}).Enriched().To("out")
	_, err := b.Build()
	if err == nil {
		t.Fatal("built")
	}
	for _, want := range []string{`"short": it would Keep its rows for 1m0s: that needs a Window, which is 1h0m0s`, `"ever": it would Keep`, `"negative": it would Keep`} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("no word of %q in\n%v", want, err)
		}
	}
}
