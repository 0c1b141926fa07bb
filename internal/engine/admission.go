package engine

import (
	"container/list"
	"context"
	"time"

	"github.com/millrace/millrace/processors"
)

// slots are the calls of one step: those that hold a slot and those that wait. Of
// these, some wait for more than a slot:
//
//   - A call whose gate is closed is held, and the others pass it. It is looked at
//     again when a call ends, when the gate said, and every second.
//   - A call that equals one that runs (its Flight) follows that one.
type slots struct {
	running int
	limit   int
	queue   list.List // of *call, as the others
	held    list.List
	flights map[string]*flight // by Call.Flight, of a call that runs
	retryAt time.Time          // when the first gate that is closed said that it opens; may be zero
	timer   *time.Timer        // while calls are held
}

// A flight is a running call that others follow.
type flight struct{ followers list.List }

// Pauses between looks at held calls, and of a call that gave its slot back.
const (
	minHeld = 100 * time.Millisecond
	maxHeld = time.Second
)

func (s *slots) stats() CallStats {
	waiting := s.queue.Len() + s.held.Len()
	for _, f := range s.flights {
		waiting += f.followers.Len()
	}
	return CallStats{Running: s.running, Waiting: waiting, Held: s.held.Len(), Slots: s.limit}
}

// wait puts a call at the end of a queue.
func (n *call) wait(q *list.List) {
	if n.place != nil {
		n.queue.Remove(n.place)
	}
	n.queue, n.place = q, q.PushBack(n)
}

func (n *call) leaveQueue() {
	if n.place != nil {
		n.queue.Remove(n.place)
		n.queue, n.place = nil, nil
	}
	if n.timer != nil {
		n.timer.Stop()
	}
}

// recall puts the calls of a queue before those of the main one.
func (s *slots) recall(q *list.List) {
	for e := q.Back(); e != nil; e = q.Back() {
		n := e.Value.(*call)
		q.Remove(e)
		n.queue, n.place = &s.queue, s.queue.PushFront(n)
	}
}

// admits asks the gate of a call.
func (s *slots) admits(n *call, now time.Time) bool {
	retryAt := n.after
	if !now.Before(n.after) {
		if n.Gate == nil {
			return true
		}
		var calls int
		if calls, retryAt = n.Gate(); s.running < calls {
			return true
		}
	}
	if s.retryAt.IsZero() || !retryAt.IsZero() && retryAt.Before(s.retryAt) {
		s.retryAt = retryAt
	}
	return false
}

// grant lets waiting calls run while there are slots.
func (c *Calls) grant(s *slots) {
	now := time.Now()
	if e := s.held.Front(); e != nil && s.running < s.limit && s.admits(e.Value.(*call), now) {
		s.recall(&s.held)
	}
	for s.running < s.limit && s.queue.Len() > 0 {
		n := s.queue.Front().Value.(*call)
		f := s.flights[n.Flight]
		switch {
		case f != nil:
			n.wait(&f.followers)
			continue
		case !s.admits(n, now):
			n.wait(&s.held)
			continue
		case n.Flight != "":
			n.leads = &flight{}
			s.flights[n.Flight] = n.leads
		}
		n.leaveQueue()
		s.running++
		n.slot, n.state, n.began = true, callRunning, now
		ctx, stop := context.WithCancel(n.life)
		n.stop = stop
		c.wg.Go(func() { c.run(ctx, n) })
	}
	c.watch(s)
}

// watch looks at held calls again after a while.
func (c *Calls) watch(s *slots) {
	switch {
	case s.held.Len() == 0 || c.closed:
		s.unwatch()
		return
	case s.timer != nil:
		return
	}
	wait := maxHeld
	if !s.retryAt.IsZero() {
		wait = max(minHeld, min(wait, time.Until(s.retryAt)))
	}
	s.timer = time.AfterFunc(wait, func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		if s.timer == nil {
			return // stopped too late
		}
		s.timer, s.retryAt = nil, time.Time{}
		s.recall(&s.held)
		c.grant(s)
	})
}

func (s *slots) unwatch() {
	if s.timer != nil {
		s.timer.Stop()
	}
	s.timer, s.retryAt = nil, time.Time{}
}

// postpone takes the slot of a call that cannot be made now, and lets it wait.
func (c *Calls) postpone(n *call) {
	s := c.steps[n.Step]
	n.slot = false
	s.running--
	if n.task.leave != nil {
		c.giveUp(n)
		c.grant(s)
		return
	}
	now := time.Now()
	n.state, n.after = callWaiting, now.Add(minHeld)
	n.wait(&s.held)
	if n.MaxWait > 0 {
		if n.until.IsZero() {
			n.until = now.Add(n.MaxWait)
		}
		n.timer = time.AfterFunc(time.Until(n.until), func() { c.waited(n) })
	}
	c.grant(s)
}

// land ends the flight of a call that has run. Those that followed it come next:
// each answers with what it got, or, one after the other, makes the call if it was
// interrupted. If it failed they fail or succeed on their own, at once.
func (c *Calls) land(n *call, raw processors.Raw) {
	f := n.leads
	if f == nil {
		return
	}
	n.leads = nil
	s := c.steps[n.Step]
	delete(s.flights, n.Flight)
	switch processors.OutcomeKind(&raw) {
	case "answer", "again", "":
	default:
		for e := f.followers.Front(); e != nil; e = e.Next() {
			e.Value.(*call).Flight = ""
		}
	}
	s.recall(&f.followers)
	c.grant(s)
}
