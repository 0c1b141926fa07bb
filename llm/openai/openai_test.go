package openai

import (
	"errors"
	"fmt"
	"math"
	"net/http"
	"strings"
	"testing"

	"github.com/millrace/millrace/llm"
	"github.com/millrace/millrace/llm/llmtest"
)

var hello = &llm.Request{Messages: []llm.Message{{Role: llm.RoleUser, Text: "hello"}}}

// Errors as servers really send them.
func TestFaults(t *testing.T) {
	t.Parallel()
	for _, row := range []struct {
		name   string
		status int
		body   string
		want   llm.Class
		text   string // in the error
	}{
		{"OpenAI: quota", 429, `{"error":{"message":"You exceeded your current quota","type":"insufficient_quota","param":null,"code":"insufficient_quota"}}`, llm.NoMoney, "insufficient_quota"},
		{"OpenAI: spend limit", 400, `{"error":{"message":"Billing hard limit has been reached","type":"invalid_request_error","code":"billing_hard_limit_reached"}}`, llm.NoMoney, "billing_hard_limit_reached"},
		{"OpenAI: rate", 429, `{"error":{"message":"Rate limit reached for gpt-5 on requests per min","type":"requests","code":"rate_limit_exceeded"}}`, llm.Throttled, "rate_limit_exceeded"},
		{"OpenAI: larger than a minute's tokens", 429, `{"error":{"message":"Request too large for gpt-5 on tokens per min (TPM): Limit 10000, Requested 12000","type":"tokens","code":"rate_limit_exceeded"}}`, llm.ContextTooLong, "tokens"},
		{"OpenAI: context", 400, `{"error":{"message":"Your input exceeds","type":"invalid_request_error","param":"messages","code":"context_length_exceeded"}}`, llm.ContextTooLong, "param messages"},
		{"OpenAI: schema", 400, `{"error":{"message":"Invalid schema for response_format","type":"invalid_request_error","param":"response_format","code":null}}`, llm.Invalid, "param response_format"},
		{"OpenAI: policy", 400, `{"error":{"message":"limited access","type":"invalid_request_error","code":"invalid_prompt"}}`, llm.Refused, ""},
		{"OpenAI: region", 403, `{"error":{"code":"unsupported_country_region_territory","type":"request_forbidden"}}`, llm.Auth, "unsupported_country"},
		{"OpenAI: model", 404, `{"error":{"message":"The model does not exist","type":"invalid_request_error","code":"model_not_found"}}`, llm.Auth, "check the model's name"},
		{"OpenAI: overloaded", 503, `{"error":{"message":"slow down","type":"server_error","code":"slow_down"}}`, llm.Unavailable, ""},
		{"Azure: filter", 400, `{"error":{"message":"filtered","code":"content_filter","innererror":{"code":"ResponsibleAIPolicyViolation"}}}`, llm.Refused, ""},
		{"Azure: filter, inner only", 400, `{"error":{"message":"filtered","code":"400","innererror":{"code":"ResponsibleAIPolicyViolation"}}}`, llm.Refused, ""},
		{"Azure: deployment", 404, `{"error":{"code":"DeploymentNotFound","message":"x"}}`, llm.Auth, "DeploymentNotFound"},
		{"Azure: rate, as text", 429, `{"error":{"code":"429","message":"Requests have exceeded the token rate limit."}}`, llm.Throttled, ""},
		{"vLLM: context, flat", 400, `{"object":"error","message":"This model's maximum context length is 4096 tokens. However, you requested 5000","type":"BadRequestError","param":null,"code":400}`, llm.ContextTooLong, "BadRequestError"},
		{"vLLM: longer than the model", 400, `{"error":{"message":"The decoder prompt is longer than the maximum model length of 4096","type":"BadRequestError","code":400}}`, llm.ContextTooLong, ""},
		{"llama.cpp: context", 400, `{"error":{"code":400,"message":"the request exceeds the available context size","type":"exceed_context_size_error","n_prompt_tokens":5000,"n_ctx":4096}}`, llm.ContextTooLong, ""},
		{"llama.cpp: loading", 503, `{"error":{"code":503,"message":"Loading model","type":"unavailable_error"}}`, llm.Unavailable, ""},
		{"Ollama: text", 404, `{"error":"model 'x' not found"}`, llm.Auth, ""},
		{"Ollama: context", 400, `{"error":"the input is too long: input length exceeds the context length"}`, llm.ContextTooLong, ""},
		{"LiteLLM: budget", 400, `{"error":{"message":"Budget has been exceeded!","type":"budget_exceeded","code":"400"}}`, llm.NoMoney, ""},
		{"OpenRouter: in a 200", 200, `{"error":{"code":429,"message":"rate-limited upstream"}}`, llm.Throttled, ""},
		{"OpenRouter: credits", 402, `{"error":{"code":402,"message":"Insufficient credits"}}`, llm.NoMoney, ""},
		{"DeepSeek: balance", 402, `{"error":{"message":"Insufficient Balance","type":"unknown_error","code":"invalid_request_error"}}`, llm.NoMoney, ""},
		{"a text as a code", 400, `{"error":{"code":"my card is 4111","type":"x"}}`, llm.Invalid, "type x"},
		{"content filter at the end", 200, `{"choices":[{"message":{"content":"be"},"finish_reason":"content_filter"}]}`, llm.Refused, ""},
		{"tool call", 200, `{"choices":[{"message":{"content":null},"finish_reason":"tool_calls"}]}`, llm.Violation, ""},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			s := llmtest.NewServer(t, llmtest.Raw(row.status, http.Header{"Content-Type": {"application/json"}}, row.body))
			m, err := New("m", Config{Endpoint: s.Endpoint()})
			if err != nil {
				t.Fatal(err)
			}
			_, err = m.Generate(t.Context(), hello)
			if e, ok := errors.AsType[*llm.Error](err); !ok || e.Class != row.want || !strings.Contains(err.Error(), row.text) || strings.Contains(err.Error(), "4111") {
				t.Errorf("got %v, want %s with %q", err, row.want, row.text)
			}
		})
	}
}

