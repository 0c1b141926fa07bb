package processors

import (
	"errors"
	"fmt"
	"time"

	"google.golang.org/protobuf/proto"

	millracev1 "github.com/millrace/millrace/proto/millrace/v1"
)

// tickInterval is how often a task looks whether entries may be asked that no
// record of the loop reminds it of.
const tickInterval = 100 * time.Millisecond

// A step ends at most so many entries in one record, and loads so many bytes.
const (
	maxFlush      = 2_000
	maxFlushBytes = 64 << 20
)

// Loop processes a record of the loop topic: the outcome of a call. It is dropped
// unless its entry is live, was asked, and is in the same round.
func (a *Async) Loop(rec *Raw) error { return a.loop(rec, nil) }

// Reject is Loop for a record whose outputs the broker refused: it ends the entry
// with that error.
func (a *Async) Reject(rec *Raw, cause error) error { return a.loop(rec, cause) }

func (a *Async) loop(rec *Raw, cause error) error {
	if err := a.begin(position{}); err != nil {
		return err
	}
	o, err := decodeOutcome(rec.Value)
	if err != nil {
		return &Error{Class: ClassDecode, Step: a.cfg.Step, Err: fmt.Errorf("loop record: %w", err)}
	}
	h := a.byID[o.Id]
	if h == nil || h.ask < 0 || h.round != o.Round {
		a.task.Drop(a.cfg.Step, "stale-outcome")
		return a.proceed()
	}
	settled, err := a.settlement(h, o)
	if err != nil {
		return err
	}
	switch {
	case h.further && o.GetReleased() == nil:
		err = a.furthered(h, o, cause)
	case o.GetAgain() != nil && cause != nil:
		err = a.settle(h, refused(o, cause), nil)
	case o.GetAgain() != nil:
		err = a.again(h, o)
	case o.GetReleased() == nil:
		err = a.settle(h, o, cause)
	case o.Ask != h.ask:
		a.task.Drop(a.cfg.Step, "stale-release")
	default:
		err = a.released(h)
	}
	if err == nil && settled != nil {
		err = settled()
	}
	if err != nil {
		return err
	}
	return a.proceed()
}

// proceed asks for what can be asked now.
func (a *Async) proceed() error {
	a.revive()
	for a.hasRoom() && a.ready.Len() > 0 {
		h, _ := a.ready.Min()
		e, err := a.load(h.key)
		if err != nil {
			return err
		}
		if _, err := a.ask(h, e); err != nil {
			return err
		}
	}
	return nil
}

// released makes a head that its owner gave up one to be asked again. The row
// says so too: it is no longer a call that its owner knows.
func (a *Async) released(h *head) error {
	e, err := a.load(h.key)
	if err != nil {
		return err
	}
	a.change()
	e.Ask.Instance, e.Ask.Incarnation, e.Reserved = "", "", nil
	a.alter(h, func() { h.state = headReady })
	return a.put(&h.row, e)
}

// again puts the entry of h into its next round. One that does not fit into its row
// ends as a failure.
func (a *Async) again(h *head, o *millracev1.Outcome) error {
	e, err := a.load(h.key)
	if err != nil {
		return err
	}
	if err := a.noted(e, o); err != nil {
		if err.Action = a.task.Decide(err); err.Action == Retry || err.Action == Stop {
			return err
		}
		a.task.Undo()
		return a.settle(h, refused(o, err), nil)
	}
	e.Round, e.Progress = e.Round+1, o.Progress
	e.Ask.Instance, e.Ask.Incarnation, e.Reserved = "", "", nil
	if size, limit := len(h.key)+proto.Size(e), a.task.MaxRowBytes()-rowReserve; size > limit {
		q := &request{id: o.Id, round: o.Round, ask: o.Ask}
		f := q.failure(millracev1.Failure_REASON_TOO_LARGE, ClassState, fmt.Sprintf(
			"event and refused answer have %d bytes, more than the %d of a row", size, limit))
		f.Attempts, f.Progress = o.Attempts, o.Progress
		a.task.Undo() // what was noted is noted again
		return a.settle(h, f, nil)
	}
	a.change()
	a.alter(h, func() { h.round, h.state, h.abandoned = e.Round, headReady, false })
	return a.put(&h.row, e)
}

