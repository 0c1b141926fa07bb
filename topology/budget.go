package topology

import (
	"errors"
	"fmt"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/millrace/millrace/llm"
	"github.com/millrace/millrace/processors"
	millracev1 "github.com/millrace/millrace/proto/millrace/v1"
	"github.com/millrace/millrace/serde"
	"github.com/millrace/millrace/state"
)

// A Budget bounds what a step with model calls spends, in money, tokens or both.
//
// The most that a call can cost is reserved in the transaction that makes its event the
// head of its lane, and settled with what it really cost in the one that takes its
// outcome; each re-ask reserves anew. Both are rows of a changelog-backed store, so
// that neither concurrency nor a crash overspends. What a call had reserved whose owner
// died stays spent: nobody knows what it cost.
//
// A budget of a key is exact, as all events of a key are in one partition. Of any other
// scope, each partition has its part of the limit, so that no coordination is needed:
// the sum never exceeds the limit, but a partition may reach its part while others have
// money left. Use the key's scope where the key is the tenant.
//
// A change of Money or Tokens takes effect with the next start, for the present window
// too.
type Budget[K, In any] struct {
	// Name names the budget, in its store (<step>-<name>-spending), in errors and in
	// metrics.
	Name string
	// Scope says whose spending is bounded. Default: [processors.BudgetApp], of all steps
	// of the application that have a budget of this name and scope; all have to give it
	// the same limit and window, and each gets an equal part of it.
	Scope processors.BudgetScope
	// Tenant names the tenant of an event, for [processors.BudgetTenant]. It runs in the
	// task and has to be quick.
	Tenant func(key K, event In) string
	// Money and Tokens are what may be spent in a window; 0 sets no bound. Money needs
	// the field Prices of the step to have a price of every model; tokens are input and
	// output together. With [llm.NoLimit] the budget bounds nothing and only keeps
	// accounts: what each key, tenant, topic or version of a prompt has cost.
	Money  llm.Micros
	Tokens int64
	// Window is the time that they are for, at least a second. Windows are of the wall
	// clock, since money is spent when a model is asked, and begin at multiples of their
	// length since the epoch: days at midnight UTC. A call counts in the window in which
	// it reserved. 0 is a single window without end.
	Window time.Duration
	// Keep is how long after its last change a row is deleted, with a tombstone in the
	// changelog, by the wall clock of the task: what was settled since ever begins anew
	// then. It needs a Window, and is at least as long, so that nothing spent is forgotten
	// in its window. Default: 30 days, or the Window if that is longer; rows of a budget
	// without a Window are kept for ever.
	Keep time.Duration
	// AtLimit says what becomes of an event that the budget does not cover. Default:
	// [processors.BudgetStop]. An event that not even a whole window covers is
	// dead-lettered, or with [processors.BudgetFallback] a fallback.
	AtLimit processors.BudgetAction
}

// Spending is the store of a budget, for [state.View]: what is spent and reserved in
// the present window, and what was settled since ever. It is nil if the step has no
// budget of that name and of [processors.BudgetKey].
func (e *Enriched[K, In, Out]) Spending(budget string) *Store[K, *millracev1.Spending] {
	return e.ofKeys[budget]
}

// SpendingBy is the store of a budget of another scope, by what it is split by: the
// name of the topic or tenant, prompt/version, or "app". Each partition has rows of its
// own, with its part of the limit: add up those of a Range. It is nil if the step has no
// such budget.
func (e *Enriched[K, In, Out]) SpendingBy(budget string) *Store[string, *millracev1.Spending] {
	return e.ofNames[budget]
}

// An appBudget is a limit that steps of the application share.
type appBudget struct {
	limit  llm.Amount
	window time.Duration
	parts  int
}

// check reports what is wrong with a budget by itself.
func (b *Budget[K, In]) check() error {
	var errs []error
	if err := checkName(b.Name); err != nil {
		errs = append(errs, err)
	}
	if b.Money < 0 || b.Tokens < 0 || b.Money == 0 && b.Tokens == 0 {
		errs = append(errs, fmt.Errorf("Money %d, Tokens %d: one has to be positive, and none negative", b.Money, b.Tokens))
	}
	if b.Window != 0 && b.Window < time.Second {
		errs = append(errs, fmt.Errorf("the Window of %s is shorter than a second; 0 is one without end", b.Window))
	}
	if b.Keep != 0 && (b.Window == 0 || b.Keep < b.Window) {
		errs = append(errs, fmt.Errorf("it would Keep its rows for %s: that needs a Window, which is %s, and must not be shorter", b.Keep, b.Window))
	}
	if b.Scope > processors.BudgetKey || b.AtLimit > processors.BudgetCheaper {
		errs = append(errs, errors.New("Scope or AtLimit is none of the values of package processors"))
	}
	if (b.Tenant != nil) != (b.Scope == processors.BudgetTenant) {
		errs = append(errs, errors.New("Tenant and the scope BudgetTenant belong together"))
	}
	return errors.Join(errs...)
}

