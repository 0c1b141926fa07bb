package limit

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/millrace/millrace/llm"
)

const sec = time.Second

var model = llm.ID{Provider: "fake", Model: "m"}

// ask is a request of about 100 tokens of input whose answer has at most n.
func ask(n int) *llm.Request {
	return &llm.Request{Messages: []llm.Message{{Role: llm.RoleUser, Text: strings.Repeat("x", 322)}}, MaxTokens: n}
}

func mustNew(t *testing.T, r Rate) *Limits {
	t.Helper()
	l, err := New(map[llm.ID]Rate{model: r})
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// pass lets fake time pass.
func pass(d time.Duration) { <-time.After(d) }

// used is a response that used tokens.
func used(input, output int64) *llm.Response {
	return &llm.Response{Usage: llm.Usage{Input: input, Output: output}}
}

// TestReserve checks when each of a row of attempts is admitted that all come at once
// and are settled as soon as they are admitted.
func TestReserve(t *testing.T) {
	t.Parallel()
	seconds := func(s ...float64) (ds []time.Duration) {
		for _, x := range s {
			ds = append(ds, time.Duration(x*1e9))
		}
		return ds
	}
	for _, row := range []struct {
		name     string
		rate     Rate
		share    float64
		settle   func(n int) (*llm.Response, error)
		admitted []time.Duration
	}{
		{
			name: "requests: a burst, then the rate", rate: Rate{Requests: 60, Burst: 3 * sec}, share: 1,
			settle:   func(int) (*llm.Response, error) { return used(1, 1), nil },
			admitted: seconds(0, 0, 0, 1, 2, 3),
		},
		{
			name: "half of the partitions", rate: Rate{Requests: 60, Burst: 4 * sec}, share: 0.5,
			settle:   func(int) (*llm.Response, error) { return used(1, 1), nil },
			admitted: seconds(0, 0, 2, 4, 6),
		},
		{
			name: "failed requests count", rate: Rate{Requests: 60, Burst: sec}, share: 1,
			settle:   func(int) (*llm.Response, error) { return nil, &llm.Error{Class: llm.Unavailable, Status: 500} },
			admitted: seconds(0, 1, 2),
		},
		{
			name: "attempts that were not made do not", rate: Rate{Requests: 60, Burst: sec}, share: 1,
			settle:   func(int) (*llm.Response, error) { return nil, nil },
			admitted: seconds(0, 0, 0, 0),
		},
		{
			// 100 tokens each, 10 a second, 100 at once.
			name: "input", rate: Rate{Input: 600}, share: 1,
			settle:   func(int) (*llm.Response, error) { return used(100, 1), nil },
			admitted: seconds(0, 10, 20),
		},
		{
			// A request takes more than fits into the bucket: it goes into debt.
			name: "larger than the burst", rate: Rate{Input: 600, Burst: 5 * sec}, share: 1,
			settle:   func(int) (*llm.Response, error) { return used(100, 1), nil },
			admitted: seconds(0, 10, 20),
		},
		{
			// Each reserves 100+100 of 10 a second, and gives 50 back: the next waits for
			// 150, not for 200.
			name: "what was not used is for those who wait", rate: Rate{Tokens: 600, Burst: 20 * sec}, share: 1,
			settle:   func(int) (*llm.Response, error) { return used(100, 50), nil },
			admitted: seconds(0, 15, 30, 45),
		},
		{
			name: "Retry-After holds all", rate: Rate{}, share: 1,
			settle: func(n int) (*llm.Response, error) {
				if n == 0 {
					return nil, &llm.Error{Class: llm.Throttled, Status: 429, RetryAfter: 20 * sec}
				}
				return used(1, 1), nil
			},
			admitted: seconds(0, 20, 20, 20),
		},
		{
			// The second finds 50 requests in the bucket, but the provider knows better.
			name: "the provider's count is lower", rate: Rate{Requests: 600}, share: 0.5,
			settle: func(n int) (*llm.Response, error) {
				r := used(1, 1)
				if n == 0 {
					r.Header = http.Header{"X-Ratelimit-Remaining-Requests": {"2"}}
				}
				return r, nil
			},
			admitted: seconds(0, 0, 0.2, 0.4),
		},
		{
			name: "a timeout may have used all", rate: Rate{Tokens: 600, Burst: 20 * sec}, share: 1,
			settle:   func(int) (*llm.Response, error) { return nil, &llm.Error{Class: llm.Timeout} },
			admitted: seconds(0, 20, 40),
		},
		{
			name: "a failure tells what it used", rate: Rate{Tokens: 600, Burst: 20 * sec}, share: 1,
			settle: func(int) (*llm.Response, error) {
				return nil, &llm.Error{Class: llm.Violation, Usage: llm.Usage{Input: 100, Output: 50}}
			},
			admitted: seconds(0, 15, 30),
		},
		{
			name: "cached input is free", rate: Rate{Input: 600}, share: 1,
			settle: func(int) (*llm.Response, error) {
				return &llm.Response{Usage: llm.Usage{Input: 100, Cached: 80, Output: 1}}, nil
			},
			admitted: seconds(0, 2, 4),
		},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				l := mustNew(t, row.rate)
				l.SetShare(row.share)
				began := time.Now()
				var got []time.Duration
				for i := range row.admitted {
					done, err := l.Reserve(t.Context(), model, ask(100), time.Now())
					if err != nil {
						t.Fatal(err)
					}
					got = append(got, time.Since(began).Round(time.Millisecond))
					done(row.settle(i))
				}
				if !slices.Equal(got, row.admitted) {
					t.Errorf("admitted at %v, want %v", got, row.admitted)
				}
			})
		})
	}
}