// refused returns the failure that ends an entry of which a round cannot be noted.
func refused(o *millracev1.Outcome, cause error) *millracev1.Outcome {
	q := &request{id: o.Id, round: o.Round, ask: o.Ask}
	f := q.failure(millracev1.Failure_REASON_ERROR, classOf(cause), cause.Error())
	f.Attempts = o.Attempts
	return f
}

// noted lets the step note a refused answer.
func (a *Async) noted(e *millracev1.Entry, o *millracev1.Outcome) (err *Error) {
	if a.typed.failed == nil {
		return nil
	}
	defer func() {
		if p := recover(); p != nil {
			err, _ = errors.AsType[*Error](Panicked(ClassProcess, a.cfg.Step, p))
		}
	}()
	if failure := Fail(ClassProcess, a.cfg.Step, a.typed.failed(e, o)); failure != nil {
		err, _ = errors.AsType[*Error](failure)
	}
	return err
}

// revive makes the inherited heads ready that are due, if the loop holds no
// outcome for them.
func (a *Async) revive() {
	if len(a.inherited) == 0 || !a.task.LoopCaughtUp() {
		return
	}
	now := a.task.Now()
	var due []*head
	for h := range a.inherited {
		if !now.Before(h.due) {
			due = append(due, h)
		}
	}
	if len(due) > 0 {
		a.change()
	}
	for _, h := range due {
		a.alter(h, func() { h.state, h.abandoned = headReady, true })
	}
}

// wake has the task tick as long as there is something to look after.
func (a *Async) wake() {
	if a.unschedule == nil {
		a.unschedule = a.task.Schedule(WallClock, tickInterval, nil, a.tick)
	}
}

func (a *Async) tick(int64) error {
	if err := a.begin(position{}); err != nil {
		return err
	}
	if err := a.flush(nil, nil, nil); err != nil {
		if e, ok := errors.AsType[*Error](err); ok && a.task.Decide(e) == Retry {
			a.task.Undo()
			return nil // with the next tick
		}
		return err
	}
	if err := a.proceed(); err != nil {
		return err
	}
	if len(a.inherited) == 0 && !(a.hasRoom() && a.ready.Len() > 0) && !a.flushable() {
		a.unschedule()
		a.unschedule = nil
	}
	return nil
}

// A settled is an entry with its outcome.
type settled struct {
	e     *millracev1.Entry
	o     *millracev1.Outcome
	row   row
	seq   int64
	cause error // what its output failed with
}

// settle ends the entry of h with its outcome or, while results of earlier events
// are missing, stores the outcome in it. The next entry of the lane becomes its
// head.
func (a *Async) settle(h *head, o *millracev1.Outcome, cause error) error {
	if a.ordered() {
		return a.flush(h, o, cause)
	}
	e, err := a.load(h.key)
	if err != nil {
		return err
	}
	list := []settled{{e: e, o: o, row: h.row, seq: h.seq, cause: cause}}
	if err := a.conclude(list); err != nil {
		return err
	}
	a.change()
	if further, err := a.goOn(h, e, o); further || err != nil {
		return err
	}
	a.end(list[0])
	a.task.Retire(a.cfg.Step, h.id)
	return a.promote(h)
}

// flush ends, in order, the entries at the front of the partition that have an
// outcome; that of h is o. If h is not among them its outcome is stored.
func (a *Async) flush(h *head, o *millracev1.Outcome, cause error) error {
	var list []settled
	reached, size := false, 0
	for _, l := range a.live {
		s := settled{seq: l.seq}
		if h != nil && l.seq == h.seq {
			s.row, s.o, s.cause, reached = h.row, o, cause, true
		} else if r, ok := a.finished[l.seq]; ok && len(list) < maxFlush && size < maxFlushBytes {
			s.row = r
		} else {
			break
		}
		e, err := a.load(s.row.key)
		if err != nil {
			return err
		}
		if s.e = e; s.o == nil {
			s.o = e.Outcome
		}
		size += s.row.size
		list = append(list, s)
	}
	if err := a.conclude(list); err != nil {
		return err
	}
	if len(list) > 0 {
		a.change()
	}
	for _, s := range list {
		a.end(s)
		a.live = a.live[1:]
		if r, ok := a.finished[s.seq]; ok {
			a.drop(s.seq, r)
		}
	}
	if a.flushable() {
		a.wake()
	}
	if h == nil {
		return nil
	}
	if !reached {
		if err := a.hold(h, o); err != nil {
			return err
		}
	}
	a.task.Retire(a.cfg.Step, h.id)
	return a.promote(h)
}

