package llm

import (
	bigint "math/big"
	"math/rand/v2"
	"strings"
	"testing"
	"time"
)

func testPrices(t *testing.T) *PriceTable {
	t.Helper()
	p, err := LoadPrices(strings.NewReader(`{"models": {
		"fake/small": [{"from": "1999-01-01", "input": 1, "output": 2}],
		"fake/big": [{"from": "1999-01-01", "input": 10, "output": 20}]
	}}`))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func day(s string) time.Time {
	d, err := time.Parse(time.DateOnly, s)
	if err != nil {
		panic(err)
	}
	return d
}

const table = `{"models": {
	"a/m": [
		{"from": "2026-03-01", "input": 2, "cached": 0.5, "written": 2.5, "output": 8, "reasoning": 9.000001,
		 "long": {"over": 1000, "input": 4, "output": 16}},
		{"from": "2026-01-01", "input": 1, "output": 4}
	],
	"a/m-lite*": [{"from": "2026-01-01", "input": 0.1, "output": 0.000001}],
	"a/m*": [{"from": "2026-01-01", "input": 7, "output": 7}],
	"local/*": [{"from": "2026-01-01", "input": 0, "output": 0}]
}}`

func TestPrices(t *testing.T) {
	t.Parallel()
	prices, err := LoadPrices(strings.NewReader(table))
	if err != nil {
		t.Fatal(err)
	}
	for _, row := range []struct {
		name  string
		model ID
		day   string
		usage Usage
		cost  Micros
		known bool
	}{
		{"before the first day", ID{"a", "m"}, "2025-12-31", Usage{Input: 1}, 0, false},
		{"first price", ID{"a", "m"}, "2026-02-28", Usage{Input: 100, Output: 100}, 500, true},
		{"from its day on", ID{"a", "m"}, "2026-03-01", Usage{Input: 100, Output: 100}, 1000, true},
		{"cached and written input", ID{"a", "m"}, "2026-04-01", Usage{Input: 100, Cached: 40, Written: 20}, 80 + 20 + 50, true},
		{"the first price has no discount", ID{"a", "m"}, "2026-01-01", Usage{Input: 100, Cached: 40, Written: 20}, 100, true},
		{"reasoning", ID{"a", "m"}, "2026-04-01", Usage{Output: 100, Reasoning: 10}, 720 + 91, true},
		{"at the edge", ID{"a", "m"}, "2026-04-01", Usage{Input: 1000}, 2000, true},
		{"long", ID{"a", "m"}, "2026-04-01", Usage{Input: 1001, Cached: 1, Output: 1}, 4004 + 16, true},
		{"rounded up", ID{"a", "m-lite"}, "2026-04-01", Usage{Input: 11, Output: 1}, 2, true},
		{"longest prefix", ID{"a", "m-lite-2026"}, "2026-04-01", Usage{Input: 10}, 1, true},
		{"shorter prefix", ID{"a", "m-2026"}, "2026-04-01", Usage{Input: 10}, 70, true},
		{"a model of one's own", ID{"local", "llama/3"}, "2026-04-01", Usage{Input: 10}, 0, true},
		{"unknown", ID{"b", "m"}, "2026-04-01", Usage{Input: 10}, 0, false},
		{"nothing", ID{"a", "m"}, "2026-04-01", Usage{}, 0, true},
		{"counts that make no sense", ID{"a", "m"}, "2026-04-01", Usage{Input: 10, Cached: 50, Written: 9, Output: -5, Reasoning: 7}, 5, true},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			cost, known := prices.Cost(row.model, row.usage, day(row.day))
			if cost != row.cost || known != row.known {
				t.Errorf("got %s, %v, want %s, %v", cost, known, row.cost, row.known)
			}
		})
	}
	if err := prices.Check(day("2026-04-01"), ID{"a", "m"}, ID{"b", "m"}); err == nil || !strings.Contains(err.Error(), `"b/m"`) || strings.Contains(err.Error(), `"a/m"`) {
		t.Errorf("check: %v", err)
	}
	over := prices.With(testPrices(t))
	if over.Check(day("2026-04-01"), small, ID{"a", "m"}) != nil || prices.Check(day("2026-04-01"), small) == nil {
		t.Error("With has to join both and to change neither")
	}
}

func TestPricesRefused(t *testing.T) {
	t.Parallel()
	for name, file := range map[string]string{
		"unknown field":    `{"models": {"a/m": [{"from": "2026-01-01", "input": 1, "output": 1, "inputs": 2}]}}`,
		"no output":        `{"models": {"a/m": [{"from": "2026-01-01", "input": 1}]}}`,
		"seven decimals":   `{"models": {"a/m": [{"from": "2026-01-01", "input": 0.0000001, "output": 1}]}}`,
		"negative":         `{"models": {"a/m": [{"from": "2026-01-01", "input": -1, "output": 1}]}}`,
		"exponent":         `{"models": {"a/m": [{"from": "2026-01-01", "input": 1e3, "output": 1}]}}`,
		"too dear":         `{"models": {"a/m": [{"from": "2026-01-01", "input": 1000000, "output": 1}]}}`,
		"no day":           `{"models": {"a/m": [{"from": "soon", "input": 1, "output": 1}]}}`,
		"no price":         `{"models": {"a/m": []}}`,
		"no provider":      `{"models": {"m": [{"from": "2026-01-01", "input": 1, "output": 1}]}}`,
		"star in the name": `{"models": {"a/*m": [{"from": "2026-01-01", "input": 1, "output": 1}]}}`,
		"day twice":        `{"models": {"a/m": [{"from": "2026-01-01", "input": 1, "output": 1}, {"from": "2026-01-01", "input": 2, "output": 1}]}}`,
		"long over 0":      `{"models": {"a/m": [{"from": "2026-01-01", "input": 1, "output": 1, "long": {"input": 1, "output": 1}}]}}`,
		"more after it":    `{"models": {}} {}`,
		"no JSON":          `models:`,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if _, err := LoadPrices(strings.NewReader(file)); err == nil {
				t.Error("no error")
			}
		})
	}
}

