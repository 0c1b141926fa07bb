package modelserver

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"
)

// clock counts one second per reading, so that no two events are at once.
type clock struct{ t time.Time }

func (c *clock) now() time.Time {
	c.t = c.t.Add(time.Second)
	return c.t
}

func TestLedgerJudges(t *testing.T) {
	t.Parallel()
	id := func(owner string, attempt int) CallID {
		return CallID{Entry: "sentiment/1/7", Owner: owner, Attempt: attempt}
	}
	tests := []struct {
		name string
		play func(l *Ledger)
		want Stats // the three verdicts only
	}{
		{"one call", func(l *Ledger) {
			l.Begin(id("w1", 1)).End(Answered)
		}, Stats{}},
		{"a later round is another question", func(l *Ledger) {
			l.Begin(id("w1", 1)).End(Answered)
			next := id("w1", 1)
			next.Round = 1
			l.Begin(next).End(Answered)
		}, Stats{}},
		{"answered, then asked again by the same owner", func(l *Ledger) {
			l.Begin(id("w1", 1)).End(Answered)
			l.Begin(id("w1", 1)).End(Answered)
		}, Stats{PaidTwice: 1}},
		{"answered, then tried again", func(l *Ledger) {
			l.Begin(id("w1", 1)).End(Answered)
			l.Begin(id("w1", 2)).End(Answered)
		}, Stats{PaidTwice: 1}},
		{"the caller rejected an answer that the server cannot judge", func(l *Ledger) {
			l.Begin(id("w1", 1)).End(Sent)
			l.Begin(id("w1", 2)).End(Sent)
		}, Stats{Retried: 1}},
		{"sent, then asked again", func(l *Ledger) {
			l.Begin(id("w1", 1)).End(Sent)
			l.Begin(id("w1", 1)).End(Sent)
		}, Stats{PaidTwice: 1}},
		{"answered, then asked by another owner while the first lives", func(l *Ledger) {
			l.Begin(id("w1", 1)).End(Answered)
			l.Begin(id("w2", 1)).End(Answered)
		}, Stats{PaidTwice: 1}},
		{"the owner died with the answer in its hands", func(l *Ledger) {
			l.Begin(id("w1", 1)).End(Answered)
			l.OwnerDied("w1")
			l.Begin(id("w2", 1)).End(Answered)
		}, Stats{Interrupted: 1}},
		{"the owner died after the answer was durable", func(l *Ledger) {
			l.Begin(id("w1", 1)).End(Answered)
			l.Durable("sentiment/1/7", 0)
			l.OwnerDied("w1")
			l.Begin(id("w2", 1)).End(Answered)
		}, Stats{PaidTwice: 1}},
		{"the answer became durable only after the second call began", func(l *Ledger) {
			l.Begin(id("w1", 1)).End(Answered)
			l.OwnerDied("w1")
			l.Begin(id("w2", 1)).End(Answered)
			l.Durable("sentiment/1/7", 0)
		}, Stats{Interrupted: 1}},
		{"the owner died while the call ran", func(l *Ledger) {
			first := l.Begin(id("w1", 1))
			l.OwnerDied("w1")
			first.End(Gone)
			l.Begin(id("w2", 1)).End(Answered)
		}, Stats{Interrupted: 1}},
		{"the owner died, the server has not noticed yet", func(l *Ledger) {
			first := l.Begin(id("w1", 1))
			l.OwnerDied("w1")
			l.Begin(id("w2", 1)).End(Answered)
			first.End(Answered)
		}, Stats{Interrupted: 1}},
		{"the owner's death was declared too late", func(l *Ledger) {
			l.Begin(id("w1", 1)).End(Answered)
			l.Begin(id("w2", 1)).End(Answered)
			l.OwnerDied("w1")
		}, Stats{PaidTwice: 1}},
		{"cancelled for a hand-over", func(l *Ledger) {
			l.Begin(id("w1", 1)).End(Gone)
			l.Begin(id("w2", 1)).End(Answered)
		}, Stats{Interrupted: 1}},
		{"cancelled and asked again by the same owner", func(l *Ledger) {
			l.Begin(id("w1", 1)).End(Gone)
			l.Begin(id("w1", 1)).End(Answered)
		}, Stats{Interrupted: 1}},
		{"the attempt timed out", func(l *Ledger) {
			l.Begin(id("w1", 1)).End(Gone)
			l.Begin(id("w1", 2)).End(Answered)
		}, Stats{Retried: 1}},
		{"the attempt timed out, seen late", func(l *Ledger) {
			first := l.Begin(id("w1", 1))
			l.Begin(id("w1", 2)).End(Answered)
			first.End(Gone)
		}, Stats{Retried: 1}},
		{"refused, broken, unusable, then answered", func(l *Ledger) {
			l.Begin(id("w1", 1)).End(Refused)
			l.Begin(id("w1", 2)).End(Broken)
			l.Begin(id("w1", 3)).End(Unusable)
			l.Begin(id("w1", 4)).End(Answered)
		}, Stats{Retried: 3}},
		{"attempts are not told", func(l *Ledger) {
			l.Begin(id("w1", 0)).End(Refused)
			l.Begin(id("w1", 0)).End(Answered)
		}, Stats{Retried: 1}},
		{"cancelled between two attempts", func(l *Ledger) {
			l.Begin(id("w1", 1)).End(Refused)
			l.Begin(id("w2", 1)).End(Answered)
		}, Stats{Interrupted: 1}},
		{"failed for good, durably, then asked again", func(l *Ledger) {
			l.Begin(id("w1", 1)).End(Refused)
			l.Durable("sentiment/1/7", 0)
			l.Begin(id("w2", 1)).End(Answered)
		}, Stats{PaidTwice: 1}},
		{"refused, then the owner died", func(l *Ledger) {
			l.Begin(id("w1", 1)).End(Refused)
			l.OwnerDied("w1")
			l.Begin(id("w2", 1)).End(Answered)
		}, Stats{Interrupted: 1}},
		{"the owner died, and the next one has to try twice", func(l *Ledger) {
			l.Begin(id("w1", 1)).End(Refused)
			l.OwnerDied("w1")
			l.Begin(id("w2", 1)).End(Refused)
			l.Begin(id("w2", 2)).End(Answered)
		}, Stats{Interrupted: 1, Retried: 1}},
		{"two at once", func(l *Ledger) {
			first := l.Begin(id("w1", 1))
			l.Begin(id("w2", 1)).End(Answered)
			first.End(Answered)
		}, Stats{PaidTwice: 1}},
		{"two at once, the first was cancelled", func(l *Ledger) {
			first := l.Begin(id("w1", 1))
			l.Begin(id("w2", 1)).End(Answered)
			first.End(Gone)
		}, Stats{Interrupted: 1}},
		{"a third call is judged by the worst of the first two", func(l *Ledger) {
			l.Begin(id("w1", 1)).End(Answered)
			l.OwnerDied("w1")
			l.Begin(id("w2", 1)).End(Answered)
			l.Begin(id("w3", 1)).End(Answered)
		}, Stats{Interrupted: 1, PaidTwice: 1}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			c := &clock{}
			l := NewLedger(c.now)
			var journal bytes.Buffer
			l.Journal(&journal)
			tt.play(l)
			check := func(what string, got Stats) {
				t.Helper()
				if got.PaidTwice != tt.want.PaidTwice || got.Interrupted != tt.want.Interrupted || got.Retried != tt.want.Retried {
					t.Errorf("%s: paid twice %d, interrupted %d, retried %d; want %+v", what, got.PaidTwice, got.Interrupted, got.Retried, tt.want)
				}
			}
			check("live", l.Stats())
			if err := l.Err(); err != nil {
				t.Fatal(err)
			}
			replayed := NewLedger(c.now)
			if err := replayed.Replay(strings.NewReader(journal.String() + `{"at":"2026-01-0`)); err != nil {
				t.Fatal(err)
			}
			check("replayed", replayed.Stats())
			if got, want := replayed.Stats(), l.Stats(); got != want {
				t.Errorf("replayed %+v, want %+v", got, want)
			}
		})
	}
}

