package topology

import (
	"fmt"
	"maps"
	"slices"

	"github.com/millrace/millrace/llm/prompt"
	"github.com/millrace/millrace/processors"
	"github.com/millrace/millrace/serde"
	"github.com/millrace/millrace/state"
)

// checkPrompts reports a name that the prompts need.
func (b *Builder) checkPrompts() []error {
	owner, ok := b.claims[processors.PromptStore]
	if !ok || len(b.promptUses()) == 0 {
		return nil
	}
	return []error{fmt.Errorf("%s: the name %s is that of the application's prompts; use another one", owner, processors.PromptStore)}
}

// promptUses returns how the steps of the application use prompts.
func (b *Builder) promptUses() []prompt.Use {
	var uses []prompt.Use
	for _, n := range b.nodes {
		if n.prompt == nil {
			continue
		}
		u := *n.prompt
		u.Topics = n.topicsBehind(0)
		uses = append(uses, u)
	}
	return uses
}

// topicsBehind returns the topics that the records of an output slot are written to
// with no step but stateless ones in between, in order of name.
func (n *node) topicsBehind(out int) []string {
	topics, seen := map[string]bool{}, map[*node]bool{}
	var walk func(n *node)
	walk = func(n *node) {
		switch {
		case seen[n]:
		case n.topic != "":
			topics[n.topic] = true
		case n.kind == kindStateless:
			for _, e := range n.children {
				walk(e.to)
			}
		}
		seen[n] = true
	}
	for _, e := range n.children {
		if e.out == out {
			walk(e.to)
		}
	}
	return slices.Sorted(maps.Keys(topics))
}

// promptTable is the global table of the application's prompts.
func promptTable(app string, uses []prompt.Use) GlobalSource {
	topic := prompt.Topic(app)
	return GlobalSource{
		Topic: topic, Internal: &InternalTopic{Partitions: 1, Kind: TopicChangelog},
		Store: state.Spec{Name: processors.PromptStore, Kind: state.KeyValue, KeySerde: serde.String().Name(), ValueSerde: serde.Bytes().Name(), SourceTopic: topic},
		Apply: func(rec *processors.Raw, get func([]byte) ([]byte, error)) ([]byte, []byte, error) {
			if rec.Key == nil {
				return nil, nil, fmt.Errorf("a record of the prompts has no key")
			}
			rows := func(key string) ([]byte, error) {
				row, err := get([]byte(key))
				if err != nil || row == nil {
					return nil, err
				}
				_, value, err := state.SplitRow(row)
				return value, err
			}
			keep, err := prompt.Apply(prompt.Record{Key: string(rec.Key), Value: rec.Value}, rows, uses)
			switch {
			case keep == nil:
				return nil, nil, err
			case keep.Value == nil:
				return rec.Key, nil, err
			}
			return rec.Key, append(state.AppendRow(nil, rec.Timestamp), keep.Value...), err
		},
	}
}
