package oracle

import (
	"fmt"
	"math/rand/v2"
	"slices"

	"github.com/millrace/millrace/internal/cases"
)

// Generate returns the random case of a seed, always the same one: a topology of
// one to three sources and up to seven steps behind them, and records for its
// sources. Every step that none reads is written to a topic of its own.
func Generate(seed uint64) cases.Case {
	g := &generator{Rand: rand.New(rand.NewPCG(seed, 0x6f7261636c65))}
	g.sources()
	for range 1 + g.IntN(7) {
		g.grow()
	}
	g.finish()
	c := cases.Case{Name: fmt.Sprintf("seed %d", seed)}
	c.Setup.Topology = prune(g.steps)
	g.topics = nil
	for _, s := range c.Setup.Topology {
		if s.Topic != "" && s.Op != "to" {
			g.topics = append(g.topics, s.Topic)
		}
	}
	c.Input = g.records()
	return c
}

type generator struct {
	*rand.Rand
	steps  []cases.Step
	nodes  []*node
	topics []string
	sinks  int
	// negative is true if a join's window begins behind or ends before its record:
	// then the records are not close to 0; see the accidents.
	negative bool
	// distinct is true if no two records may have the same time.
	distinct bool
}

// What a node of the topology under construction is.
type kind int

const (
	aStream kind = iota
	aTable
	aWindowedTable
	aGlobalTable
	aBranch // of a split, which has a step of its own
)

type node struct {
	id   string
	kind kind
	// sources are the topics it is made of; behind is true if an internal topic
	// lies between. Two nodes with a source in common meet again only if nothing
	// lies between, else Kafka decides which of their records comes first.
	sources map[string]bool
	behind  bool
	// changed is true if the key may not be that of the partition.
	changed bool
	history int64 // of a versioned table
	past    bool  // made of one
	// last is true if only a sink may read it, buffered if no step may that needs
	// old values; see the accidents.
	last, buffered bool
	read           bool
}

var (
	few     = []int64{1, 2, 3, 5, 7, 10, 20}
	graces  = []int64{0, 0, 1, 3, 10, 30}
	letters = "abcdefghijklmnopqrstuvwxyz"
)

func pick[T any](g *generator, of []T) T { return of[g.IntN(len(of))] }

func (g *generator) chance(percent int) bool { return g.IntN(100) < percent }

// name returns a new name. Names begin at random, since some order depends on
// them.
func (g *generator) name() string {
	return fmt.Sprintf("%c%c%d", letters[g.IntN(26)], letters[g.IntN(26)], len(g.steps))
}

// add adds a step that makes a node of others.
func (g *generator) add(s cases.Step, k kind, of ...*node) *node {
	s.ID = g.name()
	g.steps = append(g.steps, s)
	n := &node{id: s.ID, kind: k, sources: map[string]bool{}}
	for _, from := range of {
		from.read = true
		n.behind, n.past = n.behind || from.behind, n.past || from.past
		for topic := range from.sources {
			n.sources[topic] = true
		}
	}
	g.nodes = append(g.nodes, n)
	return n
}

func (g *generator) sources() {
	for i := range 1 + g.IntN(3) {
		topic := fmt.Sprintf("in-%d", i)
		s, k := cases.Step{Op: "stream", Topic: topic}, aStream
		switch {
		case g.chance(40):
			s.Op, k = "table", aTable
			if g.chance(25) {
				s.Versioned = g.history()
			}
		case i > 0 && g.chance(15):
			s.Op, k = "globalTable", aGlobalTable
		}
		n := g.add(s, k)
		n.sources[topic] = true
		if s.Versioned != nil {
			n.history, n.past = *s.Versioned, true
		}
	}
}

func (g *generator) history() *int64 {
	h := pick(g, []int64{1, 5, 20, 100})
	return &h
}

// node returns a node of a kind that steps may read, nil if there is none.
func (g *generator) node(k kind, fits func(*node) bool) *node {
	var all []*node
	for _, n := range g.nodes {
		if n.kind == k && !n.last && (fits == nil || fits(n)) {
			all = append(all, n)
		}
	}
	if len(all) == 0 {
		return nil
	}
	if g.chance(60) {
		return all[len(all)-1] // long chains
	}
	return pick(g, all)
}

// shares reports whether the nodes have a source in common.
func (n *node) shares(m *node) bool {
	for topic := range n.sources {
		if m.sources[topic] {
			return true
		}
	}
	return false
}

// meets reports whether the nodes may meet in a step.
func meets(a, b *node) bool {
	return !a.shares(b) || !(a.behind || b.behind || a.changed || b.changed)
}

// beside returns a node of the kind that may meet n.
func (g *generator) beside(n *node, k kind, fits func(*node) bool) *node {
	return g.node(k, func(m *node) bool { return meets(n, m) && (fits == nil || fits(m)) })
}

// grow adds a step, or none if the one chosen has nothing to read.
func (g *generator) grow() {
	switch g.IntN(12) {
	case 0, 1:
		g.stateless()
	case 2:
		g.several()
	case 3, 4:
		g.aggregate()
	case 5:
		g.cogroup()
	case 6:
		g.streamJoin()
	case 7:
		g.tableJoin()
	case 8:
		g.foreignJoin()
	case 9:
		g.lookup()
	case 10:
		g.tableStep()
	case 11:
		g.regroup()
	}
}

// finish writes every node that none reads to a topic.
func (g *generator) finish() {
	for _, n := range slices.Clone(g.nodes) {
		if n.read && g.chance(80) || n.kind == aGlobalTable || n.kind == aBranch {
			continue
		}
		out := n
		if n.kind == aTable || n.kind == aWindowedTable {
			out = g.add(cases.Step{Op: "toStream", From: n.id}, aStream, n)
		}
		g.sinks++
		g.steps = append(g.steps, cases.Step{Op: "to", From: out.id, Topic: fmt.Sprintf("out-%d", g.sinks)})
	}
}

// records returns records for the sources, each in the order of its arrival: with
// ties, out of order, late, after idle time, and without key or value.
func (g *generator) records() []cases.Input {
	var in []cases.Input
	taken := map[int64]bool{}
	now := int64(g.IntN(30))
	if g.negative {
		now += 1000
	}
	for range 5 + g.IntN(35) {
		at := now
		switch n := g.IntN(100); {
		case n < 20: // a tie
		case n < 60:
			now += int64(1 + g.IntN(6))
			at = now
		case n < 80: // out of order
			at = max(0, now-int64(g.IntN(12)))
		case n < 90:
			at = max(0, now-int64(g.IntN(60)))
		case n < 97:
			now += int64(10 + g.IntN(40))
			at = now
		default: // idle
			now += int64(100 + g.IntN(1000))
			at = now
		}
		for ; g.distinct && taken[at]; at++ {
		}
		taken[at] = true
		in = append(in, cases.Input{Topic: pick(g, g.topics), Key: g.key(), Value: g.value(), Timestamp: at})
	}
	return in
}

func (g *generator) key() any {
	switch n := g.IntN(100); {
	case n < 4:
		return nil
	case n < 10:
		return float64(1)
	}
	return pick(g, []any{"a", "a", "b", "b", "cc", "d"})
}

func (g *generator) value() any {
	switch n := g.IntN(100); {
	case n < 14:
		return nil
	case n < 20:
		return float64(g.IntN(20))
	}
	return fmt.Sprintf("%c", letters[g.IntN(26)]-'a'+'A')
}
