package kafka

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
)

type topicPartition struct {
	topic     string
	partition int32
}

// A groupMember is one worker in a balance.
type groupMember struct {
	id         string
	generation int32
	owned      map[topicPartition]bool // its claims
	data       userData
	instance   *groupInstance
	subs       map[string]bool // chosen sub-topologies it can run
	tasks      []*groupTask    // the plan
	final      []*groupTask    // the plan without what must be revoked first
}

// A groupInstance is the workers of one process.
type groupInstance struct {
	name    string
	members []*groupMember
	held    map[TaskID]int64 // state it has on disk, and how far that is
	tasks   []*groupTask     // the plan
}

// A groupTask is a task in a balance.
type groupTask struct {
	id     TaskID
	topics []string // those that have the partition
	// owner is the only member whose claim has the highest generation; nil if
	// nobody claims it or several do.
	owner *groupMember
	// claimed says that somebody, at whatever generation, may still be reading it.
	claimed bool
	member  *groupMember
}

// An assignment is one run of the balancer. It does not depend on the order of
// maps: equal input gives equal output.
type assignment struct {
	members    []*groupMember
	instances  []*groupInstance
	topics     map[string]int32
	generation int32 // the highest any member was part of
	tasks      []*groupTask
	unassigned []Unassigned
	withheld   bool // a task is given in the next round
}

func newAssignment(members []*groupMember, topics map[string]int32) *assignment {
	a := &assignment{members: members, topics: topics, generation: -1}
	slices.SortFunc(a.members, func(x, y *groupMember) int {
		return cmp.Or(cmp.Compare(x.data.Instance, y.data.Instance), cmp.Compare(x.data.Worker, y.data.Worker), cmp.Compare(x.id, y.id))
	})
	for _, m := range a.members {
		a.generation = max(a.generation, m.generation)
		m.subs = make(map[string]bool)
		if n := len(a.instances); n == 0 || a.instances[n-1].name != m.data.Instance {
			a.instances = append(a.instances, &groupInstance{name: m.data.Instance, held: make(map[TaskID]int64)})
		}
		m.instance = a.instances[len(a.instances)-1]
		m.instance.members = append(m.instance.members, m)
		for _, h := range m.data.Held {
			at, ok := m.instance.held[h.TaskID]
			if !ok || h.Checkpoint > at {
				m.instance.held[h.TaskID] = h.Checkpoint
			}
		}
	}
	return a
}

func (a *assignment) run() {
	a.makeTasks()
	a.placeSticky()
	a.balanceInstances()
	for _, in := range a.instances {
		a.balanceWorkers(in)
	}
	a.withholdMoves()
}

// A subVersion is one shape of a sub-topology and who has it.
type subVersion struct {
	sub     SubTopology
	key     string
	members []*groupMember
	owned   int // partitions its members claim at the highest generation
}

// makeTasks chooses one version of every sub-topology, the present owners', and
// lists its tasks.
func (a *assignment) makeTasks() {
	highest := make(map[topicPartition]int32)
	for _, m := range a.members {
		for tp := range m.owned {
			if g, ok := highest[tp]; !ok || m.generation > g {
				highest[tp] = m.generation
			}
		}
	}
	versions := make(map[string]map[string]*subVersion)
	for _, m := range a.members {
		for _, s := range m.data.Subs {
			key := fmt.Sprintf("%s %v %d %s", s.Fingerprint, s.CoPartitioned, s.Partitions, strings.Join(s.Topics, " "))
			if versions[s.Name] == nil {
				versions[s.Name] = make(map[string]*subVersion)
			}
			v := versions[s.Name][key]
			if v == nil {
				v = &subVersion{sub: s, key: key}
				versions[s.Name][key] = v
			}
			v.members = append(v.members, m)
			for tp := range m.owned {
				if m.generation == highest[tp] && slices.Contains(s.Topics, tp.topic) {
					v.owned++
				}
			}
		}
	}
	var chosen []*subVersion
	for _, name := range slices.Sorted(maps.Keys(versions)) {
		chosen = append(chosen, slices.MinFunc(slices.Collect(maps.Values(versions[name])), func(x, y *subVersion) int {
			return cmp.Or(cmp.Compare(y.owned, x.owned), cmp.Compare(len(y.members), len(x.members)), cmp.Compare(x.key, y.key))
		}))
	}
	// Where two versions put a topic into different sub-topologies, the one that
	// reads it now keeps it.
	slices.SortStableFunc(chosen, func(x, y *subVersion) int { return cmp.Compare(min(y.owned, 1), min(x.owned, 1)) })
	taken := make(map[string]string) // topic to sub-topology
	for _, v := range chosen {
		a.addTasks(v, taken)
	}
	slices.SortFunc(a.tasks, func(x, y *groupTask) int {
		return cmp.Or(cmp.Compare(x.id.Partition, y.id.Partition), cmp.Compare(x.id.Sub, y.id.Sub))
	})
}

