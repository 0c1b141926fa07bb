package main

import (
	"bytes"
	"context"
	"math"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/millrace/millrace/cmd/millrace/internal/audit"
	"github.com/millrace/millrace/internal/modelserver"
)

func TestKillPlan(t *testing.T) {
	t.Parallel()
	for _, events := range []int{1, 2, 10, 3708} {
		plan := killPlan(5, events, rand.New(rand.NewPCG(1, 1)))
		if len(plan) != 5 || !slices.IsSorted(plan) || plan[0] < 1 || plan[4] > max(1, events*9/10) {
			t.Errorf("%d events: plan %v", events, plan)
		}
	}
	d := &demo{total: 100, plan: []int{10, 20, 90}}
	for kills, want := range []int{20, 90, 100, 100} {
		if got := d.maySend(kills); got != want {
			t.Errorf("after %d kills %d events may be sent, want %d", kills, got, want)
		}
	}
}

// A kill comes when its events were sent and the worker has done something.
func TestMoment(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		d := &demo{total: 100, plan: []int{10}, progress: newProgress()}
		dice := rand.New(rand.NewPCG(5, 5))
		for rand.New(rand.NewPCG(5, 5)).IntN(4) == 0 {
			t.Fatal("this seed kills early: take another")
		}
		done := make(chan struct{})
		go func() {
			d.moment(t.Context(), 0, dice)
			close(done)
		}()
		for _, step := range []func(*state){func(s *state) { s.sent = 10 }, func(s *state) { s.outcomes = 1 }} {
			synctest.Wait()
			select {
			case <-done:
				t.Fatal("too early")
			default:
			}
			d.progress.update(step)
		}
		<-done
	})
}

func TestProgressWait(t *testing.T) {
	t.Parallel()
	p := newProgress()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- p.wait(ctx, func(s state) bool { return s.sent == 2 }) }()
	p.update(func(s *state) { s.sent++ })
	p.update(func(s *state) { s.sent++ })
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	cancel()
	if err := p.wait(ctx, func(state) bool { return false }); err == nil {
		t.Error("wait went on after its context")
	}
}

func TestVerdict(t *testing.T) {
	t.Parallel()
	good := func() *summary {
		return &summary{tally: audit.Tally{Events: 3, Enriched: 2, DeadLettered: 1}}
	}
	if err := good().verdict(); err != nil {
		t.Error(err)
	}
	for want, spoil := range map[string]func(*summary){
		"1 events lost":       func(s *summary) { s.tally.Lost, s.tally.Enriched = 1, 1 },
		"1 duplicates":        func(s *summary) { s.tally.Duplicates = 1 },
		"3 outcomes for 4":    func(s *summary) { s.tally.Events = 4 },
		"2 of no event":       func(s *summary) { s.tally.Stray = 2 },
		"1 events not sent":   func(s *summary) { s.unsent = 1 },
		"1 calls paid twice":  func(s *summary) { s.calls.PaidTwice = 1 },
		"1 counts do not":     func(s *summary) { s.wrong = 1 },
		"1 records that must": func(s *summary) { s.tally.Problems = 1 },
	} {
		s := good()
		spoil(s)
		if err := s.verdict(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v, want %q", err, want)
		}
	}
}

func TestSummaryWithoutRatings(t *testing.T) {
	t.Parallel()
	s := &summary{tally: audit.Tally{Correlation: math.NaN()}, wrong: 1, example: "x: counted 1, there are 2", problems: []string{"p"}}
	var text, js bytes.Buffer
	printSummary(&text, s)
	if err := printJSON(&js, s); err != nil {
		t.Fatal(err)
	}
	for _, part := range []string{"not defined", "1 do not add up: x: counted 1", "problem        p"} {
		if !strings.Contains(text.String(), part) {
			t.Errorf("the summary does not say %q:\n%s", part, &text)
		}
	}
	if !strings.Contains(js.String(), `"correlation":null`) {
		t.Error(js.String())
	}
}

func TestRound(t *testing.T) {
	t.Parallel()
	for in, want := range map[time.Duration]string{
		0: "0s", 123 * time.Nanosecond: "123ns", 12345678: "12.3ms", 1234567890: "1.23s", 61234567890: "1m1.2s",
	} {
		if got := round(in).String(); got != want {
			t.Errorf("%d: %s, want %s", in, got, want)
		}
	}
}

func TestHome(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "a", "b")
	h, err := openHome(dir, "", "digest")
	if err != nil {
		t.Fatal(err)
	}
	h.note(note{Sent: 1})
	h.note(note{Sent: 2})
	h.note(note{Done: 1})
	if err := h.close(false); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(filepath.Join(dir, "journal.jsonl"), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteString(`{"sent":`); err != nil { // as a crash leaves it
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if h, err = openHome(dir, "", "digest"); err != nil {
		t.Fatal(err)
	}
	if !h.continued || h.App != "reviews" || len(h.sentBefore) != 2 || len(h.doneBefore) != 1 || !h.doneBefore[1] {
		t.Errorf("%+v", h)
	}
	if err := h.close(false); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "demo.json"), []byte(`{"format":9}`), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := openHome(dir, "", "digest"); err == nil || !strings.Contains(err.Error(), "another version") {
		t.Errorf("error %v", err)
	}
	temp, err := openHome("", "host:1", "digest")
	if err != nil {
		t.Fatal(err)
	}
	if err := temp.close(false); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(temp.dir); !os.IsNotExist(err) || !strings.HasPrefix(temp.App, "reviews-") {
		t.Errorf("the temporary directory stays: %v", err)
	}
}

func TestCheckModel(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		status     int
		body, want string
	}{
		"served":        {200, `{"data":[{"id":"a"},{"id":"b"}]}`, ""},
		"not served":    {200, `{"data":[{"id":"b"}]}`, "it has b"},
		"no list":       {404, `x`, ""},
		"strange list":  {200, `[]`, ""},
		"no key":        {401, `{}`, "OPENAI_API_KEY"},
		"not reachable": {502, `{"error":{"message":"model server x: refused"}}`, "refused; check -model-url"},
	} {
		ts := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(tt.status)
			_, _ = w.Write([]byte(tt.body))
		}))
		err := checkModel(t.Context(), ts.URL, "a")
		ts.Close()
		if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: error %v", name, err)
		}
	}
}

func TestView(t *testing.T) {
	t.Parallel()
	a, err := audit.New(audit.Config{Brokers: []string{"127.0.0.1:1"}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := a.Run(ctx); err != nil { // closes its client
		t.Fatal(err)
	}
	var out bytes.Buffer
	d := &demo{total: 10, audit: a, ledger: modelserver.NewLedger(nil), progress: newProgress(), started: time.Now(), opts: demoOptions{kill: 3}}
	v := newView(&out, d)
	v.show()
	if s := out.String(); v.live || strings.Contains(s, "\x1b") || !strings.Contains(s, "sent 0/10") || !strings.Contains(s, "kills 0/3") {
		t.Errorf("plain: %q", s)
	}
	out.Reset()
	v.live, v.width = true, 30
	v.show()
	v.show()
	s := out.String()
	if !strings.Contains(s, "\x1b[10A") || !strings.Contains(s, "░░░") || !strings.Contains(s, "0 of 3") {
		t.Errorf("live: %q", s)
	}
	if strings.Contains(s, "cut off") {
		t.Errorf("a row is longer than the screen is wide: %q", s)
	}
	if bar(15, 10) != strings.Repeat("█", 20) || bar(0, 0) != strings.Repeat("░", 20) {
		t.Error("bar")
	}
}
