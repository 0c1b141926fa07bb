package processors

import (
	"context"
	"fmt"
)

type answerKey struct{}

type answerByHand struct {
	value any
	err   error
}

// WithAnswer returns a context for [Call.Run] with which the function of the
// asynchronous step is not called: it is taken to have returned value and err at
// once. It is for test drivers.
func WithAnswer(ctx context.Context, value any, err error) context.Context {
	return context.WithValue(ctx, answerKey{}, answerByHand{value, err})
}

// answered returns the answer in ctx, or else what call returns.
func answered[R any](ctx context.Context, call func() (R, error)) (R, error) {
	a, ok := ctx.Value(answerKey{}).(answerByHand)
	if !ok {
		return call()
	}
	result, ok := a.value.(R)
	if !ok && a.value != nil && a.err == nil {
		a.err = WithAction(DeadLetter, fmt.Errorf("answered with a %T, but the step's function returns %T", a.value, result))
	}
	return result, a.err
}
