package engine_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"google.golang.org/protobuf/proto"

	supportv1 "github.com/millrace/millrace/examples/support/proto/support/v1"
	"github.com/millrace/millrace/internal/checker"
	"github.com/millrace/millrace/llm"
	"github.com/millrace/millrace/llm/limit"
	"github.com/millrace/millrace/llm/prompt"
	"github.com/millrace/millrace/processors"
	"github.com/millrace/millrace/serde"
	"github.com/millrace/millrace/topology"
)

// dearModel takes half a second and uses as many tokens as a request can use at most. It
// may have a limit of requests a second, and then refuses what exceeds it.
type dearModel struct {
	perSecond float64

	mu                sync.Mutex
	level             float64
	last              time.Time
	running, most     int
	answered, refused int
	paid              int64 // micros, a token costs one
}

var dearID = llm.ID{Provider: "openai", Model: "dear"}

func (*dearModel) ID() llm.ID { return dearID }

func (m *dearModel) Generate(ctx context.Context, req *llm.Request) (*llm.Response, error) {
	if err := m.enter(); err != nil {
		return nil, err
	}
	select {
	case <-time.After(500 * time.Millisecond):
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	u := llm.Usage{Input: int64(req.Bytes() + 16*(len(req.Messages)+1)), Output: int64(req.MaxTokens)}
	m.paid += u.Input + u.Output
	m.running--
	m.answered++
	return &llm.Response{Text: `{"evidence":"e","urgency":"URGENCY_LOW","summary":"s"}`, Finish: llm.FinishStop, Usage: u}, nil
}

func (m *dearModel) enter() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.perSecond > 0 {
		now := time.Now()
		if !m.last.IsZero() {
			m.level = min(m.level+m.perSecond*now.Sub(m.last).Seconds(), 5*m.perSecond)
		}
		if m.last = now; m.level < 1 {
			m.refused++
			return &llm.Error{Class: llm.Throttled, Model: dearID, Status: 429, RetryAfter: 2 * time.Second, Err: errors.New("slow down")}
		}
		m.level--
	}
	m.running++
	m.most = max(m.most, m.running)
	return nil
}

// bill describes a step with model calls and limits.
func bill(m llm.Model, l llm.Limiter, budgets ...topology.Budget[string, *supportv1.Ticket]) *topology.Builder {
	prices, err := llm.LoadPrices(strings.NewReader(`{"models": {"openai/dear": [{"from": "1999-01-01", "input": 1, "output": 1}]}}`))
	if err != nil {
		panic(err)
	}
	b := topology.New("app")
	s := topology.Stream(b, "bills", serde.String(), serde.Proto[*supportv1.Ticket]())
	topology.Enrich(s, "triage", topology.Enrichment[string, *supportv1.Ticket, *supportv1.Triage]{
		Model: m, Prompt: prompt.Must(prompt.Config{Name: "p", User: "{{.Event.Text}}"}),
		MaxTokens: 100, Prices: prices, Limiter: l, Budgets: budgets,
	}).Enriched().To("triaged")
	return b
}

// moneyRig has a topic of two partitions with so many events, each of its own key.
func moneyRig(t *testing.T, events int) *rig {
	r := newRig(t, "triaged")
	if err := r.CreateTopic("bills", 2, nil); err != nil {
		t.Fatal(err)
	}
	value, err := proto.Marshal(&supportv1.Ticket{Subject: "tenant", Text: "help"})
	if err != nil {
		t.Fatal(err)
	}
	var list []*kgo.Record
	for i := range events {
		list = append(list, &kgo.Record{Key: fmt.Append(nil, "k", i), Value: value, Partition: int32(i % 2)})
	}
	r.produce("bills", list...)
	return r
}