func (a *assignment) addTasks(v *subVersion, taken map[string]string) {
	least, most, reason := int32(-1), int32(0), ""
	for _, t := range v.sub.Topics {
		n := a.topics[t]
		if n == 0 {
			reason = fmt.Sprintf("topic %q does not exist or may not be described", t)
		}
		if by, ok := taken[t]; ok {
			reason = fmt.Sprintf("topic %q is still read by sub-topology %q of another version of the program", t, by)
		}
		if least < 0 || n < least {
			least = n
		}
		most = max(most, n)
	}
	if reason == "" && v.sub.CoPartitioned && least != most {
		reason = fmt.Sprintf("its topics %v must have the same number of partitions, but have between %d and %d", v.sub.Topics, least, most)
	}
	count := most
	if v.sub.Partitions > 0 {
		count = v.sub.Partitions
	}
	for p := range max(count, most) {
		id := TaskID{v.sub.Name, p}
		why := reason
		if why == "" && p >= count {
			why = fmt.Sprintf("partition %d was added after the program had started with %d; restart all instances", p, count)
		} else if why == "" && p >= most {
			why = fmt.Sprintf("no topic has partition %d; were topics deleted or created again with fewer?", p)
		}
		if why != "" {
			a.unassigned = append(a.unassigned, Unassigned{id, why})
			continue
		}
		t := &groupTask{id: id}
		for _, topic := range v.sub.Topics {
			if p < a.topics[topic] {
				t.topics = append(t.topics, topic)
			}
		}
		a.findOwner(t)
		a.tasks = append(a.tasks, t)
	}
	if reason == "" {
		for _, t := range v.sub.Topics {
			taken[t] = v.sub.Name
		}
		for _, m := range v.members {
			m.subs[v.sub.Name] = true
		}
	}
}

// findOwner sets the owner and whether anybody claims the task: a topic partition
// of it, or, with other topics, the task by its name. Claims of an older
// generation do not make an owner.
func (a *assignment) findOwner(t *groupTask) {
	var owners []*groupMember
	generation := int32(0)
	for _, m := range a.members {
		claims := false
		for _, topic := range t.topics {
			claims = claims || m.owned[topicPartition{topic, t.id.Partition}]
		}
		for _, s := range m.data.Subs {
			if s.Name != t.id.Sub {
				continue
			}
			for _, topic := range s.Topics {
				claims = claims || m.owned[topicPartition{topic, t.id.Partition}]
			}
		}
		if !claims {
			continue
		}
		t.claimed = true
		switch {
		case len(owners) == 0 || m.generation > generation:
			owners, generation = []*groupMember{m}, m.generation
		case m.generation == generation:
			owners = append(owners, m)
		}
	}
	// A member that missed rebalances may claim alone what another one owned and
	// left meanwhile; franz-go would go on at its old position.
	if len(owners) == 1 && generation == a.generation {
		t.owner = owners[0]
	}
}

func (m *groupMember) can(t *groupTask) bool { return m.subs[t.id.Sub] }

func (in *groupInstance) can(t *groupTask) bool {
	return slices.ContainsFunc(in.members, func(m *groupMember) bool { return m.can(t) })
}

