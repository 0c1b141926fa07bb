package main

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/millrace/millrace/processors"
	"github.com/millrace/millrace/serde"
	"github.com/millrace/millrace/topology"
)

// A step is one operator of a case.
type step struct {
	Op    string `json:"op"`
	ID    string `json:"id"`
	From  string `json:"from"`
	Topic string `json:"topic"`

	Stream string `json:"stream"`
	Table  string `json:"table"`
	Left   string `json:"left"`
	Right  string `json:"right"`
	Kind   string `json:"kind"`
	Joiner string `json:"joiner"`

	ForeignKey string `json:"foreign_key"`

	Select     string  `json:"select"`
	Init       *string `json:"init"`
	Fn         string  `json:"fn"`
	Adder      string  `json:"adder"`
	Subtractor string  `json:"subtractor"`
	Merger     string  `json:"merger"`
	Window     *window `json:"window"`
	Emit       string  `json:"emit"`

	Until      string `json:"until"`
	Limit      int64  `json:"ms"`
	MaxRecords int64  `json:"max_records"`
	MaxBytes   int64  `json:"max_bytes"`
	WhenFull   string `json:"when_full"`

	Before    int64  `json:"before_ms"`
	After     int64  `json:"after_ms"`
	Versioned *int64 `json:"versioned_history_ms"`
	Grace     *int64 `json:"grace_ms"`
}

type window struct {
	Type       string `json:"type"`
	Size       int64  `json:"size_ms"`
	Advance    int64  `json:"advance_ms"`
	Difference int64  `json:"difference_ms"`
	Gap        int64  `json:"gap_ms"`
	Grace      int64  `json:"grace_ms"`
}

// unsupported is the error for an operator that does not exist yet.
type unsupported string

func (u unsupported) Error() string { return string(u) }

// Keys and values of a case are whatever JSON holds; nil is null.
type (
	stream        = topology.KStream[any, any]
	table         = topology.KTable[any, any]
	windowed      = topology.KTable[topology.Windowed[any], any]
	groupedStream = topology.KGroupedStream[any, any]
	groupedTable  = topology.KGroupedTable[any, any]
)

// build describes the case's topology in b and returns its output topics.
func build(b *topology.Builder, steps []step) (sinks []string, err error) {
	s := &builder{b: b, made: map[string]any{}}
	for _, st := range steps {
		if err := s.add(st); err != nil {
			return nil, err
		}
	}
	return s.sinks, nil
}

// builder holds the steps made so far by id.
type builder struct {
	b     *topology.Builder
	made  map[string]any
	sinks []string
}

var anything = serde.JSON[any]()

func (s *builder) add(st step) error {
	var made any
	var err error
	switch st.Op {
	case "stream":
		made = topology.Stream(s.b, st.Topic, anything, anything)
	case "table":
		var opts []topology.TableOption
		if st.Versioned != nil {
			opts = append(opts, topology.Versioned(ms(*st.Versioned)))
		}
		made = topology.Table(s.b, st.Topic, st.ID, anything, anything, opts...)
	case "map":
		in, ok := s.made[st.From].(*stream)
		if !ok || !strings.HasPrefix(st.Fn, "identity") {
			return unsupported(fmt.Sprintf("map with %q", st.Fn))
		}
		made = topology.Map(in, func(k, v any) (any, any) { return k, v }).WithKeySerde(anything).WithValueSerde(anything)
	case "groupByKey":
		if in, ok := s.made[st.From].(*stream); ok {
			made = in.GroupByKey()
		}
	case "groupBy":
		made, err = s.groupBy(st)
	case "count", "reduce", "aggregate":
		made, err = s.aggregate(st)
	case "streamTableJoin":
		made, err = s.streamTableJoin(st)
	case "streamStreamJoin":
		made, err = s.streamStreamJoin(st)
	case "foreignKeyJoin":
		made, err = s.foreignKeyJoin(st)
	case "tableTableJoin":
		made, err = s.tableTableJoin(st)
	case "suppress":
		made, err = s.suppress(st)
	case "toStream":
		switch in := s.made[st.From].(type) {
		case *table:
			made = in.ToStream()
		case *windowed:
			made = topology.Map(in.ToStream(), func(w topology.Windowed[any], v any) (any, any) {
				return map[string]any{"key": w.Key, "start": w.Start, "end": w.End}, v
			}).WithKeySerde(anything).WithValueSerde(anything)
		}
	case "to":
		if in, ok := s.made[st.From].(*stream); ok {
			in.To(st.Topic)
			s.sinks = append(s.sinks, st.Topic)
			return nil
		}
	default:
		return unsupported(st.Op)
	}
	if err == nil && made == nil {
		err = unsupported(fmt.Sprintf("%s of %T", st.Op, s.made[st.From]))
	}
	s.made[st.ID] = made
	return err
}

