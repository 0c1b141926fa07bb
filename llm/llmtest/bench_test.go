package llmtest_test

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"testing"

	"github.com/millrace/millrace/llm"
	"github.com/millrace/millrace/llm/llmtest"
)

// What an adapter costs besides the transport: the same answer, handed over without
// a network. "bare" posts a request and drops the answer.
func BenchmarkGenerate(b *testing.B) {
	recorded := map[string][]byte{}
	for name := range adapters {
		s := llmtest.NewServer(b, llmtest.Answer(`{"reason":"the film was praised throughout","label":"good"}`))
		e := s.Endpoint()
		e.Transport = func(next http.RoundTripper) http.RoundTripper {
			return roundTrip(func(r *http.Request) (*http.Response, error) {
				resp, err := next.RoundTrip(r)
				if err == nil {
					recorded[name], _ = io.ReadAll(resp.Body)
					resp.Body = io.NopCloser(bytes.NewReader(recorded[name]))
				}
				return resp, err
			})
		}
		m, err := adapters[name](e)
		if err != nil {
			b.Fatal(err)
		}
		if _, err := m.Generate(b.Context(), &request); err != nil {
			b.Fatal(err)
		}
	}
	canned := func(body []byte) http.RoundTripper {
		return roundTrip(func(r *http.Request) (*http.Response, error) {
			_, _ = io.Copy(io.Discard, r.Body)
			return &http.Response{
				StatusCode: 200, Header: http.Header{"Content-Type": {"application/json"}},
				ContentLength: int64(len(body)), Body: io.NopCloser(bytes.NewReader(body)), Request: r,
			}, nil
		})
	}
	b.Run("bare", func(b *testing.B) {
		b.ReportAllocs()
		c := http.Client{Transport: canned(recorded["openai"])}
		for b.Loop() {
			body, err := json.Marshal(&request)
			if err != nil {
				b.Fatal(err)
			}
			req, err := http.NewRequestWithContext(b.Context(), http.MethodPost, "http://127.0.0.1:1/v1/chat/completions", bytes.NewReader(body))
			if err != nil {
				b.Fatal(err)
			}
			resp, err := c.Do(req)
			if err != nil {
				b.Fatal(err)
			}
			_, _ = io.Copy(io.Discard, resp.Body)
			_ = resp.Body.Close()
		}
	})
	for name := range adapters {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			m, err := adapters[name](llm.Endpoint{
				URL:       "http://127.0.0.1:1",
				Transport: func(http.RoundTripper) http.RoundTripper { return canned(recorded[name]) },
			})
			if err != nil {
				b.Fatal(err)
			}
			for b.Loop() {
				if _, err := m.Generate(b.Context(), &request); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
