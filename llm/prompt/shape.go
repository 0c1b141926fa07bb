package prompt

import (
	"reflect"
	"strconv"

	millracev1 "github.com/millrace/millrace/proto/millrace/v1"
)

// maxTypes bounds the types of a shape; what is beyond it counts as unknown.
const maxTypes = 1000

// ShapeOf returns which names a template may use, from the types of the values in d;
// the values may be zero ones. A nil value is one of which nothing is known; Tables
// names all tables there are.
func ShapeOf(d Data) *millracev1.DataShape {
	s := &shaper{names: map[reflect.Type]string{}, types: map[string]*millracev1.TypeShape{}}
	tables := map[string]string{}
	for name, row := range d.Tables {
		tables[name] = s.of(reflect.TypeOf(row))
	}
	s.types["tables"] = &millracev1.TypeShape{Fields: tables}
	s.types["data"] = &millracev1.TypeShape{Fields: map[string]string{
		"Event": s.of(reflect.TypeOf(d.Event)), "Key": s.of(reflect.TypeOf(d.Key)),
		"Context": s.of(reflect.TypeOf(d.Context)), "Tables": "tables",
	}}
	return &millracev1.DataShape{Types: s.types, Root: "data"}
}

type shaper struct {
	names map[reflect.Type]string
	types map[string]*millracev1.TypeShape
}

// of returns the name of the shape of a type, "" for one of which nothing is known.
func (s *shaper) of(t reflect.Type) string {
	for t != nil && t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	if t == nil || t.Kind() == reflect.Interface || t.Kind() == reflect.Func {
		return ""
	}
	if name, ok := s.names[t]; ok {
		return name
	}
	if len(s.names) == maxTypes {
		return ""
	}
	name := t.Name()
	switch {
	case name == "":
		name = "type " + strconv.Itoa(len(s.names))
	case t.PkgPath() != "":
		name = t.PkgPath() + "." + name
	}
	shape := &millracev1.TypeShape{Fields: map[string]string{}}
	s.names[t], s.types[name] = name, shape
	switch t.Kind() {
	case reflect.Struct:
		for _, f := range reflect.VisibleFields(t) {
			if f.IsExported() {
				shape.Fields[f.Name] = s.of(f.Type)
			}
		}
	case reflect.Map:
		shape.Elem, shape.Named = s.of(t.Elem()), t.Key().Kind() == reflect.String
	case reflect.Slice, reflect.Array, reflect.Chan:
		shape.Elem = s.of(t.Elem())
	}
	for m := range reflect.PointerTo(t).Methods() {
		if m.Type.NumOut() > 0 {
			shape.Fields[m.Name] = s.of(m.Type.Out(0))
		}
	}
	return name
}
