package schema

import (
	"fmt"
	"slices"
	"strings"
)

// A Dialect is the part of JSON schema that a provider's constrained output
// understands. What it does not enforce is said in words, in descriptions.
type Dialect string

// The dialects.
const (
	// Portable is what all of the others understand: types, enums, all properties
	// required. For gateways in front of unknown models.
	Portable Dialect = "portable"
	// OpenAI is response_format json_schema with strict.
	OpenAI Dialect = "openai"
	// Azure is OpenAI's with tighter limits, and bounds that it accepts but does not
	// enforce.
	Azure Dialect = "azure"
	// Anthropic is output_config.format.
	Anthropic Dialect = "anthropic"
	// Gemini is responseJsonSchema.
	Gemini Dialect = "gemini"
	// VLLM is response_format of vLLM, within what xgrammar, its first backend, takes.
	VLLM Dialect = "vllm"
	// LlamaCpp is response_format of llama.cpp and format of Ollama. They do not show
	// the schema to the model: the prompt has to.
	LlamaCpp Dialect = "llamacpp"
)

// Dialects returns all dialects.
func Dialects() []Dialect {
	return []Dialect{Portable, OpenAI, Azure, Anthropic, Gemini, VLLM, LlamaCpp}
}

// DialectOf returns the dialect of a provider by its name in IDs: its own if it is one
// of those here, else [Portable]. Ollama is [LlamaCpp].
func DialectOf(provider string) Dialect {
	if provider == "ollama" {
		return LlamaCpp
	}
	if d := Dialect(provider); slices.Contains(Dialects(), d) {
		return d
	}
	return Portable
}

// features is what a dialect understands.
type features struct {
	// keywords that the grammar enforces, as type.keyword.
	keywords []string
	formats  []string
	// unsure: keywords are accepted but maybe not enforced, so they are also said in
	// words.
	unsure bool
	// allRequired: every property is required; a missing one is null.
	allRequired bool
	// nativeMaps: additionalProperties may be a schema. Otherwise a map is an array of
	// {key, value}.
	nativeMaps bool
	// rawPatterns: the text of a string under a pattern goes into the JSON as it is,
	// and length bounds beside a pattern or format do not count.
	rawPatterns bool
	// noBoolEnum: enum is for strings and numbers.
	noBoolEnum bool
	// maxMinItems is the largest minItems, 0 for any.
	maxMinItems uint64
	limits      limits
}

// limits of a dialect; 0 is none.
type limits struct {
	properties int // of all objects together
	depth      int // of objects within objects
	enumValues int // of all enums together
	characters int // of all property names and enum values together
	optional   int // properties that are not required
}

var (
	integerBounds = []string{"integer.minimum", "integer.maximum", "integer.exclusiveMinimum", "integer.exclusiveMaximum"}
	numberBounds  = []string{"number.minimum", "number.maximum", "number.exclusiveMinimum", "number.exclusiveMaximum"}
	itemBounds    = []string{"array.minItems", "array.maxItems"}
	lengthBounds  = []string{"string.minLength", "string.maxLength"}
	commonFormats = []string{"date-time", "email", "hostname", "ipv4", "ipv6", "uuid"}
)

func featuresOf(d Dialect) (features, error) {
	openAI := features{
		allRequired: true,
		keywords:    slices.Concat(integerBounds, numberBounds, itemBounds, []string{"string.pattern"}),
		formats:     commonFormats,
		limits:      limits{properties: 5000, depth: 10, enumValues: 1000, characters: 120_000},
	}
	switch d {
	case Portable:
		return features{allRequired: true, noBoolEnum: true}, nil
	case OpenAI:
		return openAI, nil
	case Azure:
		openAI.unsure = true
		openAI.limits.properties, openAI.limits.depth = 100, 5
		return openAI, nil
	case Anthropic:
		return features{
			keywords:    []string{"string.pattern", "array.minItems"},
			formats:     append([]string{"uri"}, commonFormats...),
			maxMinItems: 1,
			// Its limit on unions never binds: optional properties are left out, not null.
			limits: limits{optional: 24},
		}, nil
	case Gemini:
		return features{
			nativeMaps: true, noBoolEnum: true,
			keywords: slices.Concat([]string{"integer.minimum", "integer.maximum", "number.minimum", "number.maximum"}, itemBounds),
			formats:  []string{"date-time"},
		}, nil
	case VLLM:
		return features{
			nativeMaps: true, rawPatterns: true, unsure: true,
			keywords: slices.Concat(integerBounds, numberBounds, itemBounds, lengthBounds, []string{"string.pattern"}),
			formats:  append([]string{"uri"}, commonFormats...),
		}, nil
	case LlamaCpp:
		return features{
			nativeMaps: true, rawPatterns: true,
			keywords: slices.Concat(integerBounds, itemBounds, lengthBounds, []string{"string.pattern"}),
			formats:  []string{"date-time", "uuid"},
		}, nil
	}
	return features{}, fmt.Errorf("unknown dialect %q; use one of %s", d, joinDialects())
}

func joinDialects() string {
	var names []string
	for _, d := range Dialects() {
		names = append(names, string(d))
	}
	return strings.Join(names, ", ")
}

// totals counts what limits bound.
type totals struct {
	properties, depth, enumValues, characters, optional int
}

func (t *totals) count(s *Shape, depth int) {
	if s.Kind == Object || s.Kind == Pairs {
		depth++
	}
	t.depth = max(t.depth, depth)
	t.enumValues += len(s.enum)
	for _, v := range s.enum {
		if text, ok := v.(string); ok {
			t.characters += len(text)
		}
	}
	for _, p := range s.Properties {
		t.properties++
		t.characters += len(p.Name)
		if p.Missable {
			t.optional++
		}
		t.count(p.Shape, depth)
	}
	if s.Kind == Pairs {
		t.properties += 2
		t.characters += len(pairKey) + len(pairValue)
	}
	for _, sub := range []*Shape{s.Key, s.Elem} {
		if sub != nil {
			t.count(sub, depth)
		}
	}
}

// check returns what exceeds the limits, with what to do.
func (l limits) check(t totals) []string {
	var problems []string
	for _, c := range []struct {
		what       string
		have, most int
		do         string
	}{
		{"properties", t.properties, l.properties, "take fields out of the message"},
		{"levels of nested objects", t.depth, l.depth, "flatten the message"},
		{"enum values", t.enumValues, l.enumValues, "use fewer enum fields, or a string that a rule checks"},
		{"characters of property names and enum values", t.characters, l.characters, "shorten names or drop enum values"},
		{"optional properties", t.optional, l.optional, "set (buf.validate.field).required, or make fields without presence"},
	} {
		if c.most > 0 && c.have > c.most {
			problems = append(problems, fmt.Sprintf("%d %s, the dialect allows %d: %s", c.have, c.what, c.most, c.do))
		}
	}
	return problems
}
