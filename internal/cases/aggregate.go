package cases

import (
	"strings"
	"time"

	"github.com/millrace/millrace/processors"
	"github.com/millrace/millrace/topology"
)

func (s *builder) groupBy(st Step) (any, error) {
	choose, err := st.selector()
	if err != nil {
		return nil, err
	}
	switch in := s.made[st.From].(type) {
	case *stream:
		return topology.Map(in, choose).WithKeySerde(anything).WithValueSerde(anything).GroupByKey(topology.Named(st.ID)), nil
	case *table:
		return topology.TableGroupBy(in, st.ID, choose, topology.GroupSerdes(anything, anything)), nil
	case *windowed:
		return topology.TableGroupBy(in, st.ID, func(w topology.Windowed[any], v any) (any, any) {
			return choose(plain(w), v)
		}, topology.GroupSerdes(anything, anything)), nil
	}
	return nil, nil
}

// asAny turns the values of a table into anything.
func asAny[K, V any](t *topology.KTable[K, V]) *topology.KTable[K, any] {
	return topology.TableMapValues(t, func(v V) any { return v }).WithValueSerde(anything)
}

// The functions of an aggregation.
type (
	adder   func(key, value, aggregate any) any
	reducer func(aggregate, value any) any
)

func add(text string) (adder, error) {
	f, err := expression(text)
	return func(k, v, agg any) any { return f(env{k, v, agg}) }, err
}

func reduce(text string) (reducer, error) {
	f, err := expression(text)
	return func(agg, v any) any { return f(env{value: v, aggregate: agg}) }, err
}

// merge parses what merges the sessions a and b.
func (st Step) merge() (adder, error) {
	text := strings.ReplaceAll(strings.ReplaceAll(" "+st.Merger+" ", " a ", " aggregate "), " b ", " value ")
	f, err := expression(strings.TrimSpace(text))
	return func(_, a, b any) any { return f(env{value: b, aggregate: a}) }, err
}

func (st Step) start() any {
	if st.Init == nil {
		return ""
	}
	return *st.Init
}

func (s *builder) aggregate(st Step) (any, error) {
	if g, ok := s.made[st.From].(*groupedTable); ok {
		return aggregateTable(g, st)
	}
	g, ok := s.made[st.From].(*groupedStream)
	if !ok {
		return nil, nil
	}
	if st.Window != nil {
		return aggregateWindows(g, st)
	}
	switch st.Op {
	case "count":
		return asAny(g.Count(st.ID)), nil
	case "reduce":
		f, err := reduce(st.Fn)
		return g.Reduce(st.ID, f), err
	}
	f, err := add(st.Fn + st.Adder)
	return topology.Aggregate(g, st.ID, anything, st.start, f), err
}

func aggregateTable(g *groupedTable, st Step) (any, error) {
	switch st.Op {
	case "count":
		return asAny(g.Count(st.ID)), nil
	case "reduce":
		f, err := reduce(st.Fn + st.Adder)
		if err != nil {
			return nil, err
		}
		subtract, err := reduce(st.Subtractor)
		return g.Reduce(st.ID, f, subtract), err
	}
	f, err := add(st.Fn + st.Adder)
	if err != nil {
		return nil, err
	}
	subtract, err := add(st.Subtractor)
	return topology.TableAggregate(g, st.ID, anything, st.start, f, subtract), err
}

func aggregateWindows(g *groupedStream, st Step) (any, error) {
	w, err := st.windows()
	switch {
	case err != nil:
		return nil, err
	case st.Op == "count":
		return asAny(topology.Count(g, st.ID, w)), nil
	case st.Op == "reduce":
		f, err := reduce(st.Fn)
		return topology.Reduce(g, st.ID, w, f), err
	}
	f, err := add(st.Fn + st.Adder)
	if err != nil {
		return nil, err
	}
	if w.Kind == processors.SessionWindows {
		merge, err := st.merge()
		return topology.SessionAggregate(g, st.ID, w, anything, st.start, f, merge), err
	}
	return topology.WindowedAggregate(g, st.ID, w, anything, st.start, f), nil
}

func (s *builder) cogroup(st Step) (any, error) {
	var all *topology.KCogroupedStream[any, any]
	for _, in := range st.Inputs {
		g, ok := s.made[in.From].(*groupedStream)
		if !ok {
			return nil, nil
		}
		f, err := add(in.Fn)
		switch {
		case err != nil:
			return nil, err
		case all == nil:
			all = topology.Cogroup(g, f)
		default:
			all = topology.CogroupWith(all, g, f)
		}
	}
	switch {
	case all == nil:
		return nil, nil
	case st.Window == nil:
		return all.Aggregate(st.ID, anything, st.start), nil
	}
	w, err := st.windows()
	switch {
	case err != nil:
		return nil, err
	case w.Kind == processors.SessionWindows:
		merge, err := st.merge()
		return topology.SessionCogroup(all, st.ID, w, anything, st.start, merge), err
	}
	return topology.WindowedCogroup(all, st.ID, w, anything, st.start), nil
}

func (st Step) windows() (topology.Windows, error) {
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
	case "unlimited":
		return topology.Unlimited(time.UnixMilli(w.Start)), nil
	}
	return topology.Windows{}, Unsupported(w.Type + " window")
}
