package processors

import (
	"slices"
	"strconv"

	millracev1 "github.com/millrace/millrace/proto/millrace/v1"
)

// The headers of what a step with model calls writes: its enriched records, its
// fallbacks, its dead letters and its refused answers. Those of an earlier step on
// the event are replaced. Numbers are decimal.
const (
	// PromptHeader and PromptVersionHeader name the prompt.
	PromptHeader        = "millrace.prompt"
	PromptVersionHeader = "millrace.prompt-version"
	// PromptLabelHeader is how the version was chosen: prod, canary, built-in, or
	// pinned by the event.
	PromptLabelHeader = "millrace.prompt-label"
	// SchemaHeader is the fingerprint of the JSON schema that was asked for, or would
	// have been first.
	SchemaHeader = "millrace.schema"
	// ModelHeader is provider/model of what answered, or was asked last; it is left out
	// if none was.
	ModelHeader = "millrace.model"
	// AttemptsHeader counts the requests that were made, over all rounds.
	AttemptsHeader = "millrace.attempts"
	// InputTokensHeader, CachedTokensHeader and OutputTokensHeader sum the tokens of all
	// attempts.
	InputTokensHeader  = "millrace.input-tokens"
	CachedTokensHeader = "millrace.cached-tokens"
	OutputTokensHeader = "millrace.output-tokens"
	// CostHeader is what all attempts cost, in millionths of a US dollar. It is left out
	// if an attempt had no price, and 0 if there was none.
	CostHeader = "millrace.cost-micros"
	// CacheHitHeader says who answered: no, a model; yes, the step's cache; shared, the
	// call of an equal request at the same time. What did not come from a model cost
	// nothing.
	CacheHitHeader = "millrace.cache-hit"
	// StatusHeader is ok, reasked (an answer that was refused was repaired), fallback or
	// dead-letter; of a refused answer, refused.
	StatusHeader = "millrace.status"
	// AnswerHeader is the last answer that a model gave, of a dead letter.
	AnswerHeader = "millrace.answer"
	// ViolationsHeader is what was wrong with the answer: a JSON list.
	ViolationsHeader = "millrace.violations"
	// EntryHeader is the id of the event's entry, of a refused answer.
	EntryHeader = "millrace.entry"
	// SampleHeader marks an accepted answer in the topic of refused ones: its value is
	// true.
	SampleHeader = "millrace.sample"
	// RoundHeader is the number of the request within the entry, from 0, of a refused
	// answer.
	RoundHeader = "millrace.round"
)

// The headers of an event that was replayed from a dead letter; what becomes of it has
// them too. Positions are topic/partition/offset.
const (
	// ReplayOfHeader is the position of the dead letter.
	ReplayOfHeader = "millrace.replay-of"
	// ReplaySourceHeader is that of the record that first held the event.
	ReplaySourceHeader = "millrace.replay-source"
	// ReplayPromptHeader is prompt@version: steps with that prompt ask with that version.
	ReplayPromptHeader = "millrace.replay-prompt"
)

// FailedAtHeader is when an event was given up, in milliseconds since the epoch, of a
// dead letter.
const FailedAtHeader = "millrace.failed-at"

var cacheHits = map[millracev1.CacheHit]string{
	millracev1.CacheHit_CACHE_HIT_UNSPECIFIED: "no", millracev1.CacheHit_CACHE_HIT_CACHE: "yes", millracev1.CacheHit_CACHE_HIT_SHARED: "shared",
}

// enrichHeaders returns what p says, as headers.
func enrichHeaders(p *millracev1.Enrichment, status string) []Header {
	number := func(n int64) string { return strconv.FormatInt(n, 10) }
	list := [][2]string{{StatusHeader, status}, {AttemptsHeader, number(int64(p.GetAttempts()))}}
	add := func(key, value string) { list = append(list, [2]string{key, value}) }
	if p.GetPrompt() != "" {
		add(PromptHeader, p.Prompt)
		add(PromptVersionHeader, p.PromptVersion)
		add(PromptLabelHeader, p.PromptLabel)
	}
	if p.GetSchema() != "" {
		add(SchemaHeader, p.Schema)
	}
	if p.GetModel() != nil {
		add(ModelHeader, modelID(p.Model).String())
	}
	add(InputTokensHeader, number(p.GetInputTokens()))
	add(CachedTokensHeader, number(p.GetCachedTokens()))
	add(OutputTokensHeader, number(p.GetOutputTokens()))
	add(CacheHitHeader, cacheHits[p.GetCacheHit()])
	if p.GetCostKnown() || p.GetAttempts() == 0 {
		add(CostHeader, number(p.CostMicros))
	}
	headers := make([]Header, len(list), len(list)+8)
	for i, h := range list {
		headers[i] = Header{Key: h[0], Value: []byte(h[1])}
	}
	return append(headers, traceHeaders(p)...)
}

// enrichKeys are the keys of headers that an earlier step may have set.
var enrichKeys = []string{
	PromptHeader, PromptVersionHeader, PromptLabelHeader, SchemaHeader, ModelHeader, AttemptsHeader, InputTokensHeader, CachedTokensHeader,
	OutputTokensHeader, CacheHitHeader, CostHeader, StatusHeader, AnswerHeader, ViolationsHeader, FallbackHeader,
}

// withHeaders returns headers without what an earlier step set, and with more.
func withHeaders(headers, more []Header) []Header {
	headers = withoutTrace(headers, more)
	out := make([]Header, 0, len(headers)+len(more))
	for _, h := range headers {
		if !slices.Contains(enrichKeys, h.Key) {
			out = append(out, h)
		}
	}
	return append(out, more...)
}
