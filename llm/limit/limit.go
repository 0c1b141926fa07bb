// Package limit keeps calls of language models within the rates of their providers:
// token buckets that are reserved before an attempt, settled with what it really
// used, and corrected by what the provider tells in its headers.
package limit

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net/http"
	"sync"
	"time"

	"github.com/millrace/millrace/llm"
)

// A Rate is what a provider allows for a model in a minute, all users of the key
// together. 0 sets no bound.
type Rate struct {
	// Requests a minute (RPM).
	Requests int64
	// Input and Output tokens a minute, counted apart as Anthropic does. Of the
	// output, what answers usually have is reserved, not MaxTokens.
	Input, Output int64
	// Tokens a minute, input and output together as OpenAI counts them: reserved is
	// the input and all of MaxTokens.
	Tokens int64
	// Burst is how much of a minute's allowance may be used at once after a pause.
	// Default 10 s: at a cold start a full minute at once, and the minute's refill
	// after it, would be twice the limit.
	Burst time.Duration
}

// Validate reports what is wrong with a rate.
func (r Rate) Validate() error {
	if r.Requests < 0 || r.Input < 0 || r.Output < 0 || r.Tokens < 0 || r.Burst < 0 || r.Burst > time.Minute {
		return fmt.Errorf("llm/limit: %+v: nothing may be negative, and Burst at most a minute", r)
	}
	return nil
}

// Limits admits attempts, for each model in the order in which their calls began. It
// is an [llm.Limiter], shared by the callers of an instance; safe for concurrent use.
//
// A 429 holds back all attempts at the model as long as the provider asks for. After
// it, requests are admitted at about the rate that was answered lately, if that is
// below the limit; it grows until the next 429, and is given up a minute after the
// last.
type Limits struct {
	mu     sync.Mutex
	share  float64
	steps  map[string]*stepShare // that joined
	rates  map[llm.ID]Rate
	models map[llm.ID]*limiter
}

var _ llm.Sharer = (*Limits)(nil)

// New returns limits for the models given; others are only held back after a 429.
func New(rates map[llm.ID]Rate) (*Limits, error) {
	var errs []error
	l := &Limits{share: 1, steps: map[string]*stepShare{}, rates: map[llm.ID]Rate{}, models: map[llm.ID]*limiter{}}
	for id, r := range rates {
		if err := r.Validate(); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", id, err))
		}
		if r.Burst == 0 {
			r.Burst = 10 * time.Second
		}
		l.rates[id] = r
	}
	return l, errors.Join(errs...)
}

// SetShare tells which part of the limits is this instance's, from 0 to 1. It holds for
// waiting attempts too. With 0 no attempt at a model with limits is admitted. Default 1.
// Steps of a topology do it by themselves, see [Limits.Join].
func (l *Limits) SetShare(f float64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.setShare(f)
}

func (l *Limits) setShare(f float64) {
	if math.IsNaN(f) {
		f = 0
	}
	l.share = min(max(f, 0), 1)
	for _, m := range l.models {
		m.setShare(l.share)
	}
}

func (l *Limits) of(id llm.ID) *limiter {
	l.mu.Lock()
	defer l.mu.Unlock()
	m := l.models[id]
	if m == nil {
		m = newLimiter(l.rates[id], l.share, time.Now())
		l.models[id] = m
	}
	return m
}

// Reserve waits until the model's limits admit an attempt at req, which is estimated,
// behind those whose calls began earlier.
// done settles it: with what the response used, or, after a failure, with what the
// error says. done(nil, nil) gives all back. Reserve fails when ctx ends, and with
// class ContextTooLong if a whole minute does not allow the request.
func (l *Limits) Reserve(ctx context.Context, id llm.ID, req *llm.Request, since time.Time) (done func(*llm.Response, error), err error) {
	m := l.of(id)
	e, need, err := m.need(id, req)
	if err != nil {
		return nil, err
	}
	r, err := m.reserve(ctx, need, since)
	if err != nil {
		return nil, fmt.Errorf("limits of %s: %w", id, err)
	}
	return func(resp *llm.Response, err error) {
		if resp == nil && err == nil {
			r.Cancel()
			return
		}
		var usage llm.Usage
		var header http.Header
		if resp != nil {
			usage, header = resp.Usage, resp.Header
		}
		failed, _ := errors.AsType[*llm.Error](err)
		if failed != nil {
			usage = failed.Usage
		}
		switch {
		case usage != (llm.Usage{}):
			m.estimator.learn(e, usage)
			r.Settle(usage)
		case failed != nil && (failed.Class == llm.Timeout || failed.Status/100 == 2), resp != nil:
			// It may have used all that was reserved.
		default:
			r.Settle(llm.Usage{}) // refused: a request, but no tokens
		}
		if resp != nil {
			m.answered()
		}
		if header != nil {
			m.sync(header)
		}
		if failed != nil && failed.Class == llm.Throttled {
			m.throttled(failed.RetryAfter)
		}
	}, nil
}

// Sync corrects the buckets of a model by the headers of an answer, also of one that
// did not come from an attempt reserved here.
func (l *Limits) Sync(id llm.ID, h http.Header) { l.of(id).sync(h) }

// Waiting returns how many attempts wait for a model's limits, and until when the
// provider asked to pause; zero if it did not or the pause is over.
func (l *Limits) Waiting(id llm.ID) (attempts int, pausedUntil time.Time) {
	m := l.of(id)
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.paused.After(time.Now()) {
		pausedUntil = m.paused
	}
	return m.waiters.Len(), pausedUntil
}

// Estimate returns how many tokens an attempt at req is expected to use, from the
// size of the request and what earlier ones used: bytes/3.5 at first.
func (l *Limits) Estimate(id llm.ID, req *llm.Request) (input, output int64) {
	e := l.of(id).estimator.estimate(req)
	return e.input, e.output
}
