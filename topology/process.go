package topology

import (
	"fmt"
	"time"

	"github.com/millrace/millrace/processors"
	"github.com/millrace/millrace/serde"
	"github.com/millrace/millrace/state"
)

// A Store is a store that was declared by name, for use by processors.
type Store[K, V any] struct {
	spec  state.Spec
	key   serde.Serde[K]
	value serde.Serde[V]
}

// StoreSpec and StoreSerdes make the store readable by views: they implement
// [state.Handle].
func (s *Store[K, V]) StoreSpec() state.Spec { return s.spec }

// StoreSerdes returns the serdes of the store's keys and values.
func (s *Store[K, V]) StoreSerdes() (serde.Serde[K], serde.Serde[V]) { return s.key, s.value }

var _ state.Handle[string, int64] = (*Store[string, int64])(nil)

// AddKeyValueStore declares a key-value store for processors, which connect to it
// with [Stores]. Its changelog is <app>.<name>-table. All steps connected to one
// store run in one sub-topology.
func AddKeyValueStore[K, V any](b *Builder, name string, key serde.Serde[K], value serde.Serde[V], opts ...StoreOption) *Store[K, V] {
	spec := state.Spec{Name: name, Kind: state.KeyValue}
	for _, opt := range opts {
		opt.store(&spec)
	}
	if len(opts) > 0 {
		checkTTL(b, fmt.Sprintf("store %q: TTL", name), spec.TTL)
	}
	return addNamedStore(b, spec, key, value)
}

// AddWindowStore declares a window store for processors, which connect to it with
// [Stores]. Rows expire when the task's stream time passes their window start by
// retention, which is at least size. Its changelog is <app>.<name>-table.
func AddWindowStore[K, V any](b *Builder, name string, key serde.Serde[K], value serde.Serde[V], size, retention time.Duration) *Store[K, V] {
	return addNamedStore(b, state.Spec{Name: name, Kind: state.Window, WindowSize: size, Retention: retention}, key, value)
}

func addNamedStore[K, V any](b *Builder, spec state.Spec, key serde.Serde[K], value serde.Serde[V]) *Store[K, V] {
	b.claim(spec.Name, fmt.Sprintf("store %q", spec.Name))
	if key == nil || value == nil {
		b.fail("store %q: a nil serde; pass the serdes of key and value, for example serde.String()", spec.Name)
	} else {
		spec.KeySerde, spec.ValueSerde = key.Name(), value.Name()
	}
	b.addStore(&storeDecl{spec: spec, key: key, value: value})
	return &Store[K, V]{spec: spec, key: key, value: value}
}

// A ProcessOption configures [Process] and [ProcessValues].
type ProcessOption interface{ process(*node) }

// Stores connects a processor to stores declared with [AddKeyValueStore] or
// [AddWindowStore].
func Stores(names ...string) ProcessOption { return stores(names) }

type stores []string

func (s stores) process(n *node) { n.uses = append(n.uses, s...) }

// Process runs a processor on every record: newProcessor makes one for each task,
// and another after an abort. The processor may change the key, so a repartition
// topic is inserted before the next join, aggregation or table; the input is not
// repartitioned even if a step before it changed the key. Behind an asynchronous
// step the input goes through <app>.<name>-repartition.
func Process[KIn, VIn, KOut, VOut any](s *KStream[KIn, VIn], name string, newProcessor func() processors.Processor[KIn, VIn, KOut, VOut], opts ...ProcessOption) *KStream[KOut, VOut] {
	p := process(s, "process", name, newProcessor, opts, func(next processors.Forward[KOut, VOut]) (processors.Forward[KOut, VOut], around[KIn, VIn]) {
		return next, nil
	})
	return &KStream[KOut, VOut]{b: s.b, from: p, key: serdeFor[KIn, KOut](s.key), value: serdeFor[VIn, VOut](s.value), changed: true}
}

// ProcessValues runs a processor that keeps the key: what it forwards while it
// processes a record gets the key of that record, whatever key it set, so that
// nothing is repartitioned behind it. A punctuation forwards the keys it sets,
// which must be of the task's partition. Behind an asynchronous step the input
// goes through <app>.<name>-repartition.
func ProcessValues[K, VIn, VOut any](s *KStream[K, VIn], name string, newProcessor func() processors.Processor[K, VIn, K, VOut], opts ...ProcessOption) *KStream[K, VOut] {
	p := process(s, "process-values", name, newProcessor, opts, processors.KeepKey[K, VIn, VOut])
	return &KStream[K, VOut]{b: s.b, from: p, key: s.key, value: serdeFor[VIn, VOut](s.value), changed: s.changed}
}

// around wraps the input of a processor; nil leaves it as it is.
type around[K, V any] = func(processors.Forward[K, V]) processors.Forward[K, V]

func process[KIn, VIn, KOut, VOut any](s *KStream[KIn, VIn], op, name string, newProcessor func() processors.Processor[KIn, VIn, KOut, VOut], opts []ProcessOption,
	link func(processors.Forward[KOut, VOut]) (processors.Forward[KOut, VOut], around[KIn, VIn]),
) port {
	b := s.b
	if name == "" {
		b.fail("%s: it has no name; a processor needs an explicit one", op)
	}
	if newProcessor == nil {
		b.fail("%s %q: the function that makes processors is nil", op, name)
	}
	if s.from.n.behind(kindAsync) {
		s = s.repartition(name, true, nil)
	}
	n := &node{kind: kindStateful, op: op, name: name}
	for _, opt := range opts {
		opt.process(n)
	}
	n.run = func(t processors.Task, out [][]any) (*operator, error) {
		connected := map[string]processors.StoreSerdes{}
		for _, store := range n.uses {
			connected[store] = processors.StoreSerdes{Key: b.stores[store].key, Value: b.stores[store].value}
		}
		next, around := link(processors.Nulls(forwards[KOut, VOut](out[0])))
		run := &processors.RunningProcessor[KIn, VIn, KOut, VOut]{
			NewContext: func() *processors.Context[KOut, VOut] { return processors.NewContext(t, name, connected, next) },
			New:        newProcessor,
		}
		in := processors.Forward[KIn, VIn](run.Process)
		if around != nil {
			in = around(in)
		}
		return &operator{inputs: []any{processors.Guard(name, in)}, reset: run.Reset, close: run.Close}, nil
	}
	return port{n: b.addNode(n, s.from)}
}
