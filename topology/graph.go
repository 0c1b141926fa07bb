// Package topology is the DSL: it describes streams, tables, windows, joins and
// asynchronous lookups, checks the description, and compiles it into
// sub-topologies that the engine runs.
//
// Steps that keep the record types are methods; steps that change them are
// package functions, since Go has no generic methods.
package topology

import (
	"github.com/millrace/millrace/processors"
	"github.com/millrace/millrace/state"
)

// A node is one step of the graph. Its typed part is wrapped once, in start, so
// that the graph itself is plain data.
type node struct {
	id   int
	kind kind
	op   string // the DSL's word for the step: "filter", "count", ...
	name string // explicit for what owns a topic or a store, else op and number
	// children in the order in which they were added.
	children []edge
	parents  []*node

	topic  string       // sources, sinks and repartitions
	stores []state.Spec // stores this node owns
	uses   []string     // names of stores it reads or writes, its own included

	// start returns the running operator's inputs, one boxed processors.Forward
	// per input slot. out holds, per output slot, the boxed processors.Forward of
	// each child.
	start func(t processors.Task, out [][]any) ([]any, error)
}

type kind uint8

const (
	kindSource kind = iota
	kindStateless
	kindStateful
	kindRepartition
	kindAsync
	kindSink
)

// An edge leads from an output slot of a node to an input slot of a child.
type edge struct {
	out int
	to  *node
	in  int
}

// forwards unboxes the children of one output slot.
func forwards[K, V any](out []any) processors.Forward[K, V] {
	children := make([]processors.Forward[K, V], len(out))
	for i, f := range out {
		children[i] = f.(processors.Forward[K, V])
	}
	return processors.Fanout(children)
}