// TestThrottledLowersLevels checks that a 429 without a time to wait ends the burst.
func TestThrottledLowersLevels(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := mustNew(t, Rate{Requests: 60})
		done, _ := l.Reserve(t.Context(), model, ask(1), time.Now())
		done(nil, &llm.Error{Class: llm.Throttled, Status: 429})
		began := time.Now()
		if _, err := l.Reserve(t.Context(), model, ask(1), time.Now()); err != nil || time.Since(began).Round(time.Millisecond) != sec {
			t.Errorf("admitted after %s, %v", time.Since(began), err)
		}
	})
}

// TestWaiters checks the order of those who wait, that one whose context ends makes
// room, and that a larger share wakes them.
func TestWaiters(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := mustNew(t, Rate{Requests: 60, Burst: sec})
		l.SetShare(0)
		ctx, cancel := context.WithTimeout(t.Context(), 5*sec)
		defer cancel()
		var mu sync.Mutex
		var order []int
		var wg sync.WaitGroup
		for i := range 4 {
			wg.Go(func() {
				c := t.Context()
				if i == 1 {
					c = ctx
				}
				done, err := l.Reserve(c, model, ask(1), time.Now())
				if i == 1 {
					if !errors.Is(err, context.DeadlineExceeded) {
						t.Errorf("the one whose time is over got %v", err)
					}
					return
				}
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				defer mu.Unlock()
				order = append(order, i)
				done(used(1, 1), nil)
			})
			synctest.Wait()
		}
		if n, _ := l.Waiting(model); n != 4 {
			t.Errorf("%d are waiting with a share of 0", n)
		}
		pass(6 * sec)
		l.SetShare(1)
		wg.Wait()
		if !slices.Equal(order, []int{0, 2, 3}) {
			t.Errorf("order %v", order)
		}
		if n, _ := l.Waiting(model); n != 0 {
			t.Errorf("%d are left waiting", n)
		}
		if _, err := l.Reserve(ctx, model, ask(1), time.Now()); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("admitted although its time was over: %v", err)
		}
	})
}

// TestOldCallsGoFirst checks that another attempt of a call goes before calls that
// began later, wherever those wait.
func TestOldCallsGoFirst(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := mustNew(t, Rate{Requests: 60, Burst: sec})
		began := time.Now()
		_, _ = l.Reserve(t.Context(), model, ask(1), began)
		var mu sync.Mutex
		var order []int
		var wg sync.WaitGroup
		for _, since := range []int{5, 3, 9, 1, 3} {
			wg.Go(func() {
				if _, err := l.Reserve(t.Context(), model, ask(1), began.Add(time.Duration(since))); err != nil {
					t.Error(err)
				}
				mu.Lock()
				defer mu.Unlock()
				order = append(order, since)
			})
			synctest.Wait()
		}
		wg.Wait()
		if !slices.Equal(order, []int{1, 3, 3, 5, 9}) {
			t.Errorf("order %v", order)
		}
	})
}

