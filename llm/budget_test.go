package llm

import (
	"errors"
	"math/rand/v2"
	"strings"
	"testing"
	"time"
)

func TestBudget(t *testing.T) {
	t.Parallel()
	b := Budget{Limit: Amount{100, NoLimit}, Window: time.Hour}
	at := func(minutes int) time.Time { return noon.Add(time.Duration(minutes) * time.Minute) }
	reserve := func(minutes int, amount Micros) Hold {
		t.Helper()
		h, err := b.Reserve(at(minutes), Amount{Money: amount})
		if err != nil {
			t.Fatal(err)
		}
		return h
	}
	refuse := func(minutes int, amount Micros) *BudgetError {
		t.Helper()
		_, err := b.Reserve(at(minutes), Amount{Money: amount})
		e, ok := errors.AsType[*BudgetError](err)
		if !ok {
			t.Fatalf("%s of %+v: %v", amount, b, err)
		}
		return e
	}
	check := func(spent, reserved Micros) {
		t.Helper()
		if b.Spent.Money != spent || b.Reserved.Money != reserved || b.Left() != (Amount{max(100-spent-reserved, 0), NoLimit}) {
			t.Fatalf("got %+v, want %d spent and %d reserved", b, spent, reserved)
		}
	}
	one, two := reserve(10, 60), reserve(11, 40)
	check(0, 100)
	if e := refuse(12, 1); !e.Until.Equal(at(60)) || e.Asked.Money != 1 || !strings.Contains(e.Error(), "2026-11-24T13:00:00Z") {
		t.Errorf("got %v", e)
	}
	b.Settle(one, Amount{Money: 10}) // half a dollar would not have fitted before
	check(10, 40)
	three := reserve(13, 50)
	b.Interrupt(two)
	check(50, 50)
	if e := refuse(59, 1); e.Budget != b {
		t.Errorf("the error tells of %+v", e.Budget)
	}

	// The next window: what was reserved in the last one was part of that one.
	four := reserve(60, 100)
	check(0, 100)
	b.Settle(three, Amount{Money: 50})
	check(0, 100)
	b.Settle(four, Amount{Money: 0})
	check(0, 0)
	five := reserve(61, 30)
	b.Settle(five, Amount{Money: 45}) // dearer than reserved: spent all the same
	check(45, 0)
	six := reserve(62, 10)
	reserve(120, 1)
	b.Settle(six, Amount{Money: 12}) // what exceeded the last window's counts
	check(2, 1)
	b.Settle(Hold{Start: b.Start}, Amount{-5, -5})
	check(2, 1)

	// An event that is late does not begin an old window again.
	reserve(5, 97)
	if e := refuse(6, 1); !e.Until.Equal(at(180)) {
		t.Errorf("got %v", e)
	}
	if e := refuse(121, 101); !e.Until.IsZero() || !strings.Contains(e.Error(), "no window") {
		t.Errorf("got %v", e)
	}
	if _, err := b.Reserve(noon, Amount{Tokens: -1}); err == nil {
		t.Error("a negative amount can be reserved")
	}
}

func TestBudgetWithoutWindows(t *testing.T) {
	t.Parallel()
	b := Budget{Limit: Amount{NoLimit, 10}}
	if _, err := b.Reserve(noon, Amount{Tokens: 10}); err != nil {
		t.Fatal(err)
	}
	_, err := b.Reserve(noon.AddDate(10, 0, 0), Amount{Tokens: 1})
	if e, ok := errors.AsType[*BudgetError](err); !ok || !e.Until.IsZero() {
		t.Errorf("got %v", err)
	}
}

// TestBudgetNeverOverspends splits a budget by partition and plays random calls at
// once: some are answered, some interrupted and asked again, some end in a later
// window. In no window is more paid than the limit of the whole.
func TestBudgetNeverOverspends(t *testing.T) {
	t.Parallel()
	for seed := range uint64(200) {
		rnd := rand.New(rand.NewPCG(seed, 7))
		limit, partitions := Amount{Micros(rnd.Int64N(2000)), rnd.Int64N(2000)}, 1+rnd.IntN(7)
		budgets := make([]Budget, partitions)
		total := Amount{}
		for p := range budgets {
			budgets[p] = Budget{Limit: limit.Share(p, partitions), Window: time.Minute}
			total = total.Add(budgets[p].Limit)
		}
		if total != limit {
			t.Fatalf("seed %d: the shares of %s add up to %s", seed, limit, total)
		}
		type call struct {
			partition int
			hold      Hold
		}
		var out []call
		paid := map[int64]Amount{} // by the window it was reserved in
		now := noon
		for range 2000 {
			now = now.Add(rand.N(2 * time.Second))
			p := rnd.IntN(partitions)
			if amount := (Amount{Micros(rnd.Int64N(100)), rnd.Int64N(100)}); rnd.IntN(2) == 0 {
				if h, err := budgets[p].Reserve(now, amount); err == nil {
					out = append(out, call{p, h})
				} else if left := budgets[p].Left(); left.Covers(amount) {
					t.Fatalf("seed %d: %s of %s left was refused", seed, amount, left)
				}
				continue
			}
			if len(out) == 0 {
				continue
			}
			i := rnd.IntN(len(out))
			c := out[i]
			out[i] = out[len(out)-1]
			out = out[:len(out)-1]
			cost := Amount{Micros(rnd.Int64N(int64(c.hold.Amount.Money) + 1)), rnd.Int64N(c.hold.Amount.Tokens + 1)}
			paid[c.hold.Start] = paid[c.hold.Start].Add(cost)
			switch rnd.IntN(5) {
			case 0: // killed after it was paid: what it cost is not known
				budgets[c.partition].Interrupt(c.hold)
			case 1: // and not even noticed
			default:
				budgets[c.partition].Settle(c.hold, cost)
			}
		}
		for start, sum := range paid {
			if !limit.Covers(sum) {
				t.Fatalf("seed %d: %s paid in the window from %d, limit %s", seed, sum, start, limit)
			}
		}
	}
}
