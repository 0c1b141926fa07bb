package processors

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync/atomic"
	"time"

	millracev1 "github.com/millrace/millrace/proto/millrace/v1"
)

// An AttemptPolicy bounds a call: its attempts, their pauses and its time.
type AttemptPolicy struct {
	// Timeout bounds one attempt, Deadline the whole call from the moment it was
	// granted a slot. Both are positive.
	Timeout, Deadline time.Duration
	// Attempts is the largest number of attempts, at least 1.
	Attempts int
	// Before attempt n+1 the call pauses for a random time between 0 and
	// Backoff*2^(n-1), at most MaxBackoff.
	Backoff, MaxBackoff time.Duration
}

// grace is how long a function may take to return after its context ended before
// the call goes on without it. An answer that comes within it counts.
const grace = 500 * time.Millisecond

// RetryAfter returns err marked so that the call that returned it is tried again,
// after d at the earliest, as long as attempts and deadline allow.
func RetryAfter(d time.Duration, err error) error {
	return WithAction(Retry, &retryAfter{d, err})
}

type retryAfter struct {
	delay time.Duration
	err   error
}

func (r *retryAfter) Error() string { return r.err.Error() }
func (r *retryAfter) Unwrap() error { return r.err }

// request is what a call needs of an entry. It does not change, but for what a call
// that gives its slot back leaves for when it has one again.
type request struct {
	id         string
	round, ask int32
	owner      Owner
	event      *millracev1.Event
	resolved   []byte
	unresolved string
	progress   []byte // of the rounds before
	reserved   []byte
	sent       atomic.Bool // something that may have been paid for

	flight string              // what requests are equal to it
	asked  time.Time           // when
	paused any                 // what the step goes on with
	waited *millracev1.Outcome // if it gets no slot within MaxWait
}

func (q *request) outcome() *millracev1.Outcome {
	return &millracev1.Outcome{Id: q.id, Round: q.round, Ask: q.ask}
}

func (q *request) failure(reason millracev1.Failure_Reason, class Class, message string) *millracev1.Outcome {
	o := q.outcome()
	o.Kind = &millracev1.Outcome_Failure{Failure: &millracev1.Failure{Reason: reason, Class: strings.ToValidUTF8(string(class), ""), Message: truncate(message)}}
	return o
}

// encodedResult is what one attempt returned; a nil value is null.
type encodedResult struct {
	value []byte
	err   error
}

// run makes the attempts of a call. It returns nil if ctx ended before there was
// an outcome.
func (p *AttemptPolicy) run(ctx context.Context, q *request, fn func(context.Context) encodedResult) *millracev1.Outcome {
	if q.unresolved != "" {
		return q.failure(millracev1.Failure_REASON_ERROR, ClassAsync, q.unresolved)
	}
	end := time.Now().Add(p.Deadline)
	deadline, cancel := context.WithDeadline(ctx, end)
	defer cancel()
	for n := 1; ; n++ {
		attempt := context.WithValue(deadline, entryKey{}, Entry{ID: q.id, Round: int(q.round), Attempt: n, Owner: q.owner})
		res := p.attempt(attempt, fn)
		if res.err == nil {
			o := q.outcome()
			o.Kind = &millracev1.Outcome_Answer{Answer: &millracev1.Answer{Value: res.value}}
			o.Attempts = int32(n)
			return o
		}
		if ctx.Err() != nil {
			return nil
		}
		o := p.verdict(q, n, res.err, deadline.Err() != nil)
		if o == nil {
			delay := p.pause(n, res.err)
			if time.Until(end) > delay {
				select {
				case <-time.After(delay):
					continue
				case <-ctx.Done():
					return nil
				}
			}
			o = q.failure(millracev1.Failure_REASON_DEADLINE, classOf(res.err), fmt.Sprintf(
				"the deadline of %s leaves no time for another attempt in %s: %v", p.Deadline, delay.Round(time.Millisecond), res.err))
		}
		o.Attempts = int32(n)
		return o
	}
}

// verdict returns the outcome of a call whose attempt n failed with err, or nil
// if there is to be another attempt.
func (p *AttemptPolicy) verdict(q *request, n int, err error, late bool) *millracev1.Outcome {
	if late {
		return q.failure(millracev1.Failure_REASON_DEADLINE, classOf(err), fmt.Sprintf("the deadline of %s passed: %v", p.Deadline, err))
	}
	action := Default
	if s, ok := errors.AsType[*steer](err); ok {
		action = s.action
	}
	if _, ok := errors.AsType[*PanicError](err); ok {
		action = DeadLetter
	}
	switch {
	case action == Skip:
		return q.failure(millracev1.Failure_REASON_SKIP, classOf(err), err.Error())
	case action == DeadLetter, action == Stop, n >= p.Attempts:
		return q.failure(millracev1.Failure_REASON_ERROR, classOf(err), err.Error())
	}
	return nil
}

// pause returns the time to wait after attempt n: full jitter, but not less than
// the error asks for.
func (p *AttemptPolicy) pause(n int, err error) time.Duration {
	ceiling := p.Backoff
	for i := 1; i < n && ceiling < p.MaxBackoff; i++ {
		ceiling *= 2
	}
	delay := time.Duration(0)
	if ceiling = min(ceiling, p.MaxBackoff); ceiling > 0 {
		delay = rand.N(ceiling)
	}
	if r, ok := errors.AsType[*retryAfter](err); ok {
		delay = max(delay, r.delay)
	}
	return delay
}

// attempt calls fn once within its timeout. It does not wait for a function that
// ignores the end of its context: that one's result is lost.
func (p *AttemptPolicy) attempt(ctx context.Context, fn func(context.Context) encodedResult) encodedResult {
	ctx, cancel := context.WithTimeout(ctx, p.Timeout)
	defer cancel()
	done := make(chan encodedResult, 1)
	go func() { // ends with fn; owns nothing
		defer func() {
			if v := recover(); v != nil {
				done <- encodedResult{err: Panicked(ClassAsync, "", v)}
			}
		}()
		res := fn(ctx)
		if res.err != nil {
			res.err = sound(res.err)
		}
		done <- res
	}()
	select {
	case res := <-done:
		return res
	case <-ctx.Done():
	}
	select {
	case res := <-done:
		return res
	case <-time.After(grace):
		return encodedResult{err: fmt.Errorf("the function has not returned %s after its context ended: %w", grace, ctx.Err())}
	}
}

func classOf(err error) Class {
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Class
	}
	return ClassAsync
}
