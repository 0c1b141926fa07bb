package topology

import (
	"fmt"
	"slices"

	"github.com/millrace/millrace/processors"
)

// Branches divides a stream: each record goes to the first branch, in the order
// of the calls of Branch, whose predicate holds, else to the default branch; if
// there is none, it is dropped.
type Branches[K, V any] struct {
	s     *KStream[K, V]
	n     *node
	preds []func(K, V) bool
}

// Split begins to divide the stream into branches.
func (s *KStream[K, V]) Split(opts ...StepOption) *Branches[K, V] {
	br := &Branches[K, V]{s: s, n: &node{kind: kindStateless, op: "split"}}
	for _, opt := range opts {
		opt.step(br.n)
	}
	br.n.start = func(_ processors.Task, out [][]any) ([]any, error) {
		branches := make([]processors.Forward[K, V], len(br.preds))
		for i := range branches {
			branches[i] = forwards[K, V](out[i])
		}
		return []any{processors.Guard(br.n.name, processors.Split(br.preds, branches))}, nil
	}
	s.b.addNode(br.n, s.from)
	return br
}

// Branch adds a branch for the records for which pred returns true and which no
// branch before it took. The name is shown by Describe and must differ from the
// split's other branches.
func (br *Branches[K, V]) Branch(name string, pred func(K, V) bool) *KStream[K, V] {
	if pred == nil {
		br.s.b.fail("%s: branch %q has no predicate; use Default for the rest", br, name)
	}
	return br.add(name, pred)
}

// Default adds the branch of the records that no other branch takes. It comes
// last.
func (br *Branches[K, V]) Default(name string) *KStream[K, V] { return br.add(name, nil) }

func (br *Branches[K, V]) add(name string, pred func(K, V) bool) *KStream[K, V] {
	switch {
	case name == "":
		br.s.b.fail("%s: a branch has no name; give it one", br)
	case slices.Contains(br.n.labels, name):
		br.s.b.fail("%s: two branches are named %q; rename one", br, name)
	}
	if len(br.preds) > 0 && br.preds[len(br.preds)-1] == nil {
		br.s.b.fail("%s: branch %q comes after the default branch and gets nothing; add it before", br, name)
	}
	out := len(br.preds)
	br.preds = append(br.preds, pred)
	br.n.labels = append(br.n.labels, name)
	br.n.outs = len(br.preds)
	return br.s.same(port{br.n, out})
}

// String names the split in error messages.
func (br *Branches[K, V]) String() string { return fmt.Sprintf("%s %q", br.n.op, br.n.name) }
