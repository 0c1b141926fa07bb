package llmtest_test

import (
	"context"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/millrace/millrace/llm"
	"github.com/millrace/millrace/llm/llmtest"
	"github.com/millrace/millrace/llm/openai"
)

func client(t *testing.T, s *llmtest.Server) func(text string, labels ...string) (string, error) {
	t.Helper()
	m, err := openai.New("m", openai.Config{Endpoint: s.Endpoint()})
	if err != nil {
		t.Fatal(err)
	}
	return func(text string, labels ...string) (string, error) {
		h := http.Header{}
		for i := 0; i+1 < len(labels); i += 2 {
			h.Set(labels[i], labels[i+1])
		}
		r, err := m.Generate(llm.WithHeader(t.Context(), h), &llm.Request{Messages: []llm.Message{{Role: llm.RoleUser, Text: text}}})
		if err != nil {
			return "", err
		}
		return r.Text, nil
	}
}

func TestStepsAreInOrder(t *testing.T) {
	t.Parallel()
	s := llmtest.NewServer(t, llmtest.Fail(llm.Throttled), llmtest.Answer("a"), llmtest.Each(llmtest.BadJSON(), llmtest.AnswerWith((*llmtest.Call).Last)))
	ask := client(t, s)
	var got []string
	for _, text := range []string{"x", "x", "y", "z", "z", "z", "y"} {
		answer, err := ask(text)
		if err != nil {
			answer = string(llm.ClassOf(err))
		}
		got = append(got, answer[:1])
	}
	if s := strings.Join(got, ""); s != "taIIzzy" {
		t.Errorf("answers %s", s)
	}
	if calls := s.Calls(); len(calls) != 7 || calls[5].N != 5 || calls[5].Times != 2 || calls[5].Last() != "z" {
		t.Errorf("calls %+v", calls)
	}
}

func TestPaidTwice(t *testing.T) {
	t.Parallel()
	s := llmtest.NewServer(t, llmtest.Fail(llm.Unavailable), llmtest.Answer("a"))
	ask := client(t, s)
	for range 2 { // a failure, and its repetition
		_, _ = ask("x")
	}
	if st := s.Stats(); st.Calls != 2 || st.PaidTwice != 0 || st.Retried != 1 || st.Answered != 1 || st.Refused != 1 {
		t.Errorf("after a retry: %+v", st)
	}
	_, _ = ask("y")
	if st := s.Stats(); st.PaidTwice != 0 {
		t.Errorf("after another request: %+v", st)
	}
	_, _ = ask("x")
	if st := s.Stats(); st.PaidTwice != 1 {
		t.Errorf("after a needless repetition: %+v", st)
	}
	// Equal requests of different entries are not the same.
	for _, entry := range []string{"e1", "e2", "e2"} {
		_, _ = ask("x", "X-Millrace-Entry", entry, "X-Millrace-Owner", "o")
	}
	if st := s.Stats(); st.PaidTwice != 2 {
		t.Errorf("with labels: %+v", st)
	}
	// Its owner died before it could write the answer down.
	_, _ = ask("x", "X-Millrace-Entry", "e3", "X-Millrace-Owner", "o")
	s.Ledger().OwnerDied("o")
	_, _ = ask("x", "X-Millrace-Entry", "e3", "X-Millrace-Owner", "p")
	if st := s.Stats(); st.PaidTwice != 2 || st.Interrupted != 1 {
		t.Errorf("after a death: %+v", st)
	}
}

func TestKeptCalls(t *testing.T) {
	t.Parallel()
	for keep, want := range map[int]int{0: 3, 2: 2, -1: 0} {
		s := llmtest.Start(t, llmtest.Config{Keep: keep})
		ask := client(t, s)
		for range 3 {
			if _, err := ask("x"); err != nil {
				t.Fatal(err)
			}
		}
		if n := len(s.Calls()); n != want || s.Stats().Calls != 3 {
			t.Errorf("keep %d: %d calls, %+v", keep, n, s.Stats())
		}
	}
}

