package processors

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/millrace/millrace/llm"
	millracev1 "github.com/millrace/millrace/proto/millrace/v1"
	"github.com/millrace/millrace/serde"
)

// budgets are those of a step in a task. Their windows are of the wall clock: money is
// spent when a model is asked, whenever its event happened. A window that has begun
// never goes back, so that clocks that differ do no harm.
type budgets[K, In any] struct {
	list []*budget[K, In]
	task AsyncTask
	step string
	told func(BudgetStatus)
}

// budget is one of them: config with what is this partition's.
type budget[K, In any] struct {
	BudgetConfig[K, In]
	limit llm.Amount
	rows  *aged[*millracev1.Spending]
}

// An account is a row of a budget.
type account[K, In any] struct {
	*budget[K, In]
	key   []byte
	total llm.Amount // settled, over all windows
	state llm.Budget
	// unplaced is a row of before rows of the budget expired.
	unplaced bool
}

func (a *account[K, In]) row() string { return a.Name + "\x00" + string(a.key) }

// openBudgets opens the budgets of a step in a task. It fails if one has so little for
// the partition that it never covers a call.
func (s *EnrichStep[K, In, Out]) openBudgets(t AsyncTask) (*budgets[K, In], error) {
	bs := &budgets[K, In]{task: t, step: s.Step, told: s.OnBudget}
	for _, cfg := range s.Budgets {
		rows, err := newAged(t, cfg.Store, serde.Proto[*millracev1.Spending](), cfg.Keep, spendingWritten)
		if err != nil {
			return nil, fmt.Errorf("step %q: budget %q: %w", s.Step, cfg.Name, err)
		}
		b := &budget[K, In]{BudgetConfig: cfg, limit: cfg.Limit, rows: rows}
		if cfg.Part != nil {
			b.limit = b.limit.Share(*cfg.Part, *cfg.Parts)
		}
		if cfg.Scope != BudgetKey {
			n, err := s.partitions(t)
			if err != nil {
				return nil, err
			}
			b.limit = b.limit.Share(int(t.Partition()), n)
		}
		least := s.least(cfg.Action)
		if !b.limit.Covers(least) {
			return nil, fmt.Errorf("step %q: budget %q has %s for partition %d, and an answer of MaxTokens takes %s: raise the limit, or lower MaxTokens",
				s.Step, cfg.Name, b.limit, t.Partition(), least)
		}
		bs.list = append(bs.list, b)
	}
	return bs, nil
}

// spendingWritten says when a row was written. One that does not say is of a time when
// rows were kept for ever: it has not expired.
func spendingWritten(s *millracev1.Spending) int64 {
	if s.Written == 0 {
		return math.MaxInt64
	}
	return s.Written
}

// partitions returns how many the step has.
func (s *EnrichStep[K, In, Out]) partitions(t Task) (int, error) {
	counts, ok := t.(PartitionCounter)
	if !ok {
		return 0, fmt.Errorf("step %q: a %T does not know its partitions", s.Step, t)
	}
	n, err := counts.Partitions(s.Loop)
	if err != nil {
		return 0, fmt.Errorf("step %q: partitions of %s: %w", s.Step, s.Loop, err)
	}
	return max(int(n), 1), nil
}

// share tells the limiter that the task is here, if it wants to know; release, which
// may be nil, tells it that the task is gone.
func (s *EnrichStep[K, In, Out]) share(t Task) (release func(), err error) {
	l, ok := s.Caller.Limiter.(llm.Sharer)
	if !ok {
		return nil, nil
	}
	n, err := s.partitions(t)
	if err != nil {
		return nil, err
	}
	return l.Own(s.Loop, n), nil
}

// least returns what any call takes in the worst case: the answer of the cheapest model
// that may be the first to be asked.
func (s *EnrichStep[K, In, Out]) least(action BudgetAction) llm.Amount {
	least := llm.Amount{Money: llm.NoLimit, Tokens: llm.NoLimit}
	for i, l := range s.Caller.Chain {
		if i == 0 || action == BudgetCheaper && slices.Contains(l.For, llm.OverBudget) {
			w, _ := s.Caller.Prices.Worst(l.Model.ID(), &llm.Request{MaxTokens: s.MaxTokens}, time.Now()) // without MaxTokens there is no budget
			least = least.Min(w)
		}
	}
	return least
}

