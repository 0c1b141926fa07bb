// Package gemini calls Google's Gemini models over the Gemini API.
package gemini

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"strings"

	"google.golang.org/genai"

	"github.com/millrace/millrace/llm"
	"github.com/millrace/millrace/llm/internal/safehttp"
)

// BaseURL is where Google's own API begins.
const BaseURL = "https://generativelanguage.googleapis.com"

// A Config sets up a [Model]. Its zero value calls Google without a key.
type Config struct {
	llm.Endpoint
	// Provider names the provider in IDs, and so in prices, limits and metrics. The
	// default is "gemini".
	Provider string
	// Generation sets further fields of a request's generationConfig, such as
	// "thinkingConfig". They are part of what a model is: give models that differ in
	// them providers that differ too.
	Generation map[string]any
}

// A Model is a Gemini model. It is safe for concurrent use.
type Model struct {
	id         llm.ID
	http       *safehttp.Client
	models     *genai.Models
	generation map[string]any
}

var _ llm.Model = (*Model)(nil)

// New returns the model of that name. It makes no connection; it returns an error
// for a configuration that cannot work.
func New(model string, cfg Config) (*Model, error) {
	if model == "" {
		return nil, errors.New("gemini: no model; name one")
	}
	if _, err := json.Marshal(cfg.Generation); err != nil {
		return nil, fmt.Errorf("gemini: model %s: Generation has no JSON form: %w", model, err)
	}
	hc, err := safehttp.New(cfg.Endpoint, BaseURL, safehttp.Auth{Header: "X-Goog-Api-Key"})
	if err != nil {
		return nil, fmt.Errorf("gemini: model %s: %w", model, err)
	}
	c, err := genai.NewClient(context.Background(), &genai.ClientConfig{ // used for Vertex's credentials only
		Backend:     genai.BackendGeminiAPI,
		APIKey:      "none", // the SDK wants one; the HTTP client puts the real one in its place
		HTTPClient:  hc.HTTP(),
		HTTPOptions: genai.HTTPOptions{BaseURL: hc.BaseURL()},
	})
	if err != nil {
		return nil, fmt.Errorf("gemini: model %s: %w", model, err)
	}
	m := &Model{id: llm.ID{Provider: cfg.Provider, Model: model}, http: hc, models: c.Models, generation: cfg.Generation}
	if m.id.Provider == "" {
		m.id.Provider = "gemini"
	}
	return m, nil
}

// ID names the provider and the model.
func (m *Model) ID() llm.ID { return m.id }

// Interruptible implements [llm.Interruptible].
func (m *Model) Interruptible() {}

// Generate makes one attempt. Its error is an [*llm.Error]; an answer that was cut
// or refused is an error too, of class [llm.Truncated] or [llm.Refused], with the
// answer in Raw and its usage.
func (m *Model) Generate(ctx context.Context, req *llm.Request) (*llm.Response, error) {
	ctx, x := m.http.Begin(ctx)
	contents, config := m.params(req)
	r, err := m.ask(ctx, x, contents, config)
	blocked := err == nil && r != nil && r.PromptFeedback != nil && r.PromptFeedback.BlockReason != ""
	if err != nil || r == nil || len(r.Candidates) == 0 && !blocked {
		return nil, x.Fail(ctx, m.id, readFault, judge)
	}
	usage := count(r.UsageMetadata)
	failed := func(class llm.Class, why, raw string) (*llm.Response, error) {
		return nil, &llm.Error{Class: class, Model: m.id, Status: x.Status(), Usage: usage, Raw: raw, Err: errors.New(why)}
	}
	if blocked {
		return failed(llm.Refused, "the prompt was blocked: "+safehttp.Name(string(r.PromptFeedback.BlockReason)), "")
	}
	text := x.Text(said(r.Candidates[0]))
	switch reason := r.Candidates[0].FinishReason; reason {
	case genai.FinishReasonStop:
	case genai.FinishReasonMaxTokens:
		return failed(llm.Truncated, "the answer was cut at its token limit", text)
	case "", genai.FinishReasonUnspecified, genai.FinishReasonContinuation:
		return failed(llm.Unavailable, "the answer has no end", text)
	case genai.FinishReasonMalformedFunctionCall, genai.FinishReasonUnexpectedToolCall, genai.FinishReasonTooManyToolCalls:
		return failed(llm.Violation, "the model called a tool, of which it has none", text)
	default: // SAFETY, RECITATION, BLOCKLIST, PROHIBITED_CONTENT, SPII, LANGUAGE, OTHER and what will come
		return failed(llm.Refused, "the model declined: "+safehttp.Name(string(reason)), text)
	}
	return &llm.Response{Text: text, Model: r.ModelVersion, Finish: llm.FinishStop, Usage: usage, Header: x.Header()}, nil
}

