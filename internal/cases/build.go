package cases

import (
	"fmt"
	"iter"
	"math"
	"strings"
	"time"

	"github.com/millrace/millrace/serde"
	"github.com/millrace/millrace/topology"
)

// Keys and values of a case are whatever JSON holds; nil is null.
type (
	stream        = topology.KStream[any, any]
	table         = topology.KTable[any, any]
	windowed      = topology.KTable[topology.Windowed[any], any]
	globalTable   = topology.GlobalKTable[any, any]
	groupedStream = topology.KGroupedStream[any, any]
	groupedTable  = topology.KGroupedTable[any, any]
)

// build describes the case's topology in b and returns its output topics.
func build(b *topology.Builder, steps []Step) (sinks []string, err error) {
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

func (s *builder) add(st Step) error {
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
	case "globalTable":
		made = topology.GlobalTable(s.b, st.Topic, st.ID, anything, anything)
	case "groupByKey":
		if in, ok := s.made[st.From].(*stream); ok {
			made = in.GroupByKey()
		}
	case "groupBy":
		made, err = s.groupBy(st)
	case "count", "reduce", "aggregate":
		made, err = s.aggregate(st)
	case "cogroup":
		made, err = s.cogroup(st)
	case "streamTableJoin", "globalTableJoin", "streamStreamJoin", "tableTableJoin", "foreignKeyJoin":
		made, err = s.join(st)
	case "suppress":
		made, err = s.suppress(st)
	case "toStream":
		made = s.toStream(st)
	case "to":
		if in, ok := s.made[st.From].(*stream); ok {
			in.To(st.Topic)
			s.sinks = append(s.sinks, st.Topic)
			return nil
		}
	case "map", "selectKey", "mapValues", "filter", "filterNot", "flatMap", "flatMapValues", "peek", "merge", "split", "repartition", "toTable":
		made, err = s.stateless(st)
	default:
		return Unsupported(st.Op)
	}
	if err == nil && made == nil {
		err = Unsupported(fmt.Sprintf("%s of %T", st.Op, s.made[st.From]))
	}
	s.made[st.ID] = made
	return err
}

// stateless adds the steps without state.
func (s *builder) stateless(st Step) (any, error) {
	switch st.Op {
	case "mapValues":
		return s.mapValues(st)
	case "filter", "filterNot":
		return s.filter(st)
	}
	in, ok := s.made[st.From].(*stream)
	if !ok {
		return nil, nil
	}
	switch st.Op {
	case "map", "selectKey":
		choose, err := st.mapping()
		if err != nil {
			return nil, err
		}
		if st.Op == "selectKey" {
			return topology.SelectKey(in, func(k, v any) any { k, _ = choose(k, v); return k }).WithKeySerde(anything), nil
		}
		return topology.Map(in, choose).WithKeySerde(anything).WithValueSerde(anything), nil
	case "flatMap", "flatMapValues":
		return flatMap(in, st)
	case "peek":
		return in.Peek(func(any, any) {}), nil
	case "merge":
		var others []*stream
		for _, id := range st.With {
			other, ok := s.made[id].(*stream)
			if !ok {
				return nil, nil
			}
			others = append(others, other)
		}
		return in.Merge(others...), nil
	case "split":
		br := in.Split(topology.Named(st.ID))
		for i, branch := range st.Branches {
			where, err := condition(branch)
			if err != nil {
				return nil, err
			}
			s.made[fmt.Sprintf("%s.%d", st.ID, i)] = br.Branch(fmt.Sprintf("%s-%d", st.ID, i), func(k, v any) bool { return where(env{key: k, value: v}) })
		}
		s.made[st.ID+".default"] = br.Default(st.ID + "-default")
		return br, nil
	case "repartition":
		return in.Repartition(st.ID), nil
	case "toTable":
		var opts []topology.VersionedOption
		if st.Versioned != nil {
			opts = append(opts, topology.Versioned(ms(*st.Versioned)))
		}
		return in.ToTable(st.ID, opts...), nil
	}
	return nil, Unsupported(st.Op)
}

func (s *builder) mapValues(st Step) (any, error) {
	f, err := expression(st.Value)
	if err != nil {
		return nil, err
	}
	change := func(v any) any { return f(env{value: v}) }
	switch in := s.made[st.From].(type) {
	case *stream:
		return topology.MapValues(in, change).WithValueSerde(anything), nil
	case *table:
		return topology.TableMapValues(in, change), nil
	case *windowed:
		return topology.TableMapValues(in, change), nil
	}
	return nil, nil
}

func (s *builder) filter(st Step) (any, error) {
	where, err := condition(st.Where)
	if err != nil {
		return nil, err
	}
	not := st.Op == "filterNot"
	keep := func(k, v any) bool { return where(env{key: k, value: v}) }
	switch in := s.made[st.From].(type) {
	case *stream:
		if not {
			return in.FilterNot(keep), nil
		}
		return in.Filter(keep), nil
	case *table:
		if not {
			return in.FilterNot(keep), nil
		}
		return in.Filter(keep), nil
	case *windowed:
		keep := func(w topology.Windowed[any], v any) bool { return keep(plain(w), v) }
		if not {
			return in.FilterNot(keep), nil
		}
		return in.Filter(keep), nil
	}
	return nil, nil
}

func flatMap(in *stream, st Step) (any, error) {
	type element struct {
		mapping func(k, v any) (any, any)
		where   func(env) bool
	}
	var each []element
	for _, e := range st.Each {
		mapping, err := Step{Key: e.Key, Value: e.Value}.mapping()
		if err != nil {
			return nil, err
		}
		where, err := condition(or(e.Where, "'' == ''"))
		if err != nil {
			return nil, err
		}
		each = append(each, element{mapping, where})
	}
	records := func(k, v any) iter.Seq2[any, any] {
		return func(yield func(any, any) bool) {
			for _, e := range each {
				if e.where(env{key: k, value: v}) && !yield(e.mapping(k, v)) {
					return
				}
			}
		}
	}
	if st.Op == "flatMap" {
		return topology.FlatMap(in, records).WithKeySerde(anything).WithValueSerde(anything), nil
	}
	return topology.FlatMapValues(in, func(v any) iter.Seq[any] {
		return func(yield func(any) bool) {
			for _, v := range records(nil, v) {
				if !yield(v) {
					return
				}
			}
		}
	}).WithValueSerde(anything), nil
}

// plain is a windowed key as it is printed.
func plain(w topology.Windowed[any]) any {
	return map[string]any{"key": w.Key, "start": w.Start, "end": w.End}
}

func (s *builder) toStream(st Step) any {
	switch in := s.made[st.From].(type) {
	case *table:
		return in.ToStream()
	case *windowed:
		return topology.Map(in.ToStream(), func(w topology.Windowed[any], v any) (any, any) {
			return plain(w), v
		}).WithKeySerde(anything).WithValueSerde(anything)
	}
	return nil
}

func (s *builder) suppress(st Step) (any, error) {
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
		return nil, Unsupported("suppress until " + st.Until)
	}
	switch in := s.made[st.From].(type) {
	case *table:
		return in.Suppress(st.ID, until), nil
	case *windowed:
		return in.Suppress(st.ID, until), nil
	}
	return nil, nil
}

func ms(n int64) time.Duration { return time.Duration(n) * time.Millisecond }

// join fills the joiner's template.
func (st Step) join(left, right any) any {
	return strings.NewReplacer("{left}", text(left), "{right}", text(right)).Replace(st.Joiner)
}
