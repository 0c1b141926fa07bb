package llmtest_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log"
	"log/slog"
	"net/http"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/millrace/millrace/llm"
	"github.com/millrace/millrace/llm/anthropic"
	"github.com/millrace/millrace/llm/gemini"
	"github.com/millrace/millrace/llm/llmtest"
	"github.com/millrace/millrace/llm/openai"
)

const (
	keyCanary   = "sk-canary-KEY-7Qx93"
	eventCanary = "event canary: my card is 4111-1111"
)

// adapters build a model of each provider.
var adapters = map[string]func(llm.Endpoint) (llm.Model, error){
	"openai": func(e llm.Endpoint) (llm.Model, error) {
		return openai.New("gpt-test", openai.Config{Endpoint: e, Provider: "openai"})
	},
	"openai-compatible": func(e llm.Endpoint) (llm.Model, error) {
		return openai.New("local-test", openai.Config{Endpoint: e})
	},
	"anthropic": func(e llm.Endpoint) (llm.Model, error) {
		return anthropic.New("claude-test", anthropic.Config{Endpoint: e})
	},
	"gemini": func(e llm.Endpoint) (llm.Model, error) { return gemini.New("gemini-test", gemini.Config{Endpoint: e}) },
}

func build(t *testing.T, name string, s *llmtest.Server) llm.Model {
	t.Helper()
	e := s.Endpoint()
	e.Key = llm.StaticKey(llm.NewSecret(keyCanary))
	m, err := adapters[name](e)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func eachAdapter(t *testing.T, f func(t *testing.T, name string)) {
	for name := range adapters {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f(t, name)
		})
	}
}

var request = llm.Request{
	Messages: []llm.Message{
		{Role: llm.RoleSystem, Text: "Classify."},
		{Role: llm.RoleUser, Text: eventCanary},
		{Role: llm.RoleAssistant, Text: "bad answer"},
		{Role: llm.RoleUser, Text: "violations"},
	},
	// The order of the properties is not that of the alphabet.
	Schema:     json.RawMessage(`{"type":"object","properties":{"reason":{"type":"string"},"label":{"type":"string"}},"required":["reason","label"],"additionalProperties":false}`),
	SchemaName: "shop.v1.Review", MaxTokens: 77, Temperature: new(0.25), CacheKey: "reviews",
}

func TestGenerate(t *testing.T) {
	t.Parallel()
	eachAdapter(t, func(t *testing.T, name string) {
		usage := llm.Usage{Input: 120, Cached: 100, Output: 30, Reasoning: 10}
		if name != "gemini" { // it charges for keeping, not for writing
			usage.Written = 15
		}
		s := llmtest.Start(t, llmtest.Config{Secret: keyCanary, Steps: []llmtest.Step{func(*llmtest.Call) llmtest.Reply {
			return llmtest.Reply{Text: `{"label":"good"}`, Usage: usage, Header: http.Header{"X-Ratelimit-Remaining-Tokens": {"9"}, "Set-Cookie": {"a=b"}}}
		}}})
		m := build(t, name, s)
		ctx := llm.WithHeader(t.Context(), http.Header{"X-Millrace-Entry": {"e1"}})
		r, err := m.Generate(ctx, &request)
		if err != nil {
			t.Fatal(err)
		}
		if r.Text != `{"label":"good"}` || r.Finish != llm.FinishStop || r.Usage != usage || r.Model != m.ID().Model {
			t.Errorf("response %+v", r)
		}
		if r.Header.Get("X-Ratelimit-Remaining-Tokens") != "9" || r.Header.Get("Set-Cookie") != "" {
			t.Errorf("header %v", r.Header)
		}
		calls := s.Calls()
		if len(calls) != 1 {
			t.Fatalf("%d calls", len(calls))
		}
		c := calls[0]
		if got, want := fmt.Sprint(c.Messages), fmt.Sprint(request.Messages); got != want {
			t.Errorf("messages %s, want %s", got, want)
		}
		if string(c.Schema) != string(request.Schema) {
			t.Errorf("schema %s", c.Schema)
		}
		if c.Model != m.ID().Model || c.MaxTokens != 77 || c.Temperature == nil || *c.Temperature != 0.25 || c.Header.Get("X-Millrace-Entry") != "e1" {
			t.Errorf("call %+v", c)
		}
		if strings.HasPrefix(name, "openai") && c.SchemaName != "shop_v1_Review" {
			t.Errorf("schema's name %q", c.SchemaName)
		}
		if got, want := strings.Contains(string(c.Body), `"prompt_cache_key":"reviews"`), name == "openai"; got != want {
			t.Errorf("prompt_cache_key: %v, want %v", got, want)
		}
		if got, want := strings.Contains(string(c.Body), `"cache_control"`), name == "anthropic"; got != want {
			t.Errorf("cache_control: %v, want %v", got, want)
		}
		if got, want := strings.Contains(string(c.Body), `"max_completion_tokens"`), name == "openai"; got != want {
			t.Errorf("max_completion_tokens: %v, want %v", got, want)
		}
	})
}

