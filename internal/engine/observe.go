package engine

import (
	"context"
	"maps"
	"slices"
	"sync"
	"time"

	"go.opentelemetry.io/otel/trace"

	"github.com/millrace/millrace/alert"
	"github.com/millrace/millrace/internal/rates"
	"github.com/millrace/millrace/llm"
	"github.com/millrace/millrace/llm/genai"
	"github.com/millrace/millrace/processors"
	"github.com/millrace/millrace/state"
)

// observer is where steps report what they do: it feeds metrics, spans and alerts. It
// changes nothing that a task decides by.
type observer struct {
	tracer  trace.Tracer
	otel    *genai.Instruments
	metrics *stepMetrics
	rules   alert.Rules

	mu    sync.Mutex
	drift map[string]*rates.Drift  // by step
	dead  map[string]*rates.Window // by sub-topology: endedCount, deadCount
	// budgets are those of which something was reported, by tasks that may have left.
	budgets map[budgetKey]*budgetState
}

const (
	endedCount = iota
	deadCount
	deadCounts
)

var _ processors.Observer = (*observer)(nil)

func newObserver(cfg *Config, m *stepMetrics) (*observer, error) {
	instruments, err := genai.NewInstruments(cfg.MeterProvider.Meter(genai.Scope))
	return &observer{
		tracer: cfg.TracerProvider.Tracer(genai.Scope), otel: instruments, metrics: m, rules: cfg.AlertRules,
		drift: map[string]*rates.Drift{}, dead: map[string]*rates.Window{}, budgets: map[budgetKey]*budgetState{},
	}, err
}

// Tracer implements [processors.Observer].
func (o *observer) Tracer() trace.Tracer { return o.tracer }

// Attempted implements [processors.Observer].
func (o *observer) Attempted(ctx context.Context, by processors.Asker, a llm.Attempt) {
	o.metrics.attempted(by, &a)
	o.otel.Attempted(ctx, by.Step, a)
}

// committed takes what a task decided in a transaction that has committed, and the
// number of records in it.
func (o *observer) committed(t *task) {
	now := time.Now()
	o.mu.Lock()
	defer o.mu.Unlock()
	w := o.dead[t.id.SubTopology]
	if w == nil {
		w = rates.NewWindow(o.rules.Window, deadCounts)
		o.dead[t.id.SubTopology] = w
	}
	if t.sub.LoopTopic == "" {
		w.Add(endedCount, int64(t.records), now)
	}
	for i := range t.told {
		r := &t.told[i]
		if r.Budget != nil {
			o.budget(t.id, r.Budget, now)
			continue
		}
		o.metrics.reported(t.id, r)
		if t.sub.LoopTopic != "" && r.Ended() {
			w.Add(endedCount, 1, now)
		}
		if r.Status == processors.StatusDeadLetter {
			w.Add(deadCount, 1, now)
		}
		o.watch(r, now)
	}
}

// watch counts a report for the drift of its prompt version.
func (o *observer) watch(r *processors.Report, now time.Time) {
	if r.Prompt == "" {
		return
	}
	d := o.drift[r.Step]
	if d == nil {
		d = rates.NewDrift(rates.DriftConfig{
			Window: o.rules.Window, Baseline: o.rules.Baseline, MinEvents: o.rules.MinEvents, Factor: o.rules.DriftFactor, Rise: o.rules.DriftRise,
		})
		o.drift[r.Step] = d
	}
	v := rates.Version{Prompt: r.Prompt, Version: r.PromptVersion}
	switch {
	case !r.Ended():
		d.Refused(v, r.Class == processors.Class(llm.Violation), now)
	default:
		d.Ended(v, rates.Event{
			Reasked: r.Round > 0, Declined: r.Declined, Fallback: r.Status == processors.StatusFallback,
			Answered: r.Status == processors.StatusOK || r.Status == processors.StatusReasked,
		}, now)
	}
}

// stepFinding is a finding about a step.
type stepFinding struct {
	step string
	rates.Finding
}

// findings returns the rates of all prompt versions.
func (o *observer) findings(now time.Time) []stepFinding {
	o.mu.Lock()
	defer o.mu.Unlock()
	var all []stepFinding
	for _, step := range slices.Sorted(maps.Keys(o.drift)) {
		for _, f := range o.drift[step].Findings(now) {
			all = append(all, stepFinding{step, f})
		}
	}
	return all
}

// deadRate is the part of a sub-topology's events that ended as dead letters.
type deadRate struct {
	sub   string
	rate  float64
	ended int64
}

func (o *observer) deadRates(now time.Time) []deadRate {
	o.mu.Lock()
	defer o.mu.Unlock()
	var all []deadRate
	for _, sub := range slices.Sorted(maps.Keys(o.dead)) {
		sums := o.dead[sub].Sums(now)
		all = append(all, deadRate{sub, rates.Rate(float64(sums[deadCount]), float64(sums[endedCount])), sums[endedCount]})
	}
	return all
}

// Observer implements [processors.AsyncTask].
func (t *task) Observer() processors.Observer { return t.inst.observer }

// Report implements [processors.AsyncTask].
func (t *task) Report(r processors.Report) { t.newTold = append(t.newTold, r) }

// deadLettered is the report of a record that the error policy dead-letters.
func deadLettered(id state.TaskID, e *processors.Error) processors.Report {
	return processors.Report{Step: id.SubTopology, Status: processors.StatusDeadLetter, Class: e.Class}
}