// dead counts the dead letters in all partitions.
func (r *rig) dead(topic string) int {
	r.t.Helper()
	logs, err := checker.Read(r.t.Context(), r.opts(), topic)
	if errors.Is(err, kerr.UnknownTopicOrPartition) {
		return 0
	}
	if err != nil {
		r.t.Fatal(err)
	}
	n := 0
	for _, recs := range logs[topic] {
		n += len(recs)
	}
	return n
}

// Two instances, two partitions, 64 calls at once and one tenant: what is paid never
// exceeds the budget, though every call costs all that it can, and comes close to it.
func TestBudgetOfTwoInstances(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := moneyRig(t, 400)
		defer r.close()
		const budget = 250_000
		m := &dearModel{}
		tenant := func() *topology.Builder {
			return bill(m, nil, topology.Budget[string, *supportv1.Ticket]{
				Name: "tenant", Scope: processors.BudgetTenant, Money: budget,
				Tenant: func(_ string, t *supportv1.Ticket) string { return t.GetSubject() },
			})
		}
		a, b := r.start(tenant(), vfs.NewMem()), r.start(tenant(), vfs.NewMem())
		a.running(1)
		b.running(1)
		r.pass(3 * time.Minute)
		m.mu.Lock()
		paid, answered, most := m.paid, m.answered, m.most
		m.mu.Unlock()
		if answered == 0 || paid > budget || paid < budget*9/10 {
			t.Errorf("%d answers cost %d, the budget is %d", answered, paid, budget)
		}
		if most < 16 {
			t.Errorf("at most %d calls ran at once", most)
		}
		if n := r.dead("app.triage.dlq"); n > 0 {
			t.Errorf("%d dead letters", n)
		}
		if n := r.dead("triaged"); n != answered {
			t.Errorf("%d are enriched, %d were answered", n, answered)
		}
		t.Logf("%d answers, %d at once, cost %d of %d", answered, most, paid, budget)
		// A change of owner changes nothing.
		b.stop()
		r.pass(2 * time.Minute)
		a.stop()
		if m.paid > budget {
			t.Errorf("%d is paid after a move, the budget is %d", m.paid, budget)
		}
	})
}

// A provider that takes a tenth of the load: no event is dead-lettered for it, and what
// it takes is used, by instances that share the limit and that know none.
func TestStormOfTwoInstances(t *testing.T) {
	t.Parallel()
	for name, rates := range map[string]map[llm.ID]limit.Rate{"known": {dearID: {Requests: 600}}, "unknown": nil} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				const perSecond, events = 10, 1200
				r := moneyRig(t, events)
				defer r.close()
				m := &dearModel{perSecond: perSecond}
				var apps []*app
				for range 2 {
					l, err := limit.New(rates)
					if err != nil {
						t.Fatal(err)
					}
					apps = append(apps, r.start(bill(m, l), vfs.NewMem()))
				}
				r.pass(20 * time.Second) // the second instance takes over its partition
				m.mu.Lock()
				before, began := m.answered, time.Now()
				m.mu.Unlock()
				for range 60 {
					r.pass(5 * time.Second)
					m.mu.Lock()
					n := m.answered
					m.mu.Unlock()
					if n >= events*9/10 { // while both have work
						break
					}
				}
				m.mu.Lock()
				goodput := float64(m.answered-before) / time.Since(began).Seconds() / perSecond
				refused := m.refused
				t.Logf("goodput %.3f, answered %d, refused %d", goodput, m.answered, refused)
				m.mu.Unlock()
				if rates != nil && refused > 50 {
					t.Errorf("%d requests were refused: the instances do not share the limit", refused)
				}
				if goodput < 0.95 {
					t.Errorf("goodput is %.3f of the limit", goodput)
				}
				for range 60 {
					if r.pass(5 * time.Second); r.dead("triaged") == events {
						break
					}
				}
				if n, dead := r.dead("triaged"), r.dead("app.triage.dlq"); n != events || dead > 0 {
					t.Errorf("%d of %d are enriched, %d dead letters", n, events, dead)
				}
				for _, a := range apps {
					a.stop()
				}
			})
		})
	}
}
