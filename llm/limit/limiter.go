package limit

import (
	"container/list"
	"context"
	"fmt"
	"math"
	"net/http"
	"sync"
	"time"

	"github.com/millrace/millrace/llm"
)

// The buckets of a model.
const (
	requests = iota
	input
	output
	tokens
	dimensions
)

// amounts has a number of tokens for each bucket.
type amounts [dimensions]float64

// bucket fills at a constant rate. rate.Limiter does not fit: what it has promised
// to a waiter it cannot hand on when another attempt gives tokens back.
type bucket struct {
	perSecond float64 // of all instances; 0: no bound
	burst     float64 // of all instances
	level     float64 // may be negative: a debt
}

// limiter keeps the limits of one model.
type limiter struct {
	estimator estimator

	mu      sync.Mutex
	share   float64
	last    time.Time // of the levels
	buckets [dimensions]bucket
	learned learned
	paused  time.Time // no attempt before it
	waiters list.List // of *waiter, in the order of since
	timer   *time.Timer
}

type waiter struct {
	need     amounts
	since    time.Time
	admitted chan struct{} // closed when it is
}

func newLimiter(r Rate, share float64, now time.Time) *limiter {
	m := &limiter{share: share, last: now}
	for i, perMinute := range []int64{requests: r.Requests, input: r.Input, output: r.Output, tokens: r.Tokens} {
		b := &m.buckets[i]
		b.perSecond = float64(perMinute) / 60
		b.burst = max(b.perSecond*r.Burst.Seconds(), 1)
		b.level = b.burst * share
	}
	m.timer = time.AfterFunc(math.MaxInt64, m.wake)
	m.timer.Stop()
	return m
}

// need returns what an attempt takes. It fails for a request that a whole minute does
// not allow, by its own size: what was learned of others, which providers tell, only
// makes it wait.
func (m *limiter) need(id llm.ID, req *llm.Request) (estimate, amounts, error) {
	e := m.estimator.estimate(req)
	need := e.need()
	least := amounts{input: e.plain, tokens: e.plain + float64(max(req.MaxTokens, 0))}
	for i := range m.buckets {
		b := &m.buckets[i]
		if b.perSecond == 0 {
			continue
		}
		minute := b.perSecond * 60 // does not change
		if math.Ceil(least[i]) > minute && i != requests {
			return e, need, &llm.Error{Class: llm.ContextTooLong, Model: id, Err: fmt.Errorf(
				"the request takes about %.0f tokens, and the limit is %.0f a minute; raise it, shorten the prompt or lower MaxTokens", least[i], minute)}
		}
		if i != requests {
			need[i] = min(need[i], minute)
		}
	}
	return e, need, nil
}

// reserve waits until all buckets can give what is needed, behind those whose calls
// began earlier.
func (m *limiter) reserve(ctx context.Context, need amounts, since time.Time) (*reservation, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	m.mu.Lock()
	w := &waiter{need: need, since: since, admitted: make(chan struct{})}
	place := m.insert(w)
	m.admit(time.Now())
	m.mu.Unlock()
	select {
	case <-w.admitted:
		return &reservation{m: m, need: need}, nil
	case <-ctx.Done():
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	select {
	case <-w.admitted:
		return &reservation{m: m, need: need}, nil
	default:
		m.waiters.Remove(place)
		m.admit(time.Now())
		return nil, ctx.Err()
	}
}

func (m *limiter) insert(w *waiter) *list.Element {
	for e := m.waiters.Back(); e != nil; e = e.Prev() {
		if !w.since.Before(e.Value.(*waiter).since) {
			return m.waiters.InsertAfter(w, e)
		}
	}
	return m.waiters.PushFront(w)
}

func (m *limiter) wake() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.admit(time.Now())
}

// rate returns how fast a bucket fills and what it holds, for this instance; 0 if
// there is no bound.
func (m *limiter) rate(i int) (perSecond, burst float64) {
	b := &m.buckets[i]
	perSecond, burst = b.perSecond*m.share, b.burst*m.share
	if l := m.learned.perSecond; i == requests && l > 0 && (b.perSecond == 0 || l < perSecond) {
		return l, max(l*learnedBurst, 1)
	}
	return perSecond, burst
}

func (m *limiter) unbounded(i int) bool {
	return m.buckets[i].perSecond == 0 && (i != requests || m.learned.perSecond == 0)
}

