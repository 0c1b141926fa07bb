package processors

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"sync"
	"time"

	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"

	"github.com/millrace/millrace/llm"
	"github.com/millrace/millrace/llm/genai"
	millracev1 "github.com/millrace/millrace/proto/millrace/v1"
)

// spans are those of entries between two rounds.
type spans struct {
	mu     sync.Mutex
	parked map[string]parkedSpan // by entry
}

type parkedSpan struct {
	*genai.Span
	timer *time.Timer
}

// parkFor is how long a span waits for the next round of its entry. It ends then: the
// task has left, or calls wait that long for a slot. A later round has a span of its own,
// with a link.
const parkFor = 5 * time.Minute

func (s *spans) park(entry string, span *genai.Span, end genai.End) {
	if !span.IsRecording() {
		span.Finish(end)
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.parked == nil {
		s.parked = map[string]parkedSpan{}
	}
	s.parked[entry] = parkedSpan{span, time.AfterFunc(parkFor, func() {
		if span := s.take(entry); span != nil {
			span.Finish(end)
		}
	})}
}

// take returns the span of an entry's earlier rounds, or nil.
func (s *spans) take(entry string) *genai.Span {
	s.mu.Lock()
	defer s.mu.Unlock()
	p, ok := s.parked[entry]
	if !ok {
		return nil
	}
	p.timer.Stop()
	delete(s.parked, entry)
	return p.Span
}

// trace begins or goes on with the span of the entry, and notes its trace context for
// what the entry will write.
func (c *enrichCall[K, In, Out]) trace(ctx context.Context) context.Context {
	if span := c.spans.take(c.q.id); span != nil {
		c.span = span
		return trace.ContextWithSpan(ctx, span)
	}
	start := genai.Start{
		Step: c.Step, Entry: c.q.id, Round: int(c.q.round), Model: c.Caller.Models()[c.link(c.p.NextModel)],
		Prompt: c.p.Prompt, PromptVersion: c.p.PromptVersion, MaxTokens: c.MaxTokens, Temperature: c.Temperature, Content: c.TraceContent,
	}
	if c.talk != nil && c.q.event.Key != nil {
		sum := sha256.Sum256(c.q.event.Key) // not the key: it may name a person
		start.Conversation = c.Step + "/" + hex.EncodeToString(sum[:8])
	}
	if c.p.Traceparent != "" {
		carrier := propagation.MapCarrier{TraceParentHeader: c.p.Traceparent, TraceStateHeader: c.p.Tracestate}
		start.Previous = trace.SpanContextFromContext(traceFormat.Extract(context.Background(), carrier))
	}
	ctx, c.span = genai.StartSpan(traceOf(ctx, c.q.event), c.task.Observer().Tracer(), start)
	carrier := propagation.MapCarrier{}
	traceFormat.Inject(ctx, carrier)
	c.p.Traceparent, c.p.Tracestate = carrier[TraceParentHeader], carrier[TraceStateHeader]
	return ctx
}

// traced ends the span with the outcome of a round, or keeps it for the next one.
func (c *enrichCall[K, In, Out]) traced(o *millracev1.Outcome) {
	p := c.p
	end := genai.End{
		Status: StatusOK, Attempts: int(p.Attempts), Cost: llm.Micros(p.CostMicros), CostKnown: p.CostKnown,
		Usage: llm.Usage{Input: p.InputTokens, Cached: p.CachedTokens, Written: p.WrittenTokens, Output: p.OutputTokens, Reasoning: p.ReasoningTokens},
	}
	if p.Model != nil {
		end.Model = modelID(p.Model)
	}
	switch f := o.GetFailure(); {
	case o == nil && c.q.paused != nil:
		end.Status, end.Class = "held", "held"
		c.spans.park(c.q.id, c.span, end)
		return
	case o == nil:
		end.Status, end.Class = "interrupted", "interrupted"
	case o.GetAgain() != nil:
		if o.GetAgain().Class != "" { // else what was reserved is used up
			c.span.Refused(int(c.q.round), rulesOf(p))
		}
		end.Status, end.Class = "handed-over", "handed-over"
		c.spans.park(c.q.id, c.span, end)
		return
	case f == nil:
		if p.Refused > 0 {
			end.Status = StatusReasked
		}
	case f.Reason == millracev1.Failure_REASON_SKIP:
		end.Status, end.Class = StatusSkipped, f.Class
	case c.falls(f):
		end.Status, end.Class = StatusFallback, f.Class
	default:
		end.Status, end.Class = StatusDeadLetter, f.Class
	}
	c.span.Answered(string(p.Answer))
	c.span.Finish(end)
}

// asks returns what to ask a model, for an attempt.
func (c *enrichCall[K, In, Out]) asks(id llm.ID) (*llm.Request, error) {
	r, err := c.request(id)
	if err == nil {
		c.span.Asked(r.Messages)
	}
	return r, err
}

// attempted tells the span, the observer and the user of an attempt.
func (c *enrichCall[K, In, Out]) attempted(ctx context.Context, a llm.Attempt) {
	if a.Err != nil && a.Err.Class == llm.Refused {
		c.p.Declined++
	}
	c.span.Attempted(a)
	c.counted(ctx, a)
}

// counted tells the observer and the user of an attempt.
func (c *enrichCall[K, In, Out]) counted(ctx context.Context, a llm.Attempt) {
	c.task.Observer().Attempted(ctx, Asker{c.Step, c.question.Prompt, c.question.PromptVersion}, a)
	if c.Caller.OnAttempt != nil {
		c.Caller.OnAttempt(ctx, a)
	}
}

func rulesOf(p *millracev1.Enrichment) []string {
	rules := make([]string, len(p.Violations))
	for i, v := range p.Violations {
		rules[i] = v.Rule
	}
	return rules
}
