package llm

import (
	"context"
	"errors"
	"math"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

const sec = time.Second

// TestAttempts checks when a single model is asked, and how the call ends.
func TestAttempts(t *testing.T) {
	t.Parallel()
	for _, row := range []struct {
		name   string
		policy Policy
		steps  []step
		asked  []time.Duration
		class  Class // empty: answered
	}{
		{name: "answer", steps: []step{{}}, asked: []time.Duration{0}},
		{
			name:  "full jitter doubles", // half of 500 ms, 1 s, 2 s
			steps: []step{fails(Unavailable)},
			asked: []time.Duration{0, 250 * time.Millisecond, 750 * time.Millisecond, 1750 * time.Millisecond},
			class: Unavailable,
		},
		{
			name:   "back-off has a ceiling",
			policy: Policy{Attempts: 5, Backoff: 2 * sec, MaxBackoff: 4 * sec},
			steps:  []step{fails(Unavailable)},
			asked:  []time.Duration{0, sec, 3 * sec, 5 * sec, 7 * sec},
			class:  Unavailable,
		},
		{
			name:  "Retry-After is a minimum and not clamped",
			steps: []step{after(Unavailable, 40*sec), after(Unavailable, time.Millisecond), {}},
			asked: []time.Duration{0, 40 * sec, 40*sec + 500*time.Millisecond},
		},
		{
			name:  "Retry-After beyond the deadline fails now",
			steps: []step{after(Throttled, 3*time.Minute), {}},
			asked: []time.Duration{0},
			class: Throttled,
		},
		{
			name:   "being throttled uses up no attempts",
			policy: Policy{Attempts: 2},
			steps:  []step{after(Throttled, 10*sec), after(Throttled, 10*sec), after(Throttled, 10*sec), fails(Unavailable), {}},
			asked:  []time.Duration{0, 10 * sec, 20 * sec, 30 * sec, 32 * sec},
		},
		{
			name:   "an attempt's time is bounded",
			policy: Policy{Timeout: 10 * sec, Attempts: 2},
			steps:  []step{{takes: time.Hour}, {takes: 9 * sec}},
			asked:  []time.Duration{0, 10*sec + 250*time.Millisecond},
		},
		{
			name:   "no attempt starts that cannot end in time", // 25 s, 50 s: 10 s are left, and 12 are needed
			policy: Policy{Timeout: 25 * sec, Deadline: 60 * sec, MinTime: 12 * sec, Attempts: 9, Backoff: 1},
			steps:  []step{{takes: time.Hour}},
			asked:  []time.Duration{0, 25 * sec},
			class:  Timeout,
		},
		{
			name:   "the last attempt gets what is left",
			policy: Policy{Timeout: 25 * sec, Deadline: 60 * sec, MinTime: 5 * sec, Attempts: 9, Backoff: 1},
			steps:  []step{{takes: time.Hour}, {takes: time.Hour}, {takes: 9 * sec}},
			asked:  []time.Duration{0, 25 * sec, 50*sec + 1},
		},
		{name: "plain error", steps: []step{{err: errors.New("connection reset")}, {}}, asked: []time.Duration{0, 250 * time.Millisecond}},
		{name: "refusal", steps: []step{{end: FinishRefusal}, {}}, asked: []time.Duration{0}, class: Refused},
		{name: "cut answer", steps: []step{{end: FinishLength}, {}}, asked: []time.Duration{0}, class: Truncated},
		{name: "no money", steps: []step{fails(NoMoney), {}}, asked: []time.Duration{0}, class: NoMoney},
		{name: "auth", steps: []step{fails(Auth), {}}, asked: []time.Duration{0}, class: Auth},
		{name: "too long", steps: []step{fails(ContextTooLong), {}}, asked: []time.Duration{0}, class: ContextTooLong},
		{name: "invalid", steps: []step{fails(Invalid), {}}, asked: []time.Duration{0}, class: Invalid},
		{name: "violation", steps: []step{fails(Violation), {}}, asked: []time.Duration{0}, class: Violation},
		{name: "too large", steps: []step{fails(TooLarge), {}}, asked: []time.Duration{0}, class: TooLarge},
		{
			name:   "an action of one's own",
			policy: Policy{Actions: map[Class]Action{Refused: ActionRetry}},
			steps:  []step{fails(Refused), {}},
			asked:  []time.Duration{0, 250 * time.Millisecond},
		},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				m := script(small, row.steps...)
				c := mustCaller(t, CallerConfig{Chain: chain(m), Policy: row.policy})
				res, err := c.Do(t.Context(), Call{Request: question})
				if got := m.asked; !slices.Equal(got, row.asked) {
					t.Errorf("asked at %v, want %v", got, row.asked)
				}
				switch {
				case row.class == "" && err != nil:
					t.Errorf("failed: %v", err)
				case row.class != "" && (err == nil || ClassOf(err) != row.class):
					t.Errorf("got %v, want class %s", err, row.class)
				}
				if (res.Response != nil) != (err == nil) || res.Attempts != len(row.asked) || len(res.Failures) < res.Attempts-1 {
					t.Errorf("inconsistent result: %+v", res)
				}
			})
		})
	}
}

