package engine

import (
	"math"
	"time"

	"github.com/millrace/millrace/llm"
	"github.com/millrace/millrace/processors"
	"github.com/millrace/millrace/state"
)

// budgetKey names a budget of a task, and whose it is.
type budgetKey struct {
	id               state.TaskID
	step, budget, of string
}

// budgetState is what a budget stands at.
type budgetState struct {
	processors.BudgetStatus
	of string // as BudgetStatus.Of, or other beyond the first hundred
	// exhausted says that the budget did not cover a call, at refused, and has covered
	// none since in that window; of keys, whatever other keys did.
	exhausted bool
	refused   time.Time
}

// budget takes a report about a budget. The caller holds mu.
func (o *observer) budget(id state.TaskID, s *processors.BudgetStatus, now time.Time) {
	b := &budgetState{BudgetStatus: *s, of: o.metrics.bounds.of("of "+s.Step+"/"+s.Budget, s.Of)}
	key := budgetKey{id, s.Step, s.Budget, b.of}
	old := o.budgets[key]
	o.budgets[key] = b
	switch {
	case s.Exhausted:
		o.metrics.budgetRefusals.WithLabelValues(s.Step, s.Budget).Inc()
		b.exhausted, b.refused = true, now
	case old == nil || !old.exhausted:
	case s.Scope == processors.BudgetKey:
		b.exhausted, b.refused, b.State = true, old.refused, old.State
	case old.State.Start == s.State.Start && s.State.Reserved.Money <= old.State.Reserved.Money && s.State.Reserved.Tokens <= old.State.Reserved.Tokens:
		b.exhausted, b.refused = true, old.refused // a call ended; none was covered
	}
}

// budgets returns what the budgets of the running tasks stand at.
func (inst *Instance) budgets(now time.Time) []budgetState {
	running := map[state.TaskID]bool{}
	for _, t := range inst.Tasks() {
		running[t.Task] = t.State == Running
	}
	o := inst.observer
	o.mu.Lock()
	defer o.mu.Unlock()
	var list []budgetState
	for key, b := range o.budgets {
		if !running[key.id] {
			continue
		}
		present := *b
		present.roll(now, o.rules.Window)
		list = append(list, present)
	}
	return list
}

// roll brings a budget into the present window.
func (b *budgetState) roll(now time.Time, memory time.Duration) {
	start := b.State.Start
	b.State.Roll(now)
	switch {
	case b.State.Start != start:
		b.exhausted = false
	case b.Scope == processors.BudgetKey && b.State.Window <= 0:
		b.exhausted = b.exhausted && now.Sub(b.refused) < memory
	}
}

// level returns what is used and what may be, in US dollars or, if only those are
// bounded, in tokens. The limit of what only keeps accounts is infinite.
func (b *budgetState) level() (used, limit float64, unit string) {
	s := &b.State
	switch {
	case s.Limit.Money == llm.NoLimit && s.Limit.Tokens == llm.NoLimit:
		return float64(s.Spent.Money+s.Reserved.Money) / 1e6, math.Inf(1), "dollars"
	case s.Limit.Money != llm.NoLimit:
		return float64(s.Spent.Money+s.Reserved.Money) / 1e6, float64(s.Limit.Money) / 1e6, "dollars"
	}
	return float64(s.Spent.Tokens + s.Reserved.Tokens), float64(s.Limit.Tokens), "tokens"
}
