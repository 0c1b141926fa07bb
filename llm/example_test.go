package llm_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/millrace/millrace/llm"
)

// flaky fails the given number of times, then answers.
type flaky struct {
	name  string
	fails int
	class llm.Class
}

func (f *flaky) ID() llm.ID { return llm.ID{Provider: "example", Model: f.name} }

func (f *flaky) Generate(context.Context, *llm.Request) (*llm.Response, error) {
	if f.fails > 0 {
		f.fails--
		return nil, &llm.Error{Class: f.class, Model: f.ID(), Err: errors.New("as scripted")}
	}
	return &llm.Response{Text: "4", Finish: llm.FinishStop, Usage: llm.Usage{Input: 1000, Output: 200}}, nil
}

func ExampleCaller() {
	prices, err := llm.LoadPrices(strings.NewReader(`{"models": {
		"example/small": [{"from": "2026-01-01", "input": 0.25, "output": 2}],
		"example/large": [{"from": "2026-01-01", "input": 2.50, "output": 20}]
	}}`))
	if err != nil {
		panic(err)
	}
	caller, err := llm.NewCaller(llm.CallerConfig{
		Chain: []llm.Link{
			{Model: &flaky{name: "small", fails: 1, class: llm.ContextTooLong}},
			{Model: &flaky{name: "large", fails: 1, class: llm.Unavailable}, For: []llm.Class{llm.ContextTooLong}},
		},
		Policy: llm.Policy{Timeout: 10 * time.Second, Backoff: time.Millisecond},
		Prices: prices,
		OnAttempt: func(_ context.Context, a llm.Attempt) {
			if a.Err != nil {
				fmt.Println(a.Model, a.Err.Class, "->", a.Action)
			}
		},
	})
	if err != nil {
		panic(err)
	}
	res, err := caller.Do(context.Background(), llm.Call{Request: func(llm.ID) (*llm.Request, error) {
		return &llm.Request{Messages: []llm.Message{{Role: llm.RoleUser, Text: "2+2?"}}, MaxTokens: 200}, nil
	}})
	if err != nil {
		panic(err)
	}
	fmt.Println(res.Response.Text, "from", res.Model, "after", res.Attempts, "attempts for", res.Cost)
	// Output:
	// example/small context_too_long -> next_model
	// example/large unavailable -> retry
	// 4 from example/large after 3 attempts for $0.006500
}

func ExampleBudget() {
	day := llm.Budget{Limit: llm.Amount{Money: llm.Dollars(1), Tokens: llm.NoLimit}, Window: 24 * time.Hour}
	now := time.Date(2026, 11, 24, 9, 0, 0, 0, time.UTC)
	hold, err := day.Reserve(now, llm.Amount{Money: 700_000}) // in the transaction that makes the call possible
	if err != nil {
		panic(err)
	}
	_, err = day.Reserve(now, llm.Amount{Money: 400_000})
	fmt.Println(err)
	day.Settle(hold, llm.Amount{Money: 120_000}) // in the one that takes its outcome
	fmt.Println(day.Left())
	// Output:
	// the budget of $1.000000 does not cover $0.400000: $0.000000 spent, $0.700000 reserved; it covers it from 2026-11-25T00:00:00Z
	// $0.880000
}

func ExampleAmount_Share() {
	for partition := range 3 {
		fmt.Println(llm.Amount{Money: llm.Dollars(10), Tokens: llm.NoLimit}.Share(partition, 3))
	}
	// Output:
	// $3.333334
	// $3.333333
	// $3.333333
}

func ExampleDefaultPrices() {
	prices := llm.DefaultPrices()
	sonnet := llm.ID{Provider: "anthropic", Model: "claude-sonnet-5-5"}
	usage := llm.Usage{Input: 10_000, Cached: 8_000, Output: 500}
	for _, day := range []int{1, 7} {
		cost, known := prices.Cost(sonnet, usage, time.Date(2026, 10, day, 0, 0, 0, 0, time.UTC))
		fmt.Println(cost, known)
	}
	// Output:
	// $0.010600 true
	// $0.009800 true
}
