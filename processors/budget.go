package processors

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"github.com/millrace/millrace/llm"
	millracev1 "github.com/millrace/millrace/proto/millrace/v1"
)

// A BudgetScope says whose spending a budget bounds.
type BudgetScope uint8

const (
	// BudgetApp bounds what the steps of the application spend together that have a
	// budget of that name.
	BudgetApp BudgetScope = iota
	// BudgetTopic bounds what is spent for the events of each source topic.
	BudgetTopic
	// BudgetTenant bounds what is spent for each tenant, of which events name theirs.
	BudgetTenant
	// BudgetPrompt bounds what is spent with each version of a prompt.
	BudgetPrompt
	// BudgetKey bounds what is spent for each key. An event without a key is not
	// bounded by it.
	BudgetKey
)

// String returns the scope's name.
func (s BudgetScope) String() string {
	names := [...]string{"app", "topic", "tenant", "prompt", "key"}
	if int(s) < len(names) {
		return names[s]
	}
	return fmt.Sprintf("scope(%d)", uint8(s))
}

// A BudgetAction says what becomes of an event that a budget does not cover.
type BudgetAction uint8

const (
	// BudgetStop keeps the event, and what is behind it in its lane, until the window of
	// the budget ends or other calls gave back what they did not use.
	BudgetStop BudgetAction = iota
	// BudgetFallback forwards the event to the fallbacks.
	BudgetFallback
	// BudgetCheaper asks the next model of the chain whose link names [llm.OverBudget]
	// and that the budgets cover. If there is none it is BudgetStop.
	BudgetCheaper
)

// A BudgetConfig is a budget of a step, in one of its stores.
type BudgetConfig[K, In any] struct {
	Name string
	// Store is a key-value store of *millracev1.Spending.
	Store string
	Scope BudgetScope
	// Tenant names the tenant of an event, for BudgetTenant. It runs in the task.
	Tenant func(K, In) string
	// Limit is what may be spent in a window of the wall clock; see [llm.Budget].
	Limit  llm.Amount
	Window time.Duration
	// Keep is how long after its last change a row is deleted, by the task's clock; at
	// least Window, so that what is spent of a window is never forgotten in it. 0 keeps
	// rows for ever.
	Keep   time.Duration
	Action BudgetAction
	// Part is this step's place among the Parts steps that share the limit.
	Part, Parts *int
}

// A BudgetStatus says what a budget of one partition stands at.
type BudgetStatus struct {
	Step, Budget string
	Scope        BudgetScope
	// Of is the topic, tenant, or prompt and version; "app" of the application. It is
	// empty for a key, as keys are not to be shown.
	Of        string
	Partition int32
	// State has the limit of the partition, what is spent and reserved, and the window.
	State llm.Budget
	// Exhausted says that the budget has just not covered a call.
	Exhausted bool
}

// budgetWait says what a head waits for.
type budgetWait struct {
	row   string    // the budget and its row
	until time.Time // when its window ends; zero if it does not
}

// queues are the heads that wait for budgets, by row: in order of admission, so that
// none that needs much is passed by those that need little.
//
// A settlement, or the end of a window, wakes the first head of a row. Once that has
// got what it needs it wakes the next; if it has not, it waits again. So each change
// of a budget costs as many looks as there are heads that it lets go, and one.
type queues struct {
	rows   map[string][]*head
	alarm  time.Time // when the next wake-up is due; zero if none is
	cancel func()
}

func (q *queues) add(h *head) {
	row := h.wait.row
	at, _ := slices.BinarySearchFunc(q.rows[row], h, bySeq)
	q.rows[row] = slices.Insert(q.rows[row], at, h)
}

func (q *queues) take(h *head) {
	row := h.wait.row
	at, ok := slices.BinarySearchFunc(q.rows[row], h, bySeq)
	if !ok {
		return
	}
	if q.rows[row] = slices.Delete(q.rows[row], at, at+1); len(q.rows[row]) == 0 {
		delete(q.rows, row)
	}
}

