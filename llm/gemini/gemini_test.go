package gemini

import (
	"errors"
	"math"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/millrace/millrace/llm"
	"github.com/millrace/millrace/llm/llmtest"
)

var hello = &llm.Request{Messages: []llm.Message{{Role: llm.RoleUser, Text: "hello"}}}

// Answers as the provider really sends them.
func TestFaults(t *testing.T) {
	t.Parallel()
	end := func(reason string) string {
		return `{"candidates":[{"content":{"parts":[{"text":"x"}]},"finishReason":"` + reason + `"}],"usageMetadata":{"promptTokenCount":3}}`
	}
	for _, row := range []struct {
		name   string
		status int
		body   string
		want   llm.Class
		wait   time.Duration
	}{
		{"rate", 429, `{"error":{"code":429,"status":"RESOURCE_EXHAUSTED","message":"quota","details":[{"@type":"type.googleapis.com/google.rpc.QuotaFailure"},{"@type":"type.googleapis.com/google.rpc.RetryInfo","retryDelay":"34.074s"}]}}`, llm.Throttled, 34074 * time.Millisecond},
		{"key", 400, `{"error":{"code":400,"status":"INVALID_ARGUMENT","message":"API key not valid.","details":[{"reason":"API_KEY_INVALID"}]}}`, llm.Auth, 0},
		{"permission", 403, `{"error":{"code":403,"status":"PERMISSION_DENIED","message":"x"}}`, llm.Auth, 0},
		{"model", 404, `{"error":{"code":404,"status":"NOT_FOUND","message":"x"}}`, llm.Auth, 0},
		{"region", 400, `{"error":{"code":400,"status":"FAILED_PRECONDITION","message":"User location is not supported"}}`, llm.Auth, 0},
		{"billing", 403, `{"error":{"code":403,"status":"PERMISSION_DENIED","message":"x","details":[{"reason":"BILLING_DISABLED"}]}}`, llm.NoMoney, 0},
		{"credits", 429, `{"error":{"code":429,"status":"RESOURCE_EXHAUSTED","message":"Your prepayment credits are depleted"}}`, llm.NoMoney, 0},
		{"tokens", 400, `{"error":{"code":400,"status":"INVALID_ARGUMENT","message":"The input token count (1200000) exceeds the maximum number of tokens allowed (1048576)."}}`, llm.ContextTooLong, 0},
		{"schema", 400, `{"error":{"code":400,"status":"INVALID_ARGUMENT","message":"unknown keyword"}}`, llm.Invalid, 0},
		{"overloaded", 503, `{"error":{"code":503,"status":"UNAVAILABLE","message":"overloaded"}}`, llm.Unavailable, 0},
		{"deadline", 504, `{"error":{"code":504,"status":"DEADLINE_EXCEEDED","message":"x"}}`, llm.Unavailable, 0},
		{"cancelled", 499, `{"error":{"code":499,"status":"CANCELLED","message":"x"}}`, llm.Unavailable, 0},
		{"blocked prompt", 200, `{"promptFeedback":{"blockReason":"PROHIBITED_CONTENT"},"usageMetadata":{"promptTokenCount":3}}`, llm.Refused, 0},
		{"safety", 200, end("SAFETY"), llm.Refused, 0},
		{"recitation", 200, end("RECITATION"), llm.Refused, 0},
		{"a reason of the future", 200, end("NEW_REASON"), llm.Refused, 0},
		{"length", 200, end("MAX_TOKENS"), llm.Truncated, 0},
		{"tool", 200, end("MALFORMED_FUNCTION_CALL"), llm.Violation, 0},
		{"no end", 200, end(""), llm.Unavailable, 0},
		{"to be continued", 200, `{"candidates":[{"content":{"parts":[{"text":"x"}]},"finishReason":"CONTINUATION","continuationToken":"AAAA"}]}`, llm.Unavailable, 0},
		{"odd types", 200, `{"candidates":"x"}`, llm.Unavailable, 0},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			s := llmtest.NewServer(t, llmtest.Raw(row.status, http.Header{"Content-Type": {"application/json"}}, row.body))
			m, err := New("m", Config{Endpoint: s.Endpoint()})
			if err != nil {
				t.Fatal(err)
			}
			_, err = m.Generate(t.Context(), hello)
			e, ok := errors.AsType[*llm.Error](err)
			if !ok || e.Class != row.want || e.RetryAfter != row.wait {
				t.Errorf("got %v, want %s", err, row.want)
			}
			if ok && strings.Contains(row.body, `"promptTokenCount":3`) && e.Usage.Input != 3 {
				t.Errorf("what was paid is lost: %+v", e.Usage)
			}
			if n := len(s.Calls()); n != 1 {
				t.Errorf("%d calls: the SDK made more", n)
			}
		})
	}
}

func TestRequest(t *testing.T) {
	t.Parallel()
	s := llmtest.NewServer(t, llmtest.Raw(200, nil, `{"candidates":[{"content":{"parts":[{"text":"hm","thought":true},{"text":"a"},{"text":"b"}]},"finishReason":"STOP"}]}`))
	m, err := New("m", Config{Endpoint: s.Endpoint(), Generation: map[string]any{"thinkingConfig": map[string]any{"thinkingBudget": 0}}})
	if err != nil {
		t.Fatal(err)
	}
	r, err := m.Generate(t.Context(), hello)
	if err != nil || r.Text != "ab" || r.Usage != (llm.Usage{}) {
		t.Fatalf("%+v, %v", r, err)
	}
	if body := string(s.Calls()[0].Body); !strings.Contains(body, `"generationConfig":{"thinkingConfig":{"thinkingBudget":0}}`) {
		t.Errorf("body %s", body)
	}
}

func TestMistakes(t *testing.T) {
	t.Parallel()
	for _, row := range []struct {
		name, model string
		cfg         Config
		want        string
	}{
		{"no model", "", Config{}, "no model"},
		{"URL", "m", Config{Endpoint: llm.Endpoint{URL: "localhost:11434"}}, "must begin with https://"},
		{"generation", "m", Config{Generation: map[string]any{"f": math.Inf(1)}}, "no JSON form"},
	} {
		if _, err := New(row.model, row.cfg); err == nil || !strings.Contains(err.Error(), row.want) {
			t.Errorf("%s: %v", row.name, err)
		}
	}
}