func TestRequest(t *testing.T) {
	t.Parallel()
	var url, key string
	s := llmtest.NewServer(t, llmtest.Answer("{}"))
	e := s.Endpoint()
	e.URL += "/openai/deployments/d"
	e.Key, e.KeyHeader = llm.StaticKey(llm.NewSecret("k")), "Api-Key"
	e.Transport = func(next http.RoundTripper) http.RoundTripper {
		return roundTrip(func(r *http.Request) (*http.Response, error) {
			url, key = r.URL.RequestURI(), r.Header.Get("Api-Key")+r.Header.Get("Authorization")
			return next.RoundTrip(r)
		})
	}
	m, err := New("d", Config{
		Endpoint: e, Provider: "azure", APIVersion: "2024-10-21", LooseSchema: true,
		Extra: map[string]any{"reasoning_effort": "low", "chat_template_kwargs": map[string]any{"thinking": false}},
	})
	if err != nil {
		t.Fatal(err)
	}
	req := *hello
	req.Schema = []byte(`{"type":"object"}`)
	if _, err := m.Generate(t.Context(), &req); err != nil {
		t.Fatal(err)
	}
	if url != "/openai/deployments/d/chat/completions?api-version=2024-10-21" || key != "k" {
		t.Errorf("%s with key %q", url, key)
	}
	body := string(s.Calls()[0].Body)
	for _, want := range []string{`"reasoning_effort":"low"`, `"chat_template_kwargs":{"thinking":false}`, `"name":"answer"`} {
		if !strings.Contains(body, want) {
			t.Errorf("%s lacks %s", body, want)
		}
	}
	if strings.Contains(body, "strict") || strings.Contains(body, "max_") || strings.Contains(body, "temperature") {
		t.Errorf("%s has what was not asked for", body)
	}
}

type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