// TestDeadlineOfContext checks that a deadline of the context bounds a call, and that
// its end by cancelling is no failure of the call.
func TestDeadlineOfContext(t *testing.T) {
	t.Parallel()
	t.Run("deadline", func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 20*sec)
			defer cancel()
			m := script(small, step{takes: time.Hour})
			b, _ := NewBreakers(BreakerConfig{MinAttempts: 1})
			_, err := mustCaller(t, CallerConfig{Chain: chain(m), Breakers: b}).Do(ctx, Call{Request: question})
			if ClassOf(err) != Timeout || time.Since(m.began) != 20*sec || len(m.asked) != 1 {
				t.Errorf("got %v after %s and %d attempts", err, time.Since(m.began), len(m.asked))
			}
			if open, _ := b.Admit(small); open {
				t.Error("an attempt that we cut short opened the breaker")
			}
		})
	})
	for _, row := range []struct {
		name string
		step step
	}{{"in an attempt", step{takes: time.Hour}}, {"in a pause", after(Unavailable, 30*sec)}} {
		t.Run("cancelled "+row.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				handover := errors.New("the task moves")
				ctx, cancel := context.WithCancelCause(t.Context())
				time.AfterFunc(sec, func() { cancel(handover) })
				m, spare := script(small, row.step), script(big, step{})
				c := mustCaller(t, CallerConfig{Chain: chain(m, spare)})
				res, err := c.Do(ctx, Call{Request: question})
				if !errors.Is(err, handover) || time.Since(m.began) != sec || len(spare.asked) != 0 || res.Attempts != 1 {
					t.Errorf("got %v, %+v", err, res)
				}
			})
		})
	}
}

