package processors

import "slices"

// The headers of a record in a stream of dropped records.
const (
	// DropStepHeader is the step that dropped it.
	DropStepHeader = "millrace.dropped-by"
	// DropReasonHeader is why: "late", "null-key", ...; see [Task].
	DropReasonHeader = "millrace.drop-reason"
)

// Drop says that a step dropped a record: the task counts it, and the stream of the
// step's dropped records gets it, with [DropStepHeader] and [DropReasonHeader], if
// there is one of its types.
func Drop[K, V any](t Task, step string, r Record[K, V], reason string) error {
	t.Drop(step, reason)
	d, ok := t.(*dropping)
	if !ok {
		return nil
	}
	for _, f := range d.next {
		next, ok := f.(Forward[K, V])
		if !ok {
			continue
		}
		out := r
		out.Headers = append(slices.DeleteFunc(slices.Clone(r.Headers), func(h Header) bool {
			return h.Key == DropStepHeader || h.Key == DropReasonHeader
		}), Header{DropStepHeader, []byte(step)}, Header{DropReasonHeader, []byte(reason)})
		if err := next(out); err != nil {
			return err
		}
	}
	return nil
}

// dropChange is [Drop] for an update of a table: what is dropped is the new row.
func dropChange[K, V any](t Task, step string, r Record[K, Change[V]], reason string) error {
	out := withValue(r, r.Key, r.Value.New, r.Timestamp)
	out.NoKey, out.NoValue = r.NoKey, !r.Value.HasNew
	return Drop(t, step, out, reason)
}

// WithDropped returns t for a step whose dropped records are forwarded to next, boxed
// [Forward] functions.
func WithDropped(t Task, next []any) Task { return &dropping{t, next} }

// unwrap returns the task behind t.
func unwrap(t Task) Task {
	if d, ok := t.(*dropping); ok {
		return d.Task
	}
	return t
}

type dropping struct {
	Task
	next []any
}
