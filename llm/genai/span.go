package genai

import (
	"context"
	"encoding/json"
	"strings"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"

	"github.com/millrace/millrace/llm"
)

// A Span is the span of one enrichment, over all its rounds and attempts. No text of
// a prompt or an answer is in it, unless Content is set.
type Span struct {
	trace.Span
	// Content says that prompts and answers are recorded.
	Content bool
}

// Start describes a new [Span].
type Start struct {
	Step, Entry           string
	Round                 int
	Model                 llm.ID // asked first
	Prompt, PromptVersion string
	Conversation          string // its id, empty if there is none
	MaxTokens             int
	Temperature           *float64
	// Previous is the span of the rounds before, which ended with its process: it is
	// linked.
	Previous trace.SpanContext
	Content  bool
}

// StartSpan starts the span of an enrichment as a child of the span in ctx.
func StartSpan(ctx context.Context, t trace.Tracer, s Start) (context.Context, *Span) {
	opts := []trace.SpanStartOption{trace.WithSpanKind(trace.SpanKindClient), trace.WithAttributes(
		keyOperation.String(operationChat), provider(s.Model.Provider), keyRequestModel.String(s.Model.Model),
		keyOutputType.String(outputTypeJSON), keyStep.String(s.Step), keyEntry.String(s.Entry), keyRound.Int(s.Round))}
	if s.Previous.IsValid() && !s.Previous.Equal(trace.SpanContextFromContext(ctx)) {
		opts = append(opts, trace.WithLinks(trace.Link{SpanContext: s.Previous}))
	}
	ctx, span := t.Start(ctx, operationChat+" "+s.Model.Model, opts...)
	if span.IsRecording() {
		if s.Prompt != "" {
			span.SetAttributes(keyPromptName.String(s.Prompt), keyPromptVersion.String(s.PromptVersion))
		}
		if s.Conversation != "" {
			span.SetAttributes(keyConversation.String(s.Conversation))
		}
		if s.MaxTokens > 0 {
			span.SetAttributes(keyMaxTokens.Int(s.MaxTokens))
		}
		if s.Temperature != nil {
			span.SetAttributes(keyTemperature.Float64(*s.Temperature))
		}
	}
	return ctx, &Span{span, s.Content}
}

// Attempted adds an attempt to the span.
func (s *Span) Attempted(a llm.Attempt) {
	if !s.IsRecording() {
		return
	}
	list := []attribute.KeyValue{
		provider(a.Model.Provider), keyRequestModel.String(a.Model.Model), keyAttempt.Int(a.Number),
		keyDuration.Int64(a.Took.Milliseconds()), keyWaited.Int64(a.Waited.Milliseconds()),
		keyInputTokens.Int64(a.Usage.Input), keyOutputTokens.Int64(a.Usage.Output),
	}
	if e := a.Err; e != nil {
		list = append(list, keyErrorType.String(string(e.Class)), keyDelay.Int64(a.Delay.Milliseconds()))
		if e.Status != 0 {
			list = append(list, keyStatusCode.Int(e.Status))
		}
	}
	if a.Response != nil {
		s.SetAttributes(keyResponseModel.String(a.Response.Model), keyFinishReasons.StringSlice([]string{string(a.Response.Finish)}))
	}
	s.AddEvent(eventAttempt, trace.WithAttributes(list...), trace.WithTimestamp(a.Start.Add(a.Took)))
}

// Asked records what a model is asked, if that is to be recorded.
func (s *Span) Asked(messages []llm.Message) {
	if s.Content && s.IsRecording() {
		s.SetAttributes(keyInputMessages.String(content(messages)))
	}
}

// Answered records what a model answered, if that is to be recorded.
func (s *Span) Answered(text string) {
	if s.Content && text != "" && s.IsRecording() {
		s.SetAttributes(keyOutputMessages.String(content([]llm.Message{{Role: llm.RoleAssistant, Text: text}})))
	}
}

// content returns messages in the form of the conventions.
func content(messages []llm.Message) string {
	type part struct {
		Type    string `json:"type"`
		Content string `json:"content"`
	}
	type message struct {
		Role  llm.Role `json:"role"`
		Parts []part   `json:"parts"`
	}
	list := make([]message, len(messages))
	for i, m := range messages {
		list[i] = message{m.Role, []part{{"text", m.Text}}}
	}
	var text strings.Builder
	enc := json.NewEncoder(&text)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(list); err != nil { // strings
		panic(err)
	}
	return strings.TrimSpace(text.String())
}

// Refused notes that an answer was refused, by which rules, and that the models are
// asked again.
func (s *Span) Refused(round int, rules []string) {
	if s.IsRecording() {
		s.AddEvent(eventRefused, trace.WithAttributes(keyRound.Int(round), keyRules.StringSlice(rules)))
	}
}

// End describes how an enrichment ended.
type End struct {
	// Status is ok, reasked, fallback, dead-letter, skip or interrupted.
	Status string
	// Class is that of the failure, empty for an answer. Its text is not recorded: it
	// may quote the answer.
	Class     string
	Model     llm.ID // answered, or was asked last
	Attempts  int
	Usage     llm.Usage
	Cost      llm.Micros
	CostKnown bool
}

// Finish ends the span.
func (s *Span) Finish(e End) {
	if s.IsRecording() {
		list := []attribute.KeyValue{
			keyStatus.String(e.Status), keyAttempts.Int(e.Attempts),
			keyInputTokens.Int64(e.Usage.Input), keyOutputTokens.Int64(e.Usage.Output), keyCachedTokens.Int64(e.Usage.Cached),
			keyWrittenTokens.Int64(e.Usage.Written), keyReasoningTokens.Int64(e.Usage.Reasoning),
		}
		if e.CostKnown {
			list = append(list, keyCost.Float64(float64(e.Cost)/1e6))
		}
		if e.Class != "" {
			list = append(list, keyErrorType.String(e.Class))
			s.SetStatus(codes.Error, e.Class)
		}
		s.SetAttributes(list...)
	}
	s.End()
}
