package gemini

import (
	"encoding/json"
	"time"

	"github.com/millrace/millrace/llm"
	"github.com/millrace/millrace/llm/internal/safehttp"
)

func readFault(body []byte) safehttp.Fault {
	var b struct {
		Error struct {
			Message string        `json:"message"`
			Status  safehttp.Word `json:"status"`
			Details []struct {
				Reason     safehttp.Word `json:"reason"`     // of google.rpc.ErrorInfo
				RetryDelay safehttp.Word `json:"retryDelay"` // of google.rpc.RetryInfo, as "34.07s"
			} `json:"details"`
		} `json:"error"`
	}
	_ = json.Unmarshal(body, &b) // what is no JSON has no names
	f := safehttp.Fault{Type: string(b.Error.Status), Message: b.Error.Message}
	for _, d := range b.Error.Details {
		if d.Reason != "" {
			f.Code = string(d.Reason)
		}
		if wait, err := time.ParseDuration(string(d.RetryDelay)); err == nil {
			f.RetryAfter = max(f.RetryAfter, min(wait, 365*24*time.Hour))
		}
	}
	return f
}

// judge names the class of a fault.
func judge(f safehttp.Fault, suggested llm.Class) llm.Class {
	switch {
	case f.Code == "API_KEY_INVALID" || f.Code == "API_KEY_SERVICE_BLOCKED" || f.Code == "SERVICE_DISABLED" || f.Says("api key not valid"):
		return llm.Auth // comes with status 400
	case f.Code == "BILLING_DISABLED" || suggested != llm.Unavailable && f.Says("billing account") ||
		f.Says("prepayment credits", "spending cap"):
		return llm.NoMoney
	case f.Type == "FAILED_PRECONDITION": // the free tier is not offered here; billing is off
		return llm.Auth
	case suggested == llm.Invalid && f.Says("exceeds the maximum number of tokens", "token count exceeds"):
		return llm.ContextTooLong
	case f.Type == "CANCELLED":
		return llm.Unavailable
	}
	return suggested
}
