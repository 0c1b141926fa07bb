package engine

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/millrace/millrace/alert"
	"github.com/millrace/millrace/llm"
	"github.com/millrace/millrace/processors"
)

// alerts looks at regular intervals at what is wrong, and tells sinks what has begun
// and what has ended. It looks at states, not at events: so an alert is raised once,
// however many failures are behind it.
type alerts struct {
	inst    *Instance
	log     *slog.Logger
	rules   alert.Rules
	metrics *stepMetrics
	sinks   []*alertSink

	mu     sync.Mutex
	active map[string]*activeAlert
}

type activeAlert struct {
	alert.Alert
	seen time.Time // when it was wrong last
}

func newAlerts(inst *Instance) *alerts {
	a := &alerts{inst: inst, log: inst.log, rules: inst.cfg.AlertRules, active: map[string]*activeAlert{}}
	for _, fn := range inst.cfg.Alerts {
		a.sinks = append(a.sinks, &alertSink{alerts: a, sink: fn, wake: make(chan struct{}, 1)})
	}
	return a
}

// lastWords is how long sinks may take for what is untold when the instance stops.
const lastWords = 5 * time.Second

// run looks until ctx ends. It returns when the sinks have been told, or do not return.
func (a *alerts) run(ctx context.Context) {
	life, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	told := make(chan struct{})
	var wg sync.WaitGroup
	for _, s := range a.sinks {
		wg.Go(func() { s.run(ctx, life) })
	}
	go func() { wg.Wait(); close(told) }() // ends with the sinks
	ticker := time.NewTicker(a.rules.Interval)
	defer ticker.Stop()
	for ctx.Err() == nil {
		select {
		case now := <-ticker.C:
			a.look(now)
		case <-ctx.Done():
		}
	}
	for _, patience := range []time.Duration{lastWords, time.Second} {
		select {
		case <-told:
			return
		case <-time.After(patience):
			cancel()
		}
	}
	a.log.Warn("an alert sink does not return although its context has ended: it is left behind")
}

// look compares what is wrong with what was.
func (a *alerts) look(now time.Time) {
	wrong := a.wrong(now)
	var tell []alert.Alert
	a.mu.Lock()
	for _, w := range wrong {
		w.App, w.Instance, w.Action = a.inst.cfg.Topology.App, a.inst.id, w.Kind.Action()
		old := a.active[w.ID()]
		if old == nil {
			w.State, w.Since, w.At = alert.Raised, now, now
			a.active[w.ID()] = &activeAlert{w, now}
			tell = append(tell, w)
			continue
		}
		old.seen, old.Value, old.Threshold, old.Message = now, w.Value, w.Threshold, w.Message
	}
	for id, old := range a.active {
		if now.Sub(old.seen) >= a.rules.ResolveAfter {
			old.State, old.At = alert.Resolved, now
			delete(a.active, id)
			tell = append(tell, old.Alert)
		}
	}
	a.mu.Unlock()
	for _, one := range tell {
		a.metrics.alertsTotal.WithLabelValues(string(one.Kind), string(one.State)).Inc()
		a.log.Info("alert "+string(one.State), "kind", one.Kind, "step", one.Step, "subject", one.Subject, "message", one.Message)
		for _, s := range a.sinks {
			s.put(one)
		}
	}
}

// Alerts returns the alerts that are raised, by id.
func (inst *Instance) Alerts() []alert.Alert {
	a := inst.alerts
	a.mu.Lock()
	defer a.mu.Unlock()
	list := make([]alert.Alert, 0, len(a.active))
	for _, one := range a.active {
		list = append(list, one.Alert)
	}
	slices.SortFunc(list, func(x, y alert.Alert) int { return cmp.Compare(x.ID(), y.ID()) })
	return list
}

// wrong returns what is wrong now.
func (a *alerts) wrong(now time.Time) []alert.Alert {
	list := a.breakers(nil)
	list = a.tasks(list, now)
	list = a.budgets(list, now)
	if a.rules.DeadLetterRate > 0 {
		for _, d := range a.inst.observer.deadRates(now) {
			if d.ended >= int64(a.rules.MinEvents) && d.rate > a.rules.DeadLetterRate {
				list = append(list, alert.Alert{
					Kind: alert.DeadLetterRate, Severity: alert.Critical, Step: d.sub, Value: d.rate, Threshold: a.rules.DeadLetterRate,
					Message: fmt.Sprintf("%.1f %% of the last %d events of %s ended as dead letters, within %s", 100*d.rate, d.ended, d.sub, a.rules.Window),
				})
			}
		}
	}
	if a.rules.DriftFactor > 0 && a.rules.DriftRise > 0 {
		for _, f := range a.inst.observer.findings(now) {
			if f.Drifts {
				list = append(list, alert.Alert{
					Kind: alert.Drift, Severity: alert.Warning, Step: f.step, Subject: f.Prompt + "/" + f.Version.Version + "/" + f.Measure.String(),
					Value: f.Rate, Threshold: f.Limit,
					Message: fmt.Sprintf("the %s rate of prompt %s, version %s, is %.3f of %d events, and was %.3f before", f.Measure, f.Prompt, f.Version.Version, f.Rate, f.Events, f.Baseline),
				})
			}
		}
	}
	return list
}

