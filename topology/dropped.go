package topology

import (
	"fmt"
	"reflect"
	"strings"

	"github.com/millrace/millrace/processors"
	"github.com/millrace/millrace/serde"
)

// A Dropper is a table or a stream, the result of a step that may drop records: an
// aggregation, a table, a join, [KStream.Deduplicate].
type Dropper interface {
	// step returns the node whose result it is.
	step() (*Builder, *node)
}

func (s *KStream[K, V]) step() (*Builder, *node) { return s.b, s.from.n }
func (t *KTable[K, V]) step() (*Builder, *node) {
	if t.dropper != nil {
		return t.b, t.dropper
	}
	return t.b, t.from.n
}

// Dropped is the stream of the records that the step whose result is of dropped, with
// the types of its input: late ones, those without a key or a value, duplicates. Each
// has its own timestamp and headers, and in addition [processors.DropStepHeader] and
// [processors.DropReasonHeader]; a record that is late for several windows is there
// once for each, as the metric millrace_dropped_records_total counts it.
//
// K and V are the types of the records that come to the step; of a join of two streams
// those of either. Of a step behind a repartition topic, records without a key go
// through that topic then, spread over its partitions, and are dropped behind it.
//
//	perMinute := topology.Count(orders.GroupByKey(), "per-minute", topology.Tumbling(time.Minute, topology.Grace(0)))
//	topology.Dropped[string, Order](perMinute).To("orders.late")
func Dropped[K, V any](of Dropper) *KStream[K, V] {
	b, n := of.step()
	want := reflect.TypeFor[processors.Record[K, V]]()
	out := &KStream[K, V]{b: b, from: port{n: n}}
	var have []string
	found := false
	for _, in := range n.inputs {
		if in.typ != want {
			have = append(have, in.typ.String())
			continue
		}
		found = true
		if key, ok := in.key.(serde.Serde[K]); ok && out.key == nil {
			out.key = key
		}
		if value, ok := in.value.(serde.Serde[V]); ok && out.value == nil {
			out.value = value
		}
	}
	what := fmt.Sprintf("dropped records of %s %q", n.op, n.name)
	switch {
	case len(n.inputs) == 0:
		b.fail("%s: the step drops none; take the result of an aggregation, a table or a join itself, before other steps", what)
		return out
	case !found:
		b.fail("%s: they are %s, not %s; use their types", what, strings.Join(have, " or "), want)
		return out
	}
	for _, in := range n.inputs {
		if in.repartition != nil {
			in.repartition.keepNullKeys()
		}
	}
	if n.dropSlot == 0 {
		n.dropSlot = max(n.outs, 1)
		n.outs = n.dropSlot + 1
		n.labels = append(n.labels, make([]string, n.dropSlot-len(n.labels))...)
		n.labels = append(n.labels, "dropped")
	}
	out.from.out = n.dropSlot
	return out
}

// An input is what a step that may drop records gets.
type input struct {
	typ         reflect.Type // of its records
	key, value  any          // boxed serdes, nil if unknown
	repartition *node        // the topic just before, which may drop records without a key
}

func inputOf[K, V any](s *KStream[K, V]) input {
	in := input{typ: reflect.TypeFor[processors.Record[K, V]](), key: s.key, value: s.value}
	if s.from.n.kind == kindRepartition {
		in.repartition = s.from.n
	}
	return in
}

func tableInput[K, V any](t *KTable[K, V]) input {
	return input{typ: reflect.TypeFor[processors.Record[K, V]](), key: t.key, value: t.value}
}
