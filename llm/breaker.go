package llm

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"
)

// A BreakerState is the state of a model's breaker.
type BreakerState string

// The states.
const (
	BreakerClosed   BreakerState = "closed"    // calls pass
	BreakerOpen     BreakerState = "open"      // calls are refused
	BreakerHalfOpen BreakerState = "half_open" // a few calls pass to see how the model does
)

// A BreakerConfig says when a breaker opens. The zero value of a field takes its
// default.
type BreakerConfig struct {
	// FailureRate opens the breaker when at least this part of the attempts of the
	// last Window failed, and there were MinAttempts. Defaults: 0.5, 60 s, 10.
	// Attempts that ended Unavailable or Timeout fail; Throttled ones do not count;
	// any other answer shows that the provider is up. MinAttempts that fail in a row open
	// it too, so that an outage after a busy minute is seen at once: where they are no
	// more than the attempts of a call (see [Policy]), an outage uses up the attempts of
	// none.
	FailureRate float64
	Window      time.Duration
	MinAttempts int
	// OpenFor is how long an open breaker refuses calls before it lets probes pass.
	// A Retry-After of the failure that opened it makes it longer. Default 10 s.
	OpenFor time.Duration
	// Probes is how many attempts pass at once while half open, and how many have to
	// succeed in a row to close the breaker. One failure opens it again. Default 2.
	Probes int
	// OnChange, if not nil, is told of each change of state, in order. It must return
	// quickly and must not call the Breakers.
	OnChange func(BreakerChange)
}

// A BreakerChange is a change of a breaker's state.
type BreakerChange struct {
	Model    ID
	From, To BreakerState
	// Cause is the failure that opened the breaker; nil when it closes.
	Cause *Error
	// RetryAt is when probes pass, for an open breaker; zero if it stays open until
	// [Breakers.Reset].
	RetryAt time.Time
}

// Validate reports all that is wrong with the configuration.
func (c BreakerConfig) Validate() error {
	var errs []error
	if c.FailureRate < 0 || c.FailureRate > 1 {
		errs = append(errs, fmt.Errorf("llm: breaker: FailureRate is %v; take one from 0 to 1", c.FailureRate))
	}
	if c.Window < 0 || c.OpenFor < 0 || c.MinAttempts < 0 || c.Probes < 0 {
		errs = append(errs, fmt.Errorf("llm: breaker: Window %s, OpenFor %s, MinAttempts %d, Probes %d: none may be negative", c.Window, c.OpenFor, c.MinAttempts, c.Probes))
	}
	return errors.Join(errs...)
}

func (c BreakerConfig) withDefaults() BreakerConfig {
	c.FailureRate = orDefault(c.FailureRate, 0.5)
	c.Window = orDefault(c.Window, time.Minute)
	c.MinAttempts = orDefault(c.MinAttempts, 10)
	c.OpenFor = orDefault(c.OpenFor, 10*time.Second)
	c.Probes = orDefault(c.Probes, 2)
	return c
}

func orDefault[T comparable](v, def T) T {
	var zero T
	if v == zero {
		return def
	}
	return v
}

// Breakers holds a circuit breaker for each model of an instance, made at first use.
// It is safe for concurrent use; state is not kept over a restart.
type Breakers struct {
	config BreakerConfig
	mu     sync.Mutex
	models map[ID]*breaker
}

// NewBreakers returns breakers that are all closed.
func NewBreakers(c BreakerConfig) (*Breakers, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	return &Breakers{config: c.withDefaults(), models: map[ID]*breaker{}}, nil
}

func (b *Breakers) of(id ID) *breaker {
	b.mu.Lock()
	defer b.mu.Unlock()
	m := b.models[id]
	if m == nil {
		m = &breaker{config: &b.config, id: id, state: BreakerClosed}
		b.models[id] = m
	}
	return m
}

// Admit says whether the breaker of a model refuses calls now, and when it will let
// the next one pass: zero if it stays open until [Breakers.Reset], or if probes are
// out whose end decides. It takes nothing: a call may still be refused after it.
func (b *Breakers) Admit(id ID) (open bool, retryAt time.Time) {
	if e := b.refuse(id); e != nil {
		return true, e.RetryAt
	}
	return false, time.Time{}
}

// refuse returns why a call would be refused now, or nil.
func (b *Breakers) refuse(id ID) *OpenError {
	m := b.of(id)
	m.mu.Lock()
	defer m.mu.Unlock()
	if open, retryAt, _ := m.look(time.Now()); open {
		return &OpenError{Model: id, RetryAt: retryAt, Cause: m.cause}
	}
	return nil
}

// admit returns nil for a closed breaker, else why calls are refused once so many
// probes are out: none, while it is open.
func (b *Breakers) admit(id ID) (probes int, refusal *OpenError) {
	m := b.of(id)
	m.mu.Lock()
	defer m.mu.Unlock()
	open, retryAt, probe := m.look(time.Now())
	switch {
	case !open && !probe:
		return 0, nil
	case !open:
		probes = m.config.Probes
	}
	return probes, &OpenError{Model: id, RetryAt: retryAt, Cause: m.cause}
}

// State returns the state of a model's breaker, and the failure that opened it.
func (b *Breakers) State(id ID) (BreakerState, *Error) {
	m := b.of(id)
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.state, m.cause
}

// Models returns the models that have a breaker, sorted.
func (b *Breakers) Models() []ID {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.SortedFunc(maps.Keys(b.models), func(x, y ID) int {
		return slices.Compare([]string{x.Provider, x.Model}, []string{y.Provider, y.Model})
	})
}

// Reset closes the breaker of a model and forgets its failures: what an operator
// does after paying the bill or replacing the key.
func (b *Breakers) Reset(id ID) {
	m := b.of(id)
	m.mu.Lock()
	defer m.mu.Unlock()
	m.become(BreakerClosed, nil, time.Time{})
}