func TestHandlerRefuses(t *testing.T) {
	t.Parallel()
	h := llmtest.NewHandler(llmtest.Config{})
	for _, row := range []struct {
		method, path, body string
		want               int
	}{
		{http.MethodGet, "/v1/chat/completions", "", 404},
		{http.MethodPost, "/v1/elsewhere", "", 404},
		{http.MethodPost, "/v1/chat/completions", "{", 400},
		{http.MethodPost, "/v1/chat/completions", `{"messages":[{"role":"user","content":7}]}`, 400},
		{http.MethodPost, "/v1/messages", `{"system":7}`, 400},
		{http.MethodPost, "/v1beta/models/m:generateContent", `[]`, 400},
		{http.MethodPost, "/v1/embeddings", `{"input":7}`, 400},
		{http.MethodPost, "/any/prefix/chat/completions", `{"messages":[{"role":"user","content":[{"type":"text","text":"x"}]}]}`, 200},
		{http.MethodPost, "/v1/chat/completions", strings.Repeat("x", 17<<20), 400},
	} {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), row.method, row.path, strings.NewReader(row.body)))
		if w.Code != row.want {
			t.Errorf("%s %s: status %d, want %d", row.method, row.path, w.Code, row.want)
		}
	}
}

// A run can be repeated: what happens to a request depends on the request.
func TestMixIsRepeatable(t *testing.T) {
	t.Parallel()
	classes := func(order []int) map[string]string {
		step := llmtest.Mix(7, llmtest.Answer("good"), llmtest.Faults(0.5)...)
		out := map[string]string{}
		for _, n := range order {
			key := strings.Repeat("k", n)
			r := step(&llmtest.Call{Key: key})
			out[key] = string(r.Fault) + r.Text[:min(len(r.Text), 5)]
			if r.Hang {
				out[key] = "hang"
			}
		}
		return out
	}
	order := rand.New(rand.NewPCG(1, 2)).Perm(400)
	a := classes(order)
	slices.Reverse(order)
	b := classes(order)
	kinds := map[string]int{}
	for k, v := range a {
		if b[k] != v {
			t.Fatalf("%q: %s, then %s", k, v, b[k])
		}
		kinds[v]++
	}
	if kinds["good"] < 160 || kinds["good"] > 240 || kinds["hang"] == 0 || kinds["throttled"] == 0 || kinds["unavailable"] == 0 {
		t.Errorf("kinds %v", kinds)
	}
	for name, faults := range map[string][]llmtest.Fault{"negative": {{P: -1}}, "too many": {{P: 0.6}, {P: 0.6}}} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%s: no panic", name)
				}
			}()
			llmtest.Mix(1, llmtest.Answer(""), faults...)
		}()
	}
}

func TestLatency(t *testing.T) {
	t.Parallel()
	l := llmtest.Lognormal(500*time.Millisecond, 8*time.Second)
	r := rand.New(rand.NewPCG(1, 2))
	var all []time.Duration
	for range 20_000 {
		all = append(all, l(r))
	}
	slices.Sort(all)
	if p50, p99 := all[10_000], all[19_800]; p50 < 480*time.Millisecond || p50 > 520*time.Millisecond || p99 < 7*time.Second || p99 > 9*time.Second {
		t.Errorf("p50 %s, p99 %s", p50, p99)
	}
	synctest.Test(t, func(t *testing.T) {
		s := llmtest.StartInMemory(t, llmtest.Config{Steps: []llmtest.Step{llmtest.Delay(1, llmtest.Fixed(3*time.Second), llmtest.Answer("a"))}})
		start := time.Now()
		if _, err := client(t, s)("x"); err != nil {
			t.Fatal(err)
		}
		if d := time.Since(start); d != 3*time.Second {
			t.Errorf("took %s", d)
		}
		// A caller that gives up is gone, not answered.
		m, err := openai.New("m", openai.Config{Endpoint: s.Endpoint()})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := m.Generate(ctx, &llm.Request{Messages: []llm.Message{{Role: llm.RoleUser, Text: "y"}}}); llm.ClassOf(err) != llm.Timeout {
			t.Errorf("%v", err)
		}
		synctest.Wait()
		if st := s.Stats(); st.Gone != 1 || st.Answered != 1 || st.Running != 0 {
			t.Errorf("%+v", st)
		}
	})
}
