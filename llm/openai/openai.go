// Package openai calls models over OpenAI's chat completions API: OpenAI itself,
// Azure, and the servers and gateways that speak it, such as vLLM, Ollama and
// llama.cpp.
package openai

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"regexp"
	"slices"

	sdk "github.com/openai/openai-go/v3"
	"github.com/openai/openai-go/v3/option"
	"github.com/openai/openai-go/v3/packages/param"
	"github.com/openai/openai-go/v3/shared"

	"github.com/millrace/millrace/llm"
	"github.com/millrace/millrace/llm/internal/safehttp"
)

// BaseURL is where OpenAI's own API begins.
const BaseURL = "https://api.openai.com/v1"

// A Config sets up a [Model] or an [Embedder]. Its zero value calls OpenAI without a
// key.
//
// For Azure, the URL of the endpoint is https://<resource>.openai.azure.com/openai/v1,
// its KeyHeader "Api-Key", and the model the name of the deployment; with an older
// API version, the URL ends in /openai/deployments/<deployment> and APIVersion is set.
type Config struct {
	llm.Endpoint
	// Provider names the provider in IDs, and so in prices, limits and metrics. The
	// default is "openai" for OpenAI's own URL and "openai-compatible" for others;
	// "azure", "vllm", "ollama" and "llamacpp" are other usual ones.
	Provider string
	// APIVersion is sent as the query parameter api-version, for Azure's dated APIs.
	APIVersion string
	// Extra sets further fields of a request's body, such as "reasoning_effort" or
	// "service_tier". They are part of what a model is: give models that differ in
	// them names or providers that differ too.
	Extra map[string]any
	// LooseSchema asks for the schema without OpenAI's strict mode, for servers that
	// refuse it.
	LooseSchema bool
}

type client struct {
	id      llm.ID
	http    *safehttp.Client
	options []option.RequestOption
	own     bool // OpenAI's or Azure's own servers, which know the newest fields
}

func newClient(model string, cfg Config) (*client, error) {
	if model == "" {
		return nil, errors.New("openai: no model; name one")
	}
	if cfg.Provider == "" {
		cfg.Provider = "openai"
		if cfg.URL != "" && cfg.URL != BaseURL && cfg.URL != BaseURL+"/" {
			cfg.Provider = "openai-compatible"
		}
	}
	hc, err := safehttp.New(cfg.Endpoint, BaseURL, safehttp.Auth{Header: "Authorization", Prefix: "Bearer "})
	if err != nil {
		return nil, fmt.Errorf("openai: model %s: %w", model, err)
	}
	options := []option.RequestOption{
		option.WithBaseURL(hc.BaseURL()),
		option.WithHTTPClient(hc.HTTP()),
		option.WithMaxRetries(0),
	}
	if cfg.APIVersion != "" {
		options = append(options, option.WithQuery("api-version", cfg.APIVersion))
	}
	for _, name := range slices.Sorted(maps.Keys(cfg.Extra)) {
		if _, err := json.Marshal(cfg.Extra[name]); err != nil {
			return nil, fmt.Errorf("openai: model %s: Extra[%q] has no JSON form: %w", model, name, err)
		}
		options = append(options, option.WithJSONSet(name, cfg.Extra[name]))
	}
	own := cfg.Provider == "openai" || cfg.Provider == "azure"
	return &client{id: llm.ID{Provider: cfg.Provider, Model: model}, http: hc, options: options, own: own}, nil
}

// A Model is a chat model. It is safe for concurrent use.
type Model struct {
	*client
	chat   sdk.ChatCompletionService
	strict bool
}

var _ llm.Model = (*Model)(nil)

