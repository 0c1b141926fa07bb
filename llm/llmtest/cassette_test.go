package llmtest_test

import (
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/millrace/millrace/llm"
	"github.com/millrace/millrace/llm/llmtest"
)

// Not parallel: it changes the environment.
func TestCassette(t *testing.T) {
	path := filepath.Join(t.TempDir(), "sub", "cassette.json")
	ask := func(m llm.Model, text string) string {
		t.Helper()
		r, err := m.Generate(t.Context(), &llm.Request{Messages: []llm.Message{{Role: llm.RoleUser, Text: text}}})
		if err != nil {
			return string(llm.ClassOf(err)) + ": " + err.Error()
		}
		return r.Text
	}
	for _, name := range []string{"openai", "anthropic", "gemini"} {
		answers := 0
		s := llmtest.NewServer(t, func(c *llmtest.Call) llmtest.Reply {
			answers++
			switch c.Last() {
			case "throttle":
				return llmtest.Reply{Fault: llm.Throttled, Message: "for " + keyCanary, Header: http.Header{"Retry-After": {"7"}, "Set-Cookie": {"c=" + keyCanary}}}
			case "no JSON":
				return llmtest.Reply{Body: []byte("hello " + keyCanary), Status: 500}
			}
			return llmtest.Reply{Text: c.Last() + "!" + strings.Repeat("*", c.Times) + " (" + keyCanary + ")"}
		})
		with := func(t *testing.T) llm.Model {
			e := s.Endpoint()
			e.Key = llm.StaticKey(llm.NewSecret(keyCanary))
			e.Transport = llmtest.Cassette(t, path)
			m, err := adapters[name](e)
			if err != nil {
				t.Fatal(err)
			}
			return m
		}
		session := func(m llm.Model) string {
			var out []string
			for _, text := range []string{"a", "b", "a", "throttle", "no JSON"} {
				out = append(out, ask(m, text))
			}
			return strings.Join(out, "\n")
		}
		var recorded, played, more, unknown string
		t.Setenv(llmtest.RecordVariable, "1")
		t.Run("record", func(t *testing.T) { recorded = session(with(t)) })
		t.Setenv(llmtest.RecordVariable, "")
		before := answers
		t.Run("play", func(t *testing.T) {
			m := with(t)
			played, more, unknown = session(m), ask(m, "a"), ask(m, "new "+eventCanary)
		})
		if answers != before {
			t.Fatalf("%s: playing asked the provider", name)
		}
		if recorded != played {
			t.Errorf("%s: recorded\n%s\nplayed\n%s", name, recorded, played)
		}
		if more != "a!* (***)" {
			t.Errorf("%s: after the end: %q", name, more)
		}
		if !strings.Contains(unknown, "record it again") || strings.Contains(unknown, eventCanary) {
			t.Errorf("%s: unknown request: %q", name, unknown)
		}
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(b), keyCanary) || !strings.Contains(string(b), "Retry-After") {
			t.Errorf("%s: the recording holds the key, or no limits:\n%s", name, b)
		}
	}
}
