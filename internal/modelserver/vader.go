package modelserver

import (
	"encoding/json"
	"fmt"
	"math"
	"strings"

	"github.com/jonreiter/govader"
)

// VADER is the model behind the server: github.com/jonreiter/govader, a Go port
// of VADER (Hutto and Gilbert, 2014), a lexicon and a set of grammatical rules
// that score the sentiment of short English texts. It is a real and published
// model, and a classical one: no neural network, no language model.
type VADER struct {
	analyzer *govader.SentimentIntensityAnalyzer
}

// NewVADER loads the lexicon, which is part of the binary.
func NewVADER() *VADER { return &VADER{govader.NewSentimentIntensityAnalyzer()} }

// A Sentiment is what VADER says of a text.
type Sentiment struct {
	Label    string  `json:"label"`    // "positive", "neutral" or "negative"
	Score    float64 `json:"score"`    // VADER's compound score, in [-1, 1]
	Positive float64 `json:"positive"` // the shares of the text, which add up to 1
	Neutral  float64 `json:"neutral"`
	Negative float64 `json:"negative"`
}

// Score scores a text. The label follows the thresholds of VADER's authors:
// positive from 0.05 on, negative down from -0.05. Safe for concurrent use.
func (v *VADER) Score(text string) Sentiment {
	s := Sentiment{Label: "neutral", Neutral: 1}
	if strings.TrimSpace(text) == "" {
		return s
	}
	p := v.analyzer.PolarityScores(text)
	s.Score, s.Positive, s.Neutral, s.Negative = round(p.Compound), round(p.Positive), round(p.Neutral), round(p.Negative)
	switch {
	case s.Score >= 0.05:
		s.Label = "positive"
	case s.Score <= -0.05:
		s.Label = "negative"
	}
	return s
}

// round keeps four decimals, as VADER's authors print scores.
func round(x float64) float64 {
	if math.IsNaN(x) {
		return 0
	}
	return math.Round(x*1e4) / 1e4
}

// schema is the part of a JSON schema that the server reads.
type schema struct {
	Properties map[string]json.RawMessage `json:"properties"`
	Required   []string                   `json:"required"`
}

// fill builds the object that a JSON schema asks for from what VADER knows: the
// properties label (or sentiment), score (or compound), positive, neutral and
// negative. A label takes the spelling of the enum's member that ends in it, as
// in SENTIMENT_LABEL_POSITIVE. Optional properties it does not know are left
// out; a required one is an error.
func (s schema) fill(v Sentiment) (map[string]any, error) {
	out := map[string]any{}
	for name, p := range s.Properties {
		switch name {
		case "label", "sentiment":
			out[name] = spell(v.Label, p)
		case "score", "compound":
			out[name] = v.Score
		case "positive":
			out[name] = v.Positive
		case "neutral":
			out[name] = v.Neutral
		case "negative":
			out[name] = v.Negative
		}
	}
	for _, name := range s.Required {
		if _, ok := out[name]; !ok {
			return nil, fmt.Errorf("the schema requires property %q; this model knows label, sentiment, score, compound, positive, neutral and negative", name)
		}
	}
	return out, nil
}

func spell(label string, property json.RawMessage) string {
	var p struct {
		Enum []any `json:"enum"`
	}
	_ = json.Unmarshal(property, &p) // a property need not be an object
	for _, e := range p.Enum {
		if s, ok := e.(string); ok && strings.HasSuffix(strings.ToLower(s), label) {
			return s
		}
	}
	return label
}

// content is the text of a good answer. A nil format asks for plain text.
func content(v Sentiment, format *responseFormat) (string, error) {
	if format == nil || format.Type == "" || format.Type == "text" {
		return fmt.Sprintf("The sentiment is %s (%.4f).", v.Label, v.Score), nil
	}
	var answer any = v
	if format.Type == "json_schema" && len(format.JSONSchema.Schema.Properties) > 0 {
		filled, err := format.JSONSchema.Schema.fill(v)
		if err != nil {
			return "", err
		}
		answer = filled
	}
	b, err := json.Marshal(answer)
	return string(b), err
}
