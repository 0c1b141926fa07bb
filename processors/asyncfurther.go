package processors

import (
	"fmt"

	"google.golang.org/protobuf/proto"

	millracev1 "github.com/millrace/millrace/proto/millrace/v1"
)

// A step may have more to ask for the sake of a lane when an event has ended, before
// the next event's turn: the entry then stays the head of its lane for a further
// round, whose outcome comes through the loop as any other, and ends it.
type asyncFurther struct {
	// more returns what is to be asked when an entry has ended, nil if nothing is.
	more func(*millracev1.Entry) ([]byte, error)
	// done takes the outcome, in the transaction that processes it. It makes do without
	// an answer: cause, if not nil, says what the outputs of that transaction failed with
	// before.
	done func(e *millracev1.Entry, o *millracev1.Outcome, cause error) error
}

// goOn puts the entry of h, which has ended, into a further round, and reports
// whether there is one.
func (a *Async) goOn(h *head, e *millracev1.Entry, o *millracev1.Outcome) (bool, error) {
	if a.typed.further.more == nil {
		return false, nil
	}
	fail := func(err error) error {
		return &Error{Class: ClassState, Step: a.cfg.Step, Action: Stop, Err: fmt.Errorf("after the entry %s: %w", h.id, err)}
	}
	more, err := a.typed.further.more(e)
	if err != nil {
		return false, fail(err)
	}
	if more == nil {
		return false, nil
	}
	e.Round, e.Resolved, e.Unresolved, e.Progress, e.Further = e.Round+1, more, "", nil, true
	e.Reserved = nil // it is settled by the outcome
	e.Ask.Instance, e.Ask.Incarnation = "", ""
	if size, limit := len(h.key)+proto.Size(e), a.task.MaxRowBytes()-rowReserve; size > limit {
		if err := a.typed.further.done(e, o, fmt.Errorf("event and what is asked after it have %d bytes, more than the %d of a row", size, limit)); err != nil {
			return false, fail(err)
		}
		return false, nil
	}
	a.alter(h, func() { h.round, h.state, h.abandoned, h.further = e.Round, headReady, false, true })
	return true, a.put(&h.row, e)
}

// furthered ends the entry of h with the outcome of its further round.
func (a *Async) furthered(h *head, o *millracev1.Outcome, cause error) error {
	e, err := a.load(h.key)
	if err != nil {
		return err
	}
	if err := a.typed.further.done(e, o, cause); err != nil {
		return &Error{Class: ClassState, Step: a.cfg.Step, Action: Stop, Err: fmt.Errorf("after the entry %s: %w", h.id, err)}
	}
	a.change()
	a.end(settled{row: h.row})
	a.task.Retire(a.cfg.Step, h.id)
	return a.promote(h)
}