// open reads the row of a budget.
func (bs *budgets[K, In]) open(b *budget[K, In], key []byte) (*account[K, In], error) {
	row, ok, err := b.rows.get(key)
	if err != nil {
		return nil, fmt.Errorf("budget %q: %w", b.Name, err)
	}
	if !ok {
		row = &millracev1.Spending{}
	}
	a := &account[K, In]{budget: b, key: key, total: amount(row.TotalMicros, row.TotalTokens), unplaced: ok && row.Written == 0}
	a.state = llm.Budget{
		Limit: b.limit, Window: b.Window, Start: row.WindowStart,
		Spent: amount(row.SpentMicros, row.SpentTokens), Reserved: amount(row.ReservedMicros, row.ReservedTokens),
	}
	return a, nil
}

func (bs *budgets[K, In]) save(a *account[K, In]) error {
	b := &a.state
	row := &millracev1.Spending{
		WindowStart: b.Start,
		SpentMicros: int64(b.Spent.Money), SpentTokens: b.Spent.Tokens,
		ReservedMicros: int64(b.Reserved.Money), ReservedTokens: b.Reserved.Tokens,
		TotalMicros: int64(a.total.Money), TotalTokens: a.total.Tokens,
	}
	now := a.rows.now()
	if a.Keep > 0 {
		row.Written = now
	}
	if err := a.rows.put(a.key, row, now); err != nil {
		return fmt.Errorf("budget %q: %w", a.Name, err)
	}
	if a.unplaced {
		a.rows.place(now, a.key)
		a.unplaced = false
	}
	bs.tell(a, false)
	return nil
}

func (bs *budgets[K, In]) tell(a *account[K, In], exhausted bool) {
	s := BudgetStatus{Step: bs.step, Budget: a.Name, Scope: a.Scope, Partition: bs.task.Partition(), State: a.state, Exhausted: exhausted}
	if a.Scope != BudgetKey {
		s.Of = string(a.key)
	}
	bs.task.Report(Report{Step: bs.step, Status: StatusBudget, Budget: &s})
	if bs.told != nil {
		bs.told(s)
	}
}

func amount(micros, tokens int64) llm.Amount {
	return llm.Amount{Money: llm.Micros(micros), Tokens: tokens}
}

// of returns the budget of a name, nil if there is none any more.
func (bs *budgets[K, In]) of(name string) *budget[K, In] {
	for _, b := range bs.list {
		if b.Name == name {
			return b
		}
	}
	return nil
}

// rowOf returns the key of the row of an event in a budget; false if the budget does not
// bound it.
func (b *budget[K, In]) rowOf(e *millracev1.Entry, rec Record[K, In], q *millracev1.Question) ([]byte, bool) {
	switch b.Scope {
	case BudgetTopic:
		return []byte(e.Source.Topic), true
	case BudgetTenant:
		return []byte(b.Tenant(rec.Key, rec.Value)), true
	case BudgetPrompt:
		return []byte(q.Prompt + "/" + q.PromptVersion), true
	case BudgetKey:
		return e.Event.Key, e.Event.Key != nil
	}
	return []byte("app"), true
}

// reserve takes what a round may need at most out of all budgets that bound the event.
func (s *enrichRun[K, In, Out]) reserve(e *millracev1.Entry, behind func(string) (time.Time, bool)) ([]byte, *budgetWait, error) {
	rec, err := s.decode(e)
	if err != nil {
		return nil, nil, err
	}
	c := &enrichCall[K, In, Out]{enrichRun: s, p: decodeProgress(e.Progress), question: &millracev1.Question{}}
	if err := proto.Unmarshal(e.Resolved, c.question); err != nil {
		return nil, nil, &Error{Class: ClassState, Step: s.Step, Action: Stop, Err: fmt.Errorf("what to ask for %s: %w", e.Id, err)}
	}
	if c.question.Control != "" || c.question.Cached != nil && e.Round == 0 {
		return []byte{}, nil, nil // it asks no model
	}
	var accounts []*account[K, In]
	for _, b := range s.budgets.list {
		key, ok := b.rowOf(e, rec, c.question)
		if !ok {
			continue
		}
		a, err := s.budgets.open(b, key)
		if err != nil {
			return nil, nil, &Error{Class: ClassState, Step: s.Step, Action: Stop, Err: err}
		}
		if until, ok := behind(a.row()); ok && c.question.Summarize == 0 {
			return nil, &budgetWait{a.row(), until}, nil
		}
		a.state.Roll(s.task.Now())
		accounts = append(accounts, a)
	}
	r, wait := s.afford(c, accounts)
	if wait != nil {
		return nil, wait, nil
	}
	if err := s.take(e, r, accounts); err != nil {
		return nil, nil, &Error{Class: ClassState, Step: s.Step, Action: Stop, Err: err}
	}
	held, err := proto.Marshal(r)
	if err != nil { // only text that is not UTF-8 can fail, and there is none
		panic(err)
	}
	return held, nil, nil
}

