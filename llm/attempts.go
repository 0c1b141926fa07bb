package llm

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// Do makes a call. The error is an [*Error] of the last attempt, an [*OpenError] if
// no model that is left may be asked, or, if ctx was cancelled, that; wrapped, so use
// errors.As. The result is valid with an error too: failed attempts may cost.
//
// A call that ends for its deadline keeps the class of its last failure. Of class
// Throttled, or an *OpenError, it is to be made again later, if the event can wait.
func (c *Caller) Do(ctx context.Context, call Call) (Result, error) {
	if call.From < 0 || call.From >= len(c.Chain) {
		return Result{}, fmt.Errorf("llm: call: there is no link %d in a chain of %d", call.From, len(c.Chain))
	}
	r := &run{c: c, call: call, began: time.Now()}
	r.CostKnown = c.Prices != nil
	var retryAt time.Time
	for i := call.From; ; {
		err := r.ask(ctx, c.Chain[i].Model)
		if err == nil {
			return r.Result, nil
		}
		if errors.Is(ctx.Err(), context.Canceled) {
			return r.Result, fmt.Errorf("llm: the call was interrupted: %w", context.Cause(ctx))
		}
		open, isOpen := errors.AsType[*OpenError](err)
		if isOpen {
			retryAt = earlier(retryAt, open.RetryAt)
		}
		next := c.next(i, err)
		if next >= 0 && r.left(ctx) >= c.Policy.MinTime {
			i = next
			continue
		}
		if isOpen {
			open.RetryAt = retryAt
		}
		return r.Result, err
	}
}

// run is a call under way.
type run struct {
	Result
	c    *Caller
	call Call
	// began is when the call was made.
	began time.Time
	end   time.Time // the deadline; zero before the first attempt was admitted
}

// left returns how much time the call has for an attempt that starts now.
func (r *run) left(ctx context.Context) time.Duration {
	left := r.c.Policy.Deadline
	if !r.end.IsZero() {
		left = time.Until(r.end)
	}
	if d, ok := ctx.Deadline(); ok {
		left = min(left, time.Until(d))
	}
	return left
}

// ask makes attempts at one model until it answers or is given up.
func (r *run) ask(ctx context.Context, m Model) error {
	p := &r.c.Policy
	r.Model = m.ID()
	for n, failures := 1, 0; ; n++ {
		a, err := r.attempt(ctx, m)
		if err != nil {
			return err // none was made
		}
		if a.Err == nil {
			r.observe(ctx, a)
			return nil
		}
		a.Action = p.Action(a.Err.Class)
		final := a.Action != ActionRetry && a.Action != ActionWait
		if a.Action == ActionRetry {
			failures++
			final = failures >= p.Attempts
		}
		err = a.Err
		var open *OpenError // of an outage, also if it took the last attempt
		if a.Action == ActionRetry || a.Action == ActionWait {
			open = r.c.Breakers.refuse(r.Model)
		}
		switch {
		case open != nil:
			final, err = true, open
		case !final:
			a.Delay = a.Err.RetryAfter
			if a.Action == ActionRetry || r.c.Limiter == nil {
				a.Delay = max(a.Delay, r.c.backoff(n))
			}
			if r.left(ctx)-a.Delay < p.MinTime {
				final = true
				err = fmt.Errorf("the deadline leaves no time for another attempt in %s: %w", a.Delay.Round(time.Millisecond), a.Err)
			}
		}
		if final {
			a.Delay = 0
		}
		r.observe(ctx, a)
		if final {
			return err
		}
		select {
		case <-time.After(a.Delay):
		case <-ctx.Done():
			return a.Err
		}
	}
}

// backoff returns the pause after attempt n: full jitter.
func (c *Caller) backoff(n int) time.Duration {
	ceiling := c.Policy.Backoff
	for i := 1; i < n && ceiling < c.Policy.MaxBackoff; i++ {
		ceiling *= 2
	}
	if ceiling = min(ceiling, c.Policy.MaxBackoff); ceiling <= 0 {
		return 0
	}
	return c.Rand(ceiling)
}