func bySeq(x, y *head) int { return cmp.Compare(x.seq, y.seq) }

// reserve takes what the call of an entry may need out of the step's budgets. It
// reports false if the head has to wait for one.
func (a *Async) reserve(h *head, e *millracev1.Entry) (granted bool, err error) {
	if a.typed.reserve == nil {
		return true, nil
	}
	probed := h.wait.row // what woke it up
	behind := func(row string) (time.Time, bool) {
		first := a.queues.rows[row]
		if len(first) == 0 || first[0].seq > h.seq {
			return time.Time{}, false
		}
		return first[0].wait.until, true
	}
	held, wait, err := a.reserved(e, behind)
	if err != nil {
		return false, err
	}
	if wait != nil {
		a.change()
		a.alter(h, func() { h.state, h.wait = headWaiting, *wait })
		a.alarmAt(wait.until)
		if probed != wait.row {
			a.wakeFirst(probed)
		}
		return false, nil
	}
	e.Reserved = held
	if probed != "" {
		a.alter(h, func() { h.wait = budgetWait{} })
		a.wakeFirst(probed)
	}
	return true, nil
}

// reserved makes a panic of a user's function the failure of the call.
func (a *Async) reserved(e *millracev1.Entry, behind func(string) (time.Time, bool)) (held []byte, wait *budgetWait, err error) {
	defer func() {
		if p := recover(); p != nil {
			e.Unresolved = truncate(Panicked(ClassAsync, a.cfg.Step, p).Error())
			held, wait, err = nil, nil, nil
		}
	}()
	if e.Unresolved != "" {
		return nil, nil, nil // it asks no model
	}
	return a.typed.reserve(e, behind)
}

// settlement returns what settles the reservation of h by an outcome, for the end of
// its record: what ends the entry may undo what came before it. It is nil if there is
// nothing to settle.
func (a *Async) settlement(h *head, o *millracev1.Outcome) (func() error, error) {
	if a.typed.settle == nil {
		return nil, nil
	}
	e, err := a.load(h.key)
	if err != nil || e.Reserved == nil || o.GetReleased() != nil && o.Ask != h.ask {
		return nil, err
	}
	return func() error {
		freed, err := a.typed.settle(e, o)
		if err != nil {
			return err
		}
		for _, row := range freed {
			a.wakeFirst(row)
		}
		return nil
	}, nil
}

// wakeFirst has the first head that waits for a row look again.
func (a *Async) wakeFirst(row string) {
	if list := a.queues.rows[row]; len(list) > 0 {
		h := list[0]
		a.change()
		a.alter(h, func() { h.state = headReady })
	}
}

// alarmAt has the task look after the queues at a time, or earlier.
func (a *Async) alarmAt(at time.Time) {
	q := &a.queues
	if at.IsZero() || !q.alarm.IsZero() && !at.Before(q.alarm) {
		return
	}
	if q.cancel != nil {
		q.cancel()
	}
	q.alarm = at
	q.cancel = a.task.Schedule(WallClock, max(at.Sub(a.task.Now()), time.Millisecond), nil, a.ring)
}

// ring wakes those whose budgets have a new window.
func (a *Async) ring(int64) error {
	if err := a.begin(position{}); err != nil {
		return err
	}
	a.queues.cancel()
	a.queues.alarm, a.queues.cancel = time.Time{}, nil
	now := a.task.Now()
	var next time.Time
	var due []*head
	for _, list := range a.queues.rows {
		switch until := list[0].wait.until; {
		case until.IsZero():
		case !until.After(now):
			due = append(due, list[0])
		case next.IsZero() || until.Before(next):
			next = until
		}
	}
	slices.SortFunc(due, bySeq)
	for _, h := range due {
		a.wakeFirst(h.wait.row)
	}
	a.alarmAt(next)
	return a.proceed()
}