// enter admits an attempt. The permit has to be left, exactly once.
func (b *Breakers) enter(id ID) (*permit, *OpenError) {
	m := b.of(id)
	m.mu.Lock()
	defer m.mu.Unlock()
	open, retryAt, probe := m.look(time.Now())
	if open {
		return nil, &OpenError{Model: id, RetryAt: retryAt, Cause: m.cause}
	}
	if probe {
		if m.state == BreakerOpen {
			m.become(BreakerHalfOpen, m.cause, time.Time{})
		}
		m.probes++
	}
	return &permit{m, m.generation}, nil
}

// An OpenError says that the breaker of a model refused a call. errors.As finds the
// failure that opened it, so [ClassOf] returns that one's class.
type OpenError struct {
	Model ID
	// RetryAt is when the breaker lets the next call pass; zero if it does so only
	// after [Breakers.Reset] or the end of other calls.
	RetryAt time.Time
	Cause   *Error
}

// Error says which breaker is open, why, and what to do.
func (e *OpenError) Error() string {
	s := fmt.Sprintf("%s: the circuit breaker is open", e.Model)
	switch {
	case e.Cause != nil && e.Cause.Class.latches():
		s += " until it is reset"
	case !e.RetryAt.IsZero():
		s += " until " + e.RetryAt.UTC().Format(time.RFC3339)
	}
	if e.Cause != nil {
		s += ": " + e.Cause.Error()
	}
	return s
}

// Unwrap returns the failure that opened the breaker.
func (e *OpenError) Unwrap() error {
	if e.Cause == nil {
		return nil
	}
	return e.Cause
}

// latches reports whether a failure of the class keeps a breaker open until told.
func (c Class) latches() bool { return c == NoMoney || c == Auth }

// breaker is the breaker of one model. Our own rather than a library's: those at
// hand count late results of the time before they opened as probes, cannot take
// back a probe that was cancelled, and know no state that lasts until told.
type breaker struct {
	config *BreakerConfig
	id     ID

	mu    sync.Mutex
	state BreakerState
	cause *Error
	until time.Time // when an open one becomes half open; zero: never
	// generation counts changes of state: results of an earlier one say nothing.
	generation  int
	probes, run int // while half open: probes that are out, successes in a row
	row         int // failures since the last success, none later than the one before by Window
	failed      time.Time
	slices      [10]struct{ attempts, failures int }
	slice       int64 // the number of the current slice of time
}

// look says whether a call is refused at now, and if not, whether it is a probe.
func (m *breaker) look(now time.Time) (open bool, retryAt time.Time, probe bool) {
	switch m.state {
	case BreakerOpen:
		if m.until.IsZero() || now.Before(m.until) {
			return true, m.until, false
		}
		return false, time.Time{}, true
	case BreakerHalfOpen:
		return m.probes >= m.config.Probes, time.Time{}, true
	}
	return false, time.Time{}, false
}

// become changes the state and tells the listener.
func (m *breaker) become(to BreakerState, cause *Error, until time.Time) {
	from := m.state
	m.state, m.cause, m.until = to, cause, until
	m.probes, m.run = 0, 0
	m.generation++
	if to == BreakerClosed {
		clear(m.slices[:])
		m.row = 0
	}
	if from != to && m.config.OnChange != nil {
		m.config.OnChange(BreakerChange{Model: m.id, From: from, To: to, Cause: cause, RetryAt: until})
	}
}

// open opens the breaker because of a failure.
func (m *breaker) open(cause *Error, now time.Time) {
	if cause.Class.latches() {
		m.become(BreakerOpen, cause, time.Time{})
		return
	}
	m.become(BreakerOpen, cause, now.Add(max(m.config.OpenFor, cause.RetryAfter)))
}

// count adds an attempt to the window and reports whether too many failed.
func (m *breaker) count(failed bool, now time.Time) bool {
	n := int64(len(m.slices))
	current := now.UnixNano() / max(int64(m.config.Window)/n, 1)
	for i := max(m.slice+1, current-n+1); i <= current; i++ {
		m.slices[i%n] = struct{ attempts, failures int }{}
	}
	m.slice = max(m.slice, current)
	s := &m.slices[m.slice%n]
	s.attempts++
	if !failed {
		m.row = 0
		return false
	}
	if now.Sub(m.failed) > m.config.Window {
		m.row = 0
	}
	m.row, m.failed = m.row+1, now
	s.failures++
	attempts, failures := 0, 0
	for _, s := range m.slices {
		attempts += s.attempts
		failures += s.failures
	}
	return m.row >= m.config.MinAttempts || attempts >= m.config.MinAttempts && float64(failures) >= m.config.FailureRate*float64(attempts)
}

// permit is an admitted attempt.
type permit struct {
	m          *breaker
	generation int
}

// leave tells how the attempt ended: err is nil for a success. counts is false for
// one that says nothing of the model, as a cancelled one.
func (p *permit) leave(err *Error, counts bool) {
	m := p.m
	m.mu.Lock()
	defer m.mu.Unlock()
	now := time.Now()
	if p.generation != m.generation {
		return
	}
	if m.state == BreakerHalfOpen {
		m.probes--
	}
	if !counts || err != nil && err.Class == Throttled {
		return
	}
	failed := err != nil && (err.Class == Unavailable || err.Class == Timeout)
	switch {
	case err != nil && err.Class.latches(), m.state == BreakerHalfOpen && failed:
		m.open(err, now)
	case m.state == BreakerHalfOpen:
		if m.run++; m.run >= m.config.Probes {
			m.become(BreakerClosed, nil, time.Time{})
		}
	case m.count(failed, now):
		m.open(err, now)
	}
}
