package cases

import (
	"fmt"
	"strings"

	"github.com/millrace/millrace/topology"
)

func (s *builder) join(st Step) (any, error) {
	switch st.Op {
	case "streamTableJoin":
		return s.streamTableJoin(st)
	case "globalTableJoin":
		return s.globalTableJoin(st)
	case "streamStreamJoin":
		return s.streamStreamJoin(st)
	case "foreignKeyJoin":
		return s.foreignKeyJoin(st)
	}
	return s.tableTableJoin(st)
}

func (s *builder) streamTableJoin(st Step) (any, error) {
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

func (s *builder) globalTableJoin(st Step) (any, error) {
	in, ok := s.made[st.Stream].(*stream)
	t, ok2 := s.made[st.Table].(*globalTable)
	if !ok || !ok2 {
		return nil, nil
	}
	f, err := expression(st.Key)
	if err != nil {
		return nil, err
	}
	key := func(k, v any) any { return f(env{key: k, value: v}) }
	if st.Kind == "left" {
		return topology.GlobalLeftJoin(in, t, key, func(v, row any, _ bool) any { return st.join(v, row) }), nil
	}
	return topology.GlobalJoin(in, t, key, func(v, row any) any { return st.join(v, row) }), nil
}

func (s *builder) streamStreamJoin(st Step) (any, error) {
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
	return nil, Unsupported(st.Kind + " stream-stream join")
}

// foreignKey parses what takes the foreign key from a left value: one of three
// texts, or an expression.
func (st Step) foreignKey() (func(v any) (any, bool), error) {
	after := func(v any) (any, bool) {
		_, fk, ok := strings.Cut(text(v), "|")
		return fk, ok
	}
	switch st.ForeignKey {
	case "text after the first '|' of the left value":
		return after, nil
	case "text after the first '|' of the left value; null when that text is returnNull":
		return func(v any) (any, bool) {
			fk, ok := after(v)
			return fk, ok && fk != "returnNull"
		}, nil
	case "always null":
		return func(any) (any, bool) { return nil, false }, nil
	}
	f, err := expression(st.ForeignKey)
	if err != nil {
		return nil, Unsupported(fmt.Sprintf("foreign key %q", st.ForeignKey))
	}
	return func(v any) (any, bool) { return f(env{value: v}), true }, nil
}

func (s *builder) foreignKeyJoin(st Step) (any, error) {
	l, ok := s.made[st.Left].(*table)
	r, ok2 := s.made[st.Right].(*table)
	if !ok || !ok2 {
		return nil, nil
	}
	key, err := st.foreignKey()
	if err != nil {
		return nil, err
	}
	foreignKey := func(_, v any) (any, bool) { return key(v) }
	switch st.Kind {
	case "inner":
		return topology.ForeignKeyJoin(l, r, st.ID, anything, foreignKey, st.join), nil
	case "left":
		return topology.ForeignKeyLeftJoin(l, r, st.ID, anything, foreignKey, func(a, b any, _ bool) any { return st.join(a, b) }), nil
	}
	return nil, Unsupported(st.Kind + " foreign-key join")
}

func (s *builder) tableTableJoin(st Step) (any, error) {
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
	return nil, Unsupported(st.Kind + " table-table join")
}
