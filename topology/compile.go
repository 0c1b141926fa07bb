package topology

import (
	"time"

	"github.com/millrace/millrace/llm"
	"github.com/millrace/millrace/llm/prompt"
	"github.com/millrace/millrace/processors"
	"github.com/millrace/millrace/state"
)

// A Topology is a checked, compiled description: what the engine runs. It is
// immutable and safe for concurrent use.
type Topology struct {
	// App names the application: the Kafka group of the ordinary sub-topologies
	// and the prefix of all internal names.
	App  string
	Subs []*SubTopology
	// Globals are the tables of which every instance keeps one full copy.
	Globals []GlobalSource
	// Prompts are the uses of prompts by the steps with model calls, which an instance
	// registers in the topic [prompt.Topic] before it starts.
	Prompts []prompt.Use
}

// A SubTopology is a maximal co-partitioned piece of the graph: one goka group.
type SubTopology struct {
	// Name is the first name it owns in sorted order; an asynchronous step's name
	// for that step's.
	Name string
	// App is the application's name, as in [Topology].
	App string
	// DeadLetterTopic takes the records that fail: <app>.dlq, or <app>.<step>.dlq
	// for an asynchronous step's sub-topology. It is one of Sinks.
	DeadLetterTopic string
	// KafkaGroup is the consumer group: the app's, or <app>.<step> for an
	// asynchronous step.
	KafkaGroup string
	// GokaGroup is the name of the goka.GroupGraph. Its table topic
	// <GokaGroup>-table holds the task's own rows.
	GokaGroup string
	Sources   []Source
	// LoopTopic is <GokaGroup>-loop if the sub-topology has an asynchronous step,
	// else empty. Start's pipeline takes its records as source number len(Sources).
	LoopTopic string
	// Caller makes the model calls of the asynchronous step, nil if it has none. It is
	// for whoever watches the breakers.
	Caller *llm.Caller
	Stores []state.Spec
	// NeedsRows says that tasks keep rows of their own (stream times, timers,
	// entries), so that the group table topic exists.
	NeedsRows bool
	// Sinks are the static topics the sub-topology writes to, repartition topics
	// and dead-letter topics of asynchronous steps included, in order of name.
	Sinks []Sink
	// CoPartitioned says that all sources must have the same partition count,
	// since a join or a shared store needs it.
	CoPartitioned bool
	// Fingerprint identifies the shape: steps, names, serdes and windows.
	Fingerprint string
	// Start builds the running operators of one task. [Pipeline.Reset] follows when
	// the task's stores are restored, before the first record.
	Start func(t processors.Task) (Pipeline, error)

	piece *piece // what it was compiled from, for Describe
}

// A Pipeline is the running operators of one task. It is not safe for concurrent
// use.
type Pipeline interface {
	// Process runs a record of source number source (its index in
	// [SubTopology.Sources]). Errors are of type *processors.Error.
	Process(source int, rec *processors.Raw) error
	// Capacity reports whether the pipeline takes more records of its sources now;
	// the loop is always taken.
	Capacity() bool
	// Pending returns how many in-flight entries wait, and the timestamp in ms of
	// the oldest, 0 if there is none.
	Pending() (entries int, oldest int64)
	// Sizes returns what the stores hold of which rows expire: those of conversations
	// and cached answers.
	Sizes() []processors.StoreSize
	// Reset drops what the operators hold in memory and rebuilds it from
	// committed state: after a restore and after an abort. It may dispatch calls.
	Reset() error
	// Close ends the operators: processors of the user are closed. The pipeline is
	// not used afterwards. Changes that it makes to stores are lost.
	Close() error
}

// A Source is an input topic of a sub-topology.
type Source struct {
	Topic string
	// Start says where a group begins that has no offset yet.
	Start StartPolicy
	// Internal is set for repartition topics: the app creates and purges them.
	Internal *InternalTopic
	// Store is the table store the topic feeds, if it is a table's source.
	Store string
	// Timestamp, if not nil, gives the event time of a record in ms, by which the
	// engine orders records of several sources and keeps its stream time. It leaves
	// rec as it is: Process extracts the time again. partitionTime is the largest
	// result so far, -1 at first. Errors are of type *processors.Error.
	Timestamp func(rec *processors.Raw, partitionTime int64) (int64, error)
}

// StartPolicy says where a source is first read.
type StartPolicy uint8

const (
	// Earliest starts at the first record: the default.
	Earliest StartPolicy = iota
	// Latest starts behind the last record.
	Latest
	// MustExist fails when the group has no offset.
	MustExist
)

// A Sink is an output topic.
type Sink struct {
	Topic    string
	Internal *InternalTopic // set if the app creates it
}

// InternalTopic states how an internal topic is created.
type InternalTopic struct {
	// Partitions is the count, 0 for that of the sub-topology that reads it or,
	// for a repartition topic, the largest of the sources feeding it.
	Partitions int32
	Kind       TopicKind
}

// TopicKind tells the role, and so the configuration, of an internal topic.
type TopicKind uint8

// The kinds of internal topic.
const (
	TopicChangelog TopicKind = iota
	TopicWindowChangelog
	TopicGroupTable
	TopicLoop
	TopicRepartition
	TopicDeadLetter
)

// A GlobalSource is a topic of which every instance keeps a full copy.
type GlobalSource struct {
	Topic string
	Store state.Spec
	// Internal is set if the app creates the topic.
	Internal *InternalTopic
	// Apply turns a record into a row of the store: key and row bytes, a nil row
	// for a deletion; a nil key leaves the record out. get reads the rows so far. With
	// an error, which is reported, there may be a row nevertheless.
	Apply func(rec *processors.Raw, get func(key []byte) (row []byte, err error)) (key, row []byte, err error)
}

// RetentionOf returns how long rows of a window store's changelog are kept.
func RetentionOf(s state.Spec) time.Duration { return s.WindowSize + s.Retention + 7*24*time.Hour }

// A Changelog is the topic that logs a store of a sub-topology.
type Changelog struct {
	Topic string
	Store state.Spec
	Kind  TopicKind
}

// Changelog returns the topic that logs the store of that name, or "" for a
// store that is logged by its source topic and for task rows nobody keeps.
func (s *SubTopology) Changelog(store string) string {
	if store == state.TaskRows {
		if !s.NeedsRows {
			return ""
		}
		return s.GokaGroup + "-table"
	}
	for i := range s.Stores {
		if s.Stores[i].Name == store && s.Stores[i].SourceTopic != "" {
			return ""
		}
	}
	return ChangelogTopic(s.App, store)
}

// ChangelogTopic returns the topic that logs a store of an application.
func ChangelogTopic(app, store string) string { return app + "." + store + "-table" }

// Changelogs returns the logs of the sub-topology, that of the task's own rows
// first.
func (s *SubTopology) Changelogs() []Changelog {
	var logs []Changelog
	if s.NeedsRows {
		logs = append(logs, Changelog{s.Changelog(state.TaskRows), state.Spec{Name: state.TaskRows}, TopicGroupTable})
	}
	for _, spec := range s.Stores {
		topic := s.Changelog(spec.Name)
		if topic == "" {
			continue
		}
		kind := TopicChangelog
		if spec.Kind != state.KeyValue {
			kind = TopicWindowChangelog
		}
		logs = append(logs, Changelog{topic, spec, kind})
	}
	return logs
}
