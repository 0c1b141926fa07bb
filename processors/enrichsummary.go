package processors

import (
	"context"
	"fmt"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/millrace/millrace/llm"
	"github.com/millrace/millrace/llm/prompt"
	millracev1 "github.com/millrace/millrace/proto/millrace/v1"
)

// maxNamed bounds the events that a summary names.
const maxNamed = 200

// excess returns how many of the oldest turns are to be summarized: all but the newest
// exchanges that fill half of the window.
func (c *conversations) excess(talk *millracev1.Conversation) int {
	keep, tokens := 0, int64(0)
	for keep+2 <= len(talk.Turns)-2 && keep+2 <= c.cfg.MaxTurns/2 {
		n := len(talk.Turns) - keep
		if tokens += talk.Turns[n-1].Tokens + talk.Turns[n-2].Tokens; tokens > c.cfg.MaxTokens/2 {
			break
		}
		keep += 2
	}
	return len(talk.Turns) - keep
}

// more asks for a summary if the conversation of an entry that ended exceeds its
// window.
func (s *enrichRun[K, In, Out]) more(e *millracev1.Entry) ([]byte, error) {
	if s.talk == nil || s.talk.cfg.Summary == nil || e.Event.Key == nil {
		return nil, nil
	}
	talk, err := s.talk.load(e.Event.Key, e.Event.Timestamp)
	if err != nil || !s.talk.over(talk) {
		return nil, err
	}
	p := s.talk.cfg.Summary.Prompt
	n := s.talk.excess(talk)
	text, err := p.User(prompt.Data{Context: &millracev1.Conversation{Turns: talk.Turns[:n], Summary: talk.Summary}})
	if err != nil { // too long for the prompt
		return nil, s.summarized(e, nil, nil)
	}
	return proto.Marshal(&millracev1.Question{
		Prompt: p.Name(), PromptVersion: p.Version(), Summarize: int32(n), SummarizeEvent: talk.Turns[n-1].Event,
		Messages: []*millracev1.Message{{Role: millracev1.Role_ROLE_SYSTEM, Text: p.System()}, {Role: millracev1.Role_ROLE_USER, Text: text}},
	})
}

// summarizer returns who makes summaries; nil if the step makes none any more, and an
// earlier program asked for one.
func (s *enrichRun[K, In, Out]) summarizer() *llm.Caller {
	if s.Conversation == nil || s.Conversation.Summary == nil {
		return nil
	}
	return s.Conversation.Summary.Caller
}

// summarized puts a summary in the place of the turns that it stands for. Without one
// they are dropped.
func (s *enrichRun[K, In, Out]) summarized(e *millracev1.Entry, o *millracev1.Outcome, cause error) error {
	if s.talk == nil {
		s.task.Drop(s.Step, "summary-failed")
		return nil
	}
	talk, ok, err := s.talk.rows.get(e.Event.Key)
	if err != nil || !ok {
		return err // it has expired
	}
	q, sum := &millracev1.Question{}, &millracev1.Summary{}
	ok = cause == nil && o.GetAnswer() != nil && proto.Unmarshal(o.GetAnswer().Value, sum) == nil && proto.Unmarshal(e.Resolved, q) == nil
	if n := int(q.Summarize); ok && n > 0 && n <= len(talk.Turns) && talk.Turns[n-1].Event == q.SummarizeEvent {
		replace(talk, n, sum)
	} else {
		s.task.Drop(s.Step, "summary-failed")
	}
	s.talk.trim(talk)
	return s.talk.put(e.Event.Key, talk)
}

// replace puts a summary in the place of the oldest n turns.
func replace(talk *millracev1.Conversation, n int, sum *millracev1.Summary) {
	before := talk.Summary
	sum.Turns, sum.Events, sum.Unnamed = before.GetTurns()+int64(n), before.GetEvents(), before.GetUnnamed()
	for _, t := range talk.Turns[:n] {
		if k := len(sum.Events); k == 0 || sum.Events[k-1] != t.Event {
			sum.Events = append(sum.Events, t.Event)
		}
		sum.Timestamp = max(sum.Timestamp, t.Timestamp)
	}
	if k := len(sum.Events) - maxNamed; k > 0 {
		sum.Events, sum.Unnamed = sum.Events[k:], sum.Unnamed+int64(k)
	}
	talk.Turns, talk.Summary = talk.Turns[n:], sum
}