// ask makes the call. The SDK panics on answers whose fields have unexpected types.
func (m *Model) ask(ctx context.Context, x *safehttp.Exchange, contents []*genai.Content, config *genai.GenerateContentConfig) (r *genai.GenerateContentResponse, err error) {
	defer func() {
		if x.Status() == 0 {
			return // a panic of ours or of the user's
		}
		if p := recover(); p != nil {
			r, err = nil, errors.New("the SDK cannot read the answer")
		}
	}()
	return m.models.GenerateContent(ctx, m.id.Model, contents, config)
}

func count(u *genai.GenerateContentResponseUsageMetadata) llm.Usage {
	if u == nil {
		return llm.Usage{}
	}
	return llm.Usage{
		Input: int64(u.PromptTokenCount), Cached: int64(u.CachedContentTokenCount),
		Output: int64(u.CandidatesTokenCount) + int64(u.ThoughtsTokenCount), Reasoning: int64(u.ThoughtsTokenCount),
	}
}

// said is the text of a candidate without the model's thoughts.
func said(c *genai.Candidate) string {
	var b strings.Builder
	if c.Content != nil {
		for _, part := range c.Content.Parts {
			if part != nil && !part.Thought {
				b.WriteString(part.Text)
			}
		}
	}
	return b.String()
}

func (m *Model) params(req *llm.Request) ([]*genai.Content, *genai.GenerateContentConfig) {
	var contents []*genai.Content
	var system []*genai.Part
	for _, msg := range req.Messages {
		switch msg.Role {
		case llm.RoleSystem:
			system = append(system, genai.NewPartFromText(msg.Text))
		case llm.RoleAssistant:
			contents = append(contents, genai.NewContentFromText(msg.Text, genai.RoleModel))
		default:
			contents = append(contents, genai.NewContentFromText(msg.Text, genai.RoleUser))
		}
	}
	// Else the SDK may make further calls by itself, for answers in parts.
	noMore := false
	config := &genai.GenerateContentConfig{AutomaticContinuation: &noMore}
	if len(system) > 0 {
		config.SystemInstruction = genai.NewContentFromParts(system, genai.RoleUser)
	}
	if req.MaxTokens > 0 {
		config.MaxOutputTokens = int32(min(req.MaxTokens, 1<<31-1))
	}
	if req.Temperature != nil {
		t := float32(*req.Temperature)
		config.Temperature = &t
	}
	if len(req.Schema) > 0 {
		config.ResponseMIMEType = "application/json"
	}
	config.HTTPOptions = &genai.HTTPOptions{ExtrasRequestProvider: func(body map[string]any) map[string]any {
		return m.finish(body, req.Schema)
	}}
	return contents, config
}

// finish adds to a request's body what the SDK would reorder or does not know.
func (m *Model) finish(body map[string]any, schema json.RawMessage) map[string]any {
	generation, _ := body["generationConfig"].(map[string]any)
	if generation == nil {
		generation = map[string]any{}
	}
	maps.Copy(generation, m.generation)
	if len(schema) > 0 {
		generation["responseJsonSchema"] = schema
	}
	if len(generation) > 0 {
		body["generationConfig"] = generation
	}
	return body
}