func (a *alerts) breakers(list []alert.Alert) []alert.Alert {
	for _, b := range a.inst.breakers() {
		if b.shared || b.state == llm.BreakerClosed {
			continue
		}
		kind, cause := alert.BreakerOpen, "of too many failures"
		if b.cause != nil {
			cause = "of " + b.cause.Error()
			switch b.cause.Class {
			case llm.NoMoney:
				kind = alert.NoMoney
			case llm.Auth:
				kind = alert.Auth
			}
		}
		list = append(list, alert.Alert{
			Kind: kind, Severity: alert.Critical, Step: b.step, Subject: b.model.String(),
			Message: fmt.Sprintf("the circuit breaker of %s is open because %s", b.model, cause),
		})
	}
	return list
}

func (a *alerts) budgets(list []alert.Alert, now time.Time) []alert.Alert {
	for _, b := range a.inst.budgets(now) {
		if !b.exhausted {
			continue
		}
		used, limit, unit := b.level()
		one := alert.Alert{
			Kind: alert.BudgetExhausted, Severity: alert.Critical, Step: b.Step, Subject: b.Budget, Value: used, Threshold: limit,
			Message: fmt.Sprintf("the budget %s (%s) does not cover a call: of %g %s in partition %d, %g are spent or reserved", b.Budget, b.Scope, limit, unit, b.Partition, used),
		}
		if b.Scope == processors.BudgetKey {
			one.Severity = alert.Warning
		} else if b.of != "" {
			one.Subject += "/" + b.of
		}
		list = append(list, one)
	}
	return list
}

func (a *alerts) tasks(list []alert.Alert, now time.Time) []alert.Alert {
	for _, s := range a.inst.Tasks() {
		switch {
		case s.State == Parked:
			list = append(list, alert.Alert{
				Kind: alert.TaskParked, Severity: alert.Critical, Step: s.Task.SubTopology, Subject: itoa(s.Task.Partition),
				Message: fmt.Sprintf("task %s stopped with an error; the log says which", s.Task),
			})
		case s.State == Running && a.rules.OldestPending > 0 && !s.Oldest.IsZero() && now.Sub(s.Oldest) > a.rules.OldestPending:
			list = append(list, alert.Alert{
				Kind: alert.OldestPending, Severity: alert.Warning, Step: s.Task.SubTopology, Subject: itoa(s.Task.Partition),
				Value: now.Sub(s.Oldest).Seconds(), Threshold: a.rules.OldestPending.Seconds(),
				Message: fmt.Sprintf("%d events of task %s wait for an answer, the oldest since %s", s.Pending, s.Task, s.Oldest.UTC().Format(time.RFC3339)),
			})
		}
	}
	return list
}

// alertSink tells one sink, in a goroutine of its own.
type alertSink struct {
	*alerts
	sink alert.Sink
	wake chan struct{}

	mu    sync.Mutex
	queue []alert.Alert
}

// maxUntold is how many alerts wait for a sink; of more, the oldest are dropped.
const maxUntold = 256

// sinkTime bounds one call of a sink.
const sinkTime = 30 * time.Second

func (s *alertSink) put(one alert.Alert) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.queue) == maxUntold {
		s.untold(s.queue[0], fmt.Errorf("%d alerts wait for the sink", maxUntold))
		s.queue = s.queue[1:]
	}
	s.queue = append(s.queue, one)
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// run tells the sink until ctx ends, and then what is left, until life ends.
func (s *alertSink) run(ctx, life context.Context) {
	for {
		one, ok := s.next()
		switch {
		case ok:
			if err := s.tell(life, one); err != nil {
				s.untold(one, err)
			}
			continue
		case ctx.Err() != nil:
			return
		}
		select {
		case <-s.wake:
		case <-ctx.Done():
		}
	}
}

func (s *alertSink) next() (alert.Alert, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.queue) == 0 {
		return alert.Alert{}, false
	}
	one := s.queue[0]
	s.queue = s.queue[1:]
	return one, true
}

func (s *alertSink) tell(life context.Context, one alert.Alert) (err error) {
	ctx, cancel := context.WithTimeout(life, sinkTime)
	defer cancel()
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic: %v", p)
		}
	}()
	return s.sink(ctx, one)
}

func (s *alertSink) untold(one alert.Alert, err error) {
	s.metrics.alertsUntold.WithLabelValues(string(one.Kind)).Inc()
	s.log.Error("an alert could not be told", "kind", one.Kind, "state", one.State, "step", one.Step, "subject", one.Subject, "error", err)
}