// attempt makes one attempt, and settles it with breaker and limiter. The error says
// why none was made.
func (r *run) attempt(ctx context.Context, m Model) (Attempt, error) {
	id := r.Model
	req, err := r.call.Request(id)
	if err != nil {
		return Attempt{}, &Error{Class: Invalid, Model: id, Err: err}
	}
	now := time.Now()
	worst, err := r.worst(id, req, now)
	if err != nil {
		return Attempt{}, err
	}
	if open := r.c.Breakers.refuse(id); open != nil {
		return Attempt{}, open // before it waits
	}
	done, err := r.reserve(ctx, id, req)
	if err != nil {
		return Attempt{}, err
	}
	a := Attempt{Model: id, Waited: time.Since(now), Start: time.Now()}
	permit, open := r.c.Breakers.enter(id)
	if open != nil {
		done(nil, nil)
		return Attempt{}, open
	}
	if r.end.IsZero() {
		r.end = a.Start.Add(r.c.Policy.Deadline)
	}
	timeout := min(r.c.Policy.Timeout, r.left(ctx))
	if timeout < r.c.Policy.MinTime {
		permit.leave(nil, false)
		done(nil, nil)
		return Attempt{}, &Error{Class: Throttled, Model: id, Err: errors.New("waiting for the limit left no time for an attempt")}
	}
	r.Attempts++
	a.Number = r.Attempts
	ended := false
	defer func() {
		if !ended { // the model panicked
			permit.leave(nil, false)
			done(nil, errors.New("panic"))
		}
	}()
	a.Response, a.Err = generate(ctx, m, req, timeout)
	ended = true
	a.Took = time.Since(a.Start)
	// An attempt that was cut short by us says nothing of the model.
	cut := errors.Is(ctx.Err(), context.Canceled) || a.Err != nil && a.Err.Class == Timeout && timeout < r.c.Policy.Timeout
	permit.leave(a.Err, !cut)
	if a.Err != nil {
		done(nil, a.Err)
		a.Usage = a.Err.Usage
		r.Failures = append(r.Failures, a.Err)
	} else {
		done(a.Response, nil)
		a.Usage = a.Response.Usage
		r.Response = a.Response
	}
	if a.Usage == (Usage{}) && (a.Err == nil || a.Err.unsure()) {
		r.Unsure = r.Unsure.Add(worst)
	}
	r.charge(&a)
	return a, nil
}

// unsure reports whether the provider may have answered, and charged, although no
// answer arrived.
func (e *Error) unsure() bool { return e.Class == Timeout || e.Status/100 == 2 }

// generate asks the model, and makes an [*Error] of whatever is no usable answer.
func generate(ctx context.Context, m Model, req *Request, timeout time.Duration) (*Response, *Error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	resp, err := m.Generate(ctx, req)
	if err == nil {
		resp.Usage = resp.Usage.believed()
		class := Refused
		switch resp.Finish {
		case FinishStop:
			return resp, nil
		case FinishLength:
			class = Truncated
		}
		return nil, &Error{Class: class, Model: m.ID(), Status: 200, Usage: resp.Usage, Raw: resp.Text, Err: fmt.Errorf("the answer ended for %q", resp.Finish)}
	}
	e, ok := errors.AsType[*Error](err)
	if !ok {
		e = &Error{Class: ClassOf(err), Model: m.ID(), Err: err}
	}
	if u := e.Usage.believed(); u != e.Usage {
		told := *e
		told.Usage = u
		e = &told
	}
	if e.Class == Unavailable && errors.Is(ctx.Err(), context.DeadlineExceeded) {
		late := *e
		late.Class = Timeout
		e = &late
	}
	return nil, e
}

// worst returns what the attempt can take at most, 0 of what is not known and need not
// be. It refuses one that the call's limit does not cover.
func (r *run) worst(id ID, req *Request, now time.Time) (Amount, error) {
	worst, err := r.c.Prices.Worst(id, req, now)
	limit := r.call.Limit
	if limit == nil {
		return worst, nil
	}
	if err == nil && limit.Money != NoLimit {
		err = r.c.Prices.Check(now, id)
	}
	switch left := limit.Less(r.Spent()); {
	case err != nil:
		return Amount{}, &Error{Class: Invalid, Model: id, Err: err}
	case !left.Covers(worst):
		return Amount{}, &Error{Class: OverBudget, Model: id, Err: fmt.Errorf("an attempt may take %s, and %s is left of the %s reserved", worst, left, *limit)}
	}
	return worst, nil
}

// reserve waits for the limiter: for a first attempt as long as ctx allows.
func (r *run) reserve(ctx context.Context, id ID, req *Request) (func(*Response, error), error) {
	if r.c.Limiter == nil {
		return func(*Response, error) {}, nil
	}
	if !r.end.IsZero() {
		var cancel context.CancelFunc
		ctx, cancel = context.WithDeadline(ctx, r.end)
		defer cancel()
	}
	done, err := r.c.Limiter.Reserve(ctx, id, req, r.began)
	if err == nil {
		return done, nil
	}
	if _, ok := errors.AsType[*Error](err); !ok {
		err = &Error{Class: Throttled, Model: id, Err: fmt.Errorf("waiting for the limit: %w", err)}
	}
	return nil, err
}

// charge adds an attempt's usage to the call's.
func (r *run) charge(a *Attempt) {
	r.Usage = r.Usage.Add(a.Usage)
	if r.c.Prices == nil || a.Usage == (Usage{}) {
		return
	}
	cost, known := r.c.Prices.Cost(a.Model, a.Usage, a.Start)
	r.CostKnown = r.CostKnown && known
	a.Cost = cost
	r.Cost += cost
}

func (r *run) observe(ctx context.Context, a Attempt) {
	if r.c.OnAttempt != nil {
		r.c.OnAttempt(ctx, a)
	}
}
