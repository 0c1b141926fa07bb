package llm

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"time"
)

// A Link is a model of a [Caller]'s chain.
type Link struct {
	Model Model
	// For lists the classes of failure of the models before it that lead to this
	// one. Empty: all whose action leads on (retries used up, waits that the deadline
	// does not allow, ActionNextModel, ActionOpen). A class whose action is
	// ActionDeadLetter or ActionReask leads on only to a link that lists it.
	For []Class
}

func (l *Link) takes(class Class, a Action) bool {
	if len(l.For) == 0 {
		return a != ActionDeadLetter && a != ActionReask
	}
	return slices.Contains(l.For, class)
}

// A Policy bounds a call. The zero value of a field takes its default.
type Policy struct {
	// Timeout bounds one attempt. Default 30 s.
	Timeout time.Duration
	// Deadline bounds the whole call, over attempts and models, from the moment the
	// limiter admitted its first attempt: waiting for that is bounded by ctx alone. A
	// deadline of ctx bounds it too. Default 2 min, at least Timeout.
	Deadline time.Duration
	// MinTime is the least that must be left of the deadline for another attempt to
	// start. Default a tenth of Timeout.
	MinTime time.Duration
	// Attempts is how many attempts a model has that end in ActionRetry. Those that
	// were told to wait do not count. Default 4.
	Attempts int
	// Before attempt n+1 the call pauses for a random time between 0 and
	// Backoff*2^(n-1), at most MaxBackoff, but at least as long as the provider asked
	// for, however long that is. Defaults 500 ms and 30 s.
	Backoff, MaxBackoff time.Duration
	// Actions replaces the default actions of some classes.
	Actions map[Class]Action
}

// Validate reports all that is wrong with the policy.
func (p Policy) Validate() error {
	var errs []error
	q := p.withDefaults()
	if p.Timeout < 0 || p.Deadline < 0 || p.MinTime < 0 || p.Attempts < 0 || p.Backoff < 0 || p.MaxBackoff < 0 {
		errs = append(errs, errors.New("llm: policy: no time and no number may be negative"))
	}
	if q.Deadline < q.Timeout {
		errs = append(errs, fmt.Errorf("llm: policy: the Deadline of %s is shorter than the Timeout of an attempt of %s", q.Deadline, q.Timeout))
	}
	if q.MinTime > q.Timeout {
		errs = append(errs, fmt.Errorf("llm: policy: MinTime %s exceeds Timeout %s: no attempt could start", q.MinTime, q.Timeout))
	}
	for class, a := range p.Actions {
		switch a {
		case ActionRetry, ActionWait, ActionNextModel, ActionOpen, ActionDeadLetter, ActionReask:
		default:
			errs = append(errs, fmt.Errorf("llm: policy: class %s: there is no action %q", class, a))
		}
		if (a == ActionOpen) != class.latches() {
			errs = append(errs, fmt.Errorf("llm: policy: class %s: action %s: %s is for %s and %s, and they have no other", class, a, ActionOpen, NoMoney, Auth))
		}
	}
	return errors.Join(errs...)
}

func (p Policy) withDefaults() Policy {
	p.Timeout = orDefault(p.Timeout, 30*time.Second)
	p.Deadline = orDefault(p.Deadline, 2*time.Minute)
	p.MinTime = orDefault(p.MinTime, p.Timeout/10)
	p.Attempts = orDefault(p.Attempts, 4)
	p.Backoff = orDefault(p.Backoff, 500*time.Millisecond)
	p.MaxBackoff = orDefault(p.MaxBackoff, 30*time.Second)
	return p
}

// Action returns what the policy does about a class.
func (p Policy) Action(c Class) Action {
	if a, ok := p.Actions[c]; ok {
		return a
	}
	return c.Action()
}

// A Limiter admits attempts at models, see package limit.
type Limiter interface {
	// Reserve waits until an attempt may start, and returns what has to be called
	// once with how it ended: done(nil, nil) if it was not made. The attempts of calls
	// that began earlier go first, so that none starves. It fails when ctx ends, and
	// with an [*Error] for a request that it can never admit.
	//
	// An attempt that ends Throttled is made again as soon as Reserve admits it and its
	// Retry-After is over: the limiter slows down.
	Reserve(ctx context.Context, model ID, req *Request, since time.Time) (done func(*Response, error), err error)
}

// A Sharer is a [Limiter] that keeps to this instance's part of its limits: the
// partitions that it owns by all partitions of the steps that share them, which needs no
// coordination. Safe for concurrent use.
type Sharer interface {
	Limiter
	// Join says that a step uses the limits, before any instance of it runs.
	Join(step string)
	// Own says that the instance owns one of a number of partitions of the step, until
	// release is called.
	Own(step string, partitions int) (release func())
}

// CallerConfig is what a [Caller] is made of. All but Chain may be left out.
type CallerConfig struct {
	// Chain has at least one model: the first is asked first.
	Chain  []Link
	Policy Policy
	// Breakers is shared by the callers of an instance; nil means breakers of its own.
	Breakers *Breakers
	// Limiter is shared by the callers of an instance; nil admits everything.
	Limiter Limiter
	// Prices is needed for costs and for calls with a limit of money.
	Prices *PriceTable
	// OnAttempt is told of each attempt when it has ended, on the goroutine of the
	// call: it should return quickly.
	OnAttempt func(context.Context, Attempt)
	// Rand returns a random duration in [0, n), for jitter; nil means the default
	// source. It is called concurrently.
	Rand func(n time.Duration) time.Duration
}

