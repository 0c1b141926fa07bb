package anthropic

import (
	"errors"
	"math"
	"net/http"
	"strings"
	"testing"

	"github.com/millrace/millrace/llm"
	"github.com/millrace/millrace/llm/llmtest"
)

var hello = &llm.Request{Messages: []llm.Message{{Role: llm.RoleUser, Text: "hello"}}}

// Errors as the provider really sends them.
func TestFaults(t *testing.T) {
	t.Parallel()
	fault := func(kind, message string) string {
		return `{"type":"error","error":{"type":"` + kind + `","message":"` + message + `"},"request_id":"req_1"}`
	}
	for _, row := range []struct {
		name   string
		status int
		body   string
		want   llm.Class
	}{
		{"auth", 401, fault("authentication_error", "invalid x-api-key"), llm.Auth},
		{"permission", 403, fault("permission_error", "not allowed"), llm.Auth},
		{"model", 404, fault("not_found_error", "model: claude-x"), llm.Auth},
		{"billing", 402, fault("billing_error", "payment"), llm.NoMoney},
		{"credit", 400, fault("invalid_request_error", "Your credit balance is too low to access the Anthropic API"), llm.NoMoney},
		{"spend limit", 429, fault("rate_limit_error", "enforced_spend_limit_reached"), llm.NoMoney},
		{"spend limit as a detail", 429, `{"error":{"type":"rate_limit_error","message":"x","details":{"error_code":"enforced_spend_limit_reached"}}}`, llm.NoMoney},
		{"usage limits", 400, fault("invalid_request_error", "You have reached your specified API usage limits."), llm.NoMoney},
		{"too large", 413, fault("request_too_large", "Request exceeds the maximum size"), llm.ContextTooLong},
		{"prompt", 400, fault("invalid_request_error", "prompt is too long: 210000 tokens > 200000 maximum"), llm.ContextTooLong},
		{"prompt and answer", 400, fault("invalid_request_error", "input length and `max_tokens` exceed context limit"), llm.ContextTooLong},
		{"filter", 400, fault("invalid_request_error", "Output blocked by content filtering policy"), llm.Refused},
		{"rate", 429, fault("rate_limit_error", "tokens per minute"), llm.Throttled},
		{"api error", 500, fault("api_error", "Internal server error"), llm.Unavailable},
		{"timeout", 504, fault("timeout_error", "timed out"), llm.Unavailable},
		{"overloaded", 529, fault("overloaded_error", "Overloaded"), llm.Unavailable},
		{"schema", 400, fault("invalid_request_error", "output_config.format.schema: minimum is not supported"), llm.Invalid},
		{"tool", 200, `{"stop_reason":"tool_use","content":[]}`, llm.Violation},
		{"pause", 200, `{"stop_reason":"pause_turn","content":[]}`, llm.Violation},
		{"window", 200, `{"stop_reason":"model_context_window_exceeded","content":[{"type":"text","text":"x"}]}`, llm.ContextTooLong},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			s := llmtest.NewServer(t, llmtest.Raw(row.status, http.Header{"Content-Type": {"application/json"}}, row.body))
			m, err := New("m", Config{Endpoint: s.Endpoint()})
			if err != nil {
				t.Fatal(err)
			}
			_, err = m.Generate(t.Context(), hello)
			if e, ok := errors.AsType[*llm.Error](err); !ok || e.Class != row.want {
				t.Errorf("got %v, want %s", err, row.want)
			}
		})
	}
}

func TestRequest(t *testing.T) {
	t.Parallel()
	s := llmtest.NewServer(t, llmtest.Answer("{}"))
	for _, row := range []struct {
		cfg  Config
		req  int
		want int
	}{{Config{}, 0, DefaultMaxTokens}, {Config{MaxTokens: 9}, 0, 9}, {Config{MaxTokens: 9}, 128_000, 128_000}} {
		row.cfg.Endpoint = s.Endpoint()
		row.cfg.Extra = map[string]any{"service_tier": "standard_only"}
		m, err := New("claude-opus-4-20250514", row.cfg) // of which the SDK refuses long answers
		if err != nil {
			t.Fatal(err)
		}
		req := *hello
		req.MaxTokens = row.req
		if _, err := m.Generate(t.Context(), &req); err != nil {
			t.Fatal(err)
		}
		calls := s.Calls()
		c := calls[len(calls)-1]
		if c.MaxTokens != row.want || !strings.Contains(string(c.Body), `"service_tier":"standard_only"`) || c.Header.Get("Anthropic-Version") == "" {
			t.Errorf("%+v: %s", row, c.Body)
		}
		if strings.Contains(string(c.Body), "output_config") || strings.Contains(string(c.Body), "cache_control") {
			t.Errorf("%s has what was not asked for", c.Body)
		}
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
		{"tokens", "m", Config{MaxTokens: -1}, "is negative"},
		{"extra", "m", Config{Extra: map[string]any{"f": math.Inf(1)}}, `Extra["f"]`},
	} {
		if _, err := New(row.model, row.cfg); err == nil || !strings.Contains(err.Error(), row.want) {
			t.Errorf("%s: %v", row.name, err)
		}
	}
}
