package engine

import (
	"context"
	"fmt"
	"runtime/debug"
	"slices"
	"time"

	"github.com/google/uuid"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/millrace/millrace/processors"
)

// What an asynchronous step needs of its task.
var _ processors.AsyncTask = (*task)(nil)

// retired names the calls of an entry that has ended.
type retired struct{ step, entry string }

func (t *task) Owner() processors.Owner { return t.inst.owner }

func (t *task) Adopt(step string, asked []processors.AskedCall) []bool {
	return t.inst.calls.Adopt(t.id, step, asked)
}

func (t *task) Retire(step, entry string) {
	t.newRetired = append(t.newRetired, retired{step, entry})
}

func (t *task) LoopCaughtUp() bool {
	loop := t.inputs[len(t.inputs)-1]
	return loop.loop && loop.position.At >= loop.end && t.now.Sub(loop.looked) < endsFresh
}

func (t *task) Undo() {
	t.part.Rollback()
	t.dropOutput()
}

func (t *task) Decide(e *processors.Error) processors.Action {
	if e.Action != processors.Default {
		return e.Action
	}
	return t.policy(e)
}

// policy asks the application. A policy that panics leaves no other decision than to
// stop.
func (t *task) policy(e *processors.Error) (action processors.Action) {
	defer func() {
		if p := recover(); p != nil {
			t.log.Error("panic of the error policy", "panic", p, "stack", string(debug.Stack()))
			e.Err = fmt.Errorf("%w; the error policy panicked: %v", e.Err, p)
			action = processors.Stop
		}
	}()
	return t.inst.cfg.Policy(e)
}

func (t *task) TopicID(topic string) string {
	if info, ok := t.inst.topicInfos[topic]; ok {
		return uuid.UUID(info.ID).String()
	}
	return topic
}

func (t *task) MaxRowBytes() int { return t.inst.cfg.MaxRowBytes }

// startCalls starts what the committed cycle dispatched, unless the cycle has also
// ended it, and forgets what it retired.
func (t *task) startCalls() {
	for _, c := range t.calls {
		if !slices.Contains(t.retired, retired{c.Step, c.Entry}) {
			t.inst.calls.Start(t.id, t.sub.LoopTopic, c)
		}
	}
	for _, r := range t.retired {
		t.inst.calls.Retire(t.id, r.step, r.entry)
	}
}

// appendLoop writes a record to a loop topic with the plain client, outside of
// every transaction: what was paid for must not be lost with one.
func (inst *Instance) appendLoop(ctx context.Context, topic string, partition int32, raw processors.Raw) error {
	r := &kgo.Record{Topic: topic, Partition: partition, Key: raw.Key, Value: raw.Value, Headers: toHeaders(raw.Headers), Timestamp: time.UnixMilli(raw.Timestamp)}
	// Not ProduceSync: a record that was sent and not acknowledged is not given up
	// when ctx ends, and without a broker that would be never.
	done := make(chan error, 1)
	inst.plain.Produce(ctx, r, func(_ *kgo.Record, err error) { done <- err })
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}
