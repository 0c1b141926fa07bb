// Package anthropic calls Claude models over Anthropic's messages API.
package anthropic

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	sdk "github.com/anthropics/anthropic-sdk-go"
	"github.com/anthropics/anthropic-sdk-go/option"
	"github.com/anthropics/anthropic-sdk-go/packages/param"

	"github.com/millrace/millrace/llm"
	"github.com/millrace/millrace/llm/internal/safehttp"
)

// BaseURL is where Anthropic's own API begins.
const BaseURL = "https://api.anthropic.com"

// DefaultMaxTokens bounds an answer when neither the request nor the configuration
// does: this API wants a number.
const DefaultMaxTokens = 4096

// A Config sets up a [Model]. Its zero value calls Anthropic without a key.
type Config struct {
	llm.Endpoint
	// Provider names the provider in IDs, and so in prices, limits and metrics. The
	// default is "anthropic".
	Provider string
	// MaxTokens bounds the answers to requests that do not; 0 means
	// [DefaultMaxTokens].
	MaxTokens int
	// Extra sets further fields of a request's body, such as "thinking". They are part
	// of what a model is: give models that differ in them providers that differ too.
	Extra map[string]any
}

// A Model is a Claude model. It is safe for concurrent use.
type Model struct {
	id       llm.ID
	http     *safehttp.Client
	messages sdk.MessageService
	max      int
}

var _ llm.Model = (*Model)(nil)

// New returns the model of that name. It makes no connection; it returns an error
// for a configuration that cannot work.
func New(model string, cfg Config) (*Model, error) {
	if model == "" {
		return nil, errors.New("anthropic: no model; name one")
	}
	if cfg.MaxTokens < 0 {
		return nil, fmt.Errorf("anthropic: model %s: MaxTokens %d is negative", model, cfg.MaxTokens)
	}
	hc, err := safehttp.New(cfg.Endpoint, BaseURL, safehttp.Auth{Header: "X-Api-Key"})
	if err != nil {
		return nil, fmt.Errorf("anthropic: model %s: %w", model, err)
	}
	options := []option.RequestOption{
		option.WithBaseURL(hc.BaseURL()),
		option.WithHTTPClient(hc.HTTP()),
		option.WithMaxRetries(0),
		// Else the SDK bounds calls itself, and refuses long ones. The context does it.
		option.WithRequestTimeout(24 * time.Hour),
		// Else the SDK makes spans of its own, with the texts if the environment says so.
		option.WithoutOpenTelemetry(),
	}
	for _, name := range slices.Sorted(maps.Keys(cfg.Extra)) {
		if _, err := json.Marshal(cfg.Extra[name]); err != nil {
			return nil, fmt.Errorf("anthropic: model %s: Extra[%q] has no JSON form: %w", model, name, err)
		}
		options = append(options, option.WithJSONSet(name, cfg.Extra[name]))
	}
	m := &Model{id: llm.ID{Provider: cfg.Provider, Model: model}, http: hc, max: cfg.MaxTokens}
	if m.id.Provider == "" {
		m.id.Provider = "anthropic"
	}
	if m.max == 0 {
		m.max = DefaultMaxTokens
	}
	// A service of its own, since the SDK's client reads the environment and files.
	m.messages = sdk.NewMessageService(options...)
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
	msg, err := m.messages.New(ctx, m.params(req))
	if err != nil || msg == nil || msg.StopReason == "" {
		return nil, x.Fail(ctx, m.id, readFault, judge)
	}
	u := msg.Usage
	usage := llm.Usage{
		Input: u.InputTokens + u.CacheCreationInputTokens + u.CacheReadInputTokens, Cached: u.CacheReadInputTokens, Written: u.CacheCreationInputTokens,
		Output: u.OutputTokens, Reasoning: u.OutputTokensDetails.ThinkingTokens,
	}
	var b strings.Builder
	for _, block := range msg.Content {
		if block.Type == "text" {
			b.WriteString(block.Text)
		}
	}
	text := x.Text(b.String())
	failed := func(class llm.Class, why string) (*llm.Response, error) {
		return nil, &llm.Error{Class: class, Model: m.id, Status: x.Status(), Usage: usage, Raw: text, Err: errors.New(why)}
	}
	switch msg.StopReason {
	case sdk.StopReasonRefusal:
		return failed(llm.Refused, "the model declined")
	case sdk.StopReasonMaxTokens:
		return failed(llm.Truncated, "the answer was cut at its token limit")
	case sdk.StopReasonModelContextWindowExceeded:
		return failed(llm.ContextTooLong, "the model's context window ended in the answer")
	case sdk.StopReasonToolUse, sdk.StopReasonPauseTurn:
		return failed(llm.Violation, "the model called a tool, of which it has none")
	}
	return &llm.Response{Text: text, Model: msg.Model, Finish: llm.FinishStop, Usage: usage, Header: x.Header()}, nil
}

func (m *Model) params(req *llm.Request) sdk.MessageNewParams {
	p := sdk.MessageNewParams{Model: m.id.Model, MaxTokens: int64(m.max)}
	if req.MaxTokens > 0 {
		p.MaxTokens = int64(req.MaxTokens)
	}
	for _, msg := range req.Messages {
		switch msg.Role {
		case llm.RoleSystem:
			p.System = append(p.System, sdk.TextBlockParam{Text: msg.Text})
		case llm.RoleAssistant:
			p.Messages = append(p.Messages, sdk.NewAssistantMessage(sdk.NewTextBlock(msg.Text)))
		default:
			p.Messages = append(p.Messages, sdk.NewUserMessage(sdk.NewTextBlock(msg.Text)))
		}
	}
	if n := len(p.System); n > 0 && req.CacheKey != "" {
		p.System[n-1].CacheControl = sdk.NewCacheControlEphemeralParam() // up to here requests begin alike
	}
	if req.Temperature != nil {
		p.Temperature = param.NewOpt(*req.Temperature)
	}
	if len(req.Schema) > 0 {
		// As it is: the SDK's own type would sort the properties, whose order counts.
		format := struct {
			Type   string          `json:"type"`
			Schema json.RawMessage `json:"schema"`
		}{"json_schema", req.Schema}
		p.OutputConfig.Format = param.Override[sdk.JSONOutputFormatParam](format)
	}
	return p
}
