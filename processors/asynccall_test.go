package processors

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	millracev1 "github.com/millrace/millrace/proto/millrace/v1"
)

var callPolicy = AttemptPolicy{Timeout: 10 * time.Second, Deadline: time.Minute, Attempts: 3, Backoff: time.Second, MaxBackoff: 4 * time.Second}

func TestAttempts(t *testing.T) {
	t.Parallel()
	boom := errors.New("boom")
	type script []func(context.Context) (string, error)
	fail := func(err error) func(context.Context) (string, error) {
		return func(context.Context) (string, error) { return "", err }
	}
	ok := func(context.Context) (string, error) { return "yes", nil }
	hang := func(ctx context.Context) (string, error) { <-ctx.Done(); return "", ctx.Err() }
	const none = millracev1.Failure_REASON_UNSPECIFIED
	for _, tc := range []struct {
		name     string
		script   script
		reason   millracev1.Failure_Reason // none: an answer
		attempts int32
		min, max time.Duration
		message  string
	}{
		{"first attempt", script{ok}, none, 1, 0, 0, ""},
		{"second attempt", script{fail(boom), ok}, none, 2, 0, time.Second, ""},
		{"too often", script{fail(boom), fail(boom), fail(boom)}, millracev1.Failure_REASON_ERROR, 3, 0, 3 * time.Second, "boom"},
		{"retry after is the least pause", script{fail(RetryAfter(20*time.Second, boom)), ok}, none, 2, 20 * time.Second, 20 * time.Second, ""},
		{"retry after is bounded by the attempts", script{fail(RetryAfter(0, boom)), fail(RetryAfter(0, boom)), fail(RetryAfter(0, boom))}, millracev1.Failure_REASON_ERROR, 3, 0, 3 * time.Second, "boom"},
		{"no attempt that cannot begin in time", script{fail(RetryAfter(time.Hour, boom))}, millracev1.Failure_REASON_DEADLINE, 1, 0, 0, "no time for another attempt"},
		{"dead letter at once", script{fail(WithAction(DeadLetter, boom))}, millracev1.Failure_REASON_ERROR, 1, 0, 0, "boom"},
		{"stop is a dead letter", script{fail(WithAction(Stop, boom))}, millracev1.Failure_REASON_ERROR, 1, 0, 0, "boom"},
		{"skip", script{fail(WithAction(Skip, boom))}, millracev1.Failure_REASON_SKIP, 1, 0, 0, "boom"},
		{"panic", script{func(context.Context) (string, error) { panic("oh") }}, millracev1.Failure_REASON_ERROR, 1, 0, 0, "panic: oh"},
		{"attempt timeout", script{hang, ok}, none, 2, 10 * time.Second, 11 * time.Second, ""},
		{"attempt timeouts", script{hang, hang, hang}, millracev1.Failure_REASON_ERROR, 3, 30 * time.Second, 33 * time.Second, "deadline exceeded"},
		{"an answer in the grace counts", script{func(ctx context.Context) (string, error) {
			<-ctx.Done()
			<-time.After(grace / 2)
			return "yes", nil
		}}, none, 1, 10*time.Second + grace/2, 10*time.Second + grace/2, ""},
		{
			"a function that ignores its context",
			script{func(context.Context) (string, error) { <-time.After(time.Minute); return "late", nil }, ok},
			none, 2,
			10*time.Second + grace, 11*time.Second + grace, "",
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				var count atomic.Int32
				start := time.Now()
				defer func() { <-time.After(time.Hour) }() // the last function to return
				o := callPolicy.run(t.Context(), &request{id: "e", round: 2, owner: Owner{"i", "p"}}, func(ctx context.Context) encodedResult {
					n := int(count.Add(1))
					if e, ok := EntryFromContext(ctx); !ok || e != (Entry{ID: "e", Round: 2, Attempt: n, Owner: Owner{"i", "p"}}) {
						t.Errorf("entry in context %+v, %v", e, ok)
					}
					v, err := tc.script[n-1](ctx)
					return encodedResult{[]byte(v), err}
				})
				if took := time.Since(start); took < tc.min || took > tc.max {
					t.Errorf("took %s, want %s to %s", took, tc.min, tc.max)
				}
				if o.Id != "e" || o.Round != 2 || o.Attempts != tc.attempts {
					t.Errorf("outcome %v", o)
				}
				if tc.reason == none {
					if string(o.GetAnswer().GetValue()) != "yes" {
						t.Errorf("outcome %v, want an answer", o)
					}
					return
				}
				if f := o.GetFailure(); f.GetReason() != tc.reason || !strings.Contains(f.GetMessage(), tc.message) {
					t.Errorf("failure %v, want %s: %s", f, tc.reason, tc.message)
				}
			})
		})
	}
}

// Rule 4.9: the deadline ends a call whatever its attempts do.
func TestDeadline(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p := callPolicy
		p.Attempts, p.Backoff, p.MaxBackoff = 1000, 0, 0
		start := time.Now()
		o := p.run(t.Context(), &request{id: "e"}, func(ctx context.Context) encodedResult {
			<-ctx.Done()
			return encodedResult{err: ctx.Err()}
		})
		if o.GetFailure().GetReason() != millracev1.Failure_REASON_DEADLINE || time.Since(start) != time.Minute {
			t.Errorf("after %s: %v", time.Since(start), o)
		}
	})
}

func TestCancelledCallHasNoOutcome(t *testing.T) {
	t.Parallel()
	for name, fn := range map[string]func(context.Context) encodedResult{
		"in an attempt": func(ctx context.Context) encodedResult { <-ctx.Done(); return encodedResult{err: ctx.Err()} },
		"in a pause": func(context.Context) encodedResult {
			return encodedResult{err: RetryAfter(30*time.Second, errors.New("busy"))}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
				defer cancel()
				start := time.Now()
				if o := callPolicy.run(ctx, &request{id: "e"}, fn); o != nil || time.Since(start) != 5*time.Second {
					t.Errorf("after %s: %v", time.Since(start), o)
				}
			})
		})
	}
}

func TestPauseIsJittered(t *testing.T) {
	t.Parallel()
	for n, ceiling := range map[int]time.Duration{1: time.Second, 2: 2 * time.Second, 3: 4 * time.Second, 9: 4 * time.Second, 200: 4 * time.Second} {
		seen := map[time.Duration]bool{}
		low := false
		for range 200 {
			d := callPolicy.pause(n, errors.New("x"))
			if d < 0 || d >= ceiling {
				t.Fatalf("pause %d is %s, outside [0, %s)", n, d, ceiling)
			}
			seen[d] = true
			low = low || d < ceiling/4
		}
		if len(seen) < 100 || !low {
			t.Errorf("pause %d has %d values of 200, one in the lowest quarter: %v", n, len(seen), low)
		}
	}
}

// A nilError is an error whose text cannot be had from a nil pointer.
type nilError struct{ text string }

func (e *nilError) Error() string { return e.text }

// A function that returns a nil pointer as an error fails; it does not end the
// process.
func TestUnreadableErrorIsAFailure(t *testing.T) {
	t.Parallel()
	p := AttemptPolicy{Timeout: time.Minute, Deadline: time.Minute, Attempts: 1}
	o := p.run(t.Context(), &request{}, func(context.Context) encodedResult {
		var err *nilError
		return encodedResult{err: err}
	})
	if f := o.GetFailure(); f == nil || !strings.Contains(f.Message, "*processors.nilError") {
		t.Errorf("outcome %v", o)
	}
}