func TestMistakes(t *testing.T) {
	t.Parallel()
	for _, row := range []struct {
		name, model string
		cfg         Config
		want        string
	}{
		{"no model", "", Config{}, "no model"},
		{"URL", "m", Config{Endpoint: llm.Endpoint{URL: "localhost:11434"}}, "must begin with https://"},
		{"extra", "m", Config{Extra: map[string]any{"f": math.Inf(1)}}, `Extra["f"]`},
	} {
		if _, err := New(row.model, row.cfg); err == nil || !strings.Contains(err.Error(), row.want) {
			t.Errorf("%s: %v", row.name, err)
		}
	}
	if _, err := NewEmbedder("m", -1, Config{}); err == nil {
		t.Error("negative dimensions")
	}
	for url, want := range map[string]string{"": "openai/m", BaseURL: "openai/m", "https://gateway.example.com/v1": "openai-compatible/m"} {
		m, err := New("m", Config{Endpoint: llm.Endpoint{URL: url}})
		if err != nil || m.ID().String() != want {
			t.Errorf("%q: %v, %v", url, m.ID(), err)
		}
	}
}

func TestSchemaName(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"": "answer", "shop.v1.Review": "shop_v1_Review", "Größe": "Gr_e",
		strings.Repeat("a", 70) + ".Last": strings.Repeat("a", 59) + "_Last",
	} {
		if got := schemaName(in); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}

func TestEmbed(t *testing.T) {
	t.Parallel()
	s := llmtest.NewServer(t, llmtest.Answer(""))
	e, err := NewEmbedder("embed", 8, Config{Endpoint: s.Endpoint()})
	if err != nil {
		t.Fatal(err)
	}
	v, usage, err := e.Embed(t.Context(), []string{"one two", "three", "one two"})
	if err != nil {
		t.Fatal(err)
	}
	if len(v) != 3 || fmt.Sprint(v[0]) != fmt.Sprint(v[2]) || fmt.Sprint(v[0]) == fmt.Sprint(v[1]) || usage.Input != 5 {
		t.Errorf("vectors %v, usage %+v", v, usage)
	}
	if body := string(s.Calls()[0].Body); !strings.Contains(body, `"dimensions":8`) {
		t.Errorf("body %s", body)
	}
	if v, usage, err := e.Embed(t.Context(), nil); v != nil || usage != (llm.Usage{}) || err != nil || len(s.Calls()) != 1 {
		t.Errorf("no texts: %v, %v", v, err)
	}
}

func TestEmbedFaults(t *testing.T) {
	t.Parallel()
	data := func(s string) llmtest.Step {
		return llmtest.Raw(200, http.Header{"Content-Type": {"application/json"}}, `{"data":[`+s+`],"usage":{"prompt_tokens":5}}`)
	}
	for _, row := range []struct {
		name string
		step llmtest.Step
		want llm.Class
	}{
		{"throttled", llmtest.Fail(llm.Throttled), llm.Throttled},
		{"too large", llmtest.Huge(100 << 20), llm.TooLarge},
		{"nothing", data(""), llm.Unavailable},
		{"null", llmtest.Raw(200, nil, "null"), llm.Unavailable},
		{"one missing", data(`{"index":0,"embedding":[1]}`), llm.Violation},
		{"one twice", data(`{"index":0,"embedding":[1]},{"index":0,"embedding":[1]}`), llm.Violation},
		{"index out of range", data(`{"index":0,"embedding":[1]},{"index":2,"embedding":[1]}`), llm.Violation},
		{"unequal", data(`{"index":1,"embedding":[1]},{"index":0,"embedding":[1,2]}`), llm.Violation},
		{"empty", data(`{"index":1,"embedding":[]},{"index":0,"embedding":[]}`), llm.Violation},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			e, err := NewEmbedder("embed", 0, Config{Endpoint: llmtest.NewServer(t, row.step).Endpoint()})
			if err != nil {
				t.Fatal(err)
			}
			v, usage, err := e.Embed(t.Context(), []string{"a", "b"})
			if v != nil || llm.ClassOf(err) != row.want || row.want == llm.Violation && usage.Input != 5 {
				t.Errorf("%v, %+v, %v", v, usage, err)
			}
		})
	}
}
