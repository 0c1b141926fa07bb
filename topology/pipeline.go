package topology

import (
	"errors"
	"fmt"
	"slices"

	"github.com/millrace/millrace/processors"
)

// pipeline is the running operators of one task.
type pipeline struct {
	sources [][]func(*processors.Raw) error // per source, one per node that reads it
	topics  []string                        // of the sources
	loop    func(*processors.Raw) error
	async   *processors.Async // the asynchronous step, if there is one
	ops     []*operator
}

// start instantiates the operators of a piece, children first.
func (p *piece) start(t processors.Task, sources []Source) (Pipeline, error) {
	run := &pipeline{sources: make([][]func(*processors.Raw) error, len(sources))}
	for _, src := range sources {
		run.topics = append(run.topics, src.Topic)
	}
	inputs := map[instance][]any{}
	for _, i := range slices.Backward(p.instances) {
		out := make([][]any, max(i.n.outs, 1))
		for _, e := range p.edges[i] {
			in := inputs[instance{n: e.to}]
			if e.in >= len(in) || e.out >= len(out) {
				return nil, errors.Join(fmt.Errorf("step %q: no way to %q", i.n.name, e.to.name), run.Close())
			}
			out[e.out] = append(out[e.out], in[e.in])
		}
		if i.read {
			read, err := i.n.read(t, out)
			if err != nil {
				return nil, errors.Join(fmt.Errorf("start source %q: %w", i.n.name, err), run.Close())
			}
			at := slices.IndexFunc(sources, func(s Source) bool { return s.Topic == i.n.topic })
			run.sources[at] = append(run.sources[at], read)
			continue
		}
		op, err := i.n.begin(t, out)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("start step %q: %w", i.n.name, err), run.Close())
		}
		inputs[i] = op.inputs
		run.ops = append(run.ops, op)
		if op.loop != nil {
			run.loop, run.async = op.loop, op.async
		}
	}
	for _, reads := range run.sources {
		slices.Reverse(reads) // they were started last first
	}
	return run, nil
}

func (n *node) begin(t processors.Task, out [][]any) (*operator, error) {
	if n.dropSlot > 0 {
		t = processors.WithDropped(t, out[n.dropSlot])
	}
	if n.run != nil {
		return n.run(t, out)
	}
	in, err := n.start(t, out)
	return &operator{inputs: in}, err
}

func (p *pipeline) Process(source int, rec *processors.Raw) (err error) {
	defer func() {
		if r := recover(); r != nil { // steps guard themselves: this is our own mistake
			err = processors.Panicked(processors.ClassProcess, "pipeline", r)
		}
	}()
	if source == len(p.sources) && p.loop != nil {
		return p.loop(rec)
	}
	if p.async != nil && p.async.Seen(rec) {
		return nil // before a restart; its result was not out
	}
	for _, op := range slices.Backward(p.ops) { // they were started last first
		if op.advance != nil {
			if err := op.advance(); err != nil {
				return err
			}
		}
	}
	for _, read := range p.sources[source] {
		if err := read(rec); err != nil {
			return err
		}
	}
	return nil
}

func (p *pipeline) Capacity() bool {
	for _, op := range p.ops {
		if op.capacity != nil && !op.capacity() {
			return false
		}
	}
	return true
}

func (p *pipeline) Pending() (entries int, oldest int64) {
	for _, op := range p.ops {
		if op.pending == nil {
			continue
		}
		n, at := op.pending()
		if n > 0 && (entries == 0 || at < oldest) {
			oldest = at
		}
		entries += n
	}
	return entries, oldest
}

func (p *pipeline) Sizes() []processors.StoreSize {
	if p.async == nil {
		return nil
	}
	return p.async.Sizes()
}

func (p *pipeline) Reset() error {
	for _, op := range p.ops {
		if op.reset != nil {
			if err := op.reset(); err != nil {
				return err
			}
		}
	}
	return nil
}

func (p *pipeline) Close() error {
	var errs []error
	for _, op := range slices.Backward(p.ops) {
		if op.close != nil {
			errs = append(errs, op.close())
		}
	}
	p.ops = nil
	return errors.Join(errs...)
}