// New returns the model of that name. It makes no connection; it returns an error
// for a configuration that cannot work.
func New(model string, cfg Config) (*Model, error) {
	c, err := newClient(model, cfg)
	if err != nil {
		return nil, err
	}
	// A service of its own, since the SDK's client reads the environment.
	return &Model{client: c, chat: sdk.NewChatCompletionService(c.options...), strict: !cfg.LooseSchema}, nil
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
	// The answer is decoded here: the SDK's way takes 36 us for a short one, a third of
	// all that a call costs.
	var raw *http.Response
	_, err := m.chat.New(ctx, m.params(req), option.WithResponseBodyInto(&raw))
	var c completion
	if err == nil {
		err = json.Unmarshal(x.Body(), &c)
	}
	if err != nil || len(c.Choices) == 0 {
		return nil, x.Fail(ctx, m.id, readFault, judge)
	}
	usage := llm.Usage{
		Input: c.Usage.Prompt, Cached: c.Usage.PromptDetails.Cached, Written: c.Usage.PromptDetails.Written,
		Output: c.Usage.Completion, Reasoning: c.Usage.CompletionDetails.Reasoning,
	}
	text := x.Text(c.Choices[0].Message.Content)
	failed := func(class llm.Class, why, raw string) (*llm.Response, error) {
		return nil, &llm.Error{Class: class, Model: m.id, Status: x.Status(), Usage: usage, Raw: raw, Err: errors.New(why)}
	}
	refusal := x.Text(c.Choices[0].Message.Refusal)
	switch reason := c.Choices[0].FinishReason; {
	case refusal != "":
		return failed(llm.Refused, "the model declined", refusal)
	case reason == "content_filter":
		return failed(llm.Refused, "a content filter declined", text)
	case reason == "length":
		return failed(llm.Truncated, "the answer was cut at its token limit", text)
	case reason == "tool_calls" || reason == "function_call":
		return failed(llm.Violation, "the model called a tool, of which it has none", text)
	}
	return &llm.Response{Text: text, Model: c.Model, Finish: llm.FinishStop, Usage: usage, Header: x.Header()}, nil
}

// A completion is what counts of an answer.
type completion struct {
	Model   string `json:"model"`
	Choices []struct {
		FinishReason string `json:"finish_reason"`
		Message      struct {
			Content string `json:"content"`
			Refusal string `json:"refusal"`
		} `json:"message"`
	} `json:"choices"`
	Usage struct {
		Prompt        int64 `json:"prompt_tokens"`
		Completion    int64 `json:"completion_tokens"`
		PromptDetails struct {
			Cached  int64 `json:"cached_tokens"`
			Written int64 `json:"cache_write_tokens"`
		} `json:"prompt_tokens_details"`
		CompletionDetails struct {
			Reasoning int64 `json:"reasoning_tokens"`
		} `json:"completion_tokens_details"`
	} `json:"usage"`
}

func (m *Model) params(req *llm.Request) sdk.ChatCompletionNewParams {
	p := sdk.ChatCompletionNewParams{Model: m.id.Model}
	for _, msg := range req.Messages {
		switch msg.Role {
		case llm.RoleSystem:
			p.Messages = append(p.Messages, sdk.SystemMessage(msg.Text))
		case llm.RoleAssistant:
			p.Messages = append(p.Messages, sdk.AssistantMessage(msg.Text))
		default:
			p.Messages = append(p.Messages, sdk.UserMessage(msg.Text))
		}
	}
	if req.MaxTokens > 0 {
		if m.own {
			p.MaxCompletionTokens = param.NewOpt(int64(req.MaxTokens))
		} else {
			p.MaxTokens = param.NewOpt(int64(req.MaxTokens)) // what every server knows
		}
	}
	if req.Temperature != nil {
		p.Temperature = param.NewOpt(*req.Temperature)
	}
	if req.CacheKey != "" && m.own {
		p.PromptCacheKey = param.NewOpt(req.CacheKey)
	}
	if len(req.Schema) > 0 {
		format := shared.ResponseFormatJSONSchemaJSONSchemaParam{Name: schemaName(req.SchemaName), Schema: req.Schema}
		if m.strict {
			format.Strict = param.NewOpt(true)
		}
		p.ResponseFormat.OfJSONSchema = &shared.ResponseFormatJSONSchemaParam{JSONSchema: format}
	}
	return p
}

var notInName = regexp.MustCompile(`[^A-Za-z0-9_-]+`)

// schemaName makes a name that OpenAI takes: at most 64 letters, digits, _ and -.
func schemaName(s string) string {
	s = notInName.ReplaceAllString(s, "_")
	if s == "" {
		return "answer"
	}
	return s[max(0, len(s)-64):]
}
