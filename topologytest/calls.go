package topologytest

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/millrace/millrace/processors"
)

// A Call is a call of an asynchronous step that waits for the test: the driver
// never makes it by itself. Its outcome goes through the step's loop topic and is
// processed, with all it causes, before the method returns. A call has one
// outcome: later ones end the test.
type Call struct {
	Step  string
	Entry string // id of the in-flight entry
	Round int    // which request of the entry this is

	task *task
	call processors.Call
}

// Calls returns the calls that have been dispatched and have no outcome yet, in
// order.
func (d *Driver) Calls() []*Call { return slices.Clone(d.calls) }

// Run makes the call: it runs the step's function, with its attempts and their
// pauses, in the test's goroutine. While it cannot be made, since breakers are open,
// Run waits, for MaxWait at most.
func (c *Call) Run() {
	c.task.d.t.Helper()
	rec := c.call.Run(c.task.ctx)
	for began := time.Now(); rec.Value == nil && c.task.ctx.Err() == nil; rec = c.call.Run(c.task.ctx) {
		if !c.admitted(began) {
			rec = c.call.Waited()
			break
		}
	}
	c.end(rec)
}

// gatePause is the pause between two looks at the gate of a call.
const gatePause = 100 * time.Millisecond

// admitted waits for the gate of the call, and reports whether it opened in time.
func (c *Call) admitted(began time.Time) bool {
	for {
		select {
		case <-time.After(gatePause):
		case <-c.task.ctx.Done():
			return false
		}
		if c.call.MaxWait > 0 && time.Since(began) >= c.call.MaxWait {
			return false
		}
		if c.call.Gate == nil {
			return true
		}
		if calls, _ := c.call.Gate(); calls > 0 {
			return true
		}
	}
}

// Answer ends the call as if the step's function had returned value, which must
// be of its result type.
func (c *Call) Answer(value any) {
	c.task.d.t.Helper()
	c.end(c.call.Run(processors.WithAnswer(c.task.ctx, value, nil)))
}

// Fail ends the call as if the step's function had returned err in an attempt
// that is not repeated. An err by [processors.WithAction] keeps its action, if it
// is Skip.
func (c *Call) Fail(err error) {
	c.task.d.t.Helper()
	c.end(c.call.Run(processors.WithAnswer(c.task.ctx, nil, lastAttempt(err))))
}

func lastAttempt(err error) error {
	if e, ok := errors.AsType[*processors.Error](processors.Fail(processors.ClassAsync, "", err)); ok && e.Action == processors.Skip {
		return err
	}
	return processors.WithAction(processors.DeadLetter, err)
}

// TimeOut ends the call as if its last attempt had taken too long.
func (c *Call) TimeOut() {
	c.task.d.t.Helper()
	c.Fail(context.DeadlineExceeded)
}

// NoSlot ends the call as one that was granted no slot within MaxWait.
func (c *Call) NoSlot() {
	c.task.d.t.Helper()
	c.end(c.call.Waited())
}

// Release ends the call without an outcome, as an instance does that hands its
// task over: the step asks again.
func (c *Call) Release() {
	c.task.d.t.Helper()
	c.end(c.call.Released())
}

// end appends an outcome to the loop topic.
func (c *Call) end(rec processors.Raw) {
	d := c.task.d
	d.t.Helper()
	at := slices.Index(d.calls, c)
	if at < 0 {
		d.t.Fatalf("topologytest: the call of entry %s, round %d, of step %q has its outcome or was given up", c.Entry, c.Round, c.Step)
	}
	d.calls = slices.Delete(d.calls, at, at+1)
	if err := d.write(c.task.sub.LoopTopic, c.task.part.ID.Partition, rec); err != nil {
		d.t.Fatalf("topologytest: %v", err)
	}
	d.run()
}
