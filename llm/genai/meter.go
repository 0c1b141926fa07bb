package genai

import (
	"context"
	"errors"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"

	"github.com/millrace/millrace/llm"
)

// Instruments are the metrics of attempts. They are safe for concurrent use.
type Instruments struct {
	duration                  metric.Float64Histogram
	usage                     []counter
	inputTokens, outputTokens metric.Int64Histogram
}

type counter struct {
	metric.Int64Counter
	of func(llm.Usage) int64
}

// NewInstruments makes the instruments of a meter.
func NewInstruments(m metric.Meter) (*Instruments, error) {
	i := &Instruments{}
	var errs []error
	var err error
	i.duration, err = m.Float64Histogram(metricDuration, metric.WithUnit("s"), metric.WithDescription("Duration of an attempt at a model."),
		metric.WithExplicitBucketBoundaries(0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92))
	errs = append(errs, err)
	for _, c := range []struct {
		name, what string
		of         func(llm.Usage) int64
	}{
		{metricInputTokens, "Tokens of requests.", func(u llm.Usage) int64 { return u.Input }},
		{metricOutputTokens, "Tokens of answers.", func(u llm.Usage) int64 { return u.Output }},
		{metricCachedTokens, "Tokens of requests that were read from a prompt cache.", func(u llm.Usage) int64 { return u.Cached }},
		{metricWrittenTokens, "Tokens of requests that were written to a prompt cache.", func(u llm.Usage) int64 { return u.Written }},
		{metricReasoningTokens, "Tokens of answers that were spent on reasoning.", func(u llm.Usage) int64 { return u.Reasoning }},
	} {
		n, err := m.Int64Counter(c.name, metric.WithUnit("{token}"), metric.WithDescription(c.what))
		errs = append(errs, err)
		i.usage = append(i.usage, counter{n, c.of})
	}
	buckets := metric.WithExplicitBucketBoundaries(1, 4, 16, 64, 256, 1024, 4096, 16384, 65536, 262144, 1048576)
	i.inputTokens, err = m.Int64Histogram(metricOperationInput, metric.WithUnit("{token}"), metric.WithDescription("Tokens of a request."), buckets)
	errs = append(errs, err)
	i.outputTokens, err = m.Int64Histogram(metricOperationOutput, metric.WithUnit("{token}"), metric.WithDescription("Tokens of an answer."), buckets)
	return i, errors.Join(append(errs, err)...)
}

// Attempted records an attempt of a step.
func (i *Instruments) Attempted(ctx context.Context, step string, a llm.Attempt) {
	list := []attribute.KeyValue{keyOperation.String(operationChat), provider(a.Model.Provider), keyRequestModel.String(a.Model.Model), keyStep.String(step)}
	usage := metric.WithAttributeSet(attribute.NewSet(list...))
	if a.Err != nil {
		list = append(list, keyErrorType.String(string(a.Err.Class)))
	}
	i.duration.Record(ctx, a.Took.Seconds(), metric.WithAttributeSet(attribute.NewSet(list...)))
	if a.Usage == (llm.Usage{}) {
		return
	}
	for _, c := range i.usage {
		if n := c.of(a.Usage); n > 0 {
			c.Add(ctx, n, usage)
		}
	}
	i.inputTokens.Record(ctx, a.Usage.Input, usage)
	i.outputTokens.Record(ctx, a.Usage.Output, usage)
}