// TestChain checks which model of a chain answers.
func TestChain(t *testing.T) {
	t.Parallel()
	one := Policy{Attempts: 1}
	for _, row := range []struct {
		name     string
		policy   Policy
		classes  [][]Class // of links 1, 2
		first    step
		second   step
		from     int
		answered ID // zero: failed
		class    Class
	}{
		{name: "first answers", first: step{}, answered: small},
		{name: "too long goes on at once", first: fails(ContextTooLong), answered: big},
		{name: "retries used up", policy: one, first: fails(Unavailable), answered: big},
		{name: "no money", first: fails(NoMoney), answered: big},
		{name: "wait beyond the deadline", first: after(Throttled, time.Hour), answered: big},
		{name: "a refusal stays", first: fails(Refused), class: Refused},
		{name: "a refusal goes to a link that lists it", classes: [][]Class{{ContextTooLong}, {Refused}}, first: fails(Refused), answered: other},
		{name: "links for other classes are left out", classes: [][]Class{{ContextTooLong}, {Unavailable}}, policy: one, first: fails(Unavailable), answered: other},
		{name: "no link takes it", classes: [][]Class{{ContextTooLong}, {Timeout}}, policy: one, first: fails(Unavailable), class: Unavailable},
		{name: "the class of the second leads on", classes: [][]Class{{ContextTooLong}, {Unavailable}}, policy: one, first: fails(ContextTooLong), second: fails(Unavailable), answered: other},
		{name: "the last error is returned", classes: [][]Class{nil, {Invalid}}, policy: one, first: fails(Unavailable), second: fails(ContextTooLong), class: ContextTooLong},
		{name: "begin later", from: 1, first: fails(Auth), answered: big},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				links := chain(script(small, row.first), script(big, row.second), script(other, step{}))
				for i, classes := range row.classes {
					links[i+1].For = classes
				}
				c := mustCaller(t, CallerConfig{Chain: links, Policy: row.policy})
				res, err := c.Do(t.Context(), Call{Request: question, From: row.from})
				if row.class != "" {
					if err == nil || ClassOf(err) != row.class {
						t.Errorf("got %v, want class %s", err, row.class)
					}
				} else if err != nil || res.Model != row.answered || res.Response.Model != row.answered.Model {
					t.Errorf("answered by %s (%v), want %s", res.Model, err, row.answered)
				}
			})
		})
	}
}

// TestSummedUsage checks that all that was paid is in the result, by the price of the
// model that took it, and what may have been.
func TestSummedUsage(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		paid := func(class Class, u Usage) step {
			return step{err: &Error{Class: class, Usage: u, Err: errors.New("scripted")}}
		}
		var seen []Attempt
		c := mustCaller(t, CallerConfig{
			Chain: chain(
				script(small, step{takes: time.Hour}, fails(Unavailable), paid(ContextTooLong, Usage{Input: 1_000_000})),
				script(big, step{usage: Usage{Input: 1_000_000, Output: 1_000_000}}),
			),
			Prices:    testPrices(t),
			OnAttempt: func(_ context.Context, a Attempt) { seen = append(seen, a) },
		})
		res, err := c.Do(t.Context(), Call{Request: question})
		if err != nil {
			t.Fatal(err)
		}
		// The timeout may have cost the worst of small: 42 bytes of input at 1 $/M and
		// 5 tokens of output at 2.
		want := Result{Response: res.Response, Model: big, Attempts: 4, Failures: res.Failures, Usage: Usage{Input: 2_000_000, Output: 1_000_000}, Cost: Dollars(1 + 10 + 20), CostKnown: true, Unsure: Amount{52, 47}}
		if res.Usage != want.Usage || res.Cost != want.Cost || !res.CostKnown || res.Unsure != want.Unsure || res.Attempts != 4 || len(res.Failures) != 3 || res.Spent() != (Amount{want.Cost + 52, 3_000_047}) {
			t.Errorf("got %+v\nwant %+v", res, want)
		}
		actions := []Action{ActionRetry, ActionRetry, ActionNextModel, ""}
		for i, a := range seen {
			if a.Number != i+1 || a.Action != actions[i] || (a.Err == nil) != (i == 3) {
				t.Errorf("attempt %d: %+v", i, a)
			}
		}
		if len(seen) != 4 || seen[0].Took != 30*sec || seen[0].Delay != 250*time.Millisecond || seen[3].Cost != Dollars(30) {
			t.Errorf("attempts: %+v", seen)
		}
	})
}

