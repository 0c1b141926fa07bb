package llmtest_test

import (
	"context"
	"fmt"
	"net/http/httptest"
	"time"

	"github.com/millrace/millrace/llm"
	"github.com/millrace/millrace/llm/llmtest"
	"github.com/millrace/millrace/llm/openai"
)

// A provider that is throttled first. In a test, [llmtest.NewServer] is shorter.
func ExampleNewHandler() {
	h := llmtest.NewHandler(llmtest.Config{Steps: []llmtest.Step{
		llmtest.RateLimited(2 * time.Second),
		llmtest.Answer(`{"label":"good"}`),
	}})
	defer h.Close()
	server := httptest.NewServer(h)
	defer server.Close()

	model, _ := openai.New("gpt-5-mini", openai.Config{Endpoint: llm.Endpoint{URL: server.URL + "/v1"}, Provider: "test"})
	req := &llm.Request{Messages: []llm.Message{{Role: llm.RoleUser, Text: "What a film!"}}}
	_, err := model.Generate(context.Background(), req)
	fmt.Println(err)
	answer, _ := model.Generate(context.Background(), req)
	fmt.Println(answer.Text)
	fmt.Println("paid twice:", h.Stats().PaidTwice)
	// Output:
	// test/gpt-5-mini: throttled (HTTP 429): code rate_limit_exceeded, type requests
	// {"label":"good"}
	// paid twice: 0
}

func ExampleEvaluate() {
	h := llmtest.NewHandler(llmtest.Config{Steps: []llmtest.Step{llmtest.AnswerWith(func(c *llmtest.Call) string {
		if c.Last() == "What a film!" {
			return "good"
		}
		return "bad"
	})}})
	defer h.Close()
	server := httptest.NewServer(h)
	defer server.Close()
	model, _ := openai.New("gpt-5-mini", openai.Config{Endpoint: llm.Endpoint{URL: server.URL + "/v1"}})

	data := [][2]string{{"What a film!", "good"}, {"Never again.", "bad"}, {"Not bad at all.", "good"}}
	report, err := llmtest.Evaluate(context.Background(), model, data, llmtest.Evaluation[[2]string]{
		Request: func(d [2]string) (*llm.Request, error) {
			return &llm.Request{Messages: []llm.Message{{Role: llm.RoleUser, Text: d[0]}}}, nil
		},
		Check: func(d [2]string, r *llm.Response) error {
			if r.Text != d[1] {
				return fmt.Errorf("%q is %s, not %s", d[0], d[1], r.Text)
			}
			return nil
		},
	})
	fmt.Println(err)
	fmt.Printf("%.0f %% passed; %v\n", 100*report.PassRate(), report.Failures[0].Err)
	// Output:
	// <nil>
	// 67 % passed; "Not bad at all." is good, not bad
}