// limit is that of a window.
func (b *Budget[K, In]) limit() llm.Amount {
	l := llm.Amount{Money: llm.NoLimit, Tokens: llm.NoLimit}
	if b.Money != 0 {
		l.Money = b.Money
	}
	if b.Tokens != 0 {
		l.Tokens = b.Tokens
	}
	return l
}

// keep is how long rows are kept; 0 is for ever.
func (b *Budget[K, In]) keep() time.Duration {
	if b.Window == 0 || b.Keep != 0 {
		return b.Keep
	}
	return max(b.Window, 30*24*time.Hour)
}

// exactKeys reports whether all events of a key have to be in one partition.
func exactKeys[K, In any](list []Budget[K, In]) bool {
	for _, b := range list {
		if b.Scope == processors.BudgetKey {
			return true
		}
	}
	return false
}

// budget adds its limits and budgets to a step.
func budget[K, In any, Out proto.Message](b *Builder, what string, n *node, step *processors.EnrichStep[K, In, Out], e *Enrichment[K, In, Out], res *Enriched[K, In, Out]) {
	step.OnBudget, step.Loop = e.OnBudget, b.app+"."+n.name+"-loop"
	if l, ok := e.Limiter.(llm.Sharer); ok {
		l.Join(step.Loop)
	}
	for i := range e.Budgets {
		one := &e.Budgets[i]
		what := fmt.Sprintf("%s: budget %q", what, one.Name)
		if err := errors.Join(one.check(), e.affords(one, step.Caller)); err != nil {
			b.fail("%s: %v", what, err)
			continue
		}
		cfg := processors.BudgetConfig[K, In]{
			Name: one.Name, Store: n.name + "-" + one.Name + "-spending", Scope: one.Scope, Tenant: one.Tenant,
			Limit: one.limit(), Window: one.Window, Keep: one.keep(), Action: one.AtLimit,
		}
		if one.Scope == processors.BudgetApp {
			app := b.budgets[one.Name]
			if app == nil {
				app = &appBudget{limit: cfg.Limit, window: cfg.Window}
				b.budgets[one.Name] = app
			}
			if app.limit != cfg.Limit || app.window != cfg.Window {
				b.fail("%s: another step has %s in %s, this one %s in %s: a limit of the application is the same in all of its steps", what, app.limit, app.window, cfg.Limit, cfg.Window)
			}
			part := app.parts
			app.parts++
			cfg.Part, cfg.Parts = &part, &app.parts
		}
		n.fallback = n.fallback || one.AtLimit == processors.BudgetFallback
		n.detail = join(n.detail, fmt.Sprintf("budget %s of the %s, window %s", one.Name, one.Scope, one.Window))
		step.Budgets = append(step.Budgets, cfg)
		spending := serde.Proto[*millracev1.Spending]()
		spec := state.Spec{Name: cfg.Store, Kind: state.KeyValue, KeySerde: serde.String().Name(), ValueSerde: spending.Name()}
		if one.Scope != processors.BudgetKey {
			res.ofNames[one.Name] = &Store[string, *millracev1.Spending]{spec: spec, key: serde.String(), value: spending}
		} else if step.Key != nil {
			spec.KeySerde = step.Key.Name()
			res.ofKeys[one.Name] = &Store[K, *millracev1.Spending]{spec: spec, key: step.Key, value: spending}
		}
		n.stores = append(n.stores, spec)
	}
}

// affords reports what the step lacks for a budget.
func (e *Enrichment[K, In, Out]) affords(b *Budget[K, In], c *llm.Caller) error {
	var errs []error
	if e.MaxTokens <= 0 {
		errs = append(errs, errors.New("the enrichment has no MaxTokens, so that what an answer costs has no bound: set it"))
	}
	if c == nil {
		return errors.Join(errs...) // there are other mistakes
	}
	if b.Money > 0 {
		errs = append(errs, e.Prices.Check(time.Now(), c.Models()...))
	}
	if b.AtLimit == processors.BudgetCheaper && !c.Takes(llm.OverBudget) {
		errs = append(errs, errors.New("AtLimit is BudgetCheaper, and no link of Fallbacks names llm.OverBudget in For"))
	}
	return errors.Join(errs...)
}
