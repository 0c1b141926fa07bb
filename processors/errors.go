package processors

import (
	"errors"
	"fmt"
	"runtime/debug"
)

// Class says what kind of step failed on a record.
type Class string

// The classes of error.
const (
	ClassDecode  Class = "decode"  // a key or value could not be decoded
	ClassProcess Class = "process" // a user function failed or panicked
	ClassState   Class = "state"   // a store failed, or a row is too large
	ClassProduce Class = "produce" // an output cannot be encoded, is invalid, too large, or was rejected
	ClassAsync   Class = "async"   // an asynchronous call ended without an answer
)

// Action is what becomes of a record that failed.
type Action uint8

const (
	// Default leaves the decision to the application's error policy.
	Default Action = iota
	// Skip drops the record and counts it.
	Skip
	// DeadLetter writes the source record to the dead-letter topic in the
	// transaction of its offset.
	DeadLetter
	// Retry undoes what the record did and processes it again after a pause of 100 ms,
	// doubled with every attempt up to 30 s. What came before it is committed; the
	// records of the task's sources behind it wait.
	Retry
	// Stop stops the task; the offset stays before the record.
	Stop
)

// String returns the action's name.
func (a Action) String() string {
	switch a {
	case Skip:
		return "skip"
	case DeadLetter:
		return "dead-letter"
	case Retry:
		return "retry"
	case Stop:
		return "stop"
	}
	return "default"
}

// An Error is the failure of a step on a record.
type Error struct {
	Class  Class
	Step   string
	Action Action // Default unless the user function chose one
	Err    error
}

func (e *Error) Error() string {
	return fmt.Sprintf("%s: step %q: %v", e.Class, e.Step, e.Err)
}

func (e *Error) Unwrap() error { return e.Err }

// steer is an error by which a user function chooses what becomes of its record.
type steer struct {
	action Action
	err    error
}

func (s *steer) Error() string { return s.err.Error() }
func (s *steer) Unwrap() error { return s.err }

// WithAction returns err marked so that the record that caused it is treated
// with action, whatever the application's error policy says.
func WithAction(action Action, err error) error { return &steer{action, err} }

// sound returns err, or a [PanicError] if it cannot be read: user code that returns a
// nil pointer as an error has made one whose methods panic wherever they are called.
func sound(err error) (out error) {
	defer func() {
		if v := recover(); v != nil {
			out = &PanicError{Value: fmt.Sprintf("the error, a %T, cannot be read: %v", err, v), Stack: debug.Stack()}
		}
	}()
	_ = err.Error()
	_, _ = errors.AsType[*Error](err)
	return err
}

// Fail wraps err, which a step returned, as an [Error]; it keeps an Error that
// is one already. A nil err gives nil.
func Fail(class Class, step string, err error) error {
	if err == nil {
		return nil
	}
	err = sound(err)
	if e, ok := errors.AsType[*Error](err); ok {
		return e
	}
	e := &Error{Class: class, Step: step, Err: err}
	if s, ok := errors.AsType[*steer](err); ok {
		e.Action = s.action
	}
	return e
}
