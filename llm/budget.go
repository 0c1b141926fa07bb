package llm

import (
	"errors"
	"fmt"
	"math"
	"strings"
	"time"
)

// An Amount is what calls take: money, and tokens of input and output together.
type Amount struct {
	Money  Micros
	Tokens int64
}

// NoLimit is the money or the tokens of a limit that does not bound them.
const NoLimit = math.MaxInt64

// Add returns the sum, which never exceeds [NoLimit]. No part may be negative.
func (a Amount) Add(b Amount) Amount {
	return Amount{Micros(addUp(int64(a.Money), int64(b.Money))), addUp(a.Tokens, b.Tokens)}
}

func addUp(a, b int64) int64 {
	if a > NoLimit-b {
		return NoLimit
	}
	return a + b
}

// Times returns n times the amount, at most [NoLimit]; n must be positive.
func (a Amount) Times(n int) Amount {
	times := func(v int64) int64 {
		if v > NoLimit/int64(n) {
			return NoLimit
		}
		return v * int64(n)
	}
	return Amount{Micros(times(int64(a.Money))), times(a.Tokens)}
}

// Less returns what is left of a when b is taken out of it, at least 0. What has no
// limit stays so.
func (a Amount) Less(b Amount) Amount {
	less := func(a, b int64) int64 {
		if a == NoLimit {
			return a
		}
		return max(a-b, 0)
	}
	return Amount{Micros(less(int64(a.Money), int64(b.Money))), less(a.Tokens, b.Tokens)}
}

// Min returns the smaller money and the smaller tokens of both.
func (a Amount) Min(b Amount) Amount { return Amount{min(a.Money, b.Money), min(a.Tokens, b.Tokens)} }

// Covers reports whether b can be taken out of a.
func (a Amount) Covers(b Amount) bool { return b.Money <= a.Money && b.Tokens <= a.Tokens }

// String returns the amount as "$0.000125 and 300 tokens", without what has no limit.
func (a Amount) String() string {
	var parts []string
	if a.Money != NoLimit {
		parts = append(parts, a.Money.String())
	}
	if a.Tokens != NoLimit {
		parts = append(parts, fmt.Sprintf("%d tokens", a.Tokens))
	}
	return strings.Join(parts, " and ")
}

// Share returns the part of a limit that belongs to one of several partitions,
// numbered from 0. The parts of all add up to it exactly, so that budgets held apart by
// partition never overspend together. What has no limit has none in any part.
func (a Amount) Share(partition, partitions int) Amount {
	share := func(v int64) int64 {
		if v == NoLimit {
			return v
		}
		n := int64(partitions)
		if int64(partition) < v%n {
			return v/n + 1
		}
		return v / n
	}
	return Amount{Micros(share(int64(a.Money))), share(a.Tokens)}
}

// A Budget bounds what may be spent in a window of time. It is a plain value, to be
// kept as a row of state and changed in a transaction: an amount is reserved before a
// call, in the transaction that makes the call possible, and settled in the one that
// takes its outcome. What is reserved counts as spent until it is settled, so no
// number of calls at once overspends; a reservation whose call was interrupted and
// never settled stays spent.
//
// Limit and Window are configuration: set them in a budget that was read from state.
// Not safe for concurrent use.
type Budget struct {
	// Limit is what may be spent in a window; see [NoLimit].
	Limit Amount
	// Window is its length; windows begin at multiples of it since the epoch (for
	// 24h: midnight UTC). 0 is a single window without end.
	Window time.Duration
	// Start is when the present window began, in milliseconds since the epoch.
	Start int64
	// Spent was settled, Reserved was not, both in the present window.
	Spent, Reserved Amount
}

// A Hold is what was reserved in a [Budget], to be kept with the call it is for.
type Hold struct {
	Amount Amount
	// Start is that of the window it was reserved in.
	Start int64
}

// A BudgetError says that a budget does not cover an amount.
type BudgetError struct {
	Asked  Amount
	Budget Budget // as it was when it refused
	// Until is when the next window begins; zero if there is none, or if the amount
	// exceeds the limit of any window.
	Until time.Time
}

// Never reports whether the amount exceeds the limit of any window.
func (e *BudgetError) Never() bool { return !e.Budget.Limit.Covers(e.Asked) }

// Error names the sums and what to do.
func (e *BudgetError) Error() string {
	b := e.Budget
	bounded := func(a Amount) Amount { // without what the budget does not bound
		if b.Limit.Money == NoLimit {
			a.Money = NoLimit
		}
		if b.Limit.Tokens == NoLimit {
			a.Tokens = NoLimit
		}
		return a
	}
	s := fmt.Sprintf("the budget of %s does not cover %s: %s spent, %s reserved", b.Limit, bounded(e.Asked), bounded(b.Spent), bounded(b.Reserved))
	switch {
	case e.Never():
		return s + "; no window of it ever does: raise the limit, or lower MaxTokens"
	case e.Until.IsZero():
		return s + "; raise the limit"
	}
	return s + "; it covers it from " + e.Until.UTC().Format(time.RFC3339)
}

// Left returns what can still be reserved in the present window, at least 0.
func (b *Budget) Left() Amount { return b.Limit.Less(b.Spent).Less(b.Reserved) }

// Reserve takes amount out of the budget at the time now, of the event or of the
// wall clock, but always of the same. It returns a [*BudgetError], and changes
// nothing but the window, if that is more than is left. A now before the present
// window counts as in it.
func (b *Budget) Reserve(now time.Time, amount Amount) (Hold, error) {
	if amount.Money < 0 || amount.Tokens < 0 {
		return Hold{}, errors.New("llm: budget: the amount to reserve is negative")
	}
	b.Roll(now)
	if !b.Left().Covers(amount) {
		e := &BudgetError{Asked: amount, Budget: *b}
		if b.Window > 0 && !e.Never() {
			e.Until = b.End()
		}
		return Hold{}, e
	}
	b.Reserved = b.Reserved.Add(amount)
	return Hold{amount, b.Start}, nil
}

// End is when the present window ends; zero if it does not.
func (b *Budget) End() time.Time {
	if b.Window <= 0 {
		return time.Time{}
	}
	return time.UnixMilli(b.Start).Add(b.window())
}

// Settle replaces a hold by what was really spent for it, once. What exceeds the hold
// is spent all the same; so that there is none, bound the call by the hold
// ([Call.Limit]). A hold of an earlier window was part of that one's limit: only what
// exceeds it counts in the present one.
func (b *Budget) Settle(h Hold, cost Amount) {
	cost = Amount{max(cost.Money, 0), max(cost.Tokens, 0)}
	if h.Start != b.Start {
		b.Spent = b.Spent.Add(cost.Less(h.Amount))
		return
	}
	b.Reserved = b.Reserved.Less(h.Amount)
	b.Spent = b.Spent.Add(cost)
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
		b.Start, b.Spent, b.Reserved = start, Amount{}, Amount{}
	}
}

// window is the window in whole milliseconds, at least one.
func (b *Budget) window() time.Duration {
	return max(b.Window.Truncate(time.Millisecond), time.Millisecond)
}
