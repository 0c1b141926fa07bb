package limit_test

import (
	"context"
	"fmt"
	"time"

	"github.com/millrace/millrace/llm"
	"github.com/millrace/millrace/llm/limit"
)

func Example() {
	mini := llm.ID{Provider: "openai", Model: "gpt-5-mini"}
	limits, err := limit.New(map[llm.ID]limit.Rate{mini: {Requests: 500, Tokens: 200_000}})
	if err != nil {
		panic(err)
	}
	limits.SetShare(4.0 / 16) // this instance has 4 of 16 partitions

	req := &llm.Request{Messages: []llm.Message{{Role: llm.RoleUser, Text: "How do I reset my password?"}}, MaxTokens: 200}
	fmt.Println(limits.Estimate(mini, req))

	done, err := limits.Reserve(context.Background(), mini, req, time.Now())
	if err != nil {
		panic(err)
	}
	done(&llm.Response{Usage: llm.Usage{Input: 21, Output: 80}}, nil)
	fmt.Println(limits.Estimate(mini, req))
	// Output:
	// 16 200
	// 21 80
}
