// Package llm calls language models: one interface for all providers, the classes
// of what can go wrong, and what a call costs. It knows nothing of streams; the
// operator is topology.Enrich.
package llm

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"time"
)

// A Model answers requests. Implementations are safe for concurrent use, never
// retry, and return an [*Error] that says what kind of failure it was.
type Model interface {
	// ID names the provider and the model, as "openai/gpt-5-mini": breakers, limits,
	// prices and metrics go by it.
	ID() ID
	// Generate makes one attempt. The deadline of ctx bounds it.
	Generate(ctx context.Context, req *Request) (*Response, error)
}

// An Interruptible is a Model that returns from Generate soon after its context ends,
// whatever the provider does. Of others, a caller that must go on then has to leave a
// goroutine behind.
type Interruptible interface {
	Model
	// Interruptible only says so.
	Interruptible()
}

// An ID names a model at a provider.
type ID struct{ Provider, Model string }

// String returns provider/model.
func (id ID) String() string { return id.Provider + "/" + id.Model }

// A Role says who speaks.
type Role string

// The roles. Text of events is only ever sent as RoleUser.
const (
	RoleSystem    Role = "system"
	RoleUser      Role = "user"
	RoleAssistant Role = "assistant"
)

// A Message is one turn of a request.
type Message struct {
	Role Role   `json:"role"`
	Text string `json:"text"`
}

// A Request is what a model is asked.
type Request struct {
	Messages []Message `json:"messages"`
	// Schema, if not nil, is the JSON schema the answer has to follow, in the dialect
	// of the provider; SchemaName names it.
	Schema     json.RawMessage `json:"schema,omitempty"`
	SchemaName string          `json:"schema_name,omitempty"`
	// MaxTokens bounds the answer; 0 leaves it to the provider, where it may.
	MaxTokens int `json:"max_tokens,omitempty"`
	// Temperature; nil leaves it to the provider.
	Temperature *float64 `json:"temperature,omitempty"`
	// CacheKey groups requests that begin alike, for the prompt caches of providers.
	CacheKey string `json:"cache_key,omitempty"`
}

// Finish says why an answer ended.
type Finish string

// The reasons. Any but FinishStop makes the answer unusable.
const (
	FinishStop    Finish = "stop"
	FinishLength  Finish = "length"  // cut at MaxTokens
	FinishRefusal Finish = "refusal" // the model or a safety filter declined
)

// Usage counts the tokens of an attempt. Cached ones, read from a prompt cache, and
// Written ones, written to it at a price of their own, are parts of Input, Reasoning
// ones part of Output.
type Usage struct {
	Input, Cached, Written, Output, Reasoning int64
}

// Add returns the sum.
func (u Usage) Add(v Usage) Usage {
	return Usage{u.Input + v.Input, u.Cached + v.Cached, u.Written + v.Written, u.Output + v.Output, u.Reasoning + v.Reasoning}
}

// maxTokens bounds the counts of tokens that are believed, so that no sum overflows.
const maxTokens = 1 << 40

// believed cuts the counts of a provider to what makes sense: none is negative, or more
// than what it is a part of. Else what a call spent could be less than nothing.
func (u Usage) believed() Usage {
	part := func(n, whole int64) int64 { return min(max(n, 0), whole) }
	u.Input, u.Output = part(u.Input, maxTokens), part(u.Output, maxTokens)
	u.Cached = part(u.Cached, u.Input)
	u.Written = part(u.Written, u.Input-u.Cached)
	u.Reasoning = part(u.Reasoning, u.Output)
	return u
}

// A Response is a model's answer.
type Response struct {
	Text   string
	Model  string // as the provider names what answered
	Finish Finish
	Usage  Usage
	// Header is that of the HTTP answer, for the limits it tells; it may be nil.
	Header http.Header
}

// A Class is a kind of failure. Each has a default action, see [Class.Action].
type Class string

// The classes.
const (
	Throttled      Class = "throttled"        // 429: wait as long as told
	Unavailable    Class = "unavailable"      // 408, 5xx, 529, network
	Timeout        Class = "timeout"          // the attempt's own time was over
	NoMoney        Class = "no_money"         // quota or credit used up
	Auth           Class = "auth"             // key refused, or not allowed to use the model
	ContextTooLong Class = "context_too_long" // the request exceeds the model's window
	Refused        Class = "refused"          // by the model or a safety filter
	Truncated      Class = "truncated"        // cut at MaxTokens
	Invalid        Class = "invalid"          // the request is malformed: a bug or a wrong configuration
	Violation      Class = "violation"        // the answer does not follow the contract
	TooLarge       Class = "too_large"        // the answer exceeds the size cap
)

// An Error is a failed attempt. Its text holds no secret and no text of an event.
type Error struct {
	Class  Class
	Model  ID
	Status int // HTTP status, 0 without an answer
	// RetryAfter is the least time to wait that the provider asked for, 0 for none.
	RetryAfter time.Duration
	Usage      Usage  // what was paid all the same
	Raw        string // the unusable answer, if any
	Err        error
}

// Error names the model, the class and the cause.
func (e *Error) Error() string {
	if e.Status != 0 {
		return fmt.Sprintf("%s: %s (HTTP %d): %v", e.Model, e.Class, e.Status, e.Err)
	}
	return fmt.Sprintf("%s: %s: %v", e.Model, e.Class, e.Err)
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// ClassOf returns the class of an error, Unavailable for one that is not an
// [*Error].
func ClassOf(err error) Class {
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Class
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return Timeout
	}
	return Unavailable
}
