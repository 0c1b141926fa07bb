package engine

import (
	"container/list"
	"context"
	"log/slog"
	"sync"
	"time"

	"golang.org/x/sync/semaphore"

	"github.com/millrace/millrace/internal/kafka"
	"github.com/millrace/millrace/processors"
	"github.com/millrace/millrace/state"
)

// CallsConfig configures [NewCalls]. Append is required.
type CallsConfig struct {
	// Append writes a record to a partition of a loop topic, outside of every
	// transaction, and returns when the broker has acknowledged it to all in-sync
	// replicas. It is called by several goroutines at once and retried until it
	// succeeds. The broker refuses a batch as a whole: a record that was refused is
	// tried again while no other is appended to the partition, and replaced by a
	// failure only when it is refused alone.
	Append func(ctx context.Context, topic string, partition int32, rec processors.Raw) error
	// HandoverWait is how long calls may go on whose step does not say; default 5 s.
	HandoverWait time.Duration
	Logger       *slog.Logger // default: discard
	Observer     CallObserver // may be nil
}

// A CallObserver is told about calls. Its methods are called from several
// goroutines and must not block.
type CallObserver interface {
	// CallEnded says that an outcome of the kind (see [processors.OutcomeKind]) was
	// appended, of a call that ran for so long.
	CallEnded(step, kind string, ran time.Duration)
	// CallInterrupted says that a call was cancelled without an outcome, or is made
	// again since its owner ended without a word.
	CallInterrupted(step string)
}

// CallStats counts the calls of a step on this instance: those that run, those that
// wait for a slot, of these those that wait for their gate to open, and the slots.
type CallStats struct{ Running, Waiting, Held, Slots int }

// Calls runs the calls of an instance's asynchronous steps. It is the instance's
// memory of what was asked: it outlives aborts, clients, workers and the tasks'
// operators, and never makes a call twice. Of a task that has left it remembers
// nothing: what became of every call is in the loop then, for whoever has the task
// next. All methods are safe for concurrent use.
//
// A call waits for a slot of its step, first come, first served (admission.go says
// what else it may wait for); it runs in a goroutine of its own, and its outcome is
// appended to the loop topic. It keeps its slot until that is acknowledged.
type Calls struct {
	cfg    CallsConfig
	life   context.Context // ends when a drain has given up
	cancel context.CancelFunc
	wg     sync.WaitGroup // the goroutines of calls and hand-overs

	mu     sync.Mutex
	tasks  map[state.TaskID]*taskCalls
	steps  map[string]*slots
	closed bool
}

// taskCalls are the calls of one task, those that have ended included as long as
// their entries may live.
type taskCalls struct {
	calls  map[callKey]*call
	active int // not ended
	// appends is shared by appends to the loop's partition: one that must be alone in
	// its batch takes all of it.
	appends *semaphore.Weighted
	leave   chan struct{} // not nil while the task is handed over: closed when that is over
	stay    chan struct{} // closed when the task is taken back meanwhile
}

type callKey struct{ step, entry string }

type call struct {
	processors.Call
	task  *taskCalls
	id    state.TaskID
	topic string
	state callState
	slot  bool          // holds one
	queue *list.List    // where it waits
	place *list.Element // in that
	leads *flight       // while it runs, if equal calls wait for it
	after time.Time     // it gave its slot back, and gets none before
	until time.Time     // MaxWait, of one that gave its slot back
	timer *time.Timer   // of MaxWait
	began time.Time     // when it was granted its slot

	life     context.Context // ends when the outcome is not wanted any more
	forget   context.CancelFunc
	stop     context.CancelFunc // ends the run
	released bool               // ended without an outcome
}

type callState uint8

const (
	callWaiting callState = iota
	callRunning
	callAppending
	callEnded
)

// NewCalls returns a set without calls.
func NewCalls(cfg CallsConfig) *Calls {
	if cfg.HandoverWait == 0 {
		cfg.HandoverWait = 5 * time.Second
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	c := &Calls{cfg: cfg, tasks: map[state.TaskID]*taskCalls{}, steps: map[string]*slots{}}
	c.life, c.cancel = context.WithCancel(context.Background())
	return c
}

func (c *Calls) of(id state.TaskID) *taskCalls {
	t := c.tasks[id]
	if t == nil {
		t = &taskCalls{calls: map[callKey]*call{}, appends: semaphore.NewWeighted(wholePartition)}
		c.tasks[id] = t
	}
	return t
}

// Start takes a call of a task, whose loop topic is loop, after the transaction
// that asked for it has committed. A call that was started before is not started
// again.
func (c *Calls) Start(id state.TaskID, loop string, what processors.Call) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return
	}
	if what.Abandoned {
		c.interrupted(what.Step)
	}
	t := c.of(id)
	key := callKey{what.Step, what.Entry}
	if old := t.calls[key]; old != nil && old.Round == what.Round {
		switch {
		case old.Ask == what.Ask || old.state == callEnded && !old.released:
			return // it runs, or its outcome is in the loop
		case old.state != callEnded && !old.released:
			old.Ask, old.Waited, old.Released, old.Failed = what.Ask, what.Waited, what.Released, what.Failed
			return // it is what the new ask wants
		}
	} else if old != nil {
		c.drop(old)
	}
	n := &call{Call: what, task: t, id: id, topic: loop}
	n.life, n.forget = context.WithCancel(c.life)
	t.calls[key] = n
	t.active++
	s := c.steps[what.Step]
	if s == nil {
		s = &slots{flights: map[string]*flight{}}
		c.steps[what.Step] = s
	}
	s.limit = max(what.Slots, 1)
	if t.leave != nil {
		c.giveUp(n)
		return
	}
	n.wait(&s.queue)
	if what.MaxWait > 0 {
		n.timer = time.AfterFunc(what.MaxWait, func() { c.waited(n) })
	}
	c.grant(s)
}