// TestLeavingMakesRoom checks that those behind an attempt that gives up are looked
// at at once.
func TestLeavingMakesRoom(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := mustNew(t, Rate{Tokens: 6000}) // 1000 at once, 100 a second
		_, _ = l.Reserve(t.Context(), model, ask(500), time.Now())
		ctx, cancel := context.WithTimeout(t.Context(), sec)
		defer cancel()
		began := time.Now()
		var wg sync.WaitGroup
		wg.Go(func() {
			if _, err := l.Reserve(ctx, model, ask(800), began); err == nil {
				t.Error("the large one was admitted")
			}
		})
		synctest.Wait()
		if _, err := l.Reserve(t.Context(), model, ask(100), began); err != nil || time.Since(began) != sec {
			t.Errorf("the small one was admitted after %s, %v", time.Since(began), err)
		}
		wg.Wait()
	})
}

// TestSmallerShare checks that what is saved up shrinks with the share.
func TestSmallerShare(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := mustNew(t, Rate{Requests: 60, Burst: 4 * sec})
		began := time.Now()
		for i, want := range []time.Duration{0, 0, 0, 2 * sec} {
			if i == 2 {
				l.SetShare(0.5) // of the two that are left, one
			}
			if _, err := l.Reserve(t.Context(), model, ask(1), began); err != nil || time.Since(began).Round(time.Millisecond) != want {
				t.Errorf("attempt %d was admitted after %s, %v", i, time.Since(began), err)
			}
		}
	})
}

// TestNeverMoreThanTheLimit plays random attempts on instances that share a limit:
// however they settle, cancel and change shares, the tokens used in any time exceed
// the limit at most by the burst and what is in flight.
func TestNeverMoreThanTheLimit(t *testing.T) {
	t.Parallel()
	for seed := range uint64(30) {
		synctest.Test(t, func(t *testing.T) {
			rnd := rand.New(rand.NewPCG(seed, 3))
			const perMinute, instances, slots = 60_000, 3, 8
			var limits [instances]*Limits
			for i := range limits {
				limits[i] = mustNew(t, Rate{Tokens: perMinute, Requests: 1200})
				limits[i].SetShare(1.0 / instances)
			}
			type spend struct {
				at     time.Duration
				tokens int64
			}
			var mu sync.Mutex
			var log []spend
			began := time.Now()
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
			defer cancel()
			var wg sync.WaitGroup
			for i := range instances * slots {
				r := rand.New(rand.NewPCG(rnd.Uint64(), 0))
				wg.Go(func() {
					for {
						out := int64(1 + r.IntN(900))
						done, err := limits[i%instances].Reserve(ctx, model, ask(int(out)), time.Now())
						if err != nil {
							return
						}
						if r.IntN(10) == 0 {
							done(nil, nil)
							continue
						}
						u := llm.Usage{Input: 100, Output: 1 + r.Int64N(out)}
						mu.Lock()
						log = append(log, spend{time.Since(began), u.Input + u.Output})
						mu.Unlock()
						pass(time.Duration(r.Int64N(int64(3 * sec))))
						done(&llm.Response{Usage: u}, nil)
					}
				})
			}
			wg.Wait()
			total := int64(0)
			for from := range log {
				sum := int64(0)
				for _, s := range log[from:] {
					sum += s.tokens
					allowed := perMinute/60*(s.at-log[from].at).Seconds() + perMinute/6 + instances*1000
					if float64(sum) > allowed {
						t.Fatalf("seed %d: %d tokens from %s to %s, allowed %.0f", seed, sum, log[from].at, s.at, allowed)
					}
				}
				total += log[from].tokens
			}
			// The limit is also used: all slots are always asking.
			if total < perMinute*2*9/10 {
				t.Fatalf("seed %d: %d tokens in two minutes of %d", seed, total, perMinute)
			}
		})
	}
}