// A Caller makes calls: attempts at the models of a chain until one answers. Its
// loop is the only one that retries. It is safe for concurrent use.
type Caller struct {
	CallerConfig
}

// NewCaller returns a caller, or all that is wrong with its configuration.
func NewCaller(c CallerConfig) (*Caller, error) {
	var errs []error
	if len(c.Chain) == 0 {
		errs = append(errs, errors.New("llm: caller: the chain has no model"))
	}
	seen := map[ID]bool{}
	for i, l := range c.Chain {
		if l.Model == nil {
			errs = append(errs, fmt.Errorf("llm: caller: link %d of the chain has no model", i))
			continue
		}
		if id := l.Model.ID(); seen[id] {
			errs = append(errs, fmt.Errorf("llm: caller: %s is in the chain twice", id))
		} else {
			seen[id] = true
		}
	}
	errs = append(errs, c.Policy.Validate())
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	c.Policy = c.Policy.withDefaults()
	if c.Breakers == nil {
		c.Breakers, _ = NewBreakers(BreakerConfig{}) // valid
	}
	if c.Rand == nil {
		c.Rand = rand.N[time.Duration]
	}
	return &Caller{c}, nil
}

// Models returns the models of the chain.
func (c *Caller) Models() []ID {
	ids := make([]ID, len(c.Chain))
	for i, l := range c.Chain {
		ids[i] = l.Model.ID()
	}
	return ids
}

// Takes reports whether a link behind the first model names a class of failure.
func (c *Caller) Takes(class Class) bool {
	return slices.ContainsFunc(c.Chain[1:], func(l Link) bool { return slices.Contains(l.For, class) })
}

// Admit says how many calls that begin at link from of the chain may be out at once,
// as the breakers stand now: any number, math.MaxInt, while the breaker of a model is
// closed that they could reach; else as many as are to probe those models that are
// half open or due to be; 0 if all are open. Then retryAt is when the first of them
// lets calls pass: zero if that depends on [Breakers.Reset] or on calls that are out.
// Ask before a call is granted a slot, so that an outage stops admission instead of
// filling slots.
func (c *Caller) Admit(from int) (calls int, retryAt time.Time) {
	for i := from; i >= 0; {
		probes, e := c.Breakers.admit(c.Chain[i].Model.ID())
		if e == nil {
			return math.MaxInt, time.Time{}
		}
		if calls += probes; probes == 0 {
			retryAt = earlier(retryAt, e.RetryAt)
		}
		i = c.next(i, e)
	}
	if calls > 0 {
		retryAt = time.Time{}
	}
	return calls, retryAt
}

// next returns the link that a call goes to when link i failed, or -1.
func (c *Caller) next(i int, err error) int {
	class := ClassOf(err)
	a := c.Policy.Action(class)
	for j := i + 1; j < len(c.Chain); j++ {
		if c.Chain[j].takes(class, a) {
			return j
		}
	}
	return -1
}

// earlier returns the earlier of two times, of which zero is none.
func earlier(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}

// A Call is one question to a chain of models.
type Call struct {
	// Request returns what to ask a model: the dialect of the schema differs. It is
	// called before each attempt and must return the same for the same model.
	Request func(ID) (*Request, error)
	// From is the link of the chain to begin at.
	From int
	// Limit is what was reserved for the call (see [Budget]); nil sets no bound. An
	// attempt that could take more than is left of it is not made: the class is then
	// OverBudget, which leads on to a cheaper model of the chain. An answer that was
	// paid for is never thrown away.
	Limit *Amount
}

// A Result says how a call went, whether it was answered or not.
type Result struct {
	// Response is the answer, nil if there is none.
	Response *Response
	// Model answered, or was asked last.
	Model ID
	// Attempts counts all attempts, at all models.
	Attempts int
	// Failures are the attempts that failed, in order.
	Failures []*Error
	// Usage is summed over all attempts.
	Usage Usage
	// Cost is that of Usage. It is known only if CostKnown: each attempt with a usage
	// had a price.
	Cost      Micros
	CostKnown bool
	// Unsure is the most that those attempts may have taken of which the provider told
	// no usage although it answered or may have: timeouts, answers cut short, servers
	// that count no tokens. It needs MaxTokens, and for money a price.
	Unsure Amount
}

// Spent returns what a [Hold] is to be settled with: the cost, the tokens and what is
// unsure.
func (r *Result) Spent() Amount {
	return Amount{r.Cost, r.Usage.Input + r.Usage.Output}.Add(r.Unsure)
}

// An Attempt is one request to one model, as [CallerConfig.OnAttempt] sees it.
type Attempt struct {
	Model ID
	// Number counts from 1, over all models of the call.
	Number int
	Start  time.Time
	// Waited is how long the limiter held it, Took how long the model did.
	Waited, Took time.Duration
	Response     *Response // nil if it failed
	Err          *Error    // nil if it did not
	Usage        Usage
	Cost         Micros
	// Action is what is done about Err, after Delay.
	Action Action
	Delay  time.Duration
}