// afford decides which model to ask and what to reserve, or what to wait for. It
// changes nothing.
func (s *enrichRun[K, In, Out]) afford(c *enrichCall[K, In, Out], accounts []*account[K, In]) (*millracev1.Reservation, *budgetWait) {
	if c.question.Summarize > 0 {
		return s.affordSummary(c, accounts), nil
	}
	chain := s.Caller.Chain
	first := c.link(c.p.NextModel)
	for i := first; ; {
		id := chain[i].Model.ID()
		req, err := c.request(id)
		var worst llm.Amount
		if err == nil {
			worst, err = s.Caller.Prices.Worst(id, req, time.Now())
		}
		if err != nil {
			return &millracev1.Reservation{Refused: truncate(err.Error())}, nil
		}
		left := worst.Times(s.Caller.Policy.Attempts)
		var short *account[K, In]
		for _, a := range accounts {
			if !a.state.Left().Covers(worst) {
				short = a
				break
			}
			left = left.Min(a.state.Left())
		}
		if short == nil {
			r := &millracev1.Reservation{Micros: int64(left.Money), Tokens: left.Tokens}
			if i != first {
				r.Model = protoModelID(id)
			}
			return r, nil
		}
		if short.Action == BudgetCheaper {
			if j := cheaper(chain, i); j >= 0 {
				i, c.p.Reasks = j, 0
				continue
			}
		}
		s.budgets.tell(short, true)
		_, err = short.state.Reserve(s.task.Now(), worst)
		refusal, _ := errors.AsType[*llm.BudgetError](err)
		if short.Action != BudgetFallback && !refusal.Never() {
			return nil, &budgetWait{short.row(), refusal.Until}
		}
		return &millracev1.Reservation{
			Refused:  truncate(fmt.Sprintf("budget %q (%s): %v", short.Name, short.Scope, refusal)),
			Fallback: short.Action == BudgetFallback,
		}, nil
	}
}

// cheaper returns the next link of a chain that is for calls over budget, or -1.
func cheaper(chain []llm.Link, i int) int {
	for j := i + 1; j < len(chain); j++ {
		if slices.Contains(chain[j].For, llm.OverBudget) {
			return j
		}
	}
	return -1
}

// take writes a reservation to the accounts. What an earlier ask of the entry had
// reserved, which ended without a word, stays spent.
func (s *enrichRun[K, In, Out]) take(e *millracev1.Entry, r *millracev1.Reservation, accounts []*account[K, In]) error {
	bs := s.budgets
	if e.Reserved != nil {
		if _, err := bs.replace(e.Reserved, nil); err != nil {
			return err
		}
	}
	if r.Refused != "" {
		return nil
	}
	for _, a := range accounts {
		if e.Reserved != nil {
			var err error
			if a, err = bs.open(a.budget, a.key); err != nil {
				return err
			}
		}
		hold, err := a.state.Reserve(s.task.Now(), amount(r.Micros, r.Tokens))
		if err != nil {
			return err
		}
		r.Holds = append(r.Holds, &millracev1.Hold{Budget: a.Name, Key: a.key, WindowStart: hold.Start})
		if err := bs.save(a); err != nil {
			return err
		}
	}
	return nil
}

// replace settles a reservation with what was used, or with all of it if used is nil.
// It returns the rows of which something was given back.
func (bs *budgets[K, In]) replace(reserved []byte, used *llm.Amount) (freed []string, err error) {
	r := &millracev1.Reservation{}
	if err := proto.Unmarshal(reserved, r); err != nil {
		return nil, fmt.Errorf("what is reserved: %w", err)
	}
	held := amount(r.Micros, r.Tokens)
	for _, h := range r.Holds {
		b := bs.of(h.Budget)
		if b == nil {
			continue // it was configured away
		}
		a, err := bs.open(b, h.Key)
		if err != nil {
			return nil, err
		}
		spent := held
		if used != nil {
			spent = *used
		}
		a.state.Settle(llm.Hold{Amount: held, Start: h.WindowStart}, spent)
		a.total = a.total.Add(spent)
		if err := bs.save(a); err != nil {
			return nil, err
		}
		if !spent.Covers(held) {
			freed = append(freed, a.row())
		}
	}
	return freed, nil
}

