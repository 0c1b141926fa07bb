package llm

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"
)

var (
	small = ID{"fake", "small"}
	big   = ID{"fake", "big"}
	other = ID{"other", "model"}
)

// step is what a scripted model does with one attempt.
type step struct {
	takes time.Duration
	err   error // nil answers
	usage Usage
	end   Finish
	panic bool
}

// fails returns a step that fails with a class at once.
func fails(class Class) step { return step{err: &Error{Class: class, Err: errors.New("scripted")}} }

// after returns a step that fails with a class and asks to wait.
func after(class Class, d time.Duration) step {
	return step{err: &Error{Class: class, RetryAfter: d, Err: errors.New("scripted")}}
}

// scripted is a model that makes its steps in order and repeats the last.
type scripted struct {
	id    ID
	steps []step
	asked []time.Duration // when, since the model was made
	began time.Time
}

func script(id ID, steps ...step) *scripted {
	return &scripted{id: id, steps: steps, began: time.Now()}
}

func (s *scripted) ID() ID { return s.id }

func (s *scripted) Generate(ctx context.Context, _ *Request) (*Response, error) {
	s.asked = append(s.asked, time.Since(s.began))
	st := s.steps[min(len(s.asked), len(s.steps))-1]
	if st.panic {
		panic("scripted")
	}
	select {
	case <-time.After(st.takes):
	case <-ctx.Done():
		return nil, fmt.Errorf("reading the answer: %w", ctx.Err())
	}
	if st.err != nil {
		return nil, st.err
	}
	return &Response{Text: "{}", Model: s.id.Model, Finish: orDefault(st.end, FinishStop), Usage: st.usage}, nil
}

// question is a call of a request that may cost 52 micro-dollars with small at testPrices.
func question(ID) (*Request, error) {
	return &Request{Messages: []Message{{RoleUser, "0123456789"}}, MaxTokens: 5}, nil
}

// pass lets fake time pass.
func pass(d time.Duration) { <-time.After(d) }

// half is a source of jitter that always takes the middle.
func half(n time.Duration) time.Duration { return n / 2 }

func mustCaller(t *testing.T, c CallerConfig) *Caller {
	t.Helper()
	if c.Rand == nil {
		c.Rand = half
	}
	caller, err := NewCaller(c)
	if err != nil {
		t.Fatal(err)
	}
	return caller
}

func chain(models ...Model) []Link {
	links := make([]Link, len(models))
	for i, m := range models {
		links[i].Model = m
	}
	return links
}
