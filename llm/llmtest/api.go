package llmtest

import (
	"encoding/json"
	"fmt"
	"strings"

	"github.com/millrace/millrace/llm"
)

// An api is the form of a provider's requests and answers.
type api struct {
	provider string
	parse    func(c *Call, path string) error
	answer   func(c *Call, r Reply) any
	fault    func(r Reply) (status int, body any)
}

type object = map[string]any

// route returns the API that a path belongs to, or nil.
func route(path string) *api {
	switch {
	case strings.HasSuffix(path, "/chat/completions"):
		return &api{"openai", parseOpenAI, answerOpenAI, faultOpenAI}
	case strings.HasSuffix(path, "/embeddings"):
		return &api{"openai", parseEmbeddings, answerEmbeddings, faultOpenAI}
	case strings.HasSuffix(path, "/v1/messages"):
		return &api{"anthropic", parseAnthropic, answerAnthropic, faultAnthropic}
	case strings.HasSuffix(path, ":generateContent"):
		return &api{"gemini", parseGemini, answerGemini, faultGemini}
	}
	return nil
}

// estimate counts words.
func estimate(c *Call, text string) llm.Usage {
	u := llm.Usage{Output: int64(len(strings.Fields(text)))}
	for _, m := range c.Messages {
		u.Input += int64(len(strings.Fields(m.Text)))
	}
	return u
}

// texts is the text of a content: a string, or parts of which the text counts.
func texts(raw json.RawMessage) (string, error) {
	var s string
	if json.Unmarshal(raw, &s) == nil {
		return s, nil
	}
	var parts []struct {
		Text string `json:"text"`
	}
	if err := json.Unmarshal(raw, &parts); err != nil {
		return "", err
	}
	var b strings.Builder
	for _, p := range parts {
		b.WriteString(p.Text)
	}
	return b.String(), nil
}

type turn struct {
	Role    string          `json:"role"`
	Content json.RawMessage `json:"content"`
}

func (c *Call) turns(ts []turn) error {
	for _, t := range ts {
		text, err := texts(t.Content)
		if err != nil {
			return err
		}
		c.Messages = append(c.Messages, llm.Message{Role: llm.Role(t.Role), Text: text})
	}
	return nil
}

func parseOpenAI(c *Call, _ string) error {
	var q struct {
		Model          string   `json:"model"`
		Messages       []turn   `json:"messages"`
		Max            int      `json:"max_tokens"`
		MaxCompletion  int      `json:"max_completion_tokens"`
		Temperature    *float64 `json:"temperature"`
		ResponseFormat struct {
			JSONSchema struct {
				Name   string          `json:"name"`
				Schema json.RawMessage `json:"schema"`
			} `json:"json_schema"`
		} `json:"response_format"`
	}
	if err := json.Unmarshal(c.Body, &q); err != nil {
		return err
	}
	c.Model, c.Temperature, c.MaxTokens = q.Model, q.Temperature, max(q.Max, q.MaxCompletion)
	c.Schema, c.SchemaName = q.ResponseFormat.JSONSchema.Schema, q.ResponseFormat.JSONSchema.Name
	return c.turns(q.Messages)
}

func answerOpenAI(c *Call, r Reply) any {
	message := object{"role": "assistant", "content": r.Text, "refusal": nil}
	finish := "stop"
	switch r.Finish {
	case llm.FinishLength:
		finish = "length"
	case llm.FinishRefusal:
		message["content"], message["refusal"] = nil, r.Text
	}
	return object{
		"id": fmt.Sprintf("chatcmpl-%d", c.N), "object": "chat.completion", "created": 1, "model": c.Model,
		"choices": []object{{"index": 0, "message": message, "finish_reason": finish}},
		"usage": object{
			"prompt_tokens": r.Usage.Input, "completion_tokens": r.Usage.Output, "total_tokens": r.Usage.Input + r.Usage.Output,
			"prompt_tokens_details":     object{"cached_tokens": r.Usage.Cached, "cache_write_tokens": r.Usage.Written},
			"completion_tokens_details": object{"reasoning_tokens": r.Usage.Reasoning},
		},
	}
}