// refill brings the levels up to now.
func (m *limiter) refill(now time.Time) {
	seconds := now.Sub(m.last).Seconds()
	if seconds <= 0 {
		return
	}
	m.last = now
	for i := range m.buckets {
		m.add(i, 0, seconds)
	}
	m.learned.advance(now)
}

// add gives a bucket an amount and what fills it in a time.
func (m *limiter) add(i int, amount, seconds float64) {
	perSecond, burst := m.rate(i)
	b := &m.buckets[i]
	b.level = min(b.level+amount+perSecond*seconds, burst)
}

// admit lets waiters go in order, and sets the timer for the first that cannot.
func (m *limiter) admit(now time.Time) {
	m.refill(now)
	m.timer.Stop()
	for e := m.waiters.Front(); e != nil; e = m.waiters.Front() {
		w := e.Value.(*waiter)
		if wait := m.wait(w.need, now); wait > 0 {
			if wait < math.MaxInt64 {
				m.timer.Reset(wait)
			}
			return
		}
		for i, n := range w.need {
			m.add(i, -n, 0)
		}
		m.learned.admitted[0]++
		m.waiters.Remove(e)
		close(w.admitted)
	}
}

// wait returns how long it takes until the buckets can give what is needed. A full
// bucket gives any amount and is in debt then.
func (m *limiter) wait(need amounts, now time.Time) time.Duration {
	wait := max(m.paused.Sub(now), 0)
	for i := range m.buckets {
		if m.unbounded(i) || need[i] <= 0 {
			continue
		}
		perSecond, burst := m.rate(i)
		missing := min(need[i], burst) - m.buckets[i].level
		if perSecond == 0 || missing/perSecond > 1e9 {
			return math.MaxInt64
		}
		if missing > 1e-9 { // rounding of levels
			wait = max(wait, time.Duration(math.Ceil(missing/perSecond*1e9)))
		}
	}
	return wait
}

func (m *limiter) setShare(f float64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	now := time.Now()
	m.refill(now)
	for i := range m.buckets {
		b := &m.buckets[i]
		if b.level > 0 && m.share > 0 {
			b.level *= min(f/m.share, 1) // what is not ours any more is gone
		}
		b.level = min(b.level, b.burst*f)
	}
	m.share = f
	m.admit(now)
}

// sync lowers the levels to what the provider says remains; it never raises them, as
// it does not know of the attempts under way.
func (m *limiter) sync(h http.Header) {
	left := parseRemaining(h)
	m.mu.Lock()
	defer m.mu.Unlock()
	now := time.Now()
	m.refill(now)
	for i := range m.buckets {
		if n, ok := left.of(i); ok {
			m.buckets[i].level = min(m.buckets[i].level, n*m.share)
		}
	}
	m.admit(now)
}

// throttled admits nothing for d, as a provider asked that refused an attempt. The
// levels were too high then: other users of the key are not counted here.
func (m *limiter) throttled(d time.Duration) {
	m.mu.Lock()
	defer m.mu.Unlock()
	now := time.Now()
	until := now.Add(d)
	if until.After(m.paused) {
		m.paused = until
	}
	m.refill(now)
	if m.unbounded(requests) {
		m.buckets[requests].level = 0
	}
	m.learned.lower(now, until)
	for i := range m.buckets {
		m.buckets[i].level = min(m.buckets[i].level, 0)
	}
	m.admit(now)
}

// answered counts an answer for what is learned.
func (m *limiter) answered() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.learned.advance(time.Now())
	m.learned.answered[0]++
}

// reservation is an admitted attempt.
type reservation struct {
	m    *limiter
	need amounts
}

// Settle replaces what was reserved by what was used, of which no more than a minute
// allows is believed.
func (r *reservation) Settle(u llm.Usage) {
	r.settle(amounts{
		requests: 1,
		input:    float64(u.Input - u.Cached), // cached input is free of the limit
		output:   float64(u.Output),
		tokens:   float64(u.Input + u.Output),
	})
}

// Cancel gives back all of an attempt that was not made.
func (r *reservation) Cancel() { r.settle(amounts{}) }

func (r *reservation) settle(used amounts) {
	m := r.m
	m.mu.Lock()
	defer m.mu.Unlock()
	now := time.Now()
	m.refill(now)
	for i := range m.buckets {
		m.add(i, r.need[i]-min(used[i], max(r.need[i], m.buckets[i].perSecond*60)), 0)
	}
	m.admit(now)
}
