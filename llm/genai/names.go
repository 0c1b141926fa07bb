// Package genai makes the OpenTelemetry telemetry of model calls: spans of
// enrichments, and metrics of attempts, with the names of the semantic conventions
// for generative AI (repository semantic-conventions-genai, v0.1.0, status
// Development). OpenTelemetry's Go package of names has none of them, so all names
// are in this file.
package genai

import "go.opentelemetry.io/otel/attribute"

// Scope is the instrumentation scope of tracer and meter.
const Scope = "github.com/millrace/millrace"

// The values of attributes that are fixed.
const (
	operationChat  = "chat"
	outputTypeJSON = "json"
)

// Attributes of the conventions.
const (
	keyOperation       = attribute.Key("gen_ai.operation.name")
	keyProvider        = attribute.Key("gen_ai.provider.name")
	keyRequestModel    = attribute.Key("gen_ai.request.model")
	keyMaxTokens       = attribute.Key("gen_ai.request.max_tokens")
	keyTemperature     = attribute.Key("gen_ai.request.temperature")
	keyResponseModel   = attribute.Key("gen_ai.response.model")
	keyFinishReasons   = attribute.Key("gen_ai.response.finish_reasons")
	keyConversation    = attribute.Key("gen_ai.conversation.id")
	keyOutputType      = attribute.Key("gen_ai.output.type")
	keyPromptName      = attribute.Key("gen_ai.prompt.name")
	keyPromptVersion   = attribute.Key("gen_ai.prompt.version")
	keyInputTokens     = attribute.Key("gen_ai.usage.input_tokens")
	keyOutputTokens    = attribute.Key("gen_ai.usage.output_tokens")
	keyCachedTokens    = attribute.Key("gen_ai.usage.cache_read.input_tokens")
	keyWrittenTokens   = attribute.Key("gen_ai.usage.cache_write.input_tokens")
	keyReasoningTokens = attribute.Key("gen_ai.usage.reasoning.output_tokens")
	keyInputMessages   = attribute.Key("gen_ai.input.messages")
	keyOutputMessages  = attribute.Key("gen_ai.output.messages")
	keyErrorType       = attribute.Key("error.type")
	keyStatusCode      = attribute.Key("http.response.status_code")
)

// Attributes of our own.
const (
	keyStep     = attribute.Key("millrace.step")
	keyEntry    = attribute.Key("millrace.entry")
	keyRound    = attribute.Key("millrace.round")
	keyAttempt  = attribute.Key("millrace.attempt")
	keyAttempts = attribute.Key("millrace.attempts")
	keyCost     = attribute.Key("millrace.cost_usd")
	keyStatus   = attribute.Key("millrace.status")
	keyRules    = attribute.Key("millrace.violated_rules")
	keyDuration = attribute.Key("millrace.duration_ms")
	keyWaited   = attribute.Key("millrace.limiter_wait_ms")
	keyDelay    = attribute.Key("millrace.retry_delay_ms")
)

// Events of the span of an enrichment.
const (
	eventAttempt = "millrace.attempt" // an attempt at a model has ended
	eventRefused = "millrace.refused" // an answer was refused; a further round follows
)

// Metrics of the conventions.
const (
	metricDuration        = "gen_ai.client.inference.duration"
	metricInputTokens     = "gen_ai.client.inference.usage.input_tokens"
	metricOutputTokens    = "gen_ai.client.inference.usage.output_tokens"
	metricCachedTokens    = "gen_ai.client.inference.usage.cache_read.input_tokens"
	metricWrittenTokens   = "gen_ai.client.inference.usage.cache_write.input_tokens"
	metricReasoningTokens = "gen_ai.client.inference.usage.reasoning.output_tokens"
	metricOperationInput  = "gen_ai.client.inference.operation.input_tokens"
	metricOperationOutput = "gen_ai.client.inference.operation.output_tokens"
)

// providers are the names that the conventions have for providers of ours.
var providers = map[string]string{
	"gemini": "gcp.gemini",
	"azure":  "azure.ai.openai",
}

func provider(name string) attribute.KeyValue {
	if known, ok := providers[name]; ok {
		name = known
	}
	return keyProvider.String(name)
}
