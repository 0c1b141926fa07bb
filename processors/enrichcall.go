package processors

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/millrace/millrace/llm"
	"github.com/millrace/millrace/llm/answer"
	"github.com/millrace/millrace/llm/genai"
	"github.com/millrace/millrace/llm/prompt"
	"github.com/millrace/millrace/llm/schema"
	millracev1 "github.com/millrace/millrace/proto/millrace/v1"
)

// enrichCall is a round of an entry under way.
type enrichCall[K, In any, Out proto.Message] struct {
	*enrichRun[K, In, Out]
	q        *request
	p        *millracev1.Enrichment
	question *millracev1.Question
	event    In
	funds    funds
	span     *genai.Span
}

// minThrottled is the least pause before a call that ended throttled is made again.
const minThrottled = time.Second

// run asks until there is an outcome; nil if ctx ended before, or if no model may be
// asked now.
func (c *enrichCall[K, In, Out]) run(ctx context.Context) (o *millracev1.Outcome) {
	c.p.CacheHit, c.q.paused = 0, nil
	var broke *millracev1.Outcome
	if c.funds.r == nil { // else it gave its slot back in between
		broke = c.fund()
	}
	ctx = c.trace(ctx)
	defer func() { c.traced(o) }()
	if broke != nil {
		return broke
	}
	if o, ok := c.byHand(ctx); ok {
		return o
	}
	if c.question.Cached != nil && c.q.round == 0 {
		return c.cached()
	}
	if o := c.shared(); o != nil {
		return o
	}
	caller := *c.Caller
	caller.OnAttempt = c.attempted
	caller.Policy.Deadline -= time.Duration(c.p.BusyMs) * time.Millisecond
	res, failure := c.ask(ctx, caller, llm.Call{Request: c.asks, From: c.link(c.p.NextModel)}, c.failed)
	if res == nil {
		if failure == nil && ctx.Err() == nil {
			c.q.paused = c
		}
		return failure
	}
	o = c.judge(res.Model, res.Response.Text, res.Response.Usage)
	c.land(res, o)
	return o
}

// ask makes a call, again while the provider throttles it. Without an answer it returns
// the outcome: what failed makes of the error, or nil if ctx ended or if no model may
// be asked now.
func (c *enrichCall[K, In, Out]) ask(ctx context.Context, caller llm.Caller, call llm.Call, failed func(error) *millracev1.Outcome) (*llm.Result, *millracev1.Outcome) {
	began := time.Now()
	for {
		t := &timing{sent: &c.q.sent, entry: Entry{ID: c.q.id, Round: int(c.q.round), Owner: c.q.owner}, attempts: int(c.p.Attempts)}
		call.Limit = c.left()
		res, err := caller.Do(context.WithValue(ctx, timingKey{}, t), call)
		c.add(&res)
		if err == nil {
			c.busy(t)
			return &res, nil
		}
		if ctx.Err() != nil {
			return nil, nil
		}
		late := func() *millracev1.Outcome {
			return c.failure(millracev1.Failure_REASON_MAX_WAIT, llm.ClassOf(err), fmt.Sprintf("no model could be asked within %s: %v", c.MaxWait, err))
		}
		if c.OnOpen == OpenWait && c.open(err) {
			c.q.waited = late()
			return nil, nil
		}
		wait, ok := c.throttled(err)
		if !ok {
			c.busy(t)
			return nil, failed(err)
		}
		if c.MaxWait > 0 && time.Since(began)+wait > c.MaxWait {
			return nil, late()
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return nil, nil
		}
	}
}

// busy counts the time in which models were asked.
func (c *enrichCall[K, In, Out]) busy(t *timing) {
	if !t.first.IsZero() {
		c.p.BusyMs += time.Since(t.first).Milliseconds()
	}
}

// byHand returns the outcome that a test driver gave the call.
func (c *enrichCall[K, In, Out]) byHand(ctx context.Context) (*millracev1.Outcome, bool) {
	a, ok := ctx.Value(answerKey{}).(answerByHand)
	if !ok {
		return nil, false
	}
	id := c.Caller.Models()[c.link(c.p.NextModel)]
	c.p.Model = protoModelID(id)
	switch v := a.value.(type) {
	case nil:
		if a.err == nil {
			a.err = errors.New("answered with nil: pass the text of a model, a *llm.Response or a message")
		}
		return c.failed(a.err), true
	case string:
		c.p.Attempts++
		return c.judge(id, v, llm.Usage{}), true
	case *llm.Response:
		cost, known := c.Caller.Prices.Cost(id, v.Usage, time.Now())
		c.add(&llm.Result{Response: v, Model: id, Attempts: 1, Usage: v.Usage, Cost: cost, CostKnown: known})
		return c.judge(id, v.Text, v.Usage), true
	case Out:
		c.p.Attempts++
		text, err := c.Schemas[id].Marshal(v)
		if err != nil {
			return c.failed(err), true
		}
		return c.judge(id, string(text), llm.Usage{}), true
	}
	return c.failed(fmt.Errorf("answered with a %T: pass the text of a model, a *llm.Response or a message", a.value)), true
}

