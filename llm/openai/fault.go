package openai

import (
	"encoding/json"

	"github.com/millrace/millrace/llm"
	"github.com/millrace/millrace/llm/internal/safehttp"
)

// readFault takes the fault from an error answer: OpenAI's own form, and the forms
// of servers that speak its API.
func readFault(body []byte) safehttp.Fault {
	type fields struct {
		Message string        `json:"message"`
		Type    safehttp.Word `json:"type"`
		Code    safehttp.Word `json:"code"`
		Param   safehttp.Word `json:"param"`
		Inner   struct {
			Code safehttp.Word `json:"code"`
		} `json:"innererror"`
	}
	var wrapped struct {
		Error json.RawMessage `json:"error"`
	}
	var f fields
	_ = json.Unmarshal(body, &wrapped) // what is no JSON has no names
	var text string
	switch {
	case json.Unmarshal(wrapped.Error, &text) == nil: // Ollama: {"error": "text"}
		f.Message = text
	case len(wrapped.Error) > 0:
		_ = json.Unmarshal(wrapped.Error, &f)
	default: // vLLM: {"object": "error", "message": ...}
		_ = json.Unmarshal(body, &f)
	}
	out := safehttp.Fault{Code: string(f.Code), Type: string(f.Type), Param: string(f.Param), Message: f.Message}
	if f.Inner.Code == "ResponsibleAIPolicyViolation" { // Azure
		out.Code = "content_filter"
	}
	out.Status = status(f.Code) // gateways put it there, also under HTTP 200
	return out
}

func status(code safehttp.Word) int {
	var n int
	if json.Unmarshal([]byte(code), &n) != nil || n < 300 || n > 599 {
		return 0
	}
	return n
}

// classes of the names OpenAI and others give to faults, by code or type.
var classes = map[string]llm.Class{
	"insufficient_quota":                llm.NoMoney,
	"quota_exceeded":                    llm.NoMoney,
	"billing_hard_limit_reached":        llm.NoMoney,
	"billing_not_active":                llm.NoMoney,
	"billing_limit_user_error":          llm.NoMoney,
	"insufficient_balance":              llm.NoMoney,
	"insufficient_credits":              llm.NoMoney,
	"credit_limit_reached":              llm.NoMoney,
	"spend_limit_reached":               llm.NoMoney,
	"spending_limit_exceeded":           llm.NoMoney,
	"budget_exceeded":                   llm.NoMoney, // LiteLLM
	"invalid_api_key":                   llm.Auth,
	"account_deactivated":               llm.Auth,
	"model_not_found":                   llm.Auth,
	"DeploymentNotFound":                llm.Auth,
	"context_length_exceeded":           llm.ContextTooLong,
	"string_above_max_length":           llm.ContextTooLong,
	"exceed_context_size_error":         llm.ContextTooLong, // llama.cpp
	"context_window_exceeded":           llm.ContextTooLong,
	"content_filter":                    llm.Refused, // Azure
	"content_policy_violation":          llm.Refused,
	"invalid_prompt":                    llm.Refused, // of reasoning models: against the usage policy
	"rate_limit_exceeded":               llm.Throttled,
	"tokens_usage_based_rate_limit_err": llm.Throttled,
	"engine_overloaded":                 llm.Unavailable,
	"slow_down":                         llm.Unavailable,
}

// judge names the class of a fault. Messages decide only where servers have no name
// for it.
func judge(f safehttp.Fault, suggested llm.Class) llm.Class {
	class, known := classes[f.Code]
	if !known {
		class, known = classes[f.Type]
	}
	switch {
	case suggested == llm.Throttled && f.Says("request too large for"):
		return llm.ContextTooLong // more tokens than a minute has: no waiting helps
	case known:
		return class
	case suggested == llm.Throttled && f.Says("exceeded your current quota", "insufficient balance", "billing"):
		return llm.NoMoney
	case (suggested == llm.Invalid || suggested == llm.Unavailable) &&
		f.Says("maximum context length", "context length exceeded", "exceeds the available context", "exceed context", "context window", "longer than the maximum model length", "input is too long", "prompt is too long"):
		return llm.ContextTooLong
	case suggested == llm.Invalid && f.Says("content management policy", "safety system"):
		return llm.Refused
	}
	return suggested
}
