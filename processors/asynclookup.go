package processors

import (
	"context"
	"fmt"

	millracev1 "github.com/millrace/millrace/proto/millrace/v1"
	"github.com/millrace/millrace/serde"
)

// FallbackHeader is the header of an event that was forwarded without an answer;
// its value says why: error, deadline, max-wait, too-large, breaker-open or over-budget.
const FallbackHeader = "millrace.fallback"

// An AsyncStep is the typed description of an asynchronous step.
type AsyncStep[K, V, R any] struct {
	AsyncConfig
	Key    serde.Serde[K]
	Value  serde.Serde[V]
	Result serde.Serde[R]
	// Call makes one attempt. It runs outside of the task, in a goroutine of its
	// own; ctx ends with the attempt's timeout. It has the trace context of the event,
	// so that spans started in it are part of the event's trace.
	Call func(ctx context.Context, rec Record[K, V], resolved []byte) (R, error)
	// Resolve, if not nil, returns what the call depends on besides the event. It
	// runs in the task, once for an entry, when the entry is first asked; a failure
	// is that of the call.
	Resolve func(rec Record[K, V]) ([]byte, error)
}

// Start starts the step in a task. It returns the state machine and its input.
// The task must be an [AsyncTask].
func (s *AsyncStep[K, V, R]) Start(t Task, results Forward[K, Answer[V, R]], fallbacks Forward[K, V]) (*Async, Forward[K, V], error) {
	at, ok := t.(AsyncTask)
	if !ok {
		return nil, nil, fmt.Errorf("asynchronous step %q: a %T does not run asynchronous steps", s.Step, t)
	}
	typed := asyncTyped{
		call: s.call,
		answer: func(e *millracev1.Entry, o *millracev1.Outcome) error {
			rec, err := s.decode(e.Event)
			if err != nil {
				return Fail(ClassDecode, s.Step, err)
			}
			answer := o.GetAnswer()
			a := Answer[V, R]{Event: rec.Value}
			if answer.Value != nil {
				if a.Result, err = s.Result.Decode(answer.Value); err != nil {
					return Fail(ClassDecode, s.Step, fmt.Errorf("result of %d bytes as %s: %w", len(answer.Value), s.Result.Name(), err))
				}
			}
			return results(WithValue(rec, a, false))
		},
		fallback: func(e *millracev1.Entry, o *millracev1.Outcome) error {
			rec, err := s.decode(e.Event)
			if err != nil {
				return Fail(ClassDecode, s.Step, err)
			}
			rec.Headers = append(rec.Headers, Header{Key: FallbackHeader, Value: []byte(reasonName(o.GetFailure().GetReason()))})
			return fallbacks(rec)
		},
	}
	if s.Resolve != nil {
		typed.resolve = func(e *millracev1.Entry) ([]byte, error) {
			rec, err := s.decode(e.Event)
			if err != nil {
				return nil, err
			}
			return s.Resolve(rec)
		}
	}
	a := newAsync(at, s.AsyncConfig, typed)
	return a, s.input(a), nil
}

// input is what admits records.
func (s *AsyncStep[K, V, R]) input(a *Async) Forward[K, V] {
	return func(r Record[K, V]) error {
		ev, err := s.encode(r)
		if err != nil {
			return Fail(ClassProduce, s.Step, err)
		}
		return a.admit(ev)
	}
}

func (s *AsyncStep[K, V, R]) encode(r Record[K, V]) (*millracev1.Event, error) {
	ev := &millracev1.Event{Timestamp: r.Timestamp, Headers: toProtoHeaders(r.Headers)}
	var err error
	if !r.NoKey {
		if ev.Key, err = s.Key.Append([]byte{}, r.Key); err != nil {
			return nil, fmt.Errorf("encode key as %s: %w", s.Key.Name(), err)
		}
	}
	if !r.NoValue {
		if ev.Value, err = s.Value.Append([]byte{}, r.Value); err != nil {
			return nil, fmt.Errorf("encode value as %s: %w", s.Value.Name(), err)
		}
	}
	return ev, nil
}

func (s *AsyncStep[K, V, R]) decode(ev *millracev1.Event) (r Record[K, V], err error) {
	r = Record[K, V]{Timestamp: ev.Timestamp, NoKey: ev.Key == nil, NoValue: ev.Value == nil}
	if len(ev.Headers) > 0 {
		r.Headers = fromProtoHeaders(ev.Headers)
	}
	if ev.Key != nil {
		if r.Key, err = s.Key.Decode(ev.Key); err != nil {
			return r, fmt.Errorf("key of %d bytes as %s: %w", len(ev.Key), s.Key.Name(), err)
		}
	}
	if ev.Value != nil {
		if r.Value, err = s.Value.Decode(ev.Value); err != nil {
			return r, fmt.Errorf("value of %d bytes as %s: %w", len(ev.Value), s.Value.Name(), err)
		}
	}
	return r, nil
}

// call makes the call of a request and encodes its result.
func (s *AsyncStep[K, V, R]) call(ctx context.Context, q *request) *millracev1.Outcome {
	null := NullCheck[R]()
	return s.Attempts.run(traceOf(ctx, q.event), q, func(ctx context.Context) encodedResult {
		rec, err := s.decode(q.event)
		if err != nil {
			return encodedResult{err: WithAction(DeadLetter, &Error{Class: ClassDecode, Step: s.Step, Err: err})}
		}
		result, err := answered(ctx, func() (R, error) { return s.Call(ctx, rec, q.resolved) })
		if err != nil || null(result) {
			return encodedResult{err: err}
		}
		value, err := s.Result.Append([]byte{}, result)
		if err != nil {
			err = fmt.Errorf("encode result as %s: %w", s.Result.Name(), err)
			return encodedResult{err: WithAction(DeadLetter, &Error{Class: ClassProduce, Step: s.Step, Err: err})}
		}
		return encodedResult{value: value}
	})
}
