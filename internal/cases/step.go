package cases

import (
	"slices"
	"strings"
)

// A Step is one operator of a case; ops are those of Kafka Streams, each with the
// fields it needs. Functions are expressions over the words key, value and
// aggregate: see [expression].
type Step struct {
	Op    string `json:"op"`
	ID    string `json:"id,omitempty"`
	From  string `json:"from,omitempty"`
	Topic string `json:"topic,omitempty"`

	// Of map, selectKey, mapValues, groupBy, globalTableJoin: the new key and
	// value.
	Key      string   `json:"key,omitempty"`
	Value    string   `json:"value,omitempty"`
	Where    string   `json:"where,omitempty"`    // of filter and filterNot
	Each     []Each   `json:"each,omitempty"`     // of flatMap and flatMapValues
	With     []string `json:"with,omitempty"`     // of merge
	Branches []string `json:"branches,omitempty"` // of split: conditions of ID.0, ID.1, ...; else ID.default

	// Of joins.
	Stream     string `json:"stream,omitempty"`
	Table      string `json:"table,omitempty"`
	Left       string `json:"left,omitempty"`
	Right      string `json:"right,omitempty"`
	Kind       string `json:"kind,omitempty"`
	Joiner     string `json:"joiner,omitempty"`
	ForeignKey string `json:"foreign_key,omitempty"`
	Before     int64  `json:"before_ms,omitempty"`
	After      int64  `json:"after_ms,omitempty"`
	Grace      *int64 `json:"grace_ms,omitempty"`

	// Of groups and aggregations.
	Select     string    `json:"select,omitempty"`
	Init       *string   `json:"init,omitempty"`
	Fn         string    `json:"fn,omitempty"`
	Adder      string    `json:"adder,omitempty"`
	Subtractor string    `json:"subtractor,omitempty"`
	Merger     string    `json:"merger,omitempty"`
	Window     *Window   `json:"window,omitempty"`
	Emit       string    `json:"emit,omitempty"`
	Inputs     []Cogroup `json:"inputs,omitempty"`

	// Of suppress.
	Until      string `json:"until,omitempty"`
	Limit      int64  `json:"ms,omitempty"`
	MaxRecords int64  `json:"max_records,omitempty"`
	MaxBytes   int64  `json:"max_bytes,omitempty"`
	WhenFull   string `json:"when_full,omitempty"`

	Versioned *int64 `json:"versioned_history_ms,omitempty"` // of table and toTable
}

// Each is a record that a flatMap makes, if Where holds.
type Each struct {
	Key   string `json:"key,omitempty"`
	Value string `json:"value,omitempty"`
	Where string `json:"where,omitempty"`
}

// Cogroup is an input of a cogroup: a group and what adds its values.
type Cogroup struct {
	From string `json:"from"`
	Fn   string `json:"fn"`
}

// A Window says how an aggregation cuts time, in ms. Type is tumbling, hopping,
// sliding, session or unlimited.
type Window struct {
	Type       string `json:"type"`
	Size       int64  `json:"size_ms,omitempty"`
	Advance    int64  `json:"advance_ms,omitempty"`
	Difference int64  `json:"difference_ms,omitempty"`
	Gap        int64  `json:"gap_ms,omitempty"`
	Grace      int64  `json:"grace_ms,omitempty"`
	Start      int64  `json:"start_ms,omitempty"`
}

// Reads returns the ids of the steps that this one reads; a branch is read as the
// split it is of.
func (st Step) Reads() []string {
	var ids []string
	st.rewire(func(id string) string {
		split, _, _ := strings.Cut(id, ".")
		ids = append(ids, split)
		return id
	})
	return ids
}

// Reading returns the step reading the step with the id to instead of from.
func (st Step) Reading(from, to string) Step {
	return st.rewire(func(id string) string {
		if id == from || strings.HasPrefix(id, from+".") {
			return to
		}
		return id
	})
}

// rewire replaces the ids of the steps that this one reads.
func (st Step) rewire(replace func(id string) string) Step {
	for _, id := range []*string{&st.From, &st.Stream, &st.Table, &st.Left, &st.Right} {
		if *id != "" {
			*id = replace(*id)
		}
	}
	st.With, st.Inputs = slices.Clone(st.With), slices.Clone(st.Inputs)
	for i := range st.With {
		st.With[i] = replace(st.With[i])
	}
	for i := range st.Inputs {
		st.Inputs[i].From = replace(st.Inputs[i].From)
	}
	return st
}