func parseEmbeddings(c *Call, _ string) error {
	var q struct {
		Model string   `json:"model"`
		Input []string `json:"input"`
	}
	if err := json.Unmarshal(c.Body, &q); err != nil {
		return err
	}
	c.Model, c.Embeddings = q.Model, true
	for _, text := range q.Input {
		c.Messages = append(c.Messages, llm.Message{Role: llm.RoleUser, Text: text})
	}
	return nil
}

// answerEmbeddings makes vectors of the letters of texts: equal texts have equal
// ones.
func answerEmbeddings(c *Call, r Reply) any {
	data := []object{}
	for i, m := range c.Messages {
		v := make([]float64, 8)
		for _, b := range []byte(m.Text) {
			v[b%8] += 1.0 / 64
		}
		data = append(data, object{"object": "embedding", "index": i, "embedding": v})
	}
	return object{"object": "list", "model": c.Model, "data": data, "usage": object{"prompt_tokens": r.Usage.Input, "total_tokens": r.Usage.Input}}
}

func parseAnthropic(c *Call, _ string) error {
	var q struct {
		Model        string          `json:"model"`
		System       json.RawMessage `json:"system"`
		Messages     []turn          `json:"messages"`
		Max          int             `json:"max_tokens"`
		Temperature  *float64        `json:"temperature"`
		OutputConfig struct {
			Format struct {
				Schema json.RawMessage `json:"schema"`
			} `json:"format"`
		} `json:"output_config"`
	}
	if err := json.Unmarshal(c.Body, &q); err != nil {
		return err
	}
	c.Model, c.Temperature, c.MaxTokens, c.Schema = q.Model, q.Temperature, q.Max, q.OutputConfig.Format.Schema
	if len(q.System) > 0 {
		if err := c.turns([]turn{{"system", q.System}}); err != nil {
			return err
		}
	}
	return c.turns(q.Messages)
}

func answerAnthropic(c *Call, r Reply) any {
	stop := "end_turn"
	switch r.Finish {
	case llm.FinishLength:
		stop = "max_tokens"
	case llm.FinishRefusal:
		stop = "refusal"
	}
	return object{
		"id": fmt.Sprintf("msg_%d", c.N), "type": "message", "role": "assistant", "model": c.Model,
		"content": []object{{"type": "text", "text": r.Text}}, "stop_reason": stop, "stop_sequence": nil,
		"usage": object{
			"input_tokens": r.Usage.Input - r.Usage.Cached - r.Usage.Written, "cache_read_input_tokens": r.Usage.Cached, "cache_creation_input_tokens": r.Usage.Written,
			"output_tokens": r.Usage.Output, "output_tokens_details": object{"thinking_tokens": r.Usage.Reasoning},
		},
	}
}

func parseGemini(c *Call, path string) error {
	type content struct {
		Role  string          `json:"role"`
		Parts json.RawMessage `json:"parts"`
	}
	var q struct {
		System     *content  `json:"systemInstruction"`
		Contents   []content `json:"contents"`
		Generation struct {
			Max         int             `json:"maxOutputTokens"`
			Temperature *float64        `json:"temperature"`
			Schema      json.RawMessage `json:"responseJsonSchema"`
		} `json:"generationConfig"`
	}
	if err := json.Unmarshal(c.Body, &q); err != nil {
		return err
	}
	_, c.Model, _ = strings.Cut(strings.TrimSuffix(path, ":generateContent"), "/models/")
	c.Temperature, c.MaxTokens, c.Schema = q.Generation.Temperature, q.Generation.Max, q.Generation.Schema
	var turns []turn
	if q.System != nil {
		turns = append(turns, turn{"system", q.System.Parts})
	}
	for _, t := range q.Contents {
		if t.Role == "model" {
			t.Role = "assistant"
		}
		turns = append(turns, turn{t.Role, t.Parts})
	}
	return c.turns(turns)
}

