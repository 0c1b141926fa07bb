package oracle

import (
	"fmt"

	"github.com/millrace/millrace/internal/cases"
)

// where returns a random condition over a word.
func (g *generator) where(of string) string {
	n := 2 + g.IntN(3)
	return fmt.Sprintf("%s %% %d == '%d'", of, n, g.IntN(n))
}

// newKey returns a function that makes keys; sometimes they are null.
func (g *generator) newKey() string {
	key := pick(g, []string{"value", "value % 3", "key", "key + value % 2", "value % 2 + '-'"})
	if g.chance(20) {
		key += " unless " + g.where(pick(g, []string{"key", "value"}))
	}
	return key
}

// newValue returns a function of a value.
func (g *generator) newValue() string {
	value := pick(g, []string{"value + '.'", "value % 10", "value"})
	if g.chance(15) {
		value += " unless " + g.where("value")
	}
	return value
}

// adder returns a function that adds a value to an aggregate, which stays short.
func (g *generator) adder() string {
	add := pick(g, []string{"aggregate % 997 + '+' + value", "aggregate % 997 + value", "value + '<' + aggregate % 97"})
	if g.chance(15) {
		add += " unless " + g.where("value")
	}
	return add
}

func (g *generator) stateless() {
	s := g.node(aStream, nil)
	if s == nil {
		return
	}
	step := cases.Step{Op: pick(g, []string{"map", "selectKey", "mapValues", "filter", "filterNot", "peek", "repartition", "toTable", "flatMap", "flatMapValues"}), From: s.id}
	k, changed, behind := aStream, s.changed, s.behind
	var history int64
	switch step.Op {
	case "map":
		step.Key, step.Value, changed = g.newKey(), g.newValue(), true
	case "selectKey":
		step.Key, changed = g.newKey(), true
	case "mapValues":
		step.Value = g.newValue()
	case "filter", "filterNot":
		step.Where = g.where(pick(g, []string{"key", "value"}))
	case "repartition":
		// See the accident "repartition-null-key".
		s = g.keyed(s)
		step.From, changed, behind = s.id, false, true
	case "toTable":
		k, changed, behind = aTable, false, s.behind || s.changed
		if g.chance(20) {
			step.Versioned = g.history()
			history = *step.Versioned
		}
	case "flatMap", "flatMapValues":
		changed = changed || step.Op == "flatMap"
		for range 1 + g.IntN(3) {
			e := cases.Each{Value: g.newValue()}
			if step.Op == "flatMap" {
				e.Key = g.newKey()
			}
			if g.chance(30) {
				e.Where = g.where("value")
			}
			step.Each = append(step.Each, e)
		}
	}
	n := g.add(step, k, s)
	n.changed, n.behind, n.history = changed, behind, history
	n.past = n.past || history > 0
}

// keyed returns the stream without the records that have no key.
func (g *generator) keyed(s *node) *node {
	n := g.add(cases.Step{Op: "filterNot", From: s.id, Where: "key == 'null'"}, aStream, s)
	n.changed = s.changed
	return n
}

// several adds a merge or a split.
func (g *generator) several() {
	s := g.node(aStream, nil)
	if s == nil {
		return
	}
	if g.chance(50) {
		step := cases.Step{Op: "split", From: s.id, Branches: []string{g.where("key")}}
		if g.chance(50) {
			step.Branches = append(step.Branches, g.where("value"))
		}
		split := g.add(step, aBranch, s)
		split.read = true
		for _, name := range append([]string{"default"}, []string{"0", "1"}[:len(step.Branches)]...) {
			g.nodes = append(g.nodes, &node{id: split.id + "." + name, kind: aStream, sources: split.sources, behind: split.behind, past: split.past, changed: s.changed})
		}
		return
	}
	other := g.beside(s, aStream, func(n *node) bool { return n != s })
	if other == nil {
		return
	}
	n := g.add(cases.Step{Op: "merge", From: s.id, With: []string{other.id}}, aStream, s, other)
	n.changed = s.changed || other.changed
}

// group adds a group of a stream.
func (g *generator) group(s *node) *node {
	step := cases.Step{Op: "groupByKey", From: s.id}
	if g.chance(40) {
		step = cases.Step{Op: "groupBy", From: s.id, Key: g.newKey(), Value: "value"}
	}
	n := g.add(step, aBranch, s)
	n.read, n.behind = true, s.behind || s.changed || step.Op == "groupBy"
	return n
}