// TestStorm has a provider with a tenth of the load as its limit, and an instance
// whose limit is twice that, or not set: 429 answers slow it down to what the
// provider gives, and no call fails.
func TestStorm(t *testing.T) {
	t.Parallel()
	const perSecond = 10
	for _, row := range []struct {
		retryAfter time.Duration
		rate       Rate
	}{
		{0, Rate{Requests: 60 * 2 * perSecond}},
		{2 * sec, Rate{Requests: 60 * 2 * perSecond}},
		{0, Rate{}},
		{2 * sec, Rate{}},
	} {
		t.Run(fmt.Sprintf("Retry-After %s, %d requests", row.retryAfter, row.rate.Requests), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				p := &provider{perSecond: perSecond, retryAfter: row.retryAfter, last: time.Now()}
				caller, err := llm.NewCaller(llm.CallerConfig{
					Chain:   []llm.Link{{Model: p}},
					Limiter: mustNew(t, row.rate),
				})
				if err != nil {
					t.Fatal(err)
				}
				began := time.Now()
				var wg sync.WaitGroup
				for range 64 {
					wg.Go(func() {
						for time.Since(began) < 5*time.Minute {
							_, err := caller.Do(t.Context(), llm.Call{Request: func(llm.ID) (*llm.Request, error) { return ask(1), nil }})
							if err != nil {
								t.Errorf("a call failed: %v", err)
							}
						}
					})
				}
				wg.Wait()
				goodput := float64(p.answered) / (time.Since(began).Seconds() * perSecond)
				if goodput < 0.95 {
					t.Errorf("goodput is %.2f of the limit", goodput)
				}
				t.Logf("goodput %.3f, answered %d, refused %d in %s", goodput, p.answered, p.refused, time.Since(began))
			})
		})
	}
}

// provider is a model with a rate limit of its own.
type provider struct {
	perSecond  float64
	retryAfter time.Duration

	mu                sync.Mutex
	level             float64
	last              time.Time
	answered, refused int
}

func (p *provider) ID() llm.ID { return model }

func (p *provider) Generate(ctx context.Context, _ *llm.Request) (*llm.Response, error) {
	p.mu.Lock()
	now := time.Now()
	p.level = min(p.level+p.perSecond*now.Sub(p.last).Seconds(), 6*p.perSecond)
	p.last = now
	if p.level < 1 {
		p.refused++
		p.mu.Unlock()
		return nil, &llm.Error{Class: llm.Throttled, Model: model, Status: 429, RetryAfter: p.retryAfter, Err: errors.New("slow down")}
	}
	p.level--
	p.answered++
	p.mu.Unlock()
	select {
	case <-time.After(500 * time.Millisecond):
		return &llm.Response{Text: "{}", Finish: llm.FinishStop, Usage: llm.Usage{Input: 1, Output: 1}}, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func TestTooLargeForAMinute(t *testing.T) {
	t.Parallel()
	for name, r := range map[string]Rate{"input": {Input: 99}, "tokens": {Tokens: 1000}} {
		l := mustNew(t, r)
		if _, err := l.Reserve(t.Context(), model, ask(1000), time.Now()); llm.ClassOf(err) != llm.ContextTooLong {
			t.Errorf("%s: got %v", name, err)
		}
	}
}

// A provider that lies about what was used, or has a bug, holds nothing up for longer
// than a minute, and fails no request that fits.
func TestLies(t *testing.T) {
	t.Parallel()
	for name, u := range map[string]llm.Usage{
		"all":    {Input: 1 << 40, Output: 1 << 40},
		"output": {Output: 1 << 40},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				l := mustNew(t, Rate{Input: 6_000, Output: 6_000, Tokens: 12_000})
				for _, n := range []int{0, 200} {
					for i := range 40 {
						began := time.Now()
						done, err := l.Reserve(t.Context(), model, ask(n), began)
						if err != nil {
							t.Fatal(err)
						}
						if waited := time.Since(began); waited > 2*time.Minute {
							t.Fatalf("request %d of %d tokens waited for %s", i, n, waited)
						}
						done(&llm.Response{Usage: u}, nil)
					}
				}
				if in, out := l.Estimate(model, ask(200)); in > 350 || out > 200 {
					t.Errorf("learned %d, %d", in, out)
				}
			})
		})
	}
}