func (s *builder) suppress(st step) (any, error) {
	var opts []topology.BufferOption
	if st.MaxRecords > 0 {
		opts = append(opts, topology.MaxRecords(st.MaxRecords))
	}
	if st.MaxBytes > 0 {
		opts = append(opts, topology.MaxBytes(st.MaxBytes))
	}
	if st.WhenFull == "shut_down" {
		opts = append(opts, topology.ShutDownWhenFull())
	}
	var until topology.Suppression
	switch st.Until {
	case "window_closes":
		until = topology.UntilWindowCloses(opts...)
	case "time_limit":
		until = topology.UntilTimeLimit(ms(min(st.Limit, math.MaxInt64/int64(time.Millisecond))), opts...)
	default:
		return nil, unsupported("suppress until " + st.Until)
	}
	switch in := s.made[st.From].(type) {
	case *table:
		return in.Suppress(st.ID, until), nil
	case *windowed:
		return in.Suppress(st.ID, until), nil
	}
	return nil, nil
}

func (s *builder) groupBy(st step) (any, error) {
	choose, err := selector(st.Select)
	if err != nil {
		return nil, err
	}
	switch in := s.made[st.From].(type) {
	case *stream:
		return topology.Map(in, choose).WithKeySerde(anything).WithValueSerde(anything).GroupByKey(topology.Named(st.ID)), nil
	case *table:
		return topology.TableGroupBy(in, st.ID, choose, topology.GroupSerdes(anything, anything)), nil
	}
	return nil, nil
}

// asAny turns the values of a table into anything.
func asAny[K, V any](t *topology.KTable[K, V]) *topology.KTable[K, any] {
	return topology.TableMapValues(t, func(v V) any { return v }).WithValueSerde(anything)
}

func (s *builder) aggregate(st step) (any, error) {
	add, err := expression(st.Fn + st.Adder)
	if err != nil {
		return nil, err
	}
	start := func() any { return "" }
	if st.Init != nil {
		start = func() any { return *st.Init }
	}
	addKey := func(_, v, agg any) any { return add(agg, v) }
	if g, ok := s.made[st.From].(*groupedTable); ok {
		subtract, err := expression(st.Subtractor)
		switch {
		case err != nil:
			return nil, err
		case st.Op == "count":
			return asAny(g.Count(st.ID)), nil
		case st.Op == "reduce":
			return g.Reduce(st.ID, add, subtract), nil
		}
		return topology.TableAggregate(g, st.ID, anything, start, addKey, func(_, v, agg any) any { return subtract(agg, v) }), nil
	}
	g, ok := s.made[st.From].(*groupedStream)
	if !ok {
		return nil, nil
	}
	if st.Window == nil {
		switch st.Op {
		case "count":
			return asAny(g.Count(st.ID)), nil
		case "reduce":
			return g.Reduce(st.ID, add), nil
		}
		return topology.Aggregate(g, st.ID, anything, start, addKey), nil
	}
	w, err := st.windows()
	switch {
	case err != nil:
		return nil, err
	case st.Op == "count":
		return asAny(topology.Count(g, st.ID, w)), nil
	case st.Op == "reduce":
		return topology.Reduce(g, st.ID, w, add), nil
	}
	if w.Kind == processors.SessionWindows {
		merge, err := expression(strings.ReplaceAll(strings.ReplaceAll(" "+st.Merger+" ", " a ", " aggregate "), " b ", " value "))
		return topology.SessionAggregate(g, st.ID, w, anything, start, addKey, func(_, a, b any) any { return merge(a, b) }), err
	}
	return topology.WindowedAggregate(g, st.ID, w, anything, start, addKey), nil
}

func (st step) windows() (topology.Windows, error) {
	w := st.Window
	opts := []topology.WindowOption{topology.Grace(ms(w.Grace))}
	if st.Emit == "on_window_close" {
		opts = append(opts, topology.EmitFinal())
	}
	switch w.Type {
	case "tumbling":
		return topology.Tumbling(ms(w.Size), opts...), nil
	case "hopping":
		return topology.Hopping(ms(w.Size), ms(w.Advance), opts...), nil
	case "sliding":
		return topology.Sliding(ms(w.Difference), opts...), nil
	case "session":
		return topology.Session(ms(w.Gap), opts...), nil
	}
	return topology.Windows{}, unsupported(w.Type + " window")
}

func (s *builder) streamTableJoin(st step) (any, error) {
	opts := []topology.JoinOption{topology.Named(st.ID)}
	if st.Grace != nil {
		opts = append(opts, topology.Grace(ms(*st.Grace)))
	}
	in, ok := s.made[st.Stream].(*stream)
	t, ok2 := s.made[st.Table].(*table)
	if !ok || !ok2 {
		return nil, nil
	}
	if st.Kind == "left" {
		return topology.LeftJoin(in, t, func(v, row any, _ bool) any { return st.join(v, row) }, opts...), nil
	}
	return topology.Join(in, t, func(v, row any) any { return st.join(v, row) }, opts...), nil
}