// What ran when the process died is gone, and so are its owners.
func TestReplayEndsWhatRan(t *testing.T) {
	t.Parallel()
	c := &clock{}
	var journal bytes.Buffer
	l := NewLedger(c.now)
	l.Journal(&journal)
	l.Begin(CallID{Entry: "a", Owner: "w1"})
	l.Begin(CallID{Entry: "b", Owner: "w1"}).End(Answered)

	l = NewLedger(c.now)
	if err := l.Replay(&journal); err != nil {
		t.Fatal(err)
	}
	l.Begin(CallID{Entry: "a", Owner: "w2"}).End(Answered)
	l.Begin(CallID{Entry: "b", Owner: "w2"}).End(Answered)
	want := Stats{Calls: 4, Answered: 3, Gone: 1, Interrupted: 2}
	if got := l.Stats(); got != want {
		t.Errorf("stats %+v, want %+v", got, want)
	}
}

func TestReplayRefusesNonsense(t *testing.T) {
	t.Parallel()
	for _, in := range []string{`{"event":"end","call":3,"outcome":"answered"}`, `{"event":"x"}`, `no`, `{"event":"begin"}`} {
		if err := NewLedger(nil).Replay(strings.NewReader(in)); err == nil {
			t.Errorf("%s was accepted", in)
		}
	}
}