// TestLies checks that counts that make no sense give nothing back: a call never spends
// less than nothing, and the sums do not overflow.
func TestLies(t *testing.T) {
	t.Parallel()
	const most = 1 << 40
	for _, row := range []struct {
		name       string
		told, want Usage
		spent      Amount
	}{
		{"negative", Usage{Input: -1_000_000, Output: -1_000_000}, Usage{}, Amount{52, 47}}, // as if it told nothing
		{"negative output", Usage{Input: 10, Output: -5}, Usage{Input: 10}, Amount{10, 10}},
		{"more parts than the whole", Usage{Input: 10, Cached: 99, Written: 99, Output: 4, Reasoning: 99}, Usage{Input: 10, Cached: 10, Output: 4, Reasoning: 4}, Amount{18, 14}},
		{"too many", Usage{Input: math.MaxInt64, Output: math.MaxInt64}, Usage{Input: most, Output: most}, Amount{3 * most, 2 * most}},
	} {
		for kind, st := range map[string]step{"answer": {usage: row.told}, "failure": {err: &Error{Class: Truncated, Status: 200, Usage: row.told, Err: errors.New("scripted")}}} {
			c := mustCaller(t, CallerConfig{Chain: chain(script(small, st)), Prices: testPrices(t)})
			res, _ := c.Do(t.Context(), Call{Request: question})
			if res.Usage != row.want || res.Spent() != row.spent {
				t.Errorf("%s, %s: usage %+v, spent %+v, want %+v, %+v", row.name, kind, res.Usage, res.Spent(), row.want, row.spent)
			}
			if kind == "answer" && res.Response.Usage != row.want {
				t.Errorf("%s: the response has %+v", row.name, res.Response.Usage)
			}
		}
	}
}

// TestMoney checks that a call never spends more than its money, and that the end of
// the money leads to a cheaper model.
func TestMoney(t *testing.T) {
	t.Parallel()
	timeout := step{takes: time.Hour}
	dollars := func(m Micros) Amount { return Amount{m, NoLimit} }
	for _, row := range []struct {
		name  string
		limit Amount
		chain func() []Link
		want  ID
		class Class
		asks  int
	}{
		{"enough for one", dollars(52), func() []Link { return chain(script(small, step{})) }, small, "", 1},
		{"not enough", dollars(51), func() []Link { return chain(script(small, step{})) }, ID{}, OverBudget, 0},
		{"a timeout may have been paid", dollars(103), func() []Link { return chain(script(small, timeout)) }, ID{}, OverBudget, 1},
		{"enough for two", dollars(104), func() []Link { return chain(script(small, timeout, step{})) }, small, "", 2},
		{"a failure that cost nothing", dollars(52), func() []Link { return chain(script(small, fails(Unavailable), step{})) }, small, "", 2},
		{"cheaper model", dollars(52), func() []Link { return chain(script(big, step{}), script(small, step{})) }, small, "", 1},
		{"enough tokens for one", Amount{NoLimit, 47}, func() []Link { return chain(script(small, step{})) }, small, "", 1},
		{"not enough tokens", Amount{NoLimit, 46}, func() []Link { return chain(script(small, step{})) }, ID{}, OverBudget, 0},
		{"tokens of a timeout", Amount{NoLimit, 93}, func() []Link { return chain(script(small, timeout)) }, ID{}, OverBudget, 1},
		{"no price", dollars(1000), func() []Link { return chain(script(ID{"who", "knows"}, step{})) }, ID{}, Invalid, 0},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				c := mustCaller(t, CallerConfig{Chain: row.chain(), Prices: testPrices(t)})
				res, err := c.Do(t.Context(), Call{Request: question, Limit: &row.limit})
				if row.class == "" && (err != nil || res.Model != row.want) || row.class != "" && ClassOf(err) != row.class {
					t.Errorf("got %s, %v", res.Model, err)
				}
				if res.Attempts != row.asks || !row.limit.Covers(res.Spent()) {
					t.Errorf("%d attempts, spent %s of %s", res.Attempts, res.Spent(), row.limit)
				}
			})
		})
	}
}

