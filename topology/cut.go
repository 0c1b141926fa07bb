package topology

import (
	"slices"
)

// An instance is a node in a piece. A repartition has two halves: the one that
// writes the topic and the one that reads it, perhaps in another piece.
type instance struct {
	n    *node
	read bool // the reading half of a source or a repartition
}

// A piece is a sub-topology being compiled: the instances it runs and, of their
// edges, those that it follows.
type piece struct {
	async     *node // the asynchronous step it was cut for, or nil
	instances []instance
	edges     map[instance][]edge
}

func (p *piece) add(i instance) bool {
	if _, ok := p.edges[i]; ok {
		return false
	}
	p.edges[i] = nil
	p.instances = append(p.instances, i)
	return true
}

func (p *piece) follow(from instance, e edge) { p.edges[from] = append(p.edges[from], e) }

// sort puts the instances into topological order: a node is added to the builder
// after its parents, and the writing half of a repartition comes after
// everything that feeds it.
func (p *piece) sort() {
	slices.SortFunc(p.instances, func(a, b instance) int {
		switch {
		case a.n != b.n:
			return a.n.id - b.n.id
		case a.read == b.read:
			return 0
		case a.read:
			return 1
		}
		return -1
	})
}

// cut divides the graph into pieces: ordinary ones, which are the maximal
// co-partitioned parts between topics, and one for each asynchronous step.
func (b *Builder) cut() []*piece {
	var pieces []*piece
	pieces = append(pieces, b.cutOrdinary()...)
	for _, n := range b.nodes {
		if n.kind == kindAsync {
			pieces = append(pieces, cutAsync(n))
		}
	}
	for _, p := range pieces {
		p.sort()
	}
	slices.SortStableFunc(pieces, func(a, b *piece) int { return a.instances[0].n.id - b.instances[0].n.id })
	return pieces
}

// cutAsync makes the piece of an asynchronous step: the stateless steps that lead
// from topics to it, its copies of tables, and the stateless steps and sinks that it leads to.
func cutAsync(step *node) *piece {
	p := &piece{async: step, edges: map[instance][]edge{}}
	before := map[*node]bool{step: true}
	var up func(n *node)
	up = func(n *node) {
		for _, parent := range n.parents {
			if before[parent] {
				continue
			}
			before[parent] = true
			if parent.kind == kindStateless || parent.copied {
				up(parent)
			}
		}
	}
	up(step)
	for n := range before {
		from := instance{n, n.kind == kindSource || n.kind == kindRepartition}
		p.add(from)
		if n == step {
			continue
		}
		for _, e := range n.children {
			if before[e.to] {
				p.follow(from, e)
			}
		}
	}
	var down func(from instance)
	down = func(from instance) {
		for _, e := range from.n.children {
			p.follow(from, e)
			if to := (instance{n: e.to}); p.add(to) && e.to.kind != kindRepartition {
				down(to)
			}
		}
	}
	down(instance{n: step})
	return p
}

// cutOrdinary makes the pieces that have no asynchronous step. Stateless steps
// that lead to asynchronous steps only are left to those.
func (b *Builder) cutOrdinary() []*piece {
	useful := b.useful()
	all := &piece{edges: map[instance][]edge{}}
	groups := newGroups()
	var down func(from instance)
	down = func(from instance) {
		for _, e := range from.n.children {
			if !useful[e.to] {
				continue
			}
			to := instance{n: e.to}
			all.follow(from, e)
			groups.union(from, to)
			if all.add(to) && e.to.kind != kindRepartition {
				down(to)
			}
		}
	}
	for _, n := range b.nodes {
		if n.kind != kindSource && n.kind != kindRepartition {
			continue
		}
		if slices.ContainsFunc(n.children, func(e edge) bool { return useful[e.to] }) {
			from := instance{n, true}
			all.add(from)
			down(from)
		}
	}
	topics, stores := map[string]instance{}, map[string]instance{}
	for _, i := range all.instances {
		if i.read {
			groups.merge(topics, i.n.topic, i)
		}
		for _, s := range i.n.uses {
			groups.merge(stores, s, i)
		}
	}
	return all.split(groups)
}

// split divides p by groups of connected instances.
func (p *piece) split(groups *groups) []*piece {
	var pieces []*piece
	of := map[instance]*piece{}
	for _, i := range p.instances {
		root := groups.find(i)
		q := of[root]
		if q == nil {
			q = &piece{edges: map[instance][]edge{}}
			of[root] = q
			pieces = append(pieces, q)
		}
		q.instances = append(q.instances, i)
		q.edges[i] = p.edges[i]
	}
	return pieces
}

// useful tells the nodes that lead to more than asynchronous steps.
func (b *Builder) useful() map[*node]bool {
	useful := map[*node]bool{}
	for _, n := range slices.Backward(b.nodes) {
		switch {
		case n.kind == kindAsync, n.copied:
		case n.kind == kindStateless, n.kind == kindSource:
			useful[n] = len(n.children) == 0
			for _, e := range n.children {
				useful[n] = useful[n] || useful[e.to]
			}
		default:
			useful[n] = true
		}
	}
	return useful
}

// groups is a union-find structure over instances.
type groups struct{ parent map[instance]instance }

func newGroups() *groups { return &groups{map[instance]instance{}} }

func (g *groups) find(i instance) instance {
	for {
		up, ok := g.parent[i]
		if !ok || up == i {
			return i
		}
		i = up
	}
}

func (g *groups) union(a, b instance) {
	if a, b = g.find(a), g.find(b); a != b {
		g.parent[b] = a
	}
}

// merge joins i to the first instance that was seen under the name.
func (g *groups) merge(seen map[string]instance, name string, i instance) {
	if first, ok := seen[name]; ok {
		g.union(first, i)
	} else {
		seen[name] = i
	}
}
