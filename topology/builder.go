package topology

import (
	"fmt"

	"github.com/millrace/millrace/state"
)

// A Builder collects the description of an application. Its methods and the
// functions that take it never fail: mistakes are reported by [Builder.Build].
// It is not safe for concurrent use.
type Builder struct {
	app    string
	nodes  []*node
	claims map[string]string // name -> what owns it
	stores map[string]*storeDecl
	order  []string // store names in order of declaration
	global []GlobalSource
	// budgets are those of the application, which its steps share, by name.
	budgets map[string]*appBudget
	errs    []error
}

// New starts the description of the application app. The name is the Kafka group
// of its ordinary sub-topologies and the prefix of all its internal topics, so
// changing it starts a new application.
func New(app string) *Builder {
	b := &Builder{app: app, claims: map[string]string{}, stores: map[string]*storeDecl{}, budgets: map[string]*appBudget{}}
	if err := checkName(app); err != nil {
		b.fail("application %q: %v", app, err)
	}
	return b
}

// App returns the application's name.
func (b *Builder) App() string { return b.app }

// fail records a mistake for Build.
func (b *Builder) fail(format string, args ...any) {
	b.errs = append(b.errs, fmt.Errorf(format, args...))
}

// claim takes a name out of the namespace shared by steps, stores and groups.
// what says who owns it, for example `count "per-team"`.
func (b *Builder) claim(name, what string) {
	if err := checkName(name); err != nil {
		b.fail("%s: %v", what, err)
		return
	}
	if owner, ok := b.claims[name]; ok {
		b.fail("%s: the name is taken by %s; names of steps, stores and groups must differ", what, owner)
		return
	}
	b.claims[name] = what
}

// addNode adds a step whose input slot i is fed by from[i]. A step without a
// name gets one made from its op and number; an explicit name, and those of its
// stores that differ from it, are claimed.
func (b *Builder) addNode(n *node, from ...port) *node {
	n.id = len(b.nodes)
	switch {
	case n.name == "":
		n.auto = true
		n.name = fmt.Sprintf("%s-%d", n.op, n.id)
	case n.kind != kindRepartition: // a repartition shares its consumer's name
		b.claim(n.name, fmt.Sprintf("%s %q", n.op, n.name))
	}
	b.nodes = append(b.nodes, n)
	for _, spec := range n.stores {
		if spec.Name != n.name {
			b.claim(spec.Name, fmt.Sprintf("store %q of %s %q", spec.Name, n.op, n.name))
		}
		b.addStore(&storeDecl{spec: spec, owner: n})
		n.uses = append(n.uses, spec.Name)
	}
	for i, p := range from {
		b.connect(p, n, i)
	}
	return n
}

// connect adds an edge from a port to an input slot.
func (b *Builder) connect(from port, to *node, in int) {
	if from.n.id >= len(b.nodes) || b.nodes[from.n.id] != from.n {
		b.fail("%s %q: its input belongs to another builder; build the whole application with one", to.op, to.name)
		return
	}
	from.n.children = append(from.n.children, edge{from.out, to, in})
	to.parents = append(to.parents, from.n)
}

// storeDecl is a declared store. key and value are the boxed serdes of stores
// that the Processor API opens by name.
type storeDecl struct {
	spec       state.Spec
	owner      *node // nil for stores added by name
	key, value any
}

func (b *Builder) addStore(d *storeDecl) {
	if _, ok := b.stores[d.spec.Name]; !ok {
		b.stores[d.spec.Name] = d
		b.order = append(b.order, d.spec.Name)
	}
}

// checkName applies Kafka's rules for topic names to a part of one.
func checkName(name string) error {
	switch {
	case name == "":
		return fmt.Errorf("the name is empty; give it an explicit, stable name")
	case name == "." || name == "..":
		return fmt.Errorf("the name %q is reserved", name)
	case len(name) > 249:
		return fmt.Errorf("the name has %d characters; Kafka allows 249", len(name))
	}
	for _, c := range name {
		if c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '.' || c == '_' || c == '-' {
			continue
		}
		return fmt.Errorf("the name %q holds %q; use letters, digits, '.', '_' and '-'", name, c)
	}
	return nil
}