func TestDefaultPrices(t *testing.T) {
	t.Parallel()
	p := DefaultPrices()
	if err := p.Check(day("2026-11-24"), ID{"openai", "gpt-5-mini"}, ID{"anthropic", "claude-haiku-5-5"}, ID{"gemini", "gemini-2.5-flash"}); err != nil {
		t.Error(err)
	}
	for name, list := range p.models {
		for _, q := range list {
			for _, r := range []Rates{q.Rates, q.Long} {
				if r.Cached > r.Input || r.Written < r.Input || r.Output > 0 && r.Output < r.Input {
					t.Errorf("%s: %+v: cached input is cheaper, written input and output are dearer than input", name, r)
				}
			}
		}
	}
}

// TestCostIsExact compares costs with rational arithmetic, and checks that Worst is
// an upper bound.
func TestCostIsExact(t *testing.T) {
	t.Parallel()
	rnd := rand.New(rand.NewPCG(1, 2))
	rate := func() Micros { return Micros(rnd.Int64N(1_000_000_000_000)) }
	for range 2000 {
		p := Price{Rates: Rates{rate(), rate(), rate(), rate(), rate()}}
		if rnd.IntN(2) == 0 {
			p.LongOver, p.Long = rnd.Int64N(500), Rates{rate(), rate(), rate(), rate(), rate()}
		}
		u := Usage{Input: rnd.Int64N(2_000_000), Output: rnd.Int64N(2_000_000)}
		u.Cached = rnd.Int64N(u.Input + 1)
		u.Written = rnd.Int64N(u.Input - u.Cached + 1)
		u.Reasoning = rnd.Int64N(u.Output + 1)
		r := p.Rates
		if p.LongOver > 0 && u.Input > p.LongOver {
			r = p.Long
		}
		sum := new(bigint.Int)
		for _, term := range [][2]int64{
			{u.Input - u.Cached - u.Written, int64(r.Input)},
			{u.Cached, int64(r.Cached)},
			{u.Written, int64(r.Written)},
			{u.Output - u.Reasoning, int64(r.Output)},
			{u.Reasoning, int64(r.Reasoning)},
		} {
			sum.Add(sum, new(bigint.Int).Mul(bigint.NewInt(term[0]), bigint.NewInt(term[1])))
		}
		sum.Add(sum, bigint.NewInt(999_999)).Div(sum, bigint.NewInt(1_000_000))
		if got := p.Cost(u); !sum.IsInt64() || int64(got) != sum.Int64() {
			t.Fatalf("%+v of %+v: got %d, want %s", u, p, got, sum)
		}
	}
	for range 2000 {
		p := Price{Rates: Rates{rate(), rate(), rate(), rate(), rate()}, LongOver: rnd.Int64N(200), Long: Rates{rate(), rate(), rate(), rate(), rate()}}
		req := &Request{Messages: []Message{{RoleUser, strings.Repeat("x", rnd.IntN(300))}}, MaxTokens: 1 + rnd.IntN(100)}
		worst, err := p.Worst(req)
		if err != nil {
			t.Fatal(err)
		}
		u := Usage{Input: rnd.Int64N(int64(req.Bytes()) + 20), Output: rnd.Int64N(int64(req.MaxTokens) + 1)}
		u.Cached = rnd.Int64N(u.Input + 1)
		u.Written = rnd.Int64N(u.Input - u.Cached + 1)
		u.Reasoning = rnd.Int64N(u.Output + 1)
		if got := p.Cost(u); got > worst {
			t.Fatalf("%+v of %+v cost %s, more than the worst %s", u, p, got, worst)
		}
	}
	if _, err := (Price{}).Worst(&Request{}); err == nil {
		t.Error("an unbounded answer has a worst cost")
	}
}

func TestMicros(t *testing.T) {
	t.Parallel()
	for m, want := range map[Micros]string{0: "$0.000000", 1: "$0.000001", Dollars(12) + 340_000: "$12.340000", -1_500_000: "-$1.500000", -1 << 63: "-$9223372036854.775808"} {
		if got := m.String(); got != want {
			t.Errorf("%d: got %s, want %s", int64(m), got, want)
		}
	}
}

func FuzzLoadPrices(f *testing.F) {
	f.Add(table)
	f.Add(`{"models": {"a/*": [{"from": "2026-01-01", "input": 999999.999999, "output": 0}]}}`)
	f.Fuzz(func(t *testing.T, file string) {
		p, err := LoadPrices(strings.NewReader(file))
		if err != nil {
			return
		}
		for name := range p.models {
			provider, model, _ := strings.Cut(strings.TrimSuffix(name, "*"), "/")
			if cost, _ := p.Cost(ID{provider, model}, Usage{Input: maxTokens, Output: maxTokens}, day("2500-01-01")); cost < 0 {
				t.Fatalf("%s: the cost overflows", name)
			}
		}
	})
}