// TestCallBeyondBreaker checks that a call leaves an open breaker at once, for the
// next model or with the time to come back, and that an outage stops admission.
func TestCallBeyondBreaker(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		down, poor := script(small, fails(Unavailable)), script(big, fails(NoMoney))
		b, err := NewBreakers(BreakerConfig{MinAttempts: 2, OpenFor: 30 * sec})
		if err != nil {
			t.Fatal(err)
		}
		c := mustCaller(t, CallerConfig{Chain: chain(down, poor), Breakers: b})
		if n, _ := c.Admit(0); n != math.MaxInt {
			t.Fatal("open before any call")
		}
		// The second attempt opens small, the first opens big: not a third is made.
		_, err = c.Do(t.Context(), Call{Request: question})
		if ClassOf(err) != NoMoney || len(down.asked) != 2 || len(poor.asked) != 1 {
			t.Fatalf("got %v after %d and %d attempts", err, len(down.asked), len(poor.asked))
		}
		retryAt := start.Add(30*sec + 250*time.Millisecond)
		if n, at := c.Admit(0); n != 0 || !at.Equal(retryAt) {
			t.Errorf("admits %d until %v, want none until %v", n, at, retryAt)
		}
		if n, at := c.Admit(1); n != 0 || !at.IsZero() {
			t.Errorf("from the second model it admits %d until %v, want none until it is reset", n, at)
		}
		res, err := c.Do(t.Context(), Call{Request: question})
		open, ok := errors.AsType[*OpenError](err)
		if !ok || !open.RetryAt.Equal(retryAt) || res.Attempts != 0 || ClassOf(err) != NoMoney {
			t.Errorf("got %v, %+v", err, res)
		}
		if !strings.Contains(err.Error(), "until it is reset") {
			t.Errorf("the error does not say what to do: %v", err)
		}
		<-time.After(time.Until(retryAt))
		if n, at := c.Admit(0); n != 2 || !at.IsZero() {
			t.Errorf("when probes are due it admits %d until %v, want 2", n, at)
		}
		b.Reset(big)
		if n, _ := c.Admit(0); n != math.MaxInt {
			t.Error("the reset breaker refuses calls")
		}
	})
}

// gate is a limiter that admits after a time each, and counts what it gave and got
// back.
type gate struct {
	waits      []time.Duration
	given      int
	ended      []string
	meanwhile  func()
	sinceStart []time.Time
}

func (g *gate) Reserve(ctx context.Context, _ ID, _ *Request, since time.Time) (func(*Response, error), error) {
	g.sinceStart = append(g.sinceStart, since)
	wait := g.waits[min(g.given, len(g.waits)-1)]
	select {
	case <-time.After(wait):
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if g.meanwhile != nil {
		g.meanwhile()
	}
	g.given++
	return func(resp *Response, err error) {
		switch {
		case resp != nil:
			g.ended = append(g.ended, "answered")
		case err != nil:
			g.ended = append(g.ended, string(ClassOf(err)))
		default:
			g.ended = append(g.ended, "not made")
		}
	}, nil
}

// TestLimited checks what a call does with its limiter: the wait for the first
// attempt is outside the deadline, later ones are inside, and every reservation is
// settled once.
func TestLimited(t *testing.T) {
	t.Parallel()
	for _, row := range []struct {
		name  string
		waits []time.Duration
		steps []step
		money bool // runs out for all while the limiter is waited for
		took  time.Duration
		class Class
		ended []string
	}{
		{"the first wait has no end", []time.Duration{time.Hour}, []step{{}}, false, time.Hour, "", []string{"answered"}},
		{"a throttled attempt waits in the limiter", []time.Duration{0, 7 * sec}, []step{fails(Throttled), {}}, false, 7 * sec, "", []string{"throttled", "answered"}},
		{"and as long as the provider asks for", []time.Duration{0, 0}, []step{after(Throttled, 9*sec), {}}, false, 9 * sec, "", []string{"throttled", "answered"}},
		{"later waits end with the deadline", []time.Duration{time.Hour, time.Hour}, []step{fails(Throttled), {}}, false, time.Hour + 2*time.Minute, Throttled, []string{"throttled"}},
		{"no time is left after the wait", []time.Duration{0, 2*time.Minute - sec}, []step{fails(Throttled), {}}, false, 2*time.Minute - sec, Throttled, []string{"throttled", "not made"}},
		{"the breaker opens meanwhile", []time.Duration{sec}, []step{{}}, true, sec, NoMoney, []string{"not made"}},
		{"a panic", []time.Duration{0}, []step{{panic: true}}, false, 0, Unavailable, []string{"unavailable"}},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				b, _ := NewBreakers(BreakerConfig{})
				g := &gate{waits: row.waits}
				if row.money {
					g.meanwhile = func() {
						p, _ := b.enter(small)
						p.leave(&Error{Class: NoMoney, Err: errors.New("scripted")}, true)
					}
				}
				began := time.Now()
				c := mustCaller(t, CallerConfig{Chain: chain(script(small, row.steps...)), Breakers: b, Limiter: g})
				err := func() (err error) {
					defer func() {
						if v := recover(); v != nil {
							err = errors.New("panic")
						}
					}()
					_, err = c.Do(t.Context(), Call{Request: question})
					return err
				}()
				if time.Since(began) != row.took || (err != nil) != (row.class != "") || err != nil && ClassOf(err) != row.class {
					t.Errorf("got %v after %s", err, time.Since(began))
				}
				if !slices.Equal(g.ended, row.ended) {
					t.Errorf("attempts ended %v, want %v", g.ended, row.ended)
				}
				for _, since := range g.sinceStart {
					if !since.Equal(began) {
						t.Errorf("the call began at %v, the limiter was told %v", began, since)
					}
				}
			})
		})
	}
}