// link returns the place of a model in the chain: the first, if it is not there.
func (c *enrichCall[K, In, Out]) link(id *millracev1.ModelID) int {
	return max(slices.Index(c.Caller.Models(), modelID(id)), 0)
}

// open reports whether err is an open breaker, or a failure that opens one until it is
// reset.
func (c *enrichCall[K, In, Out]) open(err error) bool {
	_, ok := errors.AsType[*llm.OpenError](err)
	return ok || c.Caller.Policy.Action(llm.ClassOf(err)) == llm.ActionOpen
}

// throttled says whether a call ended while the provider throttled it, and when it is
// to be made again.
func (c *enrichCall[K, In, Out]) throttled(err error) (time.Duration, bool) {
	e, ok := errors.AsType[*llm.Error](err)
	if !ok || c.open(err) || c.Caller.Policy.Action(e.Class) != llm.ActionWait {
		return 0, false
	}
	return max(e.RetryAfter, minThrottled), true
}

// request returns what to ask a model.
func (c *enrichCall[K, In, Out]) request(id llm.ID) (*llm.Request, error) {
	s := c.Schemas[id]
	if s == nil {
		return nil, fmt.Errorf("there is no schema for %s", id)
	}
	r := &llm.Request{
		Schema: s.JSON(), SchemaName: s.Name(), MaxTokens: c.MaxTokens, Temperature: c.Temperature,
		CacheKey: cacheKey(c.question),
	}
	for i, m := range c.question.Messages {
		text := m.Text
		if d := s.Dialect(); i == 0 && (d == schema.LlamaCpp || d == schema.Portable) {
			text += "\n\nAnswer with one JSON object that follows this schema:\n" + string(r.Schema) // they do not show it
		}
		if i == 1 && c.question.Summary != "" {
			text = "What was said before, in short:\n" + prompt.Delimit(c.question.Summary, maxShown) + "\n\n" + text
		}
		r.Messages = append(r.Messages, llm.Message{Role: roles[m.Role], Text: text})
	}
	if c.p.Reasks > 0 {
		bad := prompt.Clean(string(c.p.Answer[:min(len(c.p.Answer), maxShown)]))
		if strings.TrimSpace(bad) == "" {
			bad = "(nothing)" // some providers refuse an empty turn
		}
		r.Messages = append(r.Messages, llm.Message{Role: llm.RoleAssistant, Text: bad},
			llm.Message{Role: llm.RoleUser, Text: prompt.Clean(c.violations().Prompt())})
	}
	return r, nil
}

// maxCacheKey is how long a key of a prompt cache may be, for OpenAI.
const maxCacheKey = 64

// cacheKey is the same for all events that get a version of a prompt.
func cacheKey(q *millracev1.Question) string {
	name := q.Prompt[:min(len(q.Prompt), maxCacheKey-1-len(q.PromptVersion))]
	return strings.ToValidUTF8(name, "") + "/" + q.PromptVersion
}

// maxShown bounds what a model is shown of its refused answer, in bytes.
const maxShown = 16 << 10

var roles = map[millracev1.Role]llm.Role{
	millracev1.Role_ROLE_SYSTEM: llm.RoleSystem, millracev1.Role_ROLE_USER: llm.RoleUser, millracev1.Role_ROLE_ASSISTANT: llm.RoleAssistant,
}

func (c *enrichCall[K, In, Out]) violations() *answer.Violations {
	v := &answer.Violations{}
	for _, one := range c.p.Violations {
		v.List = append(v.List, answer.Violation{Path: one.Path, Rule: one.Rule, Message: one.Message})
	}
	return v
}