// placeSticky gives each task to its owner's instance, else to one that has its
// state, else to the one with the least load.
func (a *assignment) placeSticky() {
	var rest []*groupTask
	for _, t := range a.tasks {
		if t.owner != nil && t.owner.can(t) {
			t.owner.instance.tasks = append(t.owner.instance.tasks, t)
		} else {
			rest = append(rest, t)
		}
	}
	for _, t := range rest {
		var best *groupInstance
		for _, in := range a.instances {
			if in.can(t) && (best == nil || in.betterFor(t, best)) {
				best = in
			}
		}
		if best == nil {
			a.unassigned = append(a.unassigned, Unassigned{t.id, "no member has this version of the sub-topology"})
			continue
		}
		best.tasks = append(best.tasks, t)
	}
}

// betterFor reports whether in should get the new task t rather than other.
func (in *groupInstance) betterFor(t *groupTask, other *groupInstance) bool {
	at1, has1 := in.held[t.id]
	at2, has2 := other.held[t.id]
	if has1 != has2 {
		return has1
	}
	if has1 && at1 != at2 {
		return at1 > at2 // both are on their way to the same end
	}
	// The load with the task, per worker, compared without fractions.
	x, y := (len(in.tasks)+1)*len(other.members), (len(other.tasks)+1)*len(in.members)
	if x != y {
		return x < y
	}
	return countSub(in.tasks, t.id.Sub) < countSub(other.tasks, t.id.Sub)
}

func countSub(tasks []*groupTask, sub string) int {
	n := 0
	for _, t := range tasks {
		if t.id.Sub == sub {
			n++
		}
	}
	return n
}

// balanceInstances moves tasks until no instance has a load per worker above what
// another one would have with one task more.
func (a *assignment) balanceInstances() {
	nodes := make([]node, len(a.instances))
	for i, in := range a.instances {
		nodes[i] = node{tasks: &in.tasks, weight: len(in.members), can: in.can}
	}
	level(nodes, func(from, to int) func(*groupTask) int {
		src, dst := a.instances[from], a.instances[to]
		load := make(map[*groupMember]int) // of the workers of src
		for _, t := range src.tasks {
			load[t.owner]++
		}
		// What nobody reads moves first, then what dst has the state of and src has
		// not, then what relieves the busiest worker of src.
		return func(t *groupTask) int {
			score := 0
			if t.owner != nil && t.owner.instance == src {
				score += 1<<30 - load[t.owner]
			}
			if _, has := dst.held[t.id]; !has {
				score += 1 << 20
			}
			if _, has := src.held[t.id]; has {
				score += 1 << 19
			}
			return score
		}
	})
}

// balanceWorkers spreads the tasks of an instance over its workers.
func (a *assignment) balanceWorkers(in *groupInstance) {
	nodes := make([]node, len(in.members))
	for i, m := range in.members {
		nodes[i] = node{tasks: &m.tasks, weight: 1, can: m.can}
	}
	var rest []*groupTask
	for _, t := range in.tasks {
		if t.owner != nil && t.owner.instance == in && t.owner.can(t) {
			t.owner.tasks = append(t.owner.tasks, t)
		} else {
			rest = append(rest, t)
		}
	}
	for _, t := range rest {
		best := slices.MinFunc(slices.DeleteFunc(slices.Clone(in.members), func(m *groupMember) bool { return !m.can(t) }), func(x, y *groupMember) int {
			return cmp.Or(cmp.Compare(len(x.tasks), len(y.tasks)), cmp.Compare(countSub(x.tasks, t.id.Sub), countSub(y.tasks, t.id.Sub)))
		})
		best.tasks = append(best.tasks, t)
	}
	level(nodes, func(from, _ int) func(*groupTask) int {
		return func(t *groupTask) int {
			if t.owner == in.members[from] {
				return 1
			}
			return 0
		}
	})
	for _, m := range in.members {
		for _, t := range m.tasks {
			t.member = m
		}
	}
}

// withholdMoves takes out of the plan what somebody else may still be reading: it
// is revoked in this round and given in the next. A claim of an older generation
// counts here, the target's own included, since franz-go would not notice that it
// must start anew.
func (a *assignment) withholdMoves() {
	for _, t := range a.tasks {
		switch {
		case t.member == nil:
		case !t.claimed || t.owner == t.member:
			t.member.final = append(t.member.final, t)
		default:
			a.withheld = true
		}
	}
}
