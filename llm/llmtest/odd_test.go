package llmtest_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/millrace/millrace/llm"
	"github.com/millrace/millrace/llm/llmtest"
)

// canned returns a model of an adapter that gets this answer to everything.
func canned(t testing.TB, name string, status int, body string) llm.Model {
	t.Helper()
	m, err := adapters[name](llm.Endpoint{
		URL: "http://127.0.0.1:1", Key: llm.StaticKey(llm.NewSecret(keyCanary)),
		Transport: func(http.RoundTripper) http.RoundTripper {
			return roundTrip(func(*http.Request) (*http.Response, error) {
				return &http.Response{
					StatusCode: status, Header: http.Header{"Content-Type": {"application/json"}}, ContentLength: -1,
					Body: io.NopCloser(strings.NewReader(body)),
				}, nil
			})
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// sound verifies that a model returns an answer or an error, and no key.
func sound(t *testing.T, m llm.Model, status int) {
	t.Helper()
	r, err := m.Generate(t.Context(), &request)
	e, ok := errors.AsType[*llm.Error](err)
	if (err == nil) != (r != nil) || err != nil && !ok {
		t.Fatalf("%s: response %v, error %v", m.ID(), r, err)
	}
	if err == nil && (status >= 300 || r.Finish != llm.FinishStop) {
		t.Fatalf("%s: response %+v to status %d", m.ID(), r, status)
	}
	if err != nil && (e.RetryAfter < 0 || e.Class == "" || strings.Contains(fmt.Sprintf("%v %+v", e, e), keyCanary)) {
		t.Fatalf("%s: error %+v", m.ID(), e)
	}
}

// Whatever a provider sends, an adapter returns an answer or an error, and the error
// has no key.
func FuzzAnswers(f *testing.F) {
	for _, s := range []string{
		`{"choices":[{"message":{"content":"x"},"finish_reason":"stop"}],"usage":{"prompt_tokens":-1}}`,
		`{"content":[{"type":"text","text":"x"},null,{"type":7}],"stop_reason":"end_turn","usage":null}`,
		`{"candidates":[{"content":{"parts":[null,{"text":1}]},"finishReason":"STOP"}]}`,
		`{"promptFeedback":{"blockReason":"SAFETY"}}`,
		`{"error":{"code":[],"message":{},"details":[{"retryDelay":"9e99s"},null]}}`, `{"error":["x"]}`, `{}`, `null`, ``,
	} {
		f.Add(200, s)
		f.Add(429, s)
	}
	f.Fuzz(func(t *testing.T, status int, body string) {
		if status < 200 || status > 999 {
			return
		}
		for name := range adapters {
			sound(t, canned(t, name, status, body), status)
		}
	})
}

// Every part of a good answer and of an error, replaced by something of another
// type. Gemini's SDK panics on some of these.
func TestOddAnswers(t *testing.T) {
	t.Parallel()
	eachAdapter(t, func(t *testing.T, name string) {
		for _, row := range []struct {
			status int
			step   llmtest.Step
		}{{200, llmtest.Answer("x")}, {200, llmtest.Refusal()}, {429, llmtest.RateLimited(1)}, {400, llmtest.Fail(llm.Auth)}} {
			var body []byte
			s := llmtest.NewServer(t, row.step)
			e := s.Endpoint()
			e.Transport = func(next http.RoundTripper) http.RoundTripper {
				return roundTrip(func(r *http.Request) (*http.Response, error) {
					resp, err := next.RoundTrip(r)
					if err == nil {
						body, _ = io.ReadAll(resp.Body)
						resp.Body = io.NopCloser(strings.NewReader(string(body)))
					}
					return resp, err
				})
			}
			m, err := adapters[name](e)
			if err != nil {
				t.Fatal(err)
			}
			_, _ = m.Generate(t.Context(), &request) // for the body
			n := 0
			for odd := range oddities(t, body) {
				n++
				sound(t, canned(t, name, row.status, odd), row.status)
			}
			if n < 20 {
				t.Errorf("only %d oddities of %s", n, body)
			}
		}
	})
}

// oddities yields a JSON text with each of its values replaced in turn.
func oddities(t *testing.T, body []byte) func(yield func(string) bool) {
	return func(yield func(string) bool) {
		var root any
		if err := json.Unmarshal(body, &root); err != nil {
			t.Fatal(err)
		}
		var walk func(v any, set func(any)) bool
		walk = func(v any, set func(any)) bool {
			for _, odd := range []any{nil, "x", "", 7.5, -1, 1e300, true, []any{}, []any{nil}, []any{"x"}, map[string]any{}, map[string]any{"x": nil}} {
				set(odd)
				b, err := json.Marshal(root)
				if err != nil {
					t.Fatal(err)
				}
				if !yield(string(b)) {
					return false
				}
			}
			set(v)
			switch v := v.(type) {
			case map[string]any:
				for k, child := range v {
					if !walk(child, func(x any) { v[k] = x }) {
						return false
					}
				}
			case []any:
				for i, child := range v {
					if !walk(child, func(x any) { v[i] = x }) {
						return false
					}
				}
			}
			return true
		}
		walk(root, func(x any) { root = x })
	}
}