// add accounts for the attempts of a call.
func (c *enrichCall[K, In, Out]) add(r *llm.Result) {
	p := c.p
	if r.Model != (llm.ID{}) {
		p.Model = protoModelID(r.Model)
		if s := c.Schemas[r.Model]; s != nil {
			p.Schema = s.Fingerprint()
		}
	}
	p.CostKnown = r.CostKnown && (p.CostKnown || p.Attempts == 0)
	p.Attempts += int32(r.Attempts)
	p.InputTokens += r.Usage.Input
	p.CachedTokens += r.Usage.Cached
	p.WrittenTokens += r.Usage.Written
	p.OutputTokens += r.Usage.Output
	p.ReasoningTokens += r.Usage.Reasoning
	p.CostMicros += int64(r.Cost)
	p.UnsureMicros += int64(r.Unsure.Money)
	p.UnsureTokens += r.Unsure.Tokens
}

// judge accepts an answer or refuses it.
func (c *enrichCall[K, In, Out]) judge(id llm.ID, text string, usage llm.Usage) *millracev1.Outcome {
	s := c.Schemas[id]
	var zero Out
	out := zero.ProtoReflect().New().Interface().(Out)
	c.p.AnswerTokens, c.p.Schema = answerTokens(text, usage), s.Fingerprint()
	c.p.Sample = nil
	var check func(proto.Message) error
	if c.Check != nil {
		check = func(m proto.Message) error { return c.Check(c.event, m.(Out)) }
	}
	err := answer.Parse(text, s, out, check)
	if bad, ok := errors.AsType[*answer.Violations](err); ok {
		return c.refuse(llm.Violation, text, bad)
	}
	var value, said []byte
	if err == nil {
		value, err = c.Result.Append([]byte{}, out)
	}
	if err == nil {
		said, err = s.Marshal(out)
	}
	if err != nil {
		c.keep(text, nil)
		return c.failure(millracev1.Failure_REASON_ERROR, llm.Invalid, err.Error())
	}
	c.keep(string(said), nil)
	c.p.NextModel = nil
	if sampled(c.q.id, c.SampleRate) {
		c.p.Sample = sampleOf(text)
	}
	if c.Cache != nil {
		c.p.Request = c.enrichRun.question(c.question).digest(id)
	}
	o := c.q.outcome()
	o.Kind = &millracev1.Outcome_Answer{Answer: &millracev1.Answer{Value: value}}
	return c.with(o)
}

// answerTokens returns how many tokens an answer has in a conversation, 0 if that is not
// known: what the provider says, as far as it can be. Some count the reasoning in and do
// not say so.
func answerTokens(text string, u llm.Usage) int64 {
	n, size := u.Output-u.Reasoning, int64(len(text))
	if n <= 0 {
		return 0
	}
	return min(max(n, size/16), size+16)
}

// refuse takes an answer that does not follow the contract: it makes the next round,
// or ends the entry.
func (c *enrichCall[K, In, Out]) refuse(class llm.Class, text string, bad *answer.Violations) *millracev1.Outcome {
	c.keep(text, bad)
	c.p.Refused++
	left := c.Caller.Policy.Deadline - time.Duration(c.p.BusyMs)*time.Millisecond
	next := c.after(class)
	switch {
	case left < c.Caller.Policy.MinTime:
		return c.failure(millracev1.Failure_REASON_DEADLINE, class, fmt.Sprintf("the deadline of %s leaves no time to ask again: %v", c.Caller.Policy.Deadline, bad))
	case int(c.p.Reasks) < c.MaxReasks:
		c.p.Reasks++
		c.p.NextModel = c.p.Model
	case next != nil:
		c.p.Reasks, c.p.NextModel = 0, protoModelID(*next)
	default:
		return c.failure(millracev1.Failure_REASON_ERROR, class, bad.Error())
	}
	o := c.q.outcome()
	o.Kind = &millracev1.Outcome_Again{Again: &millracev1.Again{Class: string(class)}}
	return c.with(o)
}

// after returns the model of the chain that answers of the class lead to.
func (c *enrichCall[K, In, Out]) after(class llm.Class) *llm.ID {
	for _, l := range c.Caller.Chain[c.link(c.p.Model)+1:] {
		if slices.Contains(l.For, class) {
			id := l.Model.ID()
			return &id
		}
	}
	return nil
}

// keep notes the last answer and what is wrong with it.
func (c *enrichCall[K, In, Out]) keep(text string, bad *answer.Violations) {
	p := c.p
	p.Answer, p.AnswerBytes, p.AnswerSha256, p.Violations = []byte(text), int64(len(text)), nil, nil
	if len(text) > maxAnswer {
		sum := sha256.Sum256(p.Answer)
		p.Answer, p.AnswerSha256 = p.Answer[:maxAnswer], sum[:]
	}
	if bad == nil {
		return
	}
	for i, v := range bad.List {
		if i == maxViolations {
			break
		}
		p.Violations = append(p.Violations, &millracev1.ContractViolation{Path: short(v.Path), Rule: short(v.Rule), Message: short(v.Message)})
	}
}

