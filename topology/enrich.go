package topology

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"reflect"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/millrace/millrace/llm"
	"github.com/millrace/millrace/llm/prompt"
	"github.com/millrace/millrace/llm/schema"
	"github.com/millrace/millrace/processors"
	millracev1 "github.com/millrace/millrace/proto/millrace/v1"
	"github.com/millrace/millrace/serde"
)

// An Enrichment says how [Enrich] makes an Out of every event. Model and Prompt are
// required.
type Enrichment[K, In any, Out proto.Message] struct {
	// Model is asked first. Its own retries have to be off: the step has the only loop.
	Model llm.Model
	// Fallbacks are asked after it, in order, each for the classes of failure that its
	// link names; see [llm.Link]. One that names [llm.Violation] is asked when the models
	// before it used up their MaxReasks.
	Fallbacks []llm.Link
	// Dialects overrides which JSON schema a model gets: by default that of its provider,
	// [schema.DialectOf].
	Dialects map[llm.ID]schema.Dialect
	// Prompt makes the request of an event. Its version is part of every record. It is
	// the built-in version: the topic <app>.prompts may hold others of its name, which
	// the labels [prompt.Prod] and [prompt.Canary] put in its place while the
	// application runs. Of an event the version is chosen once, when it is about to be
	// asked about, and stays over restarts and rounds.
	Prompt *prompt.Prompt
	// Tables are what the template reads as .Tables.<name>.
	Tables map[string]PromptTable[K, In]
	// Generation is to be raised when Out changes so that programs with the old message
	// would misread the new one, or the other way round: see [schema.Compatible]. An
	// application that changes Out so and keeps the generation is refused when it
	// starts, and so is a new generation that is written to the topics of the old one.
	// Answers to the old generation that were under way are dead-lettered. Default: 0.
	Generation int
	// Check is what else an answer has to be, besides the protovalidate rules of Out; nil
	// checks nothing. It runs outside of the task and must be safe for concurrent use.
	// What its error says is sent to the model, which is asked again.
	Check func(In, Out) error
	// MaxTokens bounds an answer; 0 leaves it to the provider. Temperature is the
	// provider's if nil.
	MaxTokens   int
	Temperature *float64
	// MaxReasks bounds how often a model is asked again after an answer that does not
	// follow the contract. Default 2; a negative number asks never again.
	MaxReasks int
	// Actions replaces the default actions of some classes of failure.
	Actions map[llm.Class]llm.Action
	// OnOpenBreaker says what becomes of an event while the breakers of all models that
	// it could reach are open. Default: [processors.OpenWait]: it waits without a slot,
	// and as many as probe the models are let through when that is due.
	OnOpenBreaker processors.OpenPolicy
	// FallbackOn lists the classes of failure that make an event without an answer a
	// fallback; those of other classes are dead letters. [OnFailure] of [FallbackEvent]
	// stands for all classes.
	FallbackOn []llm.Class
	// Conversation, if not nil, shows the models what was said about the key before.
	Conversation *Conversation
	// Cache, if not nil, answers equal requests without another call.
	Cache *Cache
	// Breakers and Limiter are to be shared by the steps of an instance. Nil means
	// breakers of the step's own, and no limit.
	Breakers *llm.Breakers
	Limiter  llm.Limiter
	// Prices makes costs known; nil leaves them out.
	Prices *llm.PriceTable
	// Budgets bound what is spent. All that bound an event have to cover its call.
	Budgets []Budget[K, In]
	// OnBudget is told of every change of a budget and of every event that one does not
	// cover, in the task: it must be quick. A change may be undone and made again.
	OnBudget func(processors.BudgetStatus)
	// Capture says how much of a refused answer is kept, in dead letters and in the topic
	// <app>.<step>.raw. Default: all of it.
	Capture processors.Capture
	// SampleRate is the part of the accepted answers, from 0 to 1, that is written to
	// <app>.<step>.raw too, in the transaction of its result and with
	// [processors.SampleHeader]. Which answers these are depends on the event alone.
	// Default 0.
	SampleRate float64
	// TraceContent has the step's spans record what models are asked and answer. By
	// default no text of them is in spans.
	TraceContent bool
	// OnAttempt is told of each attempt, as [llm.CallerConfig] says.
	OnAttempt func(context.Context, llm.Attempt)
}

// A Conversation keeps, per key, the events of a session and the accepted answers to
// them, and shows them to the models before the next event. It needs the order
// [processors.OrderKey]. Events without a key have none.
//
// A turn is added in the transaction that emits the answer. What an event says stays
// in the conversation of its key: MaxTurns, MaxTokens, SessionGap and TTL bound for how
// long. [processors.ResetConversation] and [processors.CutConversation] make control
// records, which end a conversation or take an event out of it, in the order of the
// key's events.
type Conversation struct {
	// Store names the key-value store. Default: <step>-conversations.
	Store string
	// MaxTurns and MaxTokens bound what is kept: the oldest events go first, with their
	// answers. Defaults: 20 and 4,000.
	MaxTurns  int
	MaxTokens int64
	// SessionGap ends the session when the next event is later by more. Default: 24 h.
	SessionGap time.Duration
	// TTL is how long after its last change a conversation is deleted, with a tombstone
	// in the changelog, by the wall clock of the task. Default: 30 days.
	TTL time.Duration
	// Summary, if not nil, has a model summarize what no longer fits, instead of
	// dropping it.
	Summary *Summary
}

// A Cache keeps the accepted answers of a step: an equal request (messages, with the
// conversation in them, schema, model, parameters) makes no call, costs nothing, and
// has the header [processors.CacheHitHeader]. What the cache holds is validated as any
// answer is. It is a store, with a changelog, so it lasts over restarts and replays.
//
// The store is that of a partition: equal requests of other partitions are made there.
// Equal requests that are asked at the same time make one call for all partitions that
// an instance has. If that call fails the others are made after all, each on its own.
type Cache struct {
	// Store names the key-value store, of *millracev1.CachedAnswer by the SHA-256 of the
	// request. Default: <step>-cache.
	Store string
	// MaxEntries bounds the answers of a partition; it is required. The oldest go first.
	MaxEntries int
	// TTL is how long an answer is kept, by the wall clock of the task. Default: 24 h.
	TTL time.Duration
}

// A Summary says how what no longer fits a conversation's window is summarized. The
// newest exchanges that fill half of the window stay; a model makes a summary of those
// before and of the summary before, and the models of the step see it, as data, before
// the turns. It is data of events, whatever it says.
//
// It is a call of its own through the step's loop, made when the exchange that exceeds
// the window is in its topic, and before the next event of the key is asked about. So
// it is never paid for twice. If it fails, the oldest exchanges are dropped, and the
// step counts a drop, "summary-failed".
type Summary struct {
	// Model writes the summaries, in plain text; nil takes the models of the step.
	Model llm.Model
	// Prompt sees the turns and the summary before as .Context, a
	// *millracev1.Conversation. The default asks for the facts in at most 200 words.
	Prompt *prompt.Prompt
	// MaxTokens bounds a summary. Default: 512.
	MaxTokens int
}

// An Enriched is the outcome of [Enrich].
type Enriched[K, In any, Out proto.Message] struct {
	answers   *KStream[K, processors.Answer[In, Out]]
	fallbacks *KStream[K, In]
	talk      *Store[K, *millracev1.Conversation]
	ofKeys    map[string]*Store[K, *millracev1.Spending]
	ofNames   map[string]*Store[string, *millracev1.Spending]
	cache     *Store[[]byte, *millracev1.CachedAnswer]
}

// Enriched is the stream of valid answers: key, timestamp and headers are those of the
// event, with the headers of package processors (prompt, model, tokens, cost, status).
func (e *Enriched[K, In, Out]) Enriched() *KStream[K, Out] {
	return MapValues(e.answers, func(a processors.Answer[In, Out]) Out { return a.Result }).WithValueSerde(serde.Proto[Out]())
}

// Answers is Enriched with the event beside its answer.
func (e *Enriched[K, In, Out]) Answers() *KStream[K, processors.Answer[In, Out]] { return e.answers }

// Fallbacks is the stream of the events that ended without an answer, unchanged but
// for headers, of which [processors.FallbackHeader] says why. It needs [OnFailure] of
// [FallbackEvent], FallbackOn, OnOpenBreaker of [processors.OpenFallback] or a budget of
// [processors.BudgetFallback].
func (e *Enriched[K, In, Out]) Fallbacks() *KStream[K, In] { return e.fallbacks }

// Conversations is the store of conversations, for [state.View]; nil if there is none.
func (e *Enriched[K, In, Out]) Conversations() *Store[K, *millracev1.Conversation] { return e.talk }

// Cached is the store of the cache, for [state.View]; nil if there is none.
func (e *Enriched[K, In, Out]) Cached() *Store[[]byte, *millracev1.CachedAnswer] { return e.cache }

// Enrich asks a model for a message about every event, exactly once and without the
// pipeline ever waiting for it. Out is a generated Protobuf message, such as
// *supportv1.Triage: its descriptor and protovalidate rules make the JSON schema that
// the model is asked for, and what it answers is held to them.
//
// The step is an asynchronous step like [AsyncLookup], with its group, topics, order,
// capacity and options. Of an event that becomes the head of its lane, the request is
// fixed and stored; it is sent after that transaction. Every answer comes back through
// the loop topic, a refused one too: it makes a further round of the entry, in which
// the model sees its answer and what is wrong with it. So no answer that arrived is
// ever paid for again.
//
// Every event ends once: in Enriched, in Fallbacks, or in the dead letters of the step
// with the last answer, what was wrong with it and what it cost. Every refused answer
// is also written to <app>.<name>.raw, in the transaction that makes the next round or
// ends the entry.
//
// [Deadline] bounds the time in which models are asked, over all rounds. A call that
// ends throttled is made again, without limit unless [MaxWait] is set, and waits as long
// for an open breaker: a provider's limit or outage makes no dead letters. [Retries]
// counts per model and round.
func Enrich[K, In any, Out proto.Message](s *KStream[K, In], name string, e Enrichment[K, In, Out], opts ...LookupOption) *Enriched[K, In, Out] {
	o := lookupDefaults(s.b, name)
	for _, opt := range opts {
		opt.lookup(&o)
	}
	what := fmt.Sprintf("enrichment %q", name)
	for _, err := range o.errs {
		s.b.fail("%s: %v", what, err)
	}
	in := asyncInput(s, name, o.Order != processors.OrderNone || exactKeys(e.Budgets))
	o.OpenFallback = e.OnOpenBreaker == processors.OpenFallback
	for _, class := range e.FallbackOn {
		o.FallbackOn = append(o.FallbackOn, processors.Class(class))
	}
	step := &processors.EnrichStep[K, In, Out]{
		AsyncConfig: o.AsyncConfig, Prompt: e.Prompt, Check: e.Check, MaxTokens: e.MaxTokens, Temperature: e.Temperature,
		MaxReasks: e.MaxReasks, OnOpen: e.OnOpenBreaker, Capture: e.Capture, SampleRate: e.SampleRate, TraceContent: e.TraceContent, Generation: e.Generation,
	}
	switch {
	case e.MaxReasks == 0:
		step.MaxReasks = 2
	case e.MaxReasks < 0:
		step.MaxReasks = 0
	}
	if needSerdes(in, what) {
		step.Key, step.Value = in.key, in.value
	}
	if err := errors.Join(e.complete(step), e.sampling()); err != nil {
		s.b.fail("%s: %v", what, err)
	}
	n := &node{
		kind: kindAsync, op: "enrich", name: name, detail: "order " + o.Order.String(),
		outs: 2, labels: []string{"answers", "fallbacks"}, timers: true, fallback: o.Fallback || o.OpenFallback || len(o.FallbackOn) > 0,
	}
	n.caller = step.Caller
	if e.Capture != processors.CaptureOff {
		n.raw = s.b.app + "." + name + ".raw"
		step.RawTopic = n.raw
	}
	if step.Key != nil && step.Result != nil {
		n.serdes = [2]string{step.Key.Name(), step.Value.Name()}
		n.detail = join(n.detail, "answers "+step.Result.Name())
	}
	res := &Enriched[K, In, Out]{ofKeys: map[string]*Store[K, *millracev1.Spending]{}, ofNames: map[string]*Store[string, *millracev1.Spending]{}}
	budget(s.b, what, n, step, &e, res)
	if n.fallback {
		n.detail = join(n.detail, "fallbacks")
	}
	if e.Cache != nil {
		res.cache = remember(s.b, what, n, step, *e.Cache)
	}
	if e.Conversation != nil {
		res.talk = converse(s.b, what, n, step, *e.Conversation)
	}
	if e.Generation > 0 {
		n.detail = join(n.detail, fmt.Sprintf("generation %d", e.Generation))
	}
	n.prompt = e.use(step)
	from, tables := joinPromptTables(s.b, what, n, step, e.Tables)
	n.run = func(t processors.Task, out [][]any) (*operator, error) {
		async, in, err := step.Start(t, forwards[K, processors.Answer[In, Out]](out[0]), forwards[K, In](out[1]))
		if err != nil {
			return nil, err
		}
		op := asyncOperator(async, processors.Guard(name, in))
		op.inputs = append(op.inputs, tables...)
		return op, nil
	}
	s.b.addNode(n, append([]port{in.from}, from...)...)
	res.answers = &KStream[K, processors.Answer[In, Out]]{b: s.b, from: port{n: n}, key: in.key, changed: in.changed}
	res.fallbacks = &KStream[K, In]{b: s.b, from: port{n: n, out: 1}, key: in.key, value: in.value, changed: in.changed}
	return res
}

// complete adds what is made of the models and the message. It reports all that is
// wrong.
func (e *Enrichment[K, In, Out]) complete(step *processors.EnrichStep[K, In, Out]) error {
	var errs []error
	if t := reflect.TypeFor[Out](); t.Kind() != reflect.Pointer || t.Elem().Kind() != reflect.Struct {
		return fmt.Errorf("%s is no generated Protobuf message, such as *supportv1.Triage", t)
	}
	step.Result = serde.Proto[Out]()
	if e.Prompt == nil {
		errs = append(errs, errors.New("it has no Prompt; make one with prompt.New"))
	} else {
		step.Shape = prompt.ShapeOf(prompt.Data{Event: zeroOf[In](), Key: zeroOf[K](), Context: &millracev1.Conversation{}, Tables: shapesOf(e.Tables)})
		errs = append(errs, e.Prompt.Fits(step.Shape))
	}
	if e.Generation < 0 || e.Generation > math.MaxInt32 {
		errs = append(errs, fmt.Errorf("Generation is %d; it counts from 0", e.Generation))
	}
	if e.MaxTokens < 0 {
		errs = append(errs, fmt.Errorf("MaxTokens is %d; it must not be negative", e.MaxTokens))
	}
	if e.OnOpenBreaker > processors.OpenDeadLetter || e.Capture > processors.CaptureOff {
		errs = append(errs, errors.New("OnOpenBreaker or Capture is none of the values of package processors"))
	}
	if e.Model == nil {
		return errors.Join(append(errs, errors.New("it has no Model; make one with openai.New, anthropic.New or gemini.New"))...)
	}
	chain := append([]llm.Link{{Model: e.Model}}, e.Fallbacks...)
	step.Schemas = map[llm.ID]*schema.Schema{}
	var zero Out
	for i, l := range chain {
		if l.Model == nil {
			continue // the caller says so
		}
		id := l.Model.ID()
		chain[i].Model = processors.Labelled(l.Model)
		dialect, ok := e.Dialects[id]
		if !ok {
			dialect = schema.DialectOf(id.Provider)
		}
		sch, err := schema.For(zero.ProtoReflect().Descriptor(), dialect)
		if err != nil {
			errs = append(errs, fmt.Errorf("model %s: %w", id, err))
		}
		step.Schemas[id] = sch
	}
	actions := e.Actions
	if _, ok := actions[llm.OverBudget]; !ok { // only to links that are for it
		actions = maps.Clone(actions)
		if actions == nil {
			actions = map[llm.Class]llm.Action{}
		}
		actions[llm.OverBudget] = llm.ActionDeadLetter
	}
	a := step.Attempts
	var err error
	step.Caller, err = llm.NewCaller(llm.CallerConfig{
		Chain: chain, Breakers: e.Breakers, Limiter: e.Limiter, Prices: e.Prices, OnAttempt: e.OnAttempt,
		Policy: llm.Policy{
			Timeout: a.Timeout, Deadline: a.Deadline, Attempts: a.Attempts,
			Backoff: a.Backoff, MaxBackoff: a.MaxBackoff, Actions: actions,
		},
	})
	return errors.Join(append(errs, err)...)
}

// sampling reports what is wrong with SampleRate.
func (e *Enrichment[K, In, Out]) sampling() error {
	switch {
	case !(e.SampleRate >= 0 && e.SampleRate <= 1): // nor NaN
		return fmt.Errorf("SampleRate is %v; take one from 0 to 1", e.SampleRate)
	case e.SampleRate > 0 && e.Capture == processors.CaptureOff:
		return errors.New("SampleRate keeps answers, and Capture is CaptureOff; leave one of them out")
	}
	return nil
}

// use says how the step uses its prompt; nil if it is not complete.
func (e *Enrichment[K, In, Out]) use(step *processors.EnrichStep[K, In, Out]) *prompt.Use {
	if e.Prompt == nil || step.Result == nil {
		return nil
	}
	var zero Out
	return &prompt.Use{Step: step.Step, Prompt: e.Prompt, Shape: step.Shape, Message: zero.ProtoReflect().Descriptor(), Generation: e.Generation}
}

// zeroOf returns a value of type T for a look at its fields: of a pointer, a new one.
func zeroOf[T any]() any {
	if t := reflect.TypeFor[T](); t.Kind() == reflect.Pointer {
		return reflect.New(t.Elem()).Interface()
	}
	var zero T
	return zero
}