// Every class of every adapter, in the provider's own form.
func TestClasses(t *testing.T) {
	t.Parallel()
	eachAdapter(t, func(t *testing.T, name string) {
		for _, row := range []struct {
			name string
			step llmtest.Step
			want llm.Class
		}{
			{"throttled", llmtest.RateLimited(1500 * time.Millisecond), llm.Throttled},
			{"unavailable", llmtest.Fail(llm.Unavailable), llm.Unavailable},
			{"500", llmtest.Status(500), llm.Unavailable},
			{"502 of a gateway", llmtest.Raw(502, nil, "<html>bad gateway "+keyCanary), llm.Unavailable},
			{"408", llmtest.Raw(408, nil, ""), llm.Unavailable},
			{"529", llmtest.Raw(529, nil, "{}"), llm.Unavailable},
			{"no money", llmtest.Fail(llm.NoMoney), llm.NoMoney},
			{"402", llmtest.Raw(402, nil, `{"error":{}}`), llm.NoMoney},
			{"auth", llmtest.Fail(llm.Auth), llm.Auth},
			{"403", llmtest.Raw(403, nil, `{"error":"`+keyCanary+`"}`), llm.Auth},
			{"404", llmtest.Raw(404, nil, `no such model`), llm.Auth},
			{"redirect", llmtest.Raw(302, http.Header{"Location": {"http://127.0.0.1:1/"}}, ""), llm.Auth},
			{"context too long", llmtest.Fail(llm.ContextTooLong), llm.ContextTooLong},
			{"413", llmtest.Raw(413, nil, ""), llm.ContextTooLong},
			{"refused", llmtest.Refusal(), llm.Refused},
			{"truncated", llmtest.Truncated(), llm.Truncated},
			{"invalid", llmtest.Fail(llm.Invalid), llm.Invalid},
			{"invalid, quoting the request", func(c *llmtest.Call) llmtest.Reply {
				return llmtest.Reply{Fault: llm.Invalid, Message: "bad: " + eventCanary + " " + keyCanary}
			}, llm.Invalid},
			{"too large", llmtest.Huge(100 << 20), llm.TooLarge},
			{"cut", llmtest.Cut(`{"label":"good"}`), llm.Unavailable},
			{"no JSON", llmtest.Raw(200, nil, "hello "+keyCanary), llm.Unavailable},
			{"empty", llmtest.Raw(200, nil, ""), llm.Unavailable},
			{"no answer in it", llmtest.Raw(200, nil, `{"id":"x"}`), llm.Unavailable},
			{"null", llmtest.Raw(200, nil, `null`), llm.Unavailable},
			{"a list", llmtest.Raw(200, nil, `[1]`), llm.Unavailable},
			{"a 200 that is an error", llmtest.Raw(200, nil, `{"error":{"message":"`+eventCanary+`"}}`), llm.Unavailable},
			{"sudden end", func(*llmtest.Call) llmtest.Reply { return llmtest.Reply{Body: []byte{}, Cut: true} }, llm.Unavailable},
		} {
			t.Run(row.name, func(t *testing.T) {
				t.Parallel()
				s := llmtest.NewServer(t, row.step)
				r, err := build(t, name, s).Generate(t.Context(), &request)
				e := check(t, r, err, row.want)
				if n := len(s.Calls()); n != 1 {
					t.Errorf("%d calls: adapters never retry", n)
				}
				switch row.want {
				case llm.Throttled:
					if e.RetryAfter != 1500*time.Millisecond || e.Status != 429 {
						t.Errorf("retry after %s, status %d", e.RetryAfter, e.Status)
					}
				case llm.Refused, llm.Truncated:
					if e.Raw == "" || e.Usage.Output == 0 {
						t.Errorf("what was paid for is lost: %q, %+v", e.Raw, e.Usage)
					}
				case llm.Invalid:
					if e.Raw == "" {
						t.Error("the provider's explanation is lost")
					}
				}
			})
		}
	})
}

// check verifies that an error is of a class and holds neither key nor event.
func check(t *testing.T, r *llm.Response, err error, want llm.Class) *llm.Error {
	t.Helper()
	e, ok := errors.AsType[*llm.Error](err)
	if !ok || r != nil {
		t.Fatalf("response %v, error %v", r, err)
	}
	if e.Class != want {
		t.Errorf("class %s, want %s: %v", e.Class, want, err)
	}
	var out bytes.Buffer
	fmt.Fprintf(&out, "%v %+v %#v", err, err, err)
	for cause := error(e); cause != nil; cause = errors.Unwrap(cause) {
		fmt.Fprintf(&out, " %v %+v %#v", cause, cause, cause)
	}
	slog.New(slog.NewJSONHandler(&out, nil)).Info("m", "err", err, "error", e)
	if strings.Contains(out.String(), keyCanary) || strings.Contains(e.Raw, keyCanary) {
		t.Errorf("the key shows: %s", out.String())
	}
	if strings.Contains(e.Error(), eventCanary) {
		t.Errorf("the event shows: %v", e)
	}
	return e
}

