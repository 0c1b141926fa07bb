package topology

import (
	"fmt"
	"strings"

	"github.com/millrace/millrace/state"
)

// Describe returns the topology as text: for each sub-topology its Kafka group,
// the group of its tasks, its steps with what they read, write and keep, and the
// steps each leads to. The text is stable: it changes only with the topology.
func (t *Topology) Describe() string {
	var w strings.Builder
	fmt.Fprintf(&w, "Application %s\n", t.App)
	for _, s := range t.Subs {
		fmt.Fprintf(&w, "Sub-topology %s (%s)\n", s.Name, strings.Join(s.facts(), ", "))
		for _, i := range s.piece.instances {
			fmt.Fprintf(&w, "  %s\n", i.describe())
			for _, e := range s.piece.edges[i] {
				fmt.Fprintf(&w, "    --> %s\n", i.describeEdge(e))
			}
		}
		for _, spec := range s.Stores {
			fmt.Fprintf(&w, "  %s\n", s.describeStore(spec))
		}
		fmt.Fprintf(&w, "  dead letters to %s\n", s.DeadLetterTopic)
	}
	for _, g := range t.Globals {
		fmt.Fprintf(&w, "Global table %s (%s, %s) from topic %s\n", g.Store.Name, g.Store.KeySerde, g.Store.ValueSerde, g.Topic)
	}
	return w.String()
}

func (s *SubTopology) facts() []string {
	facts := []string{"group " + s.KafkaGroup, "tasks " + s.GokaGroup}
	if s.LoopTopic != "" {
		facts = append(facts, "loop "+s.LoopTopic)
	}
	if s.CoPartitioned {
		facts = append(facts, "co-partitioned")
	}
	return facts
}

func (s *SubTopology) describeStore(spec state.Spec) string {
	kind := "key-value store"
	if spec.TTL > 0 {
		kind = fmt.Sprintf("key-value store, ttl %v,", spec.TTL)
	}
	if spec.Kind == state.Window {
		kind = fmt.Sprintf("window store, size %v, retention %v,", spec.WindowSize, spec.Retention)
	}
	if spec.Kind == state.Events {
		kind = fmt.Sprintf("event store, retention %v,", spec.Retention)
	}
	log := s.Changelog(spec.Name)
	if log == "" {
		log = spec.SourceTopic
	}
	return fmt.Sprintf("%s %s (%s, %s), logged in %s", kind, spec.Name, spec.KeySerde, spec.ValueSerde, log)
}

// title is the name of the step and what it is.
func (i instance) title() string {
	switch {
	case i.n.kind == kindRepartition && i.read:
		return i.n.name + " (source)"
	case i.n.kind == kindRepartition:
		return i.n.name + " (repartition)"
	case i.n.auto:
		return i.n.name
	}
	return fmt.Sprintf("%s (%s)", i.n.name, i.n.op)
}

func (i instance) describe() string {
	line := i.title()
	if i.n.topic != "" {
		verb := "writes"
		if i.read {
			verb = "reads"
		}
		line += fmt.Sprintf(" %s %s (%s, %s)", verb, i.n.topic, i.n.serdes[0], i.n.serdes[1])
	}
	if i.read {
		switch i.n.source.start {
		case Latest:
			line += " from the latest record"
		case MustExist:
			line += " from the committed offset only"
		}
	}
	if len(i.n.uses) > 0 {
		line += fmt.Sprintf(" [%s]", strings.Join(i.n.uses, ", "))
	}
	if i.n.detail != "" && !(i.read && i.n.kind == kindRepartition) {
		line += ": " + i.n.detail
	}
	return line
}

func (i instance) describeEdge(e edge) string {
	to := instance{n: e.to}.title()
	if e.out < len(i.n.labels) && i.n.labels[e.out] != "" {
		return i.n.labels[e.out] + ": " + to
	}
	return to
}

// DOT returns the topology in the language of Graphviz: sub-topologies are
// clusters, topics are between them.
func (t *Topology) DOT() string {
	var w strings.Builder
	fmt.Fprintf(&w, "digraph %q {\n  node [shape=box];\n", t.App)
	topics := t.topics()
	for id, topic := range topics {
		fmt.Fprintf(&w, "  t%d [label=%q, shape=cylinder];\n", id, topic)
	}
	for at, s := range t.Subs {
		fmt.Fprintf(&w, "  subgraph cluster_%d {\n    label=%q;\n", at, s.Name)
		for k, i := range s.piece.instances {
			fmt.Fprintf(&w, "    s%d_%d [label=%q];\n", at, k, i.title())
		}
		w.WriteString("  }\n")
	}
	t.arrows(topics, func(from, to, label string) {
		if label != "" {
			fmt.Fprintf(&w, "  %s -> %s [label=%q];\n", from, to, label)
		} else {
			fmt.Fprintf(&w, "  %s -> %s;\n", from, to)
		}
	})
	w.WriteString("}\n")
	return w.String()
}

// Mermaid returns the topology as a Mermaid flowchart, which many Markdown
// viewers draw.
func (t *Topology) Mermaid() string {
	var w strings.Builder
	w.WriteString("flowchart TD\n")
	topics := t.topics()
	for id, topic := range topics {
		fmt.Fprintf(&w, "  t%d[(%q)]\n", id, topic)
	}
	for at, s := range t.Subs {
		fmt.Fprintf(&w, "  subgraph sub%d [%q]\n", at, s.Name)
		for k, i := range s.piece.instances {
			fmt.Fprintf(&w, "    s%d_%d[%q]\n", at, k, i.title())
		}
		w.WriteString("  end\n")
	}
	t.arrows(topics, func(from, to, label string) {
		if label != "" {
			fmt.Fprintf(&w, "  %s -->|%q| %s\n", from, label, to)
		} else {
			fmt.Fprintf(&w, "  %s --> %s\n", from, to)
		}
	})
	return w.String()
}

// topics returns the topics that steps read or write, in order of appearance.
func (t *Topology) topics() []string {
	var topics []string
	seen := map[string]bool{}
	for _, s := range t.Subs {
		for _, i := range s.piece.instances {
			if i.n.topic != "" && !seen[i.n.topic] {
				seen[i.n.topic] = true
				topics = append(topics, i.n.topic)
			}
		}
	}
	return topics
}

// arrows calls draw for every edge, those to and from topics included.
func (t *Topology) arrows(topics []string, draw func(from, to, label string)) {
	topicID := map[string]string{}
	for id, topic := range topics {
		topicID[topic] = fmt.Sprintf("t%d", id)
	}
	for at, s := range t.Subs {
		id := map[instance]string{}
		for k, i := range s.piece.instances {
			id[i] = fmt.Sprintf("s%d_%d", at, k)
		}
		for _, i := range s.piece.instances {
			switch topic := topicID[i.n.topic]; {
			case topic == "":
			case i.read:
				draw(topic, id[i], "")
			default:
				draw(id[i], topic, "")
			}
			for _, e := range s.piece.edges[i] {
				label := ""
				if e.out < len(i.n.labels) {
					label = i.n.labels[e.out]
				}
				draw(id[i], id[instance{n: e.to}], label)
			}
		}
	}
}