func TestEstimateLearns(t *testing.T) {
	t.Parallel()
	l := mustNew(t, Rate{})
	in, out := l.Estimate(model, ask(500))
	if in != 100 || out != 500 {
		t.Fatalf("first estimate %d, %d", in, out)
	}
	if _, out := l.Estimate(model, &llm.Request{}); out != unboundedOutput {
		t.Errorf("estimate of an unbounded answer: %d", out)
	}
	for range 60 {
		done, err := l.Reserve(t.Context(), model, ask(500), time.Now())
		if err != nil {
			t.Fatal(err)
		}
		done(used(130, 40), nil)
	}
	if in, out = l.Estimate(model, ask(500)); in < 128 || in > 132 || out < 39 || out > 42 {
		t.Errorf("learned estimate %d, %d, real 130, 40", in, out)
	}
	if _, out = l.Estimate(model, ask(10)); out != 10 {
		t.Errorf("%d tokens of an answer of at most 10", out)
	}
	if in, _ := l.Estimate(llm.ID{Provider: "other"}, ask(500)); in != 100 {
		t.Error("models share what was learned")
	}
}

func TestRemaining(t *testing.T) {
	t.Parallel()
	for _, row := range []struct {
		name   string
		header map[string]string
		want   remaining
	}{
		{"none", nil, remaining{-1, -1, -1, -1}},
		{"OpenAI", map[string]string{"x-ratelimit-remaining-requests": "59", "x-ratelimit-remaining-tokens": "149984", "x-ratelimit-reset-tokens": "6m0s"}, remaining{59, -1, -1, 149984}},
		{"Anthropic", map[string]string{
			"anthropic-ratelimit-requests-remaining": "49", "anthropic-ratelimit-input-tokens-remaining": "40000",
			"anthropic-ratelimit-output-tokens-remaining": "8000", "anthropic-ratelimit-tokens-remaining": "48000",
		}, remaining{49, 40000, 8000, 48000}},
		{"the least counts", map[string]string{"x-ratelimit-remaining-tokens": "10", "anthropic-ratelimit-tokens-remaining": "0"}, remaining{-1, -1, -1, 0}},
		{"garbage", map[string]string{"x-ratelimit-remaining-requests": "-3", "x-ratelimit-remaining-tokens": "many"}, remaining{-1, -1, -1, -1}},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			h := http.Header{}
			for k, v := range row.header {
				h.Set(k, v)
			}
			if got := parseRemaining(h); got != row.want {
				t.Errorf("got %v, want %v", got, row.want)
			}
		})
	}
}

func TestConfiguration(t *testing.T) {
	t.Parallel()
	for _, r := range []Rate{{Requests: -1}, {Burst: 2 * time.Minute}, {Tokens: -1}} {
		if _, err := New(map[llm.ID]Rate{model: r}); err == nil || !strings.Contains(err.Error(), "fake/m") {
			t.Errorf("%+v: %v", r, err)
		}
	}
}

// TestOwnPartitions checks that the shares of instances that own the partitions of some
// steps add up to the limit, as they move.
func TestOwnPartitions(t *testing.T) {
	t.Parallel()
	steps := map[string]int{"a": 4, "b": 6}
	var instances []*Limits
	for range 2 {
		l := mustNew(t, Rate{Requests: 600})
		for s := range steps {
			l.Join(s)
			l.Join(s) // as each start of the application does
		}
		if l.share != 0 {
			t.Errorf("a share of %v without partitions", l.share)
		}
		instances = append(instances, l)
	}
	var release []func()
	for s, n := range steps {
		for p := range n {
			i := min(p, 1) // the first of each is on the first instance
			release = append(release, instances[i].Own(s, n))
		}
	}
	shares := func(first, second float64) {
		t.Helper()
		if a, b := instances[0].share, instances[1].share; math.Abs(a-first) > 1e-9 || math.Abs(b-second) > 1e-9 {
			t.Errorf("shares %v and %v, want %v and %v", a, b, first, second)
		}
	}
	part := (1./4 + 1./6) / 2
	shares(part, 1-part)
	for _, f := range release {
		f()
		f()
	}
	shares(0, 0)
	instances[1].Own("a", 4)
	shares(0, 1./8)
}