func (s *builder) streamStreamJoin(st step) (any, error) {
	l, ok := s.made[st.Left].(*stream)
	r, ok2 := s.made[st.Right].(*stream)
	if !ok || !ok2 || st.Grace == nil {
		return nil, nil
	}
	w := topology.Between(ms(st.Before), ms(st.After), topology.Grace(ms(*st.Grace)))
	switch st.Kind {
	case "inner":
		return topology.StreamJoin(l, r, st.ID, w, st.join), nil
	case "left":
		return topology.StreamLeftJoin(l, r, st.ID, w, func(a, b any, _ bool) any { return st.join(a, b) }), nil
	case "outer":
		return topology.StreamOuterJoin(l, r, st.ID, w, func(a any, _ bool, b any, _ bool) any { return st.join(a, b) }), nil
	}
	return nil, unsupported(st.Kind + " stream-stream join")
}

func (s *builder) foreignKeyJoin(st step) (any, error) {
	l, ok := s.made[st.Left].(*table)
	r, ok2 := s.made[st.Right].(*table)
	if !ok || !ok2 {
		return nil, nil
	}
	var key func(v string) (any, bool)
	after := func(v string) (any, bool) {
		_, fk, ok := strings.Cut(v, "|")
		return fk, ok
	}
	switch st.ForeignKey {
	case "text after the first '|' of the left value":
		key = after
	case "text after the first '|' of the left value; null when that text is returnNull":
		key = func(v string) (any, bool) {
			fk, ok := after(v)
			return fk, ok && fk != "returnNull"
		}
	case "always null":
		key = func(string) (any, bool) { return nil, false }
	default:
		return nil, unsupported(fmt.Sprintf("foreign key %q", st.ForeignKey))
	}
	foreignKey := func(_, v any) (any, bool) { return key(text(v)) }
	switch st.Kind {
	case "inner":
		return topology.ForeignKeyJoin(l, r, st.ID, anything, foreignKey, st.join), nil
	case "left":
		return topology.ForeignKeyLeftJoin(l, r, st.ID, anything, foreignKey, func(a, b any, _ bool) any { return st.join(a, b) }), nil
	}
	return nil, unsupported(st.Kind + " foreign-key join")
}

func (s *builder) tableTableJoin(st step) (any, error) {
	l, ok := s.made[st.Left].(*table)
	r, ok2 := s.made[st.Right].(*table)
	if !ok || !ok2 {
		return nil, nil
	}
	switch st.Kind {
	case "inner":
		return topology.TableJoin(l, r, st.ID, anything, st.join), nil
	case "left":
		return topology.TableLeftJoin(l, r, st.ID, anything, func(a, b any, _ bool) any { return st.join(a, b) }), nil
	case "outer":
		return topology.TableOuterJoin(l, r, st.ID, anything, func(a any, _ bool, b any, _ bool) any { return st.join(a, b) }), nil
	}
	return nil, unsupported(st.Kind + " table-table join")
}

func ms(n int64) time.Duration { return time.Duration(n) * time.Millisecond }

// join fills the joiner's template.
func (st step) join(left, right any) any {
	return strings.NewReplacer("{left}", text(left), "{right}", text(right)).Replace(st.Joiner)
}

func text(v any) string {
	switch v := v.(type) {
	case nil:
		return "null"
	case float64:
		return strconv.FormatFloat(v, 'f', -1, 64)
	}
	return fmt.Sprint(v)
}

// expression parses what combines an aggregate and a value, for example
// "aggregate + '+' + value".
func expression(s string) (func(agg, value any) any, error) {
	if s == "aggregate with every occurrence of value removed" {
		return func(agg, v any) any { return strings.ReplaceAll(text(agg), text(v), "") }, nil
	}
	terms := strings.Split(strings.TrimSpace(s), " + ")
	for _, term := range terms {
		switch {
		case s == "", term == "aggregate", term == "old", term == "value":
		case len(term) > 2 && strings.HasPrefix(term, "'") && strings.HasSuffix(term, "'"):
		default:
			return nil, unsupported(fmt.Sprintf("expression %q", s))
		}
	}
	return func(agg, v any) any {
		var out strings.Builder
		for _, term := range terms {
			switch term {
			case "aggregate", "old":
				out.WriteString(text(agg))
			case "value":
				out.WriteString(text(v))
			default:
				out.WriteString(strings.Trim(term, "'"))
			}
		}
		return out.String()
	}, nil
}

// selector parses what chooses the key and value of a group. A nil result is
// null.
func selector(s string) (func(key, value any) (any, any), error) {
	switch s {
	case "key<-key (unchanged), value<-value":
		return func(k, v any) (any, any) { return k, v }, nil
	case "key<-value, value<-value":
		return func(_, v any) (any, any) { return v, v }, nil
	case "key<-value, value<-key":
		return func(k, v any) (any, any) { return v, k }, nil
	case "key<-value, value<-value; row key 'null': new key is null; row key 'NULL': the selector returns nothing (both are skipped)":
		return func(k, v any) (any, any) {
			if k == "null" || k == "NULL" {
				return nil, v
			}
			return v, v
		}, nil
	case "key<-first char of row key, value<-second char of row key":
		return func(k, _ any) (any, any) { return text(k)[:1], text(k)[1:2] }, nil
	}
	return nil, unsupported(fmt.Sprintf("groupBy with %q", s))
}