func answerGemini(c *Call, r Reply) any {
	finish := "STOP"
	switch r.Finish {
	case llm.FinishLength:
		finish = "MAX_TOKENS"
	case llm.FinishRefusal:
		finish = "SAFETY"
	}
	return object{
		"candidates":   []object{{"index": 0, "content": object{"role": "model", "parts": []object{{"text": r.Text}}}, "finishReason": finish}},
		"modelVersion": c.Model,
		"usageMetadata": object{
			"promptTokenCount": r.Usage.Input, "cachedContentTokenCount": r.Usage.Cached,
			"candidatesTokenCount": r.Usage.Output - r.Usage.Reasoning, "thoughtsTokenCount": r.Usage.Reasoning,
			"totalTokenCount": r.Usage.Input + r.Usage.Output,
		},
	}
}

// A failure is how a provider tells of a class.
type failure struct {
	status              int
	code, kind, message string
}

func (f failure) with(r Reply) failure {
	if r.Message != "" {
		f.message = r.Message
	}
	return f
}

func faultOpenAI(r Reply) (int, any) {
	f := map[llm.Class]failure{
		llm.Throttled:      {429, "rate_limit_exceeded", "requests", "Rate limit reached for requests."},
		llm.Unavailable:    {500, "internal_error", "server_error", "The server had an error while processing your request."},
		llm.NoMoney:        {429, "insufficient_quota", "insufficient_quota", "You exceeded your current quota, please check your plan and billing details."},
		llm.Auth:           {401, "invalid_api_key", "invalid_request_error", "Incorrect API key provided."},
		llm.ContextTooLong: {400, "context_length_exceeded", "invalid_request_error", "This model's maximum context length is 128000 tokens."},
		llm.Invalid:        {400, "invalid_value", "invalid_request_error", "Invalid value."},
	}[r.Fault].with(r)
	return f.status, object{"error": object{"message": f.message, "type": f.kind, "param": nil, "code": f.code}}
}

func faultAnthropic(r Reply) (int, any) {
	f := map[llm.Class]failure{
		llm.Throttled:      {429, "", "rate_limit_error", "This request would exceed your organization's rate limit."},
		llm.Unavailable:    {529, "", "overloaded_error", "Overloaded"},
		llm.NoMoney:        {400, "", "invalid_request_error", "Your credit balance is too low to access the Anthropic API."},
		llm.Auth:           {401, "", "authentication_error", "invalid x-api-key"},
		llm.ContextTooLong: {400, "", "invalid_request_error", "prompt is too long: 210000 tokens > 200000 maximum"},
		llm.Invalid:        {400, "", "invalid_request_error", "max_tokens: must be positive"},
	}[r.Fault].with(r)
	if r.Status != 0 {
		f.kind = "api_error"
	}
	return f.status, object{"type": "error", "error": object{"type": f.kind, "message": f.message}, "request_id": "req_1"}
}

func faultGemini(r Reply) (int, any) {
	f := map[llm.Class]failure{
		llm.Throttled:      {429, "", "RESOURCE_EXHAUSTED", "You exceeded your current quota."},
		llm.Unavailable:    {503, "", "UNAVAILABLE", "The model is overloaded. Please try again later."},
		llm.NoMoney:        {402, "", "RESOURCE_EXHAUSTED", "Your prepayment credits are depleted."},
		llm.Auth:           {400, "API_KEY_INVALID", "INVALID_ARGUMENT", "API key not valid. Please pass a valid API key."},
		llm.ContextTooLong: {400, "", "INVALID_ARGUMENT", "The input token count (1200000) exceeds the maximum number of tokens allowed (1048576)."},
		llm.Invalid:        {400, "", "INVALID_ARGUMENT", "Request contains an invalid argument."},
	}[r.Fault].with(r)
	details := []object{}
	if f.code != "" {
		details = append(details, object{"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": f.code, "domain": "googleapis.com"})
	}
	if ms := r.Header.Get("Retry-After-Ms"); ms != "" {
		details = append(details, object{"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": ms + "ms"})
	}
	status := f.status
	if r.Status != 0 {
		status = r.Status
	}
	return f.status, object{"error": object{"code": status, "message": f.message, "status": f.kind, "details": details}}
}
