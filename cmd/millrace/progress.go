package main

import (
	"context"
	"sync"
)

// state is how far a run has come.
type state struct {
	ready    bool // the first worker has started
	sent     int  // events the broker has acknowledged
	outcomes int  // events with an outcome
	kills    int
}

// progress shares the state of a run. It is safe for concurrent use.
type progress struct {
	mu      sync.Mutex
	state   state
	changed chan struct{} // closed and replaced at every update
}

func newProgress() *progress { return &progress{changed: make(chan struct{})} }

func (p *progress) update(f func(*state)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	f(&p.state)
	close(p.changed)
	p.changed = make(chan struct{})
}

func (p *progress) get() state {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.state
}

// wait returns when ok holds, or ctx's error when it ends first.
func (p *progress) wait(ctx context.Context, ok func(state) bool) error {
	for {
		p.mu.Lock()
		s, changed := p.state, p.changed
		p.mu.Unlock()
		if ok(s) {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