// flushable reports whether the first entry of the partition has its outcome.
func (a *Async) flushable() bool {
	if len(a.live) == 0 {
		return false
	}
	_, ok := a.finished[a.live[0].seq]
	return ok
}

func (a *Async) drop(seq int64, r row) {
	delete(a.finished, seq)
	a.undo = append(a.undo, func() { a.finished[seq] = r })
}

// hold stores the outcome of h in its entry. One that does not fit ends the entry
// as a failure, when its turn comes.
func (a *Async) hold(h *head, o *millracev1.Outcome) error {
	e, err := a.load(h.key)
	if err != nil {
		return err
	}
	a.change()
	place := h.row
	e.Outcome, e.Resolved, e.Reserved = o, nil, nil
	if err := a.put(&place, e); err != nil {
		return err
	}
	if limit := a.task.MaxRowBytes(); place.size > limit {
		q := &request{id: o.Id, round: o.Round, ask: o.Ask}
		e.Outcome = q.failure(millracev1.Failure_REASON_TOO_LARGE, ClassState, fmt.Sprintf(
			"event and result have %d bytes, more than the %d of a row in which the result could wait for those before it", place.size, limit))
		e.Outcome.Attempts = o.Attempts
		if o.GetAnswer() == nil { // what would be noted when its turn comes is lost by then
			if err := a.noted(e, o); err != nil {
				e.Outcome.GetFailure().Message = truncate(e.Outcome.GetFailure().Message + "; and what was refused could not be noted: " + err.Error())
			}
		}
		if err := a.put(&place, e); err != nil {
			return err
		}
	}
	a.finished[h.seq] = place
	seq := h.seq
	a.undo = append(a.undo, func() { delete(a.finished, seq) })
	return nil
}

// end removes an entry.
func (a *Async) end(s settled) {
	a.rows.Put(s.row.key, nil)
	a.entries--
	a.bytes -= s.row.size
}

// promote makes the next entry of the lane of h, which has its outcome, the head.
func (a *Async) promote(h *head) error {
	l := h.lane
	a.remove(h)
	if h.state == headReady {
		a.wakeFirst(h.wait.row) // it will not
	}
	if l.waiting == 0 {
		if a.lanes[l.prefix] == l {
			delete(a.lanes, l.prefix)
			a.undo = append(a.undo, func() { a.lanes[l.prefix] = l })
		}
		return nil
	}
	from, to := l.behind(h.seq)
	for kv, err := range a.rows.Scan(from, to, false) {
		var e *millracev1.Entry
		if err == nil {
			e, err = decodeEntry(kv.Value)
		}
		var seq int64
		if err == nil {
			_, seq, _, err = parseRowKey(a.prefix, kv.Key)
		}
		if err != nil {
			return &Error{Class: ClassState, Step: a.cfg.Step, Action: Stop, Err: err}
		}
		next := newHead(l, seq, row{append([]byte(nil), kv.Key...), len(kv.Key) + len(kv.Value)}, e)
		l.head = next
		l.waiting--
		a.undo = append(a.undo, func() { l.head = h; l.waiting++ })
		a.insert(next)
		return nil
	}
	return &Error{Class: ClassState, Step: a.cfg.Step, Action: Stop, Err: fmt.Errorf("the entries behind %s are gone", h.id)}
}

// conclude emits what becomes of entries, in order: results, fallbacks and dead
// letters. It comes first in a record: if a step behind fails on one of them,
// everything is undone and done again with a dead letter in its place.
func (a *Async) conclude(list []settled) error {
	for {
		again := false
		for i := range list {
			s := &list[i]
			if s.cause != nil {
				if err := a.bury(s, s.cause); err != nil {
					return err
				}
				continue
			}
			err := a.emit(s)
			if err == nil {
				continue
			}
			e, ok := errors.AsType[*Error](err)
			if !ok {
				e = &Error{Class: ClassProcess, Step: a.cfg.Step, Err: err}
			}
			if action := a.task.Decide(e); action == Retry || action == Stop {
				return &Error{Class: e.Class, Step: e.Step, Action: action, Err: e.Err}
			}
			s.cause, again = e, true
		}
		if !again {
			return nil
		}
		a.task.Undo()
	}
}

