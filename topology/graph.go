// Package topology is the DSL: it describes streams, tables, windows, joins and
// asynchronous lookups, checks the description, and compiles it into
// sub-topologies that the engine runs.
//
// Steps that keep the record types are methods; steps that change them are
// package functions, since Go has no generic methods. What owns a topic or a
// store has an explicit name; the names of steps, stores and groups share one
// namespace. Mistakes are collected and reported together by [Builder.Build].
package topology

import (
	"github.com/millrace/millrace/llm"
	"github.com/millrace/millrace/llm/prompt"
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
	auto bool   // the name was made from op and number
	// detail is what else the fingerprint and Describe say of the step: window
	// sizes, join kinds, options that change what it does.
	detail string
	// children in the order in which they were added.
	children []edge
	parents  []*node

	topic  string       // sources, sinks and repartitions
	serdes [2]string    // names of key and value serdes of topic
	stores []state.Spec // stores this node owns
	uses   []string     // names of stores it reads or writes, its own included
	// aligned says that all sources before the node must have the same partition
	// count even if it has no store.
	aligned bool
	// timers says that the node schedules punctuations or has cells.
	timers bool

	source *sourceConfig // sources and repartitions
	outs   int           // number of output slots; 0 counts as 1
	// inputs are those whose records the node may drop, dropSlot the output slot that
	// forwards them; 0 if nothing uses it.
	inputs   []input
	dropSlot int
	labels   []string // names of the output slots, for Describe
	// fallback says that the second output of an asynchronous step is used.
	fallback bool
	// copied says that the node belongs to the asynchronous step behind it: a copy of a
	// table that it reads.
	copied bool
	// prompt is the use of a prompt by an asynchronous step, if any.
	prompt *prompt.Use
	// raw is the topic of an asynchronous step that takes refused answers, if any.
	raw string
	// caller makes the model calls of an asynchronous step, if it has any.
	caller *llm.Caller

	// start returns the running operator's inputs, one boxed processors.Forward
	// per input slot. out holds, per output slot, the boxed processors.Forward of
	// each child. Of a repartition it starts the writing half.
	start func(t processors.Task, out [][]any) ([]any, error)
	// run replaces start for operators that take part in the pipeline's life.
	run func(t processors.Task, out [][]any) (*operator, error)
	// read starts the reading half of a source or a repartition.
	read func(t processors.Task, out [][]any) (func(*processors.Raw) error, error)
}

type kind uint8

const (
	// kindSource reads a topic.
	kindSource kind = iota
	// kindStateless may be instantiated in several sub-topologies.
	kindStateless
	// kindStateful is instantiated in exactly one sub-topology.
	kindStateful
	// kindRepartition writes an internal topic and, in another sub-topology,
	// reads it.
	kindRepartition
	// kindAsync has a sub-topology and a Kafka group of its own.
	kindAsync
	// kindSink ends a branch: it has no children.
	kindSink
)

// sourceConfig is what a source's options say.
type sourceConfig struct {
	start StartPolicy
	// store is the table store the topic feeds, if any.
	store      string
	timestamp  func(rec *processors.Raw, partitionTime int64) (int64, error)
	decode     processors.Action
	partitions int32 // repartitions: 0 is automatic
}

// keepNullKeys makes a repartition forward records without a key.
func (n *node) keepNullKeys() {
	if n.detail == withoutNullKeys {
		n.detail = ""
	}
}

const withoutNullKeys = "without null keys"

// An operator is a running step with more than inputs; nil functions are not
// called.
type operator struct {
	inputs []any
	async  *processors.Async // of an asynchronous step
	// loop takes a record of the sub-topology's loop topic.
	loop func(rec *processors.Raw) error
	// capacity, pending and reset are those of [Pipeline].
	capacity func() bool
	pending  func() (entries int, oldest int64)
	reset    func() error
	close    func() error
	// advance is called before every record of the sources, when stream time includes
	// it.
	advance func() error
}

// An edge leads from an output slot of a node to an input slot of a child.
type edge struct {
	out int
	to  *node
	in  int
}

// A port is an output slot of a node: what a stream or a table hangs on.
type port struct {
	n   *node
	out int
}

// forwards unboxes the children of one output slot.
func forwards[K, V any](out []any) processors.Forward[K, V] {
	children := make([]processors.Forward[K, V], len(out))
	for i, f := range out {
		children[i] = f.(processors.Forward[K, V])
	}
	return processors.Fanout(children)
}