// run makes a call and appends its outcome.
func (c *Calls) run(ctx context.Context, n *call) {
	raw := n.Run(ctx)
	c.mu.Lock()
	ended := ctx.Err() != nil
	n.stop()
	c.land(n, raw)
	if n.life.Err() != nil { // retired, or the instance has given up
		if c.life.Err() != nil && raw.Value == nil {
			c.interrupted(n.Step)
		}
		c.end(n)
		c.mu.Unlock()
		return
	}
	if raw.Value == nil && !ended {
		c.postpone(n)
		c.mu.Unlock()
		return
	}
	n.state = callAppending
	if raw.Value == nil {
		n.released = true
		raw = n.Released()
		c.interrupted(n.Step)
	}
	c.mu.Unlock()
	c.deliver(n, raw)
}

// waited ends a call that was not granted a slot in time.
func (c *Calls) waited(n *call) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if n.state != callWaiting {
		return
	}
	n.leaveQueue()
	n.state = callAppending
	raw := n.Waited()
	c.wg.Go(func() { c.deliver(n, raw) })
}

// giveUp ends a call that has not run: another owner is to make it.
func (c *Calls) giveUp(n *call) {
	n.leaveQueue()
	n.state, n.released = callAppending, true
	raw := n.Released()
	c.wg.Go(func() { c.deliver(n, raw) })
}

// deliver appends the outcome of a call and ends it.
func (c *Calls) deliver(n *call, raw processors.Raw) {
	ran := time.Duration(0)
	if n.slot {
		ran = time.Since(n.began)
	}
	kind, ok := c.append(n, raw)
	if ok && c.cfg.Observer != nil {
		c.cfg.Observer.CallEnded(n.Step, kind, ran)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if !ok && c.life.Err() != nil && n.slot && !n.released {
		c.interrupted(n.Step) // the answer is lost, and will be asked for again
	}
	c.end(n)
}

// Pauses between attempts to append.
const (
	appendBackoff    = 100 * time.Millisecond
	appendMaxBackoff = 10 * time.Second
)

// append writes the outcome to the loop until the broker acknowledges it. It
// returns the kind of what was written, and false if the outcome is not wanted
// any more.
func (c *Calls) append(n *call, raw processors.Raw) (kind string, ok bool) {
	alone, refused := false, false
	for pause := appendBackoff; ; pause = min(2*pause, appendMaxBackoff) {
		err := c.appendOnce(n, raw, alone)
		switch {
		case err == nil:
			return processors.OutcomeKind(&raw), true
		case n.life.Err() != nil:
			return "", false
		case !alone && kafka.IsRecordError(err):
			alone = true // another record of the batch may be to blame
			continue
		case !refused && kafka.IsRecordError(err):
			c.cfg.Logger.Error("the broker refuses the outcome of a call: it becomes a failure", "step", n.Step, "entry", n.Entry, "bytes", len(raw.Value), "error", err)
			refused = true
			c.mu.Lock()
			raw = n.Failed(err)
			c.mu.Unlock()
			continue
		}
		c.cfg.Logger.Warn("the outcome of a call could not be appended, trying again", "step", n.Step, "entry", n.Entry, "topic", n.topic, "in", pause, "error", err)
		select {
		case <-time.After(pause):
		case <-n.life.Done():
			return "", false
		}
	}
}

// wholePartition is more than can be appended to a partition at once.
const wholePartition = 1 << 30

// appendOnce makes one attempt, alone with a batch of its own.
func (c *Calls) appendOnce(n *call, raw processors.Raw, alone bool) error {
	share := int64(1)
	if alone {
		share = wholePartition
	}
	if err := n.task.appends.Acquire(n.life, share); err != nil {
		return err
	}
	defer n.task.appends.Release(share)
	return c.cfg.Append(n.life, n.topic, n.id.Partition, raw)
}

// end notes that nothing more comes of a call, and passes its slot on.
func (c *Calls) end(n *call) {
	if n.state == callEnded {
		return
	}
	n.state = callEnded
	n.forget()
	n.task.active--
	if s := c.steps[n.Step]; n.slot {
		n.slot = false
		s.running--
		c.grant(s)
	}
	if t := n.task; t.leave != nil && t.active == 0 {
		t.left()
		delete(c.tasks, n.id) // what became of its calls is in the loop
	}
}

// left ends the hand-over.
func (t *taskCalls) left() {
	select {
	case <-t.leave:
	default:
		close(t.leave)
	}
}

// drop forgets a call; what may still run or wait for it ends without a record.
func (c *Calls) drop(n *call) {
	delete(n.task.calls, callKey{n.Step, n.Entry})
	switch n.state {
	case callWaiting:
		n.leaveQueue()
		c.end(n)
	case callRunning, callAppending:
		n.forget() // its goroutine ends it
	}
}

// Retire forgets the calls of an entry that has ended. One still running is
// cancelled, and its outcome dropped.
func (c *Calls) Retire(id state.TaskID, step, entry string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if t := c.tasks[id]; t != nil {
		if n := t.calls[callKey{step, entry}]; n != nil {
			c.drop(n)
		}
	}
}

// Adopt gives a task, whose operators were reset, its calls back: it ends a
// hand-over that goes on, and reports which of the calls this process was given.
// Ended calls of the step beyond those are forgotten.
func (c *Calls) Adopt(id state.TaskID, step string, asked []processors.AskedCall) []bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	t := c.of(id)
	if t.leave != nil {
		close(t.stay)
		t.left()
		t.leave = nil
	}
	known := make([]bool, len(asked))
	keep := make(map[*call]bool, len(asked))
	for i, a := range asked {
		if n := t.calls[callKey{step, a.Entry}]; n != nil && n.Round == a.Round && n.Ask == a.Ask {
			known[i], keep[n] = true, true
		}
	}
	for key, n := range t.calls {
		if key.step == step && n.state == callEnded && !keep[n] {
			delete(t.calls, key)
		}
	}
	return known
}