// window returns random windows. Sessions and sliding windows are as common as the
// others.
func (g *generator) window() *cases.Window {
	w := &cases.Window{Type: pick(g, []string{"tumbling", "hopping", "sliding", "session", "unlimited", "sliding", "session", "hopping"})}
	if w.Type == "unlimited" {
		w.Start = int64(g.IntN(2) * g.IntN(40))
		return w
	}
	w.Grace = pick(g, graces)
	switch w.Type {
	case "tumbling":
		w.Size = pick(g, few)
	case "hopping":
		w.Size = pick(g, few)
		w.Advance = 1 + g.Int64N(w.Size)
	case "sliding":
		w.Difference = pick(g, few)
	case "session":
		w.Gap = pick(g, few)
	}
	return w
}

func (g *generator) aggregate() {
	s := g.node(aStream, nil)
	if s == nil {
		return
	}
	group := g.group(s)
	for range 1 + g.IntN(5)/4 {
		step := cases.Step{Op: pick(g, []string{"count", "reduce", "aggregate"}), From: group.id}
		if step.Op != "count" {
			step.Fn = g.adder()
		}
		k := aTable
		if g.chance(70) {
			step.Window, k = g.window(), aWindowedTable
			if step.Window.Type != "unlimited" && g.chance(35) {
				step.Emit = "on_window_close"
			}
			if step.Window.Type == "session" && step.Op == "aggregate" {
				step.Merger = "a + '~' + b"
			}
		}
		n := g.add(step, k, group)
		n.limit(step.Window)
		g.suppressWindows(n, step.Window)
	}
}

// limit says what may read the results of the windows.
func (n *node) limit(w *cases.Window) {
	n.last = w != nil && w.Type == "unlimited"
	// See the accidents "sliding-old-value" and "session-old-value".
	n.buffered = w != nil && (w.Type == "sliding" || w.Type == "session")
}

// suppressWindows sometimes holds the results of windows back until they close.
func (g *generator) suppressWindows(n *node, w *cases.Window) {
	if w == nil || n.last || n.past || !g.chance(25) {
		return
	}
	held := g.add(cases.Step{Op: "suppress", From: n.id, Until: "window_closes"}, aWindowedTable, n)
	held.buffered = true
}

func (g *generator) cogroup() {
	s := g.node(aStream, nil)
	if s == nil {
		return
	}
	groups := []*node{g.group(s)}
	for range 1 + g.IntN(2) {
		other := g.beside(s, aStream, func(n *node) bool {
			for _, group := range groups {
				if !meets(group, n) {
					return false
				}
			}
			return n != s
		})
		if other == nil {
			break
		}
		if group := g.group(other); meets(groups[0], group) {
			groups = append(groups, group)
		}
	}
	step := cases.Step{Op: "cogroup"}
	for _, group := range groups {
		step.Inputs = append(step.Inputs, cases.Cogroup{From: group.id, Fn: g.adder()})
	}
	k := aTable
	if g.chance(60) {
		step.Window, k = g.window(), aWindowedTable
		if step.Window.Type == "session" {
			step.Merger = "a + '~' + b"
		}
	}
	n := g.add(step, k, groups...)
	n.limit(step.Window)
	g.suppressWindows(n, step.Window)
}

func (g *generator) streamJoin() {
	l := g.node(aStream, nil)
	if l == nil {
		return
	}
	r := g.beside(l, aStream, nil)
	if r == nil {
		return
	}
	grace := pick(g, graces)
	step := cases.Step{
		Op: "streamStreamJoin", Left: l.id, Right: r.id, Kind: pick(g, []string{"inner", "left", "outer"}), Joiner: "({left},{right})",
		Before: int64(g.IntN(12)), After: int64(g.IntN(12)), Grace: &grace,
	}
	switch n := g.IntN(10); {
	case n < 4:
		step.After = step.Before
	case n == 4 && step.After > 0:
		step.Before = -g.Int64N(step.After + 1)
	case n == 5 && step.Before > 0:
		step.After = -g.Int64N(step.Before + 1)
	}
	if step.Before+step.After+grace == 0 {
		grace = 1 // see the accident "join-of-nothing"
	}
	g.negative = g.negative || step.Before < 0 || step.After < 0
	n := g.add(step, aStream, l, r)
	n.behind = n.behind || l.changed || r.changed
}

