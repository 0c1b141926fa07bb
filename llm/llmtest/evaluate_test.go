package llmtest_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/millrace/millrace/llm"
	"github.com/millrace/millrace/llm/llmtest"
	"github.com/millrace/millrace/llm/openai"
)

type review struct{ text, label string }

var evaluation = llmtest.Evaluation[review]{
	Request: func(r review) (*llm.Request, error) {
		if r.text == "" {
			return nil, errors.New("no text")
		}
		return &llm.Request{Messages: []llm.Message{{Role: llm.RoleUser, Text: r.text}}}, nil
	},
	Check: func(r review, a *llm.Response) error {
		switch {
		case !strings.HasPrefix(a.Text, "{"):
			return &llm.Error{Class: llm.Violation, Err: errors.New("no JSON")}
		case !strings.Contains(a.Text, r.label):
			return fmt.Errorf("want %s, got %s", r.label, a.Text)
		}
		return nil
	},
	Name: func(r review) string { return r.text },
}

func TestEvaluate(t *testing.T) {
	t.Parallel()
	s := llmtest.NewServer(t, func(c *llmtest.Call) llmtest.Reply {
		r := llmtest.Reply{Usage: llm.Usage{Input: 10, Output: 2}}
		switch c.Last() {
		case "great", "fine":
			r.Text = `{"good"}`
		case "chatty":
			r.Text = "well, good"
		case "rude":
			r.Text, r.Finish = "no", llm.FinishRefusal
		default:
			r.Text = `{"bad"}`
		}
		return r
	})
	m, err := openai.New("m", openai.Config{Endpoint: s.Endpoint()})
	if err != nil {
		t.Fatal(err)
	}
	data := []review{{"great", "good"}, {"fine", "good"}, {"awful", "bad"}, {"chatty", "good"}, {"rude", "bad"}, {"ironic", "good"}}
	r, err := llmtest.Evaluate(t.Context(), m, data, evaluation)
	if err != nil {
		t.Fatal(err)
	}
	if r.Total != 6 || r.Passed != 3 || r.Wrong != 1 || r.Failed[llm.Violation] != 1 || r.Failed[llm.Refused] != 1 || r.PassRate() != 0.5 ||
		r.Rate(llm.Refused) != 1.0/6 || r.Usage != (llm.Usage{Input: 60, Output: 12}) || r.P50 <= 0 || r.P95 < r.P50 {
		t.Errorf("report %+v", r)
	}
	var names []string
	for _, f := range r.Failures {
		names = append(names, f.Name+"="+f.Text)
	}
	if got := strings.Join(names, ", "); got != `chatty=well, good, rude=no, ironic={"bad"}` {
		t.Errorf("failures %s", got)
	}
	if _, err := llmtest.Evaluate(t.Context(), m, []review{{}}, evaluation); err == nil || !strings.Contains(err.Error(), "no text") {
		t.Errorf("impossible request: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := llmtest.Evaluate(ctx, m, data, evaluation); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	if r, err := llmtest.Evaluate(t.Context(), m, nil, evaluation); err != nil || r.PassRate() != 1 {
		t.Errorf("no data: %+v, %v", r, err)
	}
}