// TestPanicLeavesNothingBehind checks that a model that panics keeps no probe.
// A call whose last attempt opened the breaker ends for the outage, not for itself.
func TestLastAttemptOpensBreaker(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b, err := NewBreakers(BreakerConfig{MinAttempts: 3})
		if err != nil {
			t.Fatal(err)
		}
		m := script(small, fails(Unavailable))
		c := mustCaller(t, CallerConfig{Chain: chain(m), Breakers: b, Policy: Policy{Attempts: 3}})
		_, err = c.Do(t.Context(), Call{Request: question})
		if open, ok := errors.AsType[*OpenError](err); !ok || open.RetryAt.IsZero() || ClassOf(err) != Unavailable || len(m.asked) != 3 {
			t.Errorf("%d attempts, then %v", len(m.asked), err)
		}
	})
}

func TestPanicLeavesNothingBehind(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b, _ := NewBreakers(BreakerConfig{MinAttempts: 1, Probes: 1})
		m := script(small, fails(Unavailable), step{panic: true}, step{})
		c := mustCaller(t, CallerConfig{Chain: chain(m), Breakers: b, Policy: Policy{Attempts: 1}})
		_, _ = c.Do(t.Context(), Call{Request: question})
		pass(10 * sec)
		func() {
			defer func() { _ = recover() }()
			_, _ = c.Do(t.Context(), Call{Request: question})
		}()
		if _, err := c.Do(t.Context(), Call{Request: question}); err != nil {
			t.Errorf("no probe is left: %v", err)
		}
	})
}

func TestCallerConfiguration(t *testing.T) {
	t.Parallel()
	m := script(small, step{})
	_, err := NewCaller(CallerConfig{
		Chain: []Link{{Model: m}, {Model: m}, {}},
		Policy: Policy{
			Timeout: time.Hour, MinTime: 2 * time.Hour, Attempts: -1,
			Actions: map[Class]Action{Refused: "hope", NoMoney: ActionRetry},
		},
	})
	for _, want := range []string{"fake/small is in the chain twice", "link 2", "Deadline", "MinTime", "negative", `"hope"`, "class no_money"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("the error does not tell of %q: %v", want, err)
		}
	}
	if _, err := NewCaller(CallerConfig{}); err == nil {
		t.Error("an empty chain is no error")
	}
	c := mustCaller(t, CallerConfig{Chain: chain(m)})
	if _, err := c.Do(t.Context(), Call{Request: question, From: 1}); err == nil {
		t.Error("a call from beyond the chain is no error")
	}
	if got := c.Models(); !slices.Equal(got, []ID{small}) {
		t.Errorf("models: %v", got)
	}
}
