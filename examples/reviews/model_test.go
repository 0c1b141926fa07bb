package reviews

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	reviewsv1 "github.com/millrace/millrace/examples/reviews/proto/reviews/v1"
	"github.com/millrace/millrace/internal/modelserver"
)

func TestModel(t *testing.T) {
	t.Parallel()
	server, err := modelserver.New(modelserver.Config{})
	if err != nil {
		t.Fatal(err)
	}
	ts := httptest.NewServer(server)
	defer ts.Close()
	for _, base := range []string{ts.URL, ts.URL + "/v1", ts.URL + "/v1/"} {
		m := NewModel(base, "vader", "", "w1")
		got, err := m.Sentiment(t.Context(), &reviewsv1.Sentence{Text: "i love it!", Kind: reviewsv1.Kind_KIND_QUESTION})
		m.Close()
		if err != nil {
			t.Fatal(err)
		}
		if got.GetLabel() != reviewsv1.Label_LABEL_POSITIVE || got.GetScore() != 0.6696 || got.GetModel() != "vader" || got.GetPromptVersion() != PromptVersion {
			t.Errorf("%s: %v", base, got)
		}
	}
}

func chat(content string) string {
	return fmt.Sprintf(`{"model":"m","choices":[{"message":{"content":%q},"finish_reason":"stop"}]}`, content)
}

func TestModelErrors(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name   string
		status int
		header http.Header
		body   string
		want   string // part of the error
	}{
		{"429", 429, http.Header{"Retry-After-Ms": {"150"}}, `{"error":{"message":"slow down"}}`, "slow down"},
		{"500", 500, nil, "oops", `"oops"`},
		{"401", 401, nil, `{"error":{"message":"no key"}}`, "no key"},
		{"redirect", 302, http.Header{"Location": {"http://127.0.0.1:1/"}}, "", "302"},
		{"not JSON", 200, nil, "<html>", "not JSON"},
		{"no choices", 200, nil, `{}`, "without choices"},
		{"refusal", 200, nil, `{"choices":[{"message":{"refusal":"I cannot"}}]}`, "I cannot"},
		{"length", 200, nil, `{"choices":[{"message":{"content":"{"},"finish_reason":"length"}]}`, "token limit"},
		{"prose", 200, nil, chat("it is good"), "not the JSON asked for"},
		{"no score", 200, nil, chat(`{"label":"positive"}`), "no score"},
		{"unknown label", 200, nil, chat(`{"label":"meh","score":0}`), "label"},
		{"score out of range", 200, nil, chat(`{"label":"positive","score":7}`), "score"},
		{"label against score", 200, nil, chat(`{"label":"positive","score":-0.5}`), "positive label needs"},
		{"long excerpt", 200, nil, strings.Repeat("x", 1000), "bytes more"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			ts := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				maps.Copy(w.Header(), tt.header)
				w.WriteHeader(tt.status)
				fmt.Fprint(w, tt.body)
			}))
			defer ts.Close()
			m := NewModel(ts.URL, "m", "key", "w1")
			defer m.Close()
			_, err := m.Sentiment(t.Context(), &reviewsv1.Sentence{Text: "x"})
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %v, want %q", err, tt.want)
			}
		})
	}
}

func TestModelGivesUpWithItsContext(t *testing.T) {
	t.Parallel()
	server, err := modelserver.New(modelserver.Config{Faults: modelserver.Faults{Hang: 1}})
	if err != nil {
		t.Fatal(err)
	}
	ts := httptest.NewServer(server)
	defer ts.Close()
	m := NewModel(ts.URL, "vader", "", "w1")
	defer m.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := m.Sentiment(ctx, &reviewsv1.Sentence{Text: "x"}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("error %v", err)
	}
}

func TestRetryAfter(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name string
		h    http.Header
		want time.Duration
	}{
		{"none", http.Header{}, 0},
		{"milliseconds win", http.Header{"Retry-After": {"1"}, "Retry-After-Ms": {"200"}}, 200 * time.Millisecond},
		{"seconds", http.Header{"Retry-After": {"3"}}, 3 * time.Second},
		{"past date", http.Header{"Retry-After": {"Wed, 21 Oct 2015 07:28:00 GMT"}}, 0},
		{"nonsense", http.Header{"Retry-After": {"soon"}, "Retry-After-Ms": {"-1"}}, 0},
		{"too long", http.Header{"Retry-After": {"1e300"}}, 0},
	}
	for _, tt := range tests {
		if got := retryAfter(tt.h); got != tt.want {
			t.Errorf("%s: %v, want %v", tt.name, got, tt.want)
		}
	}
}

func FuzzSentiment(f *testing.F) {
	f.Add(`{"label":"positive","score":0.5}`)
	f.Fuzz(func(t *testing.T, content string) {
		s, err := sentiment(content, "m")
		if err == nil && (s.GetScore() < -1 || s.GetScore() > 1 || s.GetLabel() == 0) {
			t.Errorf("%q gave %v", content, s)
		}
	})
}
