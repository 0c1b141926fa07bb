package llm

import (
	"errors"
	"fmt"
	"time"
)

// A Budget bounds what may be spent in a window of time. It is a plain value, to be
// kept as a row of state and changed in a transaction: money is reserved before a
// call, in the transaction that makes the call possible, and settled in the one that
// takes its outcome. What is reserved counts as spent until it is settled, so no
// number of calls at once overspends; a reservation whose call was interrupted and
// never settled stays spent.
//
// Limit and Window are configuration: set them in a budget that was read from state.
// Not safe for concurrent use.
type Budget struct {
	// Limit is what may be spent in a window.
	Limit Micros `json:"limit"`
	// Window is its length; windows begin at multiples of it since the epoch (for
	// 24h: midnight UTC). 0 is a single window without end.
	Window time.Duration `json:"window"`
	// Start is when the present window began, in milliseconds since the epoch.
	Start int64 `json:"start"`
	// Spent was settled, Reserved was not, both in the present window.
	Spent    Micros `json:"spent"`
	Reserved Micros `json:"reserved"`
}

// A Hold is money reserved in a [Budget], to be kept with the call it is for.
type Hold struct {
	Amount Micros `json:"amount"`
	// Start is that of the window it was reserved in.
	Start int64 `json:"start"`
}

// A BudgetError says that a budget does not cover an amount.
type BudgetError struct {
	Asked  Micros
	Budget Budget // as it was when it refused
	// Until is when the next window begins; zero if there is none, or if the amount
	// exceeds the limit of any window.
	Until time.Time
}

// Error names the sums and what to do.
func (e *BudgetError) Error() string {
	b := e.Budget
	s := fmt.Sprintf("the budget of %s does not cover %s: %s spent, %s reserved", b.Limit, e.Asked, b.Spent, b.Reserved)
	switch {
	case e.Asked > b.Limit:
		return s + "; no window of it ever does: raise the limit, or lower MaxTokens"
	case e.Until.IsZero():
		return s + "; raise the limit"
	}
	return s + "; it covers it from " + e.Until.UTC().Format(time.RFC3339)
}

// Left returns what can still be reserved in the present window, at least 0.
func (b *Budget) Left() Micros { return max(b.Limit-b.Spent-b.Reserved, 0) }

// Reserve takes amount out of the budget at the time now, of the event or of the
// wall clock, but always of the same. It returns a [*BudgetError], and changes
// nothing but the window, if that is more than is left. A now before the present
// window counts as in it.
func (b *Budget) Reserve(now time.Time, amount Micros) (Hold, error) {
	if amount < 0 {
		return Hold{}, errors.New("llm: budget: the amount to reserve is negative")
	}
	b.Roll(now)
	if amount > b.Left() {
		e := &BudgetError{Asked: amount, Budget: *b}
		if b.Window > 0 && amount <= b.Limit {
			e.Until = time.UnixMilli(b.Start).Add(b.window())
		}
		return Hold{}, e
	}
	b.Reserved += amount
	return Hold{amount, b.Start}, nil
}

// Settle replaces a hold by what was really spent for it, once. What exceeds the hold
// is spent all the same; so that there is none, bound the call by the hold
// ([Call.Money]). A hold of an earlier window was part of that one's limit: only what
// exceeds it counts in the present one.
func (b *Budget) Settle(h Hold, cost Micros) {
	cost = max(cost, 0)
	if h.Start != b.Start {
		b.Spent += max(cost-h.Amount, 0)
		return
	}
	b.Reserved = max(b.Reserved-h.Amount, 0)
	b.Spent += cost
}

// Interrupt settles a hold whose call may or may not have been paid: all of it is
// spent.
func (b *Budget) Interrupt(h Hold) { b.Settle(h, h.Amount) }

// Roll begins the window that now is in, if it is later than the present one.
func (b *Budget) Roll(now time.Time) {
	if b.Window <= 0 {
		return
	}
	w, ms := b.window().Milliseconds(), now.UnixMilli()
	start := ms - ms%w
	if ms < start { // before the epoch
		start -= w
	}
	if start > b.Start {
		b.Start, b.Spent, b.Reserved = start, 0, 0
	}
}

// window is the window in whole milliseconds, at least one.
func (b *Budget) window() time.Duration {
	return max(b.Window.Truncate(time.Millisecond), time.Millisecond)
}

// Share returns the part of an amount that belongs to one of several partitions,
// numbered from 0. The parts of all add up to it exactly, so that budgets held apart
// by partition never overspend together.
func (m Micros) Share(partition, partitions int) Micros {
	n := Micros(partitions)
	share := m / n
	if Micros(partition) < m%n {
		share++
	}
	return share
}
