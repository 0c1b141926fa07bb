package anthropic

import (
	"encoding/json"
	"strings"

	"github.com/millrace/millrace/llm"
	"github.com/millrace/millrace/llm/internal/safehttp"
)

func readFault(body []byte) safehttp.Fault {
	var b struct {
		Error struct {
			Type    safehttp.Word `json:"type"`
			Code    safehttp.Word `json:"code"`
			Message string        `json:"message"`
			Details struct {
				Code safehttp.Word `json:"error_code"`
			} `json:"details"`
		} `json:"error"`
	}
	_ = json.Unmarshal(body, &b) // what is no JSON has no names
	f := safehttp.Fault{Type: string(b.Error.Type), Code: string(b.Error.Code), Message: b.Error.Message}
	if f.Code == "" {
		f.Code = string(b.Error.Details.Code)
	}
	return f
}

// classes of the types Anthropic gives to faults.
var classes = map[string]llm.Class{
	"authentication_error": llm.Auth,
	"permission_error":     llm.Auth,
	"not_found_error":      llm.Auth, // the model
	"billing_error":        llm.NoMoney,
	"request_too_large":    llm.ContextTooLong,
	"rate_limit_error":     llm.Throttled,
	"api_error":            llm.Unavailable,
	"timeout_error":        llm.Unavailable,
	"overloaded_error":     llm.Unavailable,
}

// judge names the class of a fault. Some have only the type invalid_request_error
// and tell the rest in the message.
func judge(f safehttp.Fault, suggested llm.Class) llm.Class {
	switch {
	case strings.Contains(f.Code, "spend_limit") || f.Says("spend_limit", "spend limit", "credit balance is too low", "specified api usage limits"):
		return llm.NoMoney
	case suggested == llm.Invalid && f.Says("prompt is too long", "exceed context limit", "context window"):
		return llm.ContextTooLong
	case suggested == llm.Invalid && f.Says("content filtering policy"):
		return llm.Refused
	}
	if class, ok := classes[f.Type]; ok {
		return class
	}
	return suggested
}