// HandOver begins to give up the calls of a task that leaves: no more are
// dispatched, those that wait for a slot are released, and those that run have
// the step's HandoverWait to end before they are cancelled. Every one appends an
// outcome, or a record that says that it was released. The returned channel is
// closed when all have, and the task's calls are forgotten then, or when the task was
// adopted again by this process, which ends the hand-over. It does not block.
func (c *Calls) HandOver(id state.TaskID) <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	t := c.of(id)
	if t.leave != nil {
		return t.leave
	}
	t.leave, t.stay = make(chan struct{}), make(chan struct{})
	wait := time.Duration(0)
	for _, n := range t.calls {
		switch n.state {
		case callWaiting:
			c.giveUp(n)
		case callRunning:
			w := n.HandoverWait
			if w == 0 {
				w = c.cfg.HandoverWait
			}
			wait = max(wait, w)
		}
	}
	if t.active == 0 {
		t.left()
		delete(c.tasks, id)
		return t.leave
	}
	leave, stay := t.leave, t.stay
	c.wg.Go(func() { // ends with the hand-over or the wait
		timer := time.NewTimer(wait)
		defer timer.Stop()
		select {
		case <-leave:
		case <-stay:
		case <-timer.C:
			c.stopRunning(t, stay)
		}
	})
	return leave
}

// stopRunning cancels the running calls of a task, unless it stays after all.
func (c *Calls) stopRunning(t *taskCalls, stay chan struct{}) {
	c.mu.Lock()
	defer c.mu.Unlock()
	select {
	case <-stay:
		return
	default:
	}
	for _, n := range t.calls {
		if n.state == callRunning {
			n.stop()
		}
	}
}

// Drain hands over all tasks and returns when nothing runs any more. When ctx
// ends before that, what is left is cancelled: outcomes not yet acknowledged are
// lost, and their calls will be made again. It can be called again.
func (c *Calls) Drain(ctx context.Context) {
	c.mu.Lock()
	c.closed = true
	var ids []state.TaskID
	for id := range c.tasks {
		ids = append(ids, id)
	}
	for _, s := range c.steps {
		s.unwatch()
	}
	c.mu.Unlock()
	for _, id := range ids {
		select {
		case <-c.HandOver(id):
		case <-ctx.Done():
		}
	}
	c.cancel()
	c.wg.Wait()
}

// Stats returns the number of calls that run and wait, by step.
func (c *Calls) Stats() map[string]CallStats {
	c.mu.Lock()
	defer c.mu.Unlock()
	stats := make(map[string]CallStats, len(c.steps))
	for name, s := range c.steps {
		stats[name] = s.stats()
	}
	return stats
}

func (c *Calls) interrupted(step string) {
	if c.cfg.Observer != nil {
		c.cfg.Observer.CallInterrupted(step)
	}
}
