// Package alert says what an instance tells its operator about: kinds of alerts,
// when they are raised, and sinks that pass them on. What to do about each is in
// docs/operations.md.
package alert

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// A Kind is what is wrong.
type Kind string

// The kinds.
const (
	BreakerOpen     Kind = "breaker_open"     // calls to a model fail
	NoMoney         Kind = "no_money"         // the provider's quota or credit is used up
	Auth            Kind = "auth"             // the provider refuses the key
	BudgetExhausted Kind = "budget_exhausted" // a budget has nothing left
	DeadLetterRate  Kind = "dead_letter_rate" // too many events end as dead letters
	OldestPending   Kind = "oldest_pending"   // an event has waited too long for its answer
	Drift           Kind = "drift"            // a prompt version does worse than it did
	TaskParked      Kind = "task_parked"      // a task stopped with an error
)

// A Severity says how urgent an alert is.
type Severity string

// The severities.
const (
	Warning  Severity = "warning"
	Critical Severity = "critical" // events are lost to dead letters, or wait for somebody
)

// A State is raised or resolved: each alert is told once of each.
type State string

// The states.
const (
	Raised   State = "raised"
	Resolved State = "resolved"
)

// An Alert says that something is wrong, or is not any more. It holds no text of
// events or answers, and no secret.
type Alert struct {
	Kind     Kind     `json:"kind"`
	State    State    `json:"state"`
	Severity Severity `json:"severity"`
	App      string   `json:"app"`
	Instance string   `json:"instance"`
	// Step is the asynchronous step, or the sub-topology.
	Step string `json:"step,omitempty"`
	// Subject is what of the step it is about: a model, a partition, a budget, or
	// prompt, version and rate.
	Subject string `json:"subject,omitempty"`
	// Value broke Threshold: a rate from 0 to 1, seconds, US dollars or tokens. Both are 0 for
	// what is on or off.
	Value     float64 `json:"value,omitempty"`
	Threshold float64 `json:"threshold,omitempty"`
	// Since is when it was raised, At when the state changed.
	Since time.Time `json:"since"`
	At    time.Time `json:"at"`
	// Message says what was seen, Action what to do.
	Message string `json:"message"`
	Action  string `json:"action"`
}

// ID names the condition: it is the same when it is raised, resolved and raised again.
func (a *Alert) ID() string {
	return fmt.Sprintf("%s/%s/%s/%s/%s", a.App, a.Instance, a.Kind, a.Step, a.Subject)
}

// A Sink is told of alerts, one after the other. It is called from a goroutine of its
// own, so that it may take its time: the pipeline does not wait for it. ctx ends 30 s
// after the call began, and soon after the instance stopped. An error is logged and
// counted.
type Sink func(ctx context.Context, a Alert) error

// Rules say when alerts are raised. The zero value of a field takes its default; a
// negative one switches the alert off.
type Rules struct {
	// DeadLetterRate is the part of the events of a step or sub-topology that may end
	// as dead letters within Window. Default 0.05.
	DeadLetterRate float64
	// OldestPending is how long an event may wait for its answer, by its timestamp.
	// Default 15 min.
	OldestPending time.Duration
	// A prompt version drifts when the rate of schema failures, re-asks, refusals or
	// fallbacks within Window exceeds that of its baseline DriftFactor times and by at
	// least DriftRise. The baseline is what came before: of the version or, as long as
	// that has too few events, of the versions before it. Defaults 2 and 0.05.
	DriftFactor float64
	DriftRise   float64
	// Window is the time that rates are taken over, default 10 min; MinEvents is the
	// least number of events in it that make a rate, default 50. Baseline is the time
	// in which an event loses half its weight in the baseline of drift, default 24 h.
	Window    time.Duration
	MinEvents int
	Baseline  time.Duration
	// ResolveAfter is how long what was wrong must have been right for the alert to be
	// resolved. Default 30 s.
	ResolveAfter time.Duration
	// Interval is how often the rules are looked at. Default 1 s.
	Interval time.Duration
}

// WithDefaults returns the rules with defaults in the place of zeros.
func (r Rules) WithDefaults() Rules {
	def(&r.DeadLetterRate, 0.05)
	def(&r.OldestPending, 15*time.Minute)
	def(&r.DriftFactor, 2)
	def(&r.DriftRise, 0.05)
	def(&r.Window, 10*time.Minute)
	def(&r.MinEvents, 50)
	def(&r.Baseline, 24*time.Hour)
	def(&r.ResolveAfter, 30*time.Second)
	def(&r.Interval, time.Second)
	return r
}

// Validate reports all that is wrong with the rules.
func (r Rules) Validate() error {
	var errs []error
	if r.DeadLetterRate > 1 {
		errs = append(errs, fmt.Errorf("alert rules: DeadLetterRate is %v; it is a part of all events, at most 1", r.DeadLetterRate))
	}
	if r.DriftRise > 1 {
		errs = append(errs, fmt.Errorf("alert rules: DriftRise is %v; it is a part of all events, at most 1", r.DriftRise))
	}
	if r.Window < 0 || r.MinEvents < 0 || r.Baseline < 0 || r.ResolveAfter < 0 || r.Interval < 0 {
		errs = append(errs, errors.New("alert rules: Window, MinEvents, Baseline, ResolveAfter and Interval must not be negative"))
	}
	return errors.Join(errs...)
}

func def[T comparable](v *T, d T) {
	var zero T
	if *v == zero {
		*v = d
	}
}

// Action is what to do about a kind of alert, in a sentence.
func (k Kind) Action() string { return actions[k] }

var actions = map[Kind]string{
	BreakerOpen:     "Look at the provider's status page and the message. Events wait, or go where OnOpenBreaker sends them; calls begin again by themselves when probes succeed.",
	NoMoney:         "Raise the limit or pay the bill at the provider, then call Breakers.Reset for the model, or restart. Until then no call to it is made.",
	Auth:            "Replace the key where it is read from (environment or file), or have it allowed to use the model, then call Breakers.Reset for the model, or restart.",
	BudgetExhausted: "Raise the budget, or wait for its next window. Events stop, fall back or go to a cheaper model, as the budget says.",
	DeadLetterRate:  "Read a few dead letters: header millrace.class says what failed, millrace.message why. Replay them when the cause is mended.",
	OldestPending:   "See whether a breaker is open, a limit is too low, or slots are all busy (millrace_async_waiting). During a replay of old events raise Rules.OldestPending.",
	Drift:           "Compare refused answers of the version in the step's raw topic with older ones. Go back to the last prompt version if the prompt or the model has changed.",
	TaskParked:      "Mend what the message says: the task tries again by itself, with backoff. Its partition stands still until then.",
}
