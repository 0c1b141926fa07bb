package topology

import (
	"errors"
	"fmt"
	"slices"

	"github.com/millrace/millrace/processors"
)

// A RepartitionOption configures [KStream.Repartition]. [PartitionBy] is one too.
type RepartitionOption = SinkOption

// Partitions sets the partition count of a repartition topic. Default: the
// largest count of the sources that feed it.
func Partitions(n int32) RepartitionOption {
	return sinkOption(func(o *sinkOptions) {
		if n < 1 {
			o.errs = append(o.errs, errors.New("Partitions must be at least 1; leave it out for the largest count of the sources"))
		}
		o.partitions = n
	})
}

// Repartition writes the stream to the internal topic <app>.<name>-repartition
// and reads it from there, so that records are partitioned by their present key.
// It is rarely needed: joins, aggregations and tables repartition by themselves
// when a step before them changed the key. Null keys are kept and spread.
func (s *KStream[K, V]) Repartition(name string, opts ...RepartitionOption) *KStream[K, V] {
	s.b.claim(name, fmt.Sprintf("repartition %q", name))
	return s.repartition(name, true, opts)
}

// repartitioned returns the stream as a stateful step needs it: partitioned by
// its key and outside of the sub-topology of an asynchronous step. Where it is
// not, it inserts the repartition topic <app>.<name>-repartition; name is that of
// the consuming step or group, which claims it. Records without a key are
// dropped before the topic, unless keepNullKeys.
func repartitioned[K, V any](s *KStream[K, V], name string, keepNullKeys bool) *KStream[K, V] {
	if !s.changed && !s.from.n.behind(kindAsync) {
		return s
	}
	return s.repartition(name, keepNullKeys, nil)
}

// asyncInput returns the stream as an asynchronous step needs it: a stateless
// chain behind topics, which the step's own sub-topology reads. Behind a
// stateful or another asynchronous step, or where byKey asks for a key that a
// step before changed, it inserts <app>.<name>-repartition.
func asyncInput[K, V any](s *KStream[K, V], name string, byKey bool) *KStream[K, V] {
	if !(byKey && s.changed) && !s.from.n.behind(kindAsync) && !s.from.n.behind(kindStateful) {
		return s
	}
	return s.repartition(name, true, nil)
}

// behind reports whether the node is of the kind or has a node of the kind before
// it with no topic in between.
func (n *node) behind(k kind) bool {
	seen := map[*node]bool{}
	var search func(n *node) bool
	search = func(n *node) bool {
		if n.kind == k {
			return true
		}
		if seen[n] || n.kind == kindRepartition {
			return false
		}
		seen[n] = true
		return slices.ContainsFunc(n.parents, search)
	}
	return search(n)
}

func (s *KStream[K, V]) repartition(name string, keepNullKeys bool, opts []RepartitionOption) *KStream[K, V] {
	var o sinkOptions
	for _, opt := range opts {
		opt.sink(&o)
	}
	what := fmt.Sprintf("repartition %q", name)
	for _, err := range o.errs {
		s.b.fail("%s: %v", what, err)
	}
	if o.name != "" {
		s.b.fail("%s: Named is not for Repartition, whose name is its first argument", what)
	}
	n := &node{
		kind: kindRepartition, op: "repartition", name: name,
		topic:  s.b.app + "." + name + "-repartition",
		source: &sourceConfig{partitions: o.partitions},
	}
	if needSerdes(s, what) {
		n.serdes = [2]string{s.key.Name(), s.value.Name()}
	}
	if !keepNullKeys {
		n.detail = withoutNullKeys
	}
	write := writer(s.b, n, what, processors.Destination[K, V]{Topic: n.topic, Key: s.key, Value: s.value}, o.partition)
	n.start = func(t processors.Task, out [][]any) ([]any, error) {
		in, err := write(t, out)
		if err == nil && !keepNullKeys && n.detail != "" {
			in[0] = processors.DropNullKeys(t, name, in[0].(processors.Forward[K, V]))
		}
		return in, err
	}
	n.read = reader(n, processors.Origin[K, V]{Key: s.key, Value: s.value}, nil)
	s.b.addNode(n, s.from)
	c := s.same(port{n: n})
	c.changed = false
	return c
}
