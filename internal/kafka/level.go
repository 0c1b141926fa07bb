package kafka

import (
	"cmp"
	"slices"
)

// A node is something that carries tasks: an instance or a worker.
type node struct {
	tasks  *[]*groupTask
	weight int // how many tasks it carries for each one of a node of weight 1
	can    func(*groupTask) bool
}

// heavier reports whether a task should move from x to y: x's load exceeds what
// y's would be with one task more.
func heavier(x, y node) bool { return len(*x.tasks)*y.weight > (len(*y.tasks)+1)*x.weight }

// level moves tasks, each to a node that can carry it, until no chain of moves
// evens the loads any more. Among the tasks of a node those with the least cost
// move first, and then those of the sub-topology the target has fewest of. Without
// restrictions on who can carry what it makes the fewest moves possible.
func level(nodes []node, cost func(from, to int) func(*groupTask) int) {
	for {
		order := make([]int, len(nodes))
		for i := range order {
			order[i] = i
		}
		slices.SortStableFunc(order, func(i, j int) int {
			return cmp.Compare(len(*nodes[j].tasks)*nodes[i].weight, len(*nodes[i].tasks)*nodes[j].weight)
		})
		if !slices.ContainsFunc(order, func(from int) bool { return relieve(nodes, from, cost) }) {
			return
		}
	}
}

// relieve looks for the shortest chain of moves from a node to a lighter one,
// where the nodes between give a task for the one they get, and makes it.
func relieve(nodes []node, from int, cost func(from, to int) func(*groupTask) int) bool {
	before := make([]int, len(nodes)) // the node before it on the way, or -1
	for i := range before {
		before[i] = -1
	}
	before[from] = from
	queue := []int{from}
	for len(queue) > 0 {
		at := queue[0]
		queue = queue[1:]
		bySub := make(map[string]*groupTask)
		for _, t := range *nodes[at].tasks {
			bySub[t.id.Sub] = t
		}
		lightest := -1
		for to := range nodes {
			if before[to] >= 0 || !reachable(bySub, nodes[to]) {
				continue
			}
			before[to] = at
			queue = append(queue, to)
			if heavier(nodes[from], nodes[to]) && (lightest < 0 || lighter(nodes[to], nodes[lightest])) {
				lightest = to
			}
		}
		if lightest >= 0 {
			for to := lightest; to != from; to = before[to] {
				move(nodes, before[to], to, cost)
			}
			return true
		}
	}
	return false
}

func lighter(x, y node) bool { return len(*x.tasks)*y.weight < len(*y.tasks)*x.weight }

func reachable(bySub map[string]*groupTask, to node) bool {
	for _, t := range bySub {
		if to.can(t) {
			return true
		}
	}
	return false
}

// move hands the best task over.
func move(nodes []node, from, to int, cost func(from, to int) func(*groupTask) int) {
	src, dst := nodes[from].tasks, nodes[to].tasks
	spreads := make(map[string]int) // how many more of a sub-topology dst has
	for _, t := range *src {
		spreads[t.id.Sub]--
	}
	for _, t := range *dst {
		spreads[t.id.Sub]++
	}
	of := cost(from, to)
	best, bestCost, bestSpread := -1, 0, 0
	for i, t := range *src {
		if !nodes[to].can(t) {
			continue
		}
		c, spread := of(t), spreads[t.id.Sub]
		if best < 0 || c < bestCost || c == bestCost && spread < bestSpread {
			best, bestCost, bestSpread = i, c, spread
		}
	}
	*dst = append(*dst, (*src)[best])
	*src = slices.Delete(*src, best, best+1)
}