// emit forwards the result of an entry, or what stands for it.
func (a *Async) emit(s *settled) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = Panicked(ClassProcess, a.cfg.Step, p)
		}
	}()
	if s.o.GetAnswer() != nil {
		if err := a.typed.answer(s.e, s.o); err != nil {
			return err
		}
		a.report(s, Report{Status: StatusOK})
		return nil
	}
	f := s.o.GetFailure()
	if err := a.noted(s.e, s.o); err != nil {
		return err
	}
	switch {
	case f.GetReason() == millracev1.Failure_REASON_SKIP:
		a.task.Drop(a.cfg.Step, "skipped")
		a.report(s, Report{Status: StatusSkipped, Class: Class(f.GetClass())})
		return nil
	case a.cfg.falls(f):
		if err := a.typed.fallback(s.e, s.o); err != nil {
			return err
		}
		a.report(s, Report{Status: StatusFallback, Class: Class(f.GetClass()), Reason: reasonName(f.GetReason())})
		return nil
	}
	return a.bury(s, &Error{Class: Class(f.GetClass()), Step: a.cfg.Step, Err: errors.New(f.GetMessage())})
}

// bury writes the dead letter of an entry, or drops it if the policy skips such
// errors. A dead letter that cannot be written stops the task.
func (a *Async) bury(s *settled, cause error) error {
	step, class, message := a.cfg.Step, ClassAsync, cause.Error()
	if e, ok := errors.AsType[*Error](cause); ok {
		step, class, message = e.Step, e.Class, e.Err.Error()
		if s.cause != nil && a.task.Decide(e) == Skip {
			a.task.Drop(step, "skipped")
			a.report(s, Report{Status: StatusSkipped, Class: class})
			return nil
		}
	}
	if s.cause != nil {
		message = truncate(message) // that of an outcome is short already
	}
	var details []Header
	if a.typed.details != nil {
		details = a.typed.details(s.e, s.o)
	}
	err := a.task.Produce(a.cfg.DeadLetters, -1, deadLetter(s.e, step, class, s.o.GetAttempts(), message, a.task.Now(), details...))
	if err != nil {
		return &Error{Class: ClassProduce, Step: a.cfg.Step, Action: Stop, Err: fmt.Errorf("dead letter of %s: %w", s.e.Id, err)}
	}
	r := Report{Status: StatusDeadLetter, Class: class}
	if f := s.o.GetFailure(); f != nil {
		r.Reason = reasonName(f.Reason)
	}
	a.report(s, r)
	return nil
}

// report tells how an entry ended.
func (a *Async) report(s *settled, r Report) {
	r.Step = a.cfg.Step
	if a.typed.report != nil {
		a.typed.report(&r, s.e, s.o)
	}
	if r.Status == "" {
		return
	}
	a.task.Report(r)
}

// Seen reports whether a source record has been processed already: in strict
// order the committed offset may stand before it. The pipeline skips it then,
// before any other step sees it.
func (a *Async) Seen(src *Raw) bool {
	return a.cfg.Order == OrderStrict && src.Offset < a.task.Cell(a.positionCell(src.Topic)).Value()
}

func (a *Async) positionCell(topic string) string {
	return "async/" + a.cfg.Step + "/position/" + topic
}

// Hold returns the offset to commit for a source topic of which the records
// before next have been processed, skipped or dead-lettered: next, or in strict
// order that of the first event whose result is not out. In the latter case it
// notes next in a row of the task, so that what will be read again is seen to have
// been processed: it is called before the changes of the cycle are collected.
func (a *Async) Hold(topic string, next int64) int64 {
	if a.cfg.Order != OrderStrict {
		return next
	}
	a.sync()
	for _, l := range a.live {
		if l.topic == topic {
			c := a.task.Cell(a.positionCell(topic))
			c.Set(max(c.Value(), next)) // after a rewind next is behind what was seen
			return min(l.offset, next)
		}
	}
	return next
}