func (g *generator) tableJoin() {
	l := g.node(aTable, nil)
	if l == nil {
		return
	}
	// See the accident "suppress-diamond".
	r := g.beside(l, aTable, func(n *node) bool { return n != l && !(l.shares(n) && (l.buffered || n.buffered)) })
	if r == nil {
		return
	}
	g.add(cases.Step{
		Op: "tableTableJoin", Left: l.id, Right: r.id, Kind: pick(g, []string{"inner", "left", "outer"}), Joiner: "({left},{right})",
	}, aTable, l, r).buffered = l.buffered || r.buffered || l.shares(r) // see the accident "diamond-old-value"
}

func (g *generator) foreignJoin() {
	// See the accident "foreign-key-race".
	l := g.node(aTable, func(n *node) bool { return !n.buffered && !n.behind })
	if l == nil {
		return
	}
	r := g.node(aTable, func(n *node) bool { return !l.shares(n) })
	if r == nil {
		return
	}
	key := pick(g, []string{"value", "value % 3", "'a'"})
	if g.chance(40) {
		key += " unless " + g.where("value")
	}
	n := g.add(cases.Step{
		Op: "foreignKeyJoin", Left: l.id, Right: r.id, Kind: pick(g, []string{"inner", "left"}), Joiner: "({left},{right})", ForeignKey: key,
	}, aTable, l, r)
	n.behind = true
}

// lookup joins a stream with a table.
func (g *generator) lookup() {
	s := g.node(aStream, nil)
	if s == nil {
		return
	}
	step := cases.Step{Stream: s.id, Kind: pick(g, []string{"inner", "left"}), Joiner: "({left},{right})"}
	t := g.beside(s, aTable, nil)
	if global := g.node(aGlobalTable, nil); global != nil && (t == nil || g.chance(50)) {
		step.Op, step.Table, step.Key = "globalTableJoin", global.id, g.newKey()
		n := g.add(step, aStream, s, global)
		n.changed = s.changed
		return
	}
	if t == nil {
		return
	}
	step.Op, step.Table = "streamTableJoin", t.id
	if t.history > 0 && g.chance(60) {
		grace := g.Int64N(t.history + 1)
		step.Grace = &grace
		g.distinct = true // see the accident "grace-tie"
		s = g.keyed(s)    // see the accident "grace-null-key"
		step.Stream = s.id
	}
	n := g.add(step, aStream, s, t)
	n.behind = n.behind || s.changed
}

// tableStep adds a step from a table to a table or to its stream.
func (g *generator) tableStep() {
	t := g.node(pick(g, []kind{aTable, aTable, aWindowedTable}), nil)
	if t == nil {
		return
	}
	step := cases.Step{Op: pick(g, []string{"filter", "filterNot", "mapValues", "toStream", "suppress"}), From: t.id}
	switch step.Op {
	case "filter", "filterNot":
		if t.buffered {
			return
		}
		step.Where = g.where(pick(g, []string{"key", "value"}))
	case "mapValues":
		step.Value = g.newValue()
	case "toStream":
		n := g.add(step, aStream, t)
		n.changed = t.kind == aWindowedTable
		return
	case "suppress":
		if t.past {
			return // see the accident "suppress-behind-history"
		}
		step.Until, step.Limit = "time_limit", pick(g, []int64{0, 1, 5, 10, 30})
		if g.chance(30) {
			step.MaxRecords = 1 + g.Int64N(3)
			if g.chance(10) {
				step.WhenFull = "shut_down"
			}
		}
	}
	n := g.add(step, t.kind, t)
	n.history = t.history
	n.buffered = t.buffered || step.Op == "suppress"
}

// regroup aggregates a table by new keys.
func (g *generator) regroup() {
	t := g.node(pick(g, []kind{aTable, aTable, aWindowedTable}), func(n *node) bool { return !n.buffered })
	if t == nil {
		return
	}
	group := g.add(cases.Step{Op: "groupBy", From: t.id, Key: g.newKey(), Value: g.newValue()}, aBranch, t)
	group.read, group.behind = true, true
	step := cases.Step{Op: pick(g, []string{"count", "reduce", "aggregate"}), From: group.id}
	if step.Op != "count" {
		step.Adder, step.Subtractor = g.adder(), "aggregate % 997 + '-' + value"
		if g.chance(20) {
			step.Subtractor += " unless " + g.where("value")
		}
	}
	g.add(step, aTable, group)
}
