package processors

import (
	"fmt"
	"runtime/debug"
)

// A PanicError is a panic of a user function, caught by [Guard].
type PanicError struct {
	Value any
	Stack []byte
}

func (p *PanicError) Error() string { return fmt.Sprintf("panic: %v", p.Value) }

// Unwrap returns the panic's value if it is an error.
func (p *PanicError) Unwrap() error {
	err, _ := p.Value.(error)
	return err
}

// Guard gives the errors and panics of f the step's name: they come out as an
// [Error] of [ClassProcess]. Errors of steps behind f, which are guarded
// themselves, pass unchanged.
func Guard[K, V any](step string, f Forward[K, V]) Forward[K, V] {
	return func(r Record[K, V]) (err error) {
		defer func() {
			if p := recover(); p != nil {
				err = Panicked(ClassProcess, step, p)
			}
		}()
		return Fail(ClassProcess, step, f(r))
	}
}

// Panicked returns the error for a recovered panic value.
func Panicked(class Class, step string, value any) error {
	return &Error{Class: class, Step: step, Err: &PanicError{Value: value, Stack: debug.Stack()}}
}
