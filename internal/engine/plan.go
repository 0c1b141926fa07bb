package engine

import (
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/millrace/millrace/topology"
)

// A plan is a topology with partition counts: what tasks there are.
type plan struct {
	top *topology.Topology
	// partitions of every topic that is read, written or kept as a log.
	partitions map[string]int32
	// tasks is the number of tasks of a sub-topology by name.
	tasks map[string]int32
}

// newPlan works out the partition counts of internal topics and the number of
// tasks, and reports every mismatch. external holds the counts of the topics the
// application does not create.
func newPlan(top *topology.Topology, external map[string]int32) (*plan, error) {
	p := &plan{top: top, partitions: maps.Clone(external), tasks: map[string]int32{}}
	for _, g := range top.Globals {
		if g.Internal != nil {
			p.partitions[g.Topic] = g.Internal.Partitions
		}
	}
	var errs []error
	fixed := map[string]bool{} // repartition topics whose count a partner decided
	// Repartition topics take their count from the sub-topologies that feed them,
	// which may themselves read repartition topics: iterate until nothing changes.
	for range len(top.Subs) + 1 {
		for _, sub := range top.Subs {
			p.fromPartners(sub, fixed)
			p.tasks[sub.Name] = p.taskCount(sub)
			for _, sink := range sub.Sinks {
				if t := sink.Internal; t != nil && t.Kind == topology.TopicRepartition && !fixed[sink.Topic] {
					want := t.Partitions
					if want == 0 {
						want = p.tasks[sub.Name]
					}
					p.partitions[sink.Topic] = max(p.partitions[sink.Topic], want)
				}
			}
		}
	}
	for _, sub := range top.Subs {
		errs = append(errs, p.check(sub))
		n := p.tasks[sub.Name]
		if sub.LoopTopic != "" {
			p.partitions[sub.LoopTopic] = n
		}
		for _, log := range sub.Changelogs() {
			p.partitions[log.Topic] = n
		}
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	return p, nil
}

// fromPartners gives a repartition topic the count of the topics that it has to be
// co-partitioned with: of those that are not made here or have a count of their
// own, else the largest of the others.
func (p *plan) fromPartners(sub *topology.SubTopology, fixed map[string]bool) {
	if !sub.CoPartitioned {
		return
	}
	var n int32
	for _, src := range sub.Sources {
		if src.Internal == nil {
			n = max(n, p.partitions[src.Topic])
		} else {
			n = max(n, src.Internal.Partitions)
		}
	}
	decided := n > 0
	if !decided {
		n = p.taskCount(sub)
	}
	for _, src := range sub.Sources {
		if src.Internal != nil && src.Internal.Partitions == 0 && n > 0 {
			p.partitions[src.Topic], fixed[src.Topic] = n, decided
		}
	}
}

func (p *plan) taskCount(sub *topology.SubTopology) int32 {
	var n int32
	for _, src := range sub.Sources {
		n = max(n, p.partitions[src.Topic])
	}
	return n
}

func (p *plan) check(sub *topology.SubTopology) error {
	var errs []error
	for _, src := range sub.Sources {
		n := p.partitions[src.Topic]
		switch {
		case n == 0:
			errs = append(errs, fmt.Errorf("sub-topology %q: topic %q does not exist: create it before the application starts", sub.Name, src.Topic))
		case sub.CoPartitioned && n != p.tasks[sub.Name]:
			errs = append(errs, fmt.Errorf("sub-topology %q: topic %q has %d partitions and %s: a join or a shared store needs equal counts; repartition one of them with Repartition",
				sub.Name, src.Topic, n, p.others(sub, src.Topic)))
		}
	}
	return errors.Join(errs...)
}

func (p *plan) others(sub *topology.SubTopology, topic string) string {
	for _, src := range sub.Sources {
		if src.Topic != topic && p.partitions[src.Topic] != p.partitions[topic] {
			return fmt.Sprintf("%q has %d", src.Topic, p.partitions[src.Topic])
		}
	}
	return "its partners differ"
}

// topicsOf are the inputs of a task: those topics of its sub-topology that have its
// partition, the loop last.
func (inst *Instance) topicsOf(sub *topology.SubTopology, partition int32) []string {
	return slices.DeleteFunc(inputTopics(sub), func(topic string) bool { return partition >= inst.plan.partitions[topic] })
}

// groups returns the Kafka groups of the topology with their sub-topologies, in
// order of name.
func (p *plan) groups() []groupPlan {
	byName := map[string][]*topology.SubTopology{}
	for _, sub := range p.top.Subs {
		byName[sub.KafkaGroup] = append(byName[sub.KafkaGroup], sub)
	}
	var out []groupPlan
	for _, name := range slices.Sorted(maps.Keys(byName)) {
		out = append(out, groupPlan{name, byName[name]})
	}
	return out
}

type groupPlan struct {
	name string
	subs []*topology.SubTopology
}