// summarize asks for the summary of a question.
func (c *enrichCall[K, In, Out]) summarize(ctx context.Context) *millracev1.Outcome {
	if a, ok := ctx.Value(answerKey{}).(answerByHand); ok {
		text, ok := a.value.(string)
		if a.err != nil || !ok {
			return c.q.failure(millracev1.Failure_REASON_ERROR, ClassAsync, fmt.Sprintf("no summary: %v, %v", a.value, a.err))
		}
		return c.summary(&llm.Result{Response: &llm.Response{Text: text}})
	}
	if c.summarizer() == nil {
		return c.q.failure(millracev1.Failure_REASON_ERROR, ClassAsync, "the step makes no summaries any more")
	}
	if c.funds.r == nil {
		if o := c.fund(); o != nil {
			return o
		}
	}
	caller := *c.summarizer()
	caller.OnAttempt = c.counted
	res, o := c.ask(ctx, caller, llm.Call{Request: c.summaryRequest}, func(err error) *millracev1.Outcome {
		return c.failure(millracev1.Failure_REASON_ERROR, llm.ClassOf(err), err.Error())
	})
	if res == nil {
		if o == nil {
			c.q.paused = c
		}
		return o
	}
	return c.summary(res)
}

// affordSummary reserves what a summary may need, as far as it is there: it never
// waits for a budget.
func (s *enrichRun[K, In, Out]) affordSummary(c *enrichCall[K, In, Out], accounts []*account[K, In]) *millracev1.Reservation {
	caller := s.summarizer()
	if caller == nil {
		return &millracev1.Reservation{Refused: "the step makes no summaries any more"}
	}
	req, err := c.summaryRequest(llm.ID{})
	var worst llm.Amount
	if err == nil {
		worst, err = s.Caller.Prices.Worst(caller.Models()[0], req, time.Now())
	}
	if err != nil {
		return &millracev1.Reservation{Refused: truncate(err.Error())}
	}
	left := worst.Times(caller.Policy.Attempts)
	for _, a := range accounts {
		if !a.state.Left().Covers(worst) {
			return &millracev1.Reservation{Refused: fmt.Sprintf("budget %q (%s) does not cover a summary", a.Name, a.Scope)}
		}
		left = left.Min(a.state.Left())
	}
	return &millracev1.Reservation{Micros: int64(left.Money), Tokens: left.Tokens}
}

// summary is the outcome of a call for one.
func (c *enrichCall[K, In, Out]) summary(r *llm.Result) *millracev1.Outcome {
	text := strings.TrimSpace(prompt.Clean(r.Response.Text))
	if most := int(c.Conversation.MaxTokens) * 7 / 4; len(text) > most { // half of the window
		text = strings.ToValidUTF8(text[:most], "")
	}
	if text == "" {
		return c.failure(millracev1.Failure_REASON_ERROR, llm.Violation, "the summary is empty")
	}
	value, err := proto.Marshal(&millracev1.Summary{
		Text: text, Tokens: estimate(text), Prompt: c.question.Prompt, PromptVersion: c.question.PromptVersion,
		Model: protoModelID(r.Model), CostMicros: c.p.CostMicros,
	})
	if err != nil {
		return c.failure(millracev1.Failure_REASON_ERROR, llm.Invalid, err.Error())
	}
	o := c.q.outcome()
	o.Kind = &millracev1.Outcome_Answer{Answer: &millracev1.Answer{Value: value}}
	return c.with(o)
}

func (c *enrichCall[K, In, Out]) summaryRequest(llm.ID) (*llm.Request, error) {
	r := &llm.Request{MaxTokens: c.Conversation.Summary.MaxTokens, CacheKey: c.question.Prompt + "/" + c.question.PromptVersion}
	for _, m := range c.question.Messages {
		r.Messages = append(r.Messages, llm.Message{Role: roles[m.Role], Text: m.Text})
	}
	return r, nil
}
