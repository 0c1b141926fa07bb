package processors

import (
	"context"
	"slices"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"

	"github.com/millrace/millrace/llm"
	"github.com/millrace/millrace/llm/genai"
	millracev1 "github.com/millrace/millrace/proto/millrace/v1"
)

// An Observer is told of the calls of asynchronous steps while they run. Its methods
// are called from several goroutines and must return quickly.
type Observer interface {
	// Attempted is told of an attempt at a model when it has ended, whatever becomes
	// of its answer.
	Attempted(ctx context.Context, by Asker, a llm.Attempt)
	// Tracer makes the spans of the steps.
	Tracer() trace.Tracer
}

// An Asker says for what a model was asked.
type Asker struct {
	Step string
	// Prompt and PromptVersion are those of the question, for a summary those of its own
	// prompt.
	Prompt, PromptVersion string
}

// Unobserved is the [Observer] of a task whose calls nobody watches: spans go to
// OpenTelemetry's global tracer provider.
type Unobserved struct{}

// Attempted implements [Observer].
func (Unobserved) Attempted(context.Context, Asker, llm.Attempt) {}

// Tracer implements [Observer].
func (Unobserved) Tracer() trace.Tracer { return otel.Tracer(genai.Scope) }

// The statuses of [Report] and of [StatusHeader].
const (
	StatusOK         = "ok"
	StatusReasked    = "reasked" // an answer that was refused was repaired
	StatusFallback   = "fallback"
	StatusDeadLetter = "dead-letter"
	StatusSkipped    = "skipped"
	StatusRefused    = "refused" // an answer; the event has not ended yet, or ends with another report
	StatusBudget     = "budget"  // of no event: what a budget stands at
)

// A Report says what a task decided about an event of an asynchronous step: how it
// ended or, with StatusRefused, that an answer to it was refused; or about a budget.
type Report struct {
	Step   string
	Status string
	Class  Class  // of what failed; empty with an answer
	Reason string // of a fallback or dead letter: as [FallbackHeader]
	// Of a step with model calls:
	Prompt, PromptVersion string
	Model                 llm.ID   // answered, or was asked last
	Round                 int      // from 0
	Rules                 []string // that a refused answer broke
	Again                 bool     // it is asked for again
	Declined              bool     // a model declined to answer the event
	CacheHit              string   // yes or shared, as [CacheHitHeader]; empty if a model was asked
	// Budget is what StatusBudget reports, nil else.
	Budget *BudgetStatus
}

// Ended reports whether the event has ended.
func (r *Report) Ended() bool { return r.Status != StatusRefused && r.Status != StatusBudget }

// The headers of the W3C trace context.
const (
	TraceParentHeader = "traceparent"
	TraceStateHeader  = "tracestate"
)

var traceFormat propagation.TraceContext

// eventCarrier reads the trace context of an event.
type eventCarrier struct{ *millracev1.Event }

// Get returns the last header of the key, as readers of Kafka's headers do.
func (c eventCarrier) Get(key string) string {
	for _, h := range slices.Backward(c.Headers) {
		if string(h.Key) == key {
			return string(h.Value)
		}
	}
	return ""
}
func (eventCarrier) Set(string, string) {}
func (eventCarrier) Keys() []string     { return []string{TraceParentHeader, TraceStateHeader} }

// traceOf returns ctx with the trace context of an event.
func traceOf(ctx context.Context, ev *millracev1.Event) context.Context {
	return traceFormat.Extract(ctx, eventCarrier{ev})
}

// traceHeaders are the headers of the span that covers the rounds of p.
func traceHeaders(p *millracev1.Enrichment) []Header {
	if p.GetTraceparent() == "" {
		return nil
	}
	headers := []Header{{TraceParentHeader, []byte(p.Traceparent)}}
	if p.Tracestate != "" {
		headers = append(headers, Header{TraceStateHeader, []byte(p.Tracestate)})
	}
	return headers
}

// withoutTrace returns headers without a trace context if more has one.
func withoutTrace(headers, more []Header) []Header {
	if !slices.ContainsFunc(more, func(h Header) bool { return h.Key == TraceParentHeader }) {
		return headers
	}
	out := make([]Header, 0, len(headers)+len(more))
	for _, h := range headers {
		if h.Key != TraceParentHeader && h.Key != TraceStateHeader {
			out = append(out, h)
		}
	}
	return out
}
