package engine

import (
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/millrace/millrace/llm"
	"github.com/millrace/millrace/processors"
	"github.com/millrace/millrace/state"
)

// stepMetrics counts what steps do. docs/operations.md lists them all.
type stepMetrics struct {
	attempts, tokens, cost      *prometheus.CounterVec
	took, waited                *prometheus.HistogramVec
	events, deadLetters         *prometheus.CounterVec
	fallbacks, versions         *prometheus.CounterVec
	refused, reasks, violations *prometheus.CounterVec
	cacheHits                   *prometheus.CounterVec
	alertsTotal, alertsUntold   *prometheus.CounterVec
	budgetRefusals              *prometheus.CounterVec
	bounds                      bounds
}

func newStepMetrics(counter func(name, help string, labels ...string) *prometheus.CounterVec,
	histogram func(name, help string, buckets []float64, labels ...string) *prometheus.HistogramVec,
) *stepMetrics {
	seconds := prometheus.ExponentialBuckets(0.005, 2, 16)
	return &stepMetrics{
		attempts:       counter("enrich_attempts_total", "Attempts at models, by how they ended: ok, or the class of failure.", "step", "model", "class"),
		tokens:         counter("enrich_tokens_total", "Tokens of attempts. cached and written are parts of input, reasoning is one of output.", "step", "model", "prompt", "version", "kind"),
		cost:           counter("enrich_cost_dollars_total", "Cost of attempts in US dollars, of models that have a price.", "step", "model", "prompt", "version"),
		took:           histogram("enrich_attempt_seconds", "Duration of attempts at models.", seconds, "step", "model"),
		waited:         histogram("enrich_limiter_wait_seconds", "How long attempts waited for the limiter.", append([]float64{0}, seconds...), "step", "model"),
		events:         counter("async_events_total", "Events of asynchronous steps that ended: ok, reasked, fallback, dead-letter or skipped.", "step", "status"),
		deadLetters:    counter("dead_letters_total", "Dead letters that were committed, by class of failure.", "subtopology", "class"),
		fallbacks:      counter("async_fallbacks_total", "Events that ended as fallbacks, by reason.", "step", "reason"),
		versions:       counter("enrich_events_total", "Events that ended, by prompt version.", "step", "prompt", "version", "status"),
		refused:        counter("enrich_refused_answers_total", "Answers that were refused, by class.", "step", "model", "class"),
		reasks:         counter("enrich_reasks_total", "Answers that were refused and asked for again.", "step", "model"),
		violations:     counter("enrich_violations_total", "Rules that refused answers broke; other stands for all beyond the first hundred.", "step", "rule"),
		budgetRefusals: counter("budget_refusals_total", "How often a budget did not cover a call.", "step", "budget"),
		cacheHits:      counter("enrich_cache_hits_total", "Accepted answers that came from the step's cache (yes), or from the call of an equal request (shared).", "step", "hit"),
		alertsTotal:    counter("alerts_total", "Alerts that were raised and resolved.", "kind", "state"),
		alertsUntold:   counter("alert_failures_total", "Alerts that a sink did not take.", "kind"),
		bounds:         bounds{seen: map[string]map[string]bool{}},
	}
}

// bounds keeps the number of values of labels down that come from outside.
type bounds struct {
	mu   sync.Mutex
	seen map[string]map[string]bool
}

const (
	maxValues  = 100
	otherValue = "other"
)

// of returns value, or other if the label has too many.
func (b *bounds) of(label, value string) string {
	b.mu.Lock()
	defer b.mu.Unlock()
	values := b.seen[label]
	if values == nil {
		values = map[string]bool{}
		b.seen[label] = values
	}
	if !values[value] {
		if len(values) >= maxValues {
			return otherValue
		}
		values[value] = true
	}
	return value
}

// version bounds the versions of a prompt: there may be ever more of them.
func (m *stepMetrics) version(by processors.Asker) string {
	return m.bounds.of("version of "+by.Step+"/"+by.Prompt, by.PromptVersion)
}

func (m *stepMetrics) attempted(by processors.Asker, a *llm.Attempt) {
	step, version := by.Step, m.version(by)
	model, class := a.Model.String(), "ok"
	if a.Err != nil {
		class = m.bounds.of("class", string(a.Err.Class))
	}
	m.attempts.WithLabelValues(step, model, class).Inc()
	m.took.WithLabelValues(step, model).Observe(a.Took.Seconds())
	m.waited.WithLabelValues(step, model).Observe(a.Waited.Seconds())
	for _, t := range [...]struct {
		kind string
		n    int64
	}{{"input", a.Usage.Input}, {"cached", a.Usage.Cached}, {"written", a.Usage.Written}, {"output", a.Usage.Output}, {"reasoning", a.Usage.Reasoning}} {
		if t.n > 0 {
			m.tokens.WithLabelValues(step, model, by.Prompt, version, t.kind).Add(float64(t.n))
		}
	}
	if a.Cost > 0 {
		m.cost.WithLabelValues(step, model, by.Prompt, version).Add(float64(a.Cost) / 1e6)
	}
}