// What is kept of the violations of an answer: their number, and bytes of each text.
const (
	maxViolations = 30
	maxViolation  = 500
)

func short(s string) string {
	if len(s) > maxViolation {
		s = s[:maxViolation]
	}
	return strings.ToValidUTF8(s, "")
}

// failed ends a round without an answer.
func (c *enrichCall[K, In, Out]) failed(err error) *millracev1.Outcome {
	class, reason := llm.ClassOf(err), millracev1.Failure_REASON_ERROR
	if c.open(err) {
		return c.failure(millracev1.Failure_REASON_BREAKER_OPEN, class, err.Error())
	}
	if s, ok := errors.AsType[*steer](err); ok && s.action == Skip {
		return c.failure(millracev1.Failure_REASON_SKIP, class, err.Error())
	}
	if class == llm.OverBudget && c.funds.r != nil {
		return c.broke(err)
	}
	c.keep("", nil)
	if e, ok := errors.AsType[*llm.Error](err); ok {
		if c.Caller.Policy.Action(class) == llm.ActionReask {
			return c.refuse(class, e.Raw, &answer.Violations{List: []answer.Violation{{Rule: "answer." + string(class), Message: reaskText(class)}}})
		}
		c.keep(e.Raw, nil)
	}
	if class == llm.Timeout {
		reason = millracev1.Failure_REASON_DEADLINE
	}
	return c.failure(reason, class, err.Error())
}

func reaskText(class llm.Class) string {
	if class == llm.Truncated {
		return "the answer is longer than allowed and was cut: answer more briefly"
	}
	return "the answer cannot be used"
}

func (c *enrichCall[K, In, Out]) failure(reason millracev1.Failure_Reason, class llm.Class, message string) *millracev1.Outcome {
	return c.with(c.q.failure(reason, Class(class), message))
}

// with adds to an outcome what the rounds so far came to.
func (c *enrichCall[K, In, Out]) with(o *millracev1.Outcome) *millracev1.Outcome {
	data, err := proto.Marshal(c.p)
	if err != nil { // only text that is not UTF-8 can fail, and there is none
		panic(err)
	}
	o.Progress, o.Attempts = data, c.p.Attempts
	return o
}

type timingKey struct{}

// Labelled returns a model whose calls carry the labels of their in-flight entry, in
// their context (see [EntryFromContext]) and as HTTP headers X-Millrace-Entry, -Round,
// -Attempt and -Owner, and end soon after their context does even if m ignores it.
func Labelled(m llm.Model) llm.Model { return labelled{m} }

type labelled struct{ llm.Model }

func (m labelled) Generate(ctx context.Context, req *llm.Request) (*llm.Response, error) {
	if t, ok := ctx.Value(timingKey{}).(*timing); ok {
		t.attempts++
		t.sent.Store(true)
		if t.first.IsZero() {
			t.first = time.Now()
		}
		e := t.entry
		e.Attempt = t.attempts
		ctx = llm.WithHeader(context.WithValue(ctx, entryKey{}, e), http.Header{
			"X-Millrace-Entry": {e.ID}, "X-Millrace-Round": {strconv.Itoa(e.Round)},
			"X-Millrace-Attempt": {strconv.Itoa(e.Attempt)}, "X-Millrace-Owner": {e.Owner.Instance + "/" + e.Owner.Incarnation},
		})
	}
	if _, ok := m.Model.(llm.Interruptible); ok {
		return m.guarded(ctx, req)
	}
	type result struct {
		resp *llm.Response
		err  error
	}
	done := make(chan result, 1)
	go func() { // ends with Generate; owns nothing
		resp, err := m.guarded(ctx, req)
		done <- result{resp, err}
	}()
	select {
	case r := <-done:
		return r.resp, r.err
	case <-ctx.Done():
	}
	select {
	case r := <-done:
		return r.resp, r.err
	case <-time.After(grace):
		return nil, &llm.Error{Class: llm.Timeout, Model: m.ID(), Err: fmt.Errorf("the model has not returned %s after its context ended: %w", grace, ctx.Err())}
	}
}

// guarded asks the model; a panic of it is an error.
func (m labelled) guarded(ctx context.Context, req *llm.Request) (resp *llm.Response, err error) {
	defer func() {
		if v := recover(); v != nil {
			resp, err = nil, &llm.Error{Class: llm.Invalid, Model: m.ID(), Err: Panicked(ClassAsync, "", v)}
		}
	}()
	return m.Model.Generate(ctx, req)
}