type brokenWriter struct{}

func (brokenWriter) Write([]byte) (int, error) { return 0, io.ErrShortWrite }

func TestJournalError(t *testing.T) {
	t.Parallel()
	l := NewLedger(nil)
	l.Journal(brokenWriter{})
	l.Begin(CallID{}).End(Answered)
	if l.Err() == nil {
		t.Error("the journal's error is lost")
	}
}

// A caller that goes away while its answer is on the way has not been served:
// the server sees its connection close.
func TestHungUp(t *testing.T) {
	t.Parallel()
	s, ts := newServer(t, Config{})
	if _, _, err := post(t.Context(), ts.URL, body("x", ""), CallID{Entry: "e", Owner: "w1", Attempt: 1}); err != nil {
		t.Fatal(err)
	}
	ts.CloseClientConnections() // as a cancelled caller does
	ts.Close()
	s.Ledger().Begin(CallID{Entry: "e", Owner: "w1", Attempt: 2}).End(Answered)
	if got := s.Ledger().Stats(); got.Interrupted != 1 || got.PaidTwice != 0 {
		t.Errorf("stats %+v", got)
	}
}

// A call whose caller vanished is gone; asked again by a new owner, it was
// interrupted.
func TestCallerVanishes(t *testing.T) {
	t.Parallel()
	s, ts := newServer(t, Config{Latency: Latency{Median: time.Hour}})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	arrived := make(chan struct{})
	h := serve(t, arrival(arrived, s))
	go func() {
		_, _, err := post(ctx, h.URL, body("x", ""), CallID{Entry: "e", Owner: "w1", Attempt: 1})
		done <- err
	}()
	<-arrived
	cancel()
	if err := <-done; err == nil {
		t.Fatal("the call ended")
	}
	h.Close()
	ts.Close()
	s.Ledger().Begin(CallID{Entry: "e", Owner: "w2", Attempt: 1})
	if got := s.Ledger().Stats(); got.Gone != 1 || got.Interrupted != 1 || got.PaidTwice != 0 {
		t.Errorf("stats %+v", got)
	}
}

func FuzzReplay(f *testing.F) {
	f.Add([]byte(`{"at":"2026-01-01T00:00:00Z","event":"begin","id":{"entry":"e"}}` + "\n" + `{"at":"2026-01-01T00:00:01Z","event":"end","outcome":"answered"}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		l := NewLedger(nil)
		if l.Replay(bytes.NewReader(data)) == nil {
			if s := l.Stats(); s.Running != 0 || s.Calls < 0 {
				t.Errorf("stats %+v", s)
			}
		}
	})
}

// arrival closes arrived when the first request comes in.
func arrival(arrived chan<- struct{}, next http.Handler) http.Handler {
	var once sync.Once
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		once.Do(func() { close(arrived) })
		next.ServeHTTP(w, r)
	})
}