func TestTimeoutAndCancel(t *testing.T) {
	t.Parallel()
	for name := range adapters {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				s := llmtest.StartInMemory(t, llmtest.Config{Steps: []llmtest.Step{llmtest.Hang()}})
				m := build(t, name, s)
				if _, ok := m.(llm.Interruptible); !ok {
					t.Errorf("it does not say that it is")
				}
				start := time.Now()
				ctx, cancel := context.WithTimeout(t.Context(), 20*time.Minute)
				defer cancel()
				r, err := m.Generate(ctx, &request)
				_ = check(t, r, err, llm.Timeout)
				if d := time.Since(start); d != 20*time.Minute {
					t.Errorf("the SDK gave up after %s", d)
				}
				ctx, cancel = context.WithCancel(t.Context())
				go func() {
					synctest.Wait()
					cancel()
				}()
				r, err = m.Generate(ctx, &request)
				_ = check(t, r, err, llm.Unavailable)
				if !errors.Is(err, context.Canceled) {
					t.Errorf("no word of the cancellation: %v", err)
				}
				r, err = m.Generate(ctx, &request) // before it begins
				_ = check(t, r, err, llm.Unavailable)
			})
		})
	}
}

func TestKeys(t *testing.T) {
	t.Parallel()
	eachAdapter(t, func(t *testing.T, name string) {
		s := llmtest.Start(t, llmtest.Config{Secret: "second", Steps: []llmtest.Step{llmtest.Answer("{}")}})
		e := s.Endpoint()
		key, keyErr := "first", error(nil)
		e.Key = func() (llm.Secret, error) { return llm.NewSecret(key), keyErr }
		m, err := adapters[name](e)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := m.Generate(t.Context(), &request); llm.ClassOf(err) != llm.Auth {
			t.Errorf("wrong key: %v", err)
		}
		key = "second"
		if _, err := m.Generate(t.Context(), &request); err != nil {
			t.Errorf("rotated key: %v", err)
		}
		key = ""
		if _, err := m.Generate(t.Context(), &request); llm.ClassOf(err) != llm.Auth || !errors.Is(err, llm.ErrKey) {
			t.Errorf("empty key: %v", err)
		}
		key = "new\nline"
		if _, err := m.Generate(t.Context(), &request); err == nil || strings.Contains(err.Error(), "new\nline") {
			t.Errorf("impossible key: %v", err)
		}
		keyErr = os.ErrNotExist
		if _, err := m.Generate(t.Context(), &request); llm.ClassOf(err) != llm.Auth || !errors.Is(err, os.ErrNotExist) {
			t.Errorf("no key: %v", err)
		}
		if n := len(s.Calls()); n != 2 {
			t.Errorf("%d calls, want 2: without a key there is none", n)
		}
	})
}

// What the environment holds for the SDKs' own clients has no effect here, and
// nothing is logged. Not parallel: it changes the environment and the logger.
func TestEnvironmentHasNoSay(t *testing.T) {
	for _, name := range []string{"OPENAI_BASE_URL", "ANTHROPIC_BASE_URL", "GOOGLE_GEMINI_BASE_URL"} {
		t.Setenv(name, "http://127.0.0.1:1/")
	}
	for _, name := range []string{"OPENAI_API_KEY", "ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN", "GOOGLE_API_KEY", "GEMINI_API_KEY", "OPENAI_ORG_ID"} {
		t.Setenv(name, "environment-"+keyCanary)
	}
	t.Setenv("GOOGLE_GENAI_USE_VERTEXAI", "true")
	t.Setenv("HTTP_PROXY", "http://127.0.0.1:1/")
	t.Setenv("ANTHROPIC_CUSTOM_HEADERS", "X-Evil: 1")
	var out bytes.Buffer
	log.SetOutput(&out)
	defer log.SetOutput(os.Stderr)
	for name := range adapters {
		h := make(http.Header)
		s := llmtest.NewServer(t, func(c *llmtest.Call) llmtest.Reply {
			h = c.Header
			return llmtest.Reply{Text: "{}"}
		})
		var sent http.Header
		e := s.Endpoint()
		e.Transport = func(next http.RoundTripper) http.RoundTripper {
			return roundTrip(func(r *http.Request) (*http.Response, error) {
				sent = r.Header
				return next.RoundTrip(r)
			})
		}
		m, err := adapters[name](e)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := m.Generate(t.Context(), &request); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if strings.Contains(fmt.Sprint(h, sent), "environment-") || h.Get("X-Evil") != "" || sent.Get("Authorization") != "" {
			t.Errorf("%s: the environment got in: %v", name, sent)
		}
	}
	for line := range strings.Lines(out.String()) {
		if strings.Contains(line, keyCanary) {
			t.Errorf("logged: %s", line)
		}
	}
}

type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }
