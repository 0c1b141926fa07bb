package processors

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/millrace/millrace/llm"
	"github.com/millrace/millrace/llm/answer"
	"github.com/millrace/millrace/llm/prompt"
	"github.com/millrace/millrace/llm/schema"
	millracev1 "github.com/millrace/millrace/proto/millrace/v1"
	"github.com/millrace/millrace/serde"
)

// An OpenPolicy says what becomes of an event while no model of its chain may be
// asked, since their circuit breakers are open.
type OpenPolicy uint8

const (
	// OpenWait keeps the event until a model may be asked.
	OpenWait OpenPolicy = iota
	// OpenFallback forwards the event to the fallbacks at once.
	OpenFallback
	// OpenDeadLetter writes the event to the dead letters at once.
	OpenDeadLetter
)

// An EnrichStep is the typed description of an asynchronous step that asks models
// for a message about every event. Of the fields of AsyncConfig, Attempts counts for
// its Deadline only: the caller has the attempts.
type EnrichStep[K, In any, Out proto.Message] struct {
	AsyncConfig
	Key    serde.Serde[K]
	Value  serde.Serde[In]
	Result serde.Serde[Out]

	// Caller asks the models. Schemas has one for each of them.
	Caller  *llm.Caller
	Schemas map[llm.ID]*schema.Schema
	Prompt  *prompt.Prompt
	// Shape is what the template of a version may use, Tables what it reads as
	// .Tables.<name>.
	Shape  *millracev1.DataShape
	Tables []PromptTable[K, In]
	// Generation is that of Out: answers to another one are dead-lettered.
	Generation int
	// Check is what else an answer has to be; may be nil. It runs outside of the task.
	Check func(In, Out) error
	// MaxTokens and Temperature are those of every request.
	MaxTokens   int
	Temperature *float64
	// MaxReasks bounds how often a model is asked again after an answer was refused.
	MaxReasks int
	OnOpen    OpenPolicy
	// Conversation keeps the turns of a key; nil keeps none.
	Conversation *ConversationConfig
	// Cache keeps accepted answers for equal requests; nil keeps none.
	Cache *CacheConfig
	// RawTopic takes refused answers, as Capture says; empty keeps none.
	RawTopic string
	Capture  Capture
	// Budgets bound what is spent. Those that are not of keys are split by the partitions
	// of Loop, the step's loop topic, and so is the limiter. OnBudget, if not nil, is told of every change of a
	// budget, in the task: it must be quick. The change may be undone and made again.
	Budgets  []BudgetConfig[K, In]
	Loop     string
	OnBudget func(BudgetStatus)
	// SampleRate is the part of the accepted answers that RawTopic takes too.
	SampleRate float64
	// TraceContent has spans record what is asked and answered.
	TraceContent bool

	spans spans
}

// enrichRun is a step in a task.
type enrichRun[K, In any, Out proto.Message] struct {
	*EnrichStep[K, In, Out]
	task  AsyncTask
	async AsyncStep[K, In, Out]
	talk  *conversations // nil if there are none
	cache *answerCache   // the same

	budgets *budgets[K, In]
	prompts *prompts[K, In]
}

// Start starts the step in a task, which must be an [AsyncTask].
func (s *EnrichStep[K, In, Out]) Start(t Task, results Forward[K, Answer[In, Out]], fallbacks Forward[K, In]) (*Async, Forward[K, In], error) {
	at, ok := t.(AsyncTask)
	if !ok {
		return nil, nil, fmt.Errorf("step %q: a %T does not run asynchronous steps", s.Step, t)
	}
	run := &enrichRun[K, In, Out]{
		EnrichStep: s, task: at,
		async: AsyncStep[K, In, Out]{AsyncConfig: s.AsyncConfig, Key: s.Key, Value: s.Value, Result: s.Result},
	}
	var err error
	if run.prompts, err = openPrompts(t, s.Step, s.Prompt, s.Shape, s.Tables, s.Loop); err != nil {
		return nil, nil, err
	}
	var sizes []func() StoreSize
	if s.Conversation != nil {
		if run.talk, err = newConversations(at, *s.Conversation); err != nil {
			return nil, nil, fmt.Errorf("step %q: %w", s.Step, err)
		}
		sizes = append(sizes, run.talk.rows.sizes)
	}
	if s.Cache != nil {
		if run.cache, err = newAnswerCache(at, s.Cache); err != nil {
			return nil, nil, fmt.Errorf("step %q: %w", s.Step, err)
		}
		sizes = append(sizes, run.cache.rows.sizes)
	}
	typed := asyncTyped{
		resolve: run.resolve,
		call:    run.call,
		answer:  func(e *millracev1.Entry, o *millracev1.Outcome) error { return run.answered(e, o, results) },
		fallback: func(e *millracev1.Entry, o *millracev1.Outcome) error {
			rec, err := run.decode(e)
			if err != nil {
				return err
			}
			reason := Header{Key: FallbackHeader, Value: []byte(reasonName(o.GetFailure().GetReason()))}
			rec.Headers = append(withHeaders(rec.Headers, enrichHeaders(progressOf(e, o), StatusFallback)), reason)
			return fallbacks(rec)
		},
		failed:  run.note,
		report:  run.report,
		details: run.details,
		admit:   run.admit,
		further: asyncFurther{more: run.more, done: run.summarized},
		sizes: func() (all []StoreSize) {
			for _, f := range sizes {
				all = append(all, f())
			}
			return all
		},
	}
	if run.budgets, err = s.openBudgets(at); err != nil {
		return nil, nil, err
	}
	for _, b := range run.budgets.list {
		sizes = append(sizes, b.rows.sizes)
	}
	if len(s.Budgets) > 0 {
		typed.reserve, typed.settle = run.reserve, run.settle
	}
	a := newAsync(at, s.AsyncConfig, typed)
	if a.closed, err = s.share(t); err != nil {
		return nil, nil, err
	}
	return a, run.input(a), nil
}

func (s *enrichRun[K, In, Out]) decode(e *millracev1.Entry) (Record[K, In], error) {
	rec, err := s.async.decode(e.Event)
	return rec, Fail(ClassDecode, s.Step, err)
}

// resolve fixes what the models are asked for an event.
func (s *enrichRun[K, In, Out]) resolve(e *millracev1.Entry) ([]byte, error) {
	if isControl(e) {
		command, _, err := s.control(fromProtoHeaders(e.Event.Headers), e.Event.Key == nil)
		if err != nil {
			return nil, err
		}
		return proto.Marshal(&millracev1.Question{Control: command})
	}
	version, label, err := s.prompts.choose(e, s.Schemas[s.Caller.Models()[0]].Fingerprint(), s.Generation)
	if err != nil {
		return nil, err
	}
	rec, err := s.decode(e)
	if err != nil {
		return nil, err
	}
	if rec.NoValue {
		return nil, errors.New("the event has no value to ask about; filter tombstones out before the step")
	}
	data := prompt.Data{Event: rec.Value}
	if !rec.NoKey {
		data.Key = rec.Key
	}
	if data.Tables, err = s.prompts.read(e, rec); err != nil {
		return nil, err
	}
	q := &millracev1.Question{Prompt: version.Name(), PromptVersion: version.Version(), PromptLabel: label}
	q.Messages = append(q.Messages, &millracev1.Message{Role: millracev1.Role_ROLE_SYSTEM, Text: version.System()})
	if s.talk != nil && e.Event.Key != nil {
		c, err := s.talk.load(e.Event.Key, rec.Timestamp)
		if err != nil {
			return nil, err
		}
		data.Context = c
		q.Summary = c.Summary.GetText()
		for _, t := range c.Turns {
			q.Messages = append(q.Messages, &millracev1.Message{Role: t.Role, Text: t.Text})
		}
	}
	text, err := version.User(data)
	if err != nil {
		return nil, err
	}
	q.Messages = append(q.Messages, &millracev1.Message{Role: millracev1.Role_ROLE_USER, Text: text})
	if err := s.lookup(q); err != nil {
		return nil, err
	}
	return proto.Marshal(q)
}

// answered emits an accepted answer, and adds it to the conversation and the cache. That
// of a control record has it do what it says.
func (s *enrichRun[K, In, Out]) answered(e *millracev1.Entry, o *millracev1.Outcome, results Forward[K, Answer[In, Out]]) error {
	talks, q := s.talk != nil && e.Event.Key != nil, &millracev1.Question{}
	if talks || isControl(e) {
		if err := proto.Unmarshal(e.Resolved, q); err != nil {
			return &Error{Class: ClassState, Step: s.Step, Err: fmt.Errorf("what was asked: %w", err)}
		}
		if q.Control != "" {
			return s.controlled(e, q.Control)
		}
	}
	rec, err := s.decode(e)
	if err != nil {
		return err
	}
	p := progressOf(e, o)
	if int(p.Generation) != s.Generation {
		return &Error{
			Class: ClassDecode, Step: s.Step, Action: DeadLetter,
			Err: fmt.Errorf("the answer follows generation %d of the message, and the program has %d: replay the event to ask again", p.Generation, s.Generation),
		}
	}
	out, err := s.Result.Decode(o.GetAnswer().GetValue())
	if err != nil {
		return Fail(ClassDecode, s.Step, fmt.Errorf("answer of %d bytes as %s: %w", len(o.GetAnswer().GetValue()), s.Result.Name(), err))
	}
	if talks {
		err = s.talk.add(e, q, p)
	}
	if err == nil && s.cache != nil && p.CacheHit != millracev1.CacheHit_CACHE_HIT_CACHE {
		err = s.cache.add(e, p)
	}
	if err != nil {
		return &Error{Class: ClassState, Step: s.Step, Err: err}
	}
	if err := s.sample(e, p); err != nil {
		return err
	}
	status := enrichStatus(p)
	rec.Headers = withHeaders(rec.Headers, enrichHeaders(p, status))
	return results(WithValue(rec, Answer[In, Out]{Event: rec.Value, Result: out}, false))
}

// note reports a refused answer, and writes it to the raw topic.
func (s *enrichRun[K, In, Out]) note(e *millracev1.Entry, o *millracev1.Outcome) error {
	if o.Progress == nil {
		return nil
	}
	p := decodeProgress(o.Progress)
	if len(p.Violations) == 0 || p.Refused == decodeProgress(e.Progress).Refused {
		return nil // it is that of an earlier round, or none
	}
	s.task.Report(s.refused(e, o, p))
	if s.RawTopic == "" {
		return nil
	}
	return s.raw(e, enrichHeaders(p, StatusRefused), Header{ViolationsHeader, violationsJSON(p)}, s.Capture.of(p))
}

// raw writes an answer to the raw topic.
func (s *enrichRun[K, In, Out]) raw(e *millracev1.Entry, headers []Header, what Header, text []byte) error {
	src := e.Source
	headers = append(headers,
		Header{EntryHeader, []byte(e.Id)}, Header{RoundHeader, fmt.Append(nil, e.Round)}, what,
		Header{"millrace.topic", []byte(src.Topic)}, Header{"millrace.partition", fmt.Append(nil, src.Partition)}, Header{"millrace.offset", fmt.Append(nil, src.Offset)})
	raw := Raw{Key: e.Event.Key, Value: text, Timestamp: s.task.Now().UnixMilli(), Headers: headers}
	return Fail(ClassProduce, s.Step, s.task.Produce(s.RawTopic, -1, raw))
}

// details are the headers of a dead letter.
func (s *enrichRun[K, In, Out]) details(e *millracev1.Entry, o *millracev1.Outcome) []Header {
	p := progressOf(e, o)
	traced := eventCarrier{e.Event}
	headers := slices.DeleteFunc(enrichHeaders(p, StatusDeadLetter), func(h Header) bool {
		// They are there. A trace of the event's own stays, for a replay: the last one counts.
		return h.Key == AttemptsHeader || (h.Key == TraceParentHeader || h.Key == TraceStateHeader) && traced.Get(h.Key) == string(h.Value)
	})
	if len(p.Answer) > 0 {
		headers = append(headers, Header{AnswerHeader, s.Capture.of(p)})
	}
	if len(p.Violations) > 0 {
		headers = append(headers, Header{ViolationsHeader, violationsJSON(p)})
	}
	return headers
}

func violationsJSON(p *millracev1.Enrichment) []byte {
	list := make([]answer.Violation, len(p.Violations))
	for i, v := range p.Violations {
		list[i] = answer.Violation{Path: v.Path, Rule: v.Rule, Message: v.Message}
	}
	text, err := json.Marshal(list)
	if err != nil { // a list of strings
		panic(err)
	}
	return text
}

// progressOf returns what the rounds of an entry came to.
func progressOf(e *millracev1.Entry, o *millracev1.Outcome) *millracev1.Enrichment {
	if o.GetProgress() != nil {
		return decodeProgress(o.Progress)
	}
	return decodeProgress(e.Progress)
}

// decodeProgress reads what this package wrote; garbage says nothing.
func decodeProgress(data []byte) *millracev1.Enrichment {
	p := &millracev1.Enrichment{}
	if proto.Unmarshal(data, p) != nil {
		return &millracev1.Enrichment{}
	}
	return p
}

func modelID(m *millracev1.ModelID) llm.ID {
	return llm.ID{Provider: m.GetProvider(), Model: m.GetModel()}
}

func protoModelID(id llm.ID) *millracev1.ModelID {
	return &millracev1.ModelID{Provider: id.Provider, Model: id.Model}
}

// maxAnswer bounds what is kept of an answer, in bytes.
const maxAnswer = 64 << 10

// timing is what the calls of a round share with their models.
type timing struct {
	sent     *atomic.Bool
	entry    Entry
	first    time.Time // when a model was first asked
	attempts int
}