// settle settles the reservation of an entry by an outcome.
func (s *enrichRun[K, In, Out]) settle(e *millracev1.Entry, o *millracev1.Outcome) ([]string, error) {
	var used *llm.Amount
	if known(e, o) {
		u := spentOf(progressOf(e, o)).Less(spentOf(decodeProgress(e.Progress)))
		used = &u
	}
	freed, err := s.budgets.replace(e.Reserved, used)
	if err != nil {
		return nil, &Error{Class: ClassState, Step: s.Step, Action: Stop, Err: err}
	}
	return freed, nil
}

// known reports whether an outcome says all that the present ask of an entry spent.
func known(e *millracev1.Entry, o *millracev1.Outcome) bool {
	switch {
	case o.Ask != e.Ask.GetNumber():
		return false // of an earlier ask, which has a reservation of its own
	case o.GetReleased() != nil:
		return o.GetReleased().Unsent
	}
	return o.Progress != nil || o.GetFailure().GetReason() == millracev1.Failure_REASON_MAX_WAIT
}

func spentOf(p *millracev1.Enrichment) llm.Amount {
	return amount(p.CostMicros+p.UnsureMicros, p.InputTokens+p.OutputTokens+p.UnsureTokens)
}

// funds are what a round may spend.
type funds struct {
	r     *millracev1.Reservation // nil without budgets
	limit llm.Amount
	begun llm.Amount // what the rounds before had spent
}

// fund takes over what was reserved for the round. It returns the outcome if a budget
// refused.
func (c *enrichCall[K, In, Out]) fund() *millracev1.Outcome {
	if c.q.reserved == nil {
		return nil
	}
	r := &millracev1.Reservation{}
	if err := proto.Unmarshal(c.q.reserved, r); err != nil {
		return c.failure(millracev1.Failure_REASON_ERROR, llm.Invalid, fmt.Sprintf("what is reserved: %v", err))
	}
	if r.Refused != "" {
		reason := millracev1.Failure_REASON_ERROR
		if r.Fallback {
			reason = millracev1.Failure_REASON_OVER_BUDGET
		}
		return c.failure(reason, llm.OverBudget, r.Refused)
	}
	c.funds = funds{r: r, limit: amount(llm.NoLimit, llm.NoLimit), begun: spentOf(c.p)}
	for _, h := range r.Holds {
		b := c.budgets.of(h.Budget)
		if b != nil && b.Limit.Money != llm.NoLimit {
			c.funds.limit.Money = llm.Micros(r.Micros)
		}
		if b != nil && b.Limit.Tokens != llm.NoLimit {
			c.funds.limit.Tokens = r.Tokens
		}
	}
	if r.Model != nil {
		if modelID(r.Model) != c.Caller.Models()[c.link(c.p.NextModel)] {
			c.p.Reasks = 0
		}
		c.p.NextModel = r.Model
	}
	return nil
}

// left is what the next call of the round may spend; nil without a bound.
func (c *enrichCall[K, In, Out]) left() *llm.Amount {
	if c.funds.r == nil {
		return nil
	}
	left := c.funds.limit.Less(c.used())
	return &left
}

// used is what the round has spent.
func (c *enrichCall[K, In, Out]) used() llm.Amount { return spentOf(c.p).Less(c.funds.begun) }

// broke takes the end of what was reserved for the round: another round reserves anew.
func (c *enrichCall[K, In, Out]) broke(err error) *millracev1.Outcome {
	left := c.Caller.Policy.Deadline - time.Duration(c.p.BusyMs)*time.Millisecond
	e, ok := errors.AsType[*llm.Error](err)
	switch {
	case !ok, c.used() == llm.Amount{}: // it would end the same way
		return c.failure(millracev1.Failure_REASON_ERROR, llm.OverBudget, err.Error())
	case left < c.Caller.Policy.MinTime:
		return c.failure(millracev1.Failure_REASON_DEADLINE, llm.OverBudget, fmt.Sprintf("the deadline of %s leaves no time to ask again: %v", c.Caller.Policy.Deadline, err))
	}
	if e.Model != c.Caller.Models()[c.link(c.p.NextModel)] {
		c.p.Reasks = 0
	}
	c.p.NextModel = protoModelID(e.Model)
	o := c.q.outcome()
	o.Kind = &millracev1.Outcome_Again{Again: &millracev1.Again{}}
	return c.with(o)
}