func (m *stepMetrics) reported(id state.TaskID, r *processors.Report) {
	class := m.bounds.of("class", string(r.Class))
	if r.Status == processors.StatusRefused {
		m.refused.WithLabelValues(r.Step, r.Model.String(), class).Inc()
		if r.Again {
			m.reasks.WithLabelValues(r.Step, r.Model.String()).Inc()
		}
		for _, rule := range r.Rules {
			m.violations.WithLabelValues(r.Step, m.bounds.of("rule of "+r.Step, rule)).Inc()
		}
		return
	}
	m.events.WithLabelValues(r.Step, r.Status).Inc()
	if r.Prompt != "" {
		m.versions.WithLabelValues(r.Step, r.Prompt, m.version(processors.Asker{Step: r.Step, Prompt: r.Prompt, PromptVersion: r.PromptVersion}), r.Status).Inc()
	}
	switch r.Status {
	case processors.StatusOK, processors.StatusReasked:
		if r.CacheHit != "" {
			m.cacheHits.WithLabelValues(r.Step, r.CacheHit).Inc()
		}
	case processors.StatusFallback:
		m.fallbacks.WithLabelValues(r.Step, r.Reason).Inc()
	case processors.StatusDeadLetter:
		m.deadLetters.WithLabelValues(id.SubTopology, class).Inc()
	}
}

// stepCollector exports what steps and alerts are like now.
type stepCollector struct{ inst *Instance }

func stepDesc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("millrace_"+name, help, labels, nil)
}

var (
	descBreaker  = stepDesc("breaker_state", "Circuit breaker of a model: 0 closed, 1 half open, 2 open, 3 open until it is reset.", "step", "model")
	descSlots    = stepDesc("async_slots", "How many calls of a step may run at once on this instance.", "step")
	descRunning  = stepDesc("async_running", "Calls of a step that hold a slot.", "step")
	descWaiting  = stepDesc("async_waiting", "Calls of a step that wait for a slot.", "step")
	descHeld     = stepDesc("async_held", "Of these, the calls that are held since no model may be asked.", "step")
	descRate     = stepDesc("enrich_rate", "Rate of a prompt version over the window of the alert rules.", "step", "prompt", "version", "measure")
	descBaseline = stepDesc("enrich_baseline_rate", "What the rate is compared with.", "step", "prompt", "version", "measure")
	descUsed     = stepDesc("budget_used", "What of a budget's present window is spent or reserved, of a partition's part.", "step", "budget", "of", "partition", "unit")
	descLimit    = stepDesc("budget_limit", "A partition's part of a budget.", "step", "budget", "of", "partition", "unit")
	descAlert    = stepDesc("alert_active", "1 for each alert that is raised.", "kind", "severity", "step", "subject")
)

func (c stepCollector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{descBreaker, descSlots, descRunning, descWaiting, descHeld, descRate, descBaseline, descUsed, descLimit, descAlert} {
		ch <- d
	}
}

func (c stepCollector) Collect(ch chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	for _, b := range c.inst.breakers() {
		gauge(descBreaker, breakerValue(b.state, b.cause), b.step, b.model.String())
	}
	if c.inst.prepared() {
		for step, s := range c.inst.calls.Stats() {
			gauge(descSlots, float64(s.Slots), step)
			gauge(descRunning, float64(s.Running), step)
			gauge(descWaiting, float64(s.Waiting), step)
			gauge(descHeld, float64(s.Held), step)
		}
	}
	for _, f := range c.inst.observer.findings(time.Now()) {
		gauge(descRate, f.Rate, f.step, f.Prompt, f.Version.Version, f.Measure.String())
		if f.Baseline >= 0 {
			gauge(descBaseline, f.Baseline, f.step, f.Prompt, f.Version.Version, f.Measure.String())
		}
	}
	for _, b := range c.inst.budgets(time.Now()) {
		used, limit, unit := b.level()
		labels := []string{b.Step, b.Budget, b.of, itoa(b.Partition), unit}
		if b.Scope != processors.BudgetKey && b.of != otherValue {
			gauge(descUsed, used, labels...)
			gauge(descLimit, limit, labels...)
		}
	}
	for _, a := range c.inst.Alerts() {
		gauge(descAlert, 1, string(a.Kind), string(a.Severity), a.Step, a.Subject)
	}
}

func breakerValue(s llm.BreakerState, cause *llm.Error) float64 {
	switch {
	case s == llm.BreakerClosed:
		return 0
	case s == llm.BreakerHalfOpen:
		return 1
	case latched(cause):
		return 3
	}
	return 2
}

// latched reports whether a breaker stays open until it is reset.
func latched(cause *llm.Error) bool {
	return cause != nil && (cause.Class == llm.NoMoney || cause.Class == llm.Auth)
}

// stepBreaker is the breaker of a model of a step.
type stepBreaker struct {
	step   string
	model  llm.ID
	state  llm.BreakerState
	cause  *llm.Error
	shared bool // and told of with an earlier step
}

func (inst *Instance) breakers() []stepBreaker {
	type key struct {
		b  *llm.Breakers
		id llm.ID
	}
	var all []stepBreaker
	seen := map[key]bool{}
	for _, sub := range inst.cfg.Topology.Subs {
		if sub.Caller == nil {
			continue
		}
		for _, id := range sub.Caller.Models() {
			k := key{sub.Caller.Breakers, id}
			s := stepBreaker{step: sub.Name, model: id, shared: seen[k]}
			s.state, s.cause = sub.Caller.Breakers.State(id)
			seen[k] = true
			all = append(all, s)
		}
	}
	return all
}
