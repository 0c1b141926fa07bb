package topology

import (
	"fmt"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/millrace/millrace/llm"
	"github.com/millrace/millrace/llm/prompt"
	"github.com/millrace/millrace/processors"
	millracev1 "github.com/millrace/millrace/proto/millrace/v1"
	"github.com/millrace/millrace/serde"
	"github.com/millrace/millrace/state"
)

// summaryPrompt is that of summaries whose step has none of its own.
var summaryPrompt = prompt.Must(prompt.Config{
	Name: "millrace.summary",
	System: "You keep the memory of a conversation between a user and an assistant whose answers are JSON. " +
		"Write a summary that replaces what you are shown: facts, names, numbers, what was asked and decided, what is open. " +
		"Plain text, at most 200 words, no instructions.",
	User: "{{with .Context.Summary}}Summary of what came before: {{.Text}}\n{{end}}" +
		"{{range .Context.Turns}}{{if eq .Role 3}}Assistant{{else}}User{{end}}: {{.Text}}\n{{end}}",
})

// converse adds the store of conversations to a step.
func converse[K, In any, Out proto.Message](b *Builder, what string, n *node, step *processors.EnrichStep[K, In, Out], c Conversation) *Store[K, *millracev1.Conversation] {
	if step.Order != processors.OrderKey {
		b.fail("%s: a conversation needs the order of keys, but the order is %s; leave Order or Conversation out", what, step.Order)
	}
	if c.MaxTurns < 0 || c.MaxTokens < 0 || c.SessionGap < 0 || c.TTL < 0 {
		b.fail("%s: conversation: MaxTurns %d, MaxTokens %d, SessionGap %s, TTL %s: none may be negative", what, c.MaxTurns, c.MaxTokens, c.SessionGap, c.TTL)
	}
	cfg := &processors.ConversationConfig{
		Store: orDefault(c.Store, n.name+"-conversations"), MaxTurns: orDefault(c.MaxTurns, 20), MaxTokens: orDefault(c.MaxTokens, 4_000),
		SessionGap: orDefault(c.SessionGap, 24*time.Hour), TTL: orDefault(c.TTL, 30*24*time.Hour),
	}
	step.Conversation = cfg
	n.detail = join(n.detail, fmt.Sprintf("conversations of %d turns, %d tokens, gap %s", cfg.MaxTurns, cfg.MaxTokens, cfg.SessionGap))
	if c.Summary != nil {
		cfg.Summary = summarize(b, what, step.Caller, *c.Summary, len(step.Budgets) > 0)
		n.detail = join(n.detail, "summaries")
	}
	value := serde.Proto[*millracev1.Conversation]()
	if step.Key == nil {
		return &Store[K, *millracev1.Conversation]{}
	}
	spec := state.Spec{Name: cfg.Store, Kind: state.KeyValue, KeySerde: step.Key.Name(), ValueSerde: value.Name()}
	n.stores = append(n.stores, spec)
	return &Store[K, *millracev1.Conversation]{spec: spec, key: step.Key, value: value}
}

// summarize completes what is said of summaries. The step's caller may be nil, if it
// is wrong.
func summarize(b *Builder, what string, caller *llm.Caller, s Summary, budgeted bool) *processors.SummaryConfig {
	cfg := &processors.SummaryConfig{Caller: caller, Prompt: s.Prompt, MaxTokens: orDefault(s.MaxTokens, 512)}
	if s.MaxTokens < 0 {
		b.fail("%s: summary: MaxTokens is %d; it must not be negative", what, s.MaxTokens)
	}
	if cfg.Prompt == nil {
		cfg.Prompt = summaryPrompt
	} else if err := cfg.Prompt.Check(prompt.Data{Context: &millracev1.Conversation{Summary: &millracev1.Summary{}, Turns: []*millracev1.Turn{{}}}}); err != nil {
		b.fail("%s: summary: %v", what, err)
	}
	if s.Model == nil || caller == nil {
		return cfg
	}
	c := caller.CallerConfig
	c.Chain = []llm.Link{{Model: processors.Labelled(s.Model)}}
	var err error
	if cfg.Caller, err = llm.NewCaller(c); err != nil {
		b.fail("%s: summary: %v", what, err)
	} else if budgeted && c.Prices != nil {
		if err := c.Prices.Check(time.Now(), s.Model.ID()); err != nil {
			b.fail("%s: summary: %v", what, err)
		}
	}
	return cfg
}

// remember adds the store of cached answers to a step.
func remember[K, In any, Out proto.Message](b *Builder, what string, n *node, step *processors.EnrichStep[K, In, Out], c Cache) *Store[[]byte, *millracev1.CachedAnswer] {
	if c.MaxEntries < 1 || c.TTL < 0 {
		b.fail("%s: cache: MaxEntries %d, TTL %s: set MaxEntries, how many answers a partition keeps; the TTL must not be negative", what, c.MaxEntries, c.TTL)
	}
	step.Cache = &processors.CacheConfig{
		Store: orDefault(c.Store, n.name+"-cache"), TTL: orDefault(c.TTL, 24*time.Hour), MaxEntries: c.MaxEntries, Flights: &processors.Flights{},
	}
	key, value := serde.Bytes(), serde.Proto[*millracev1.CachedAnswer]()
	spec := state.Spec{Name: step.Cache.Store, Kind: state.KeyValue, KeySerde: key.Name(), ValueSerde: value.Name()}
	n.stores = append(n.stores, spec)
	n.detail = join(n.detail, fmt.Sprintf("cache of %d answers, TTL %s", c.MaxEntries, step.Cache.TTL))
	return &Store[[]byte, *millracev1.CachedAnswer]{spec: spec, key: key, value: value}
}

func orDefault[T comparable](v, def T) T {
	var zero T
	if v == zero {
		return def
	}
	return v
}
