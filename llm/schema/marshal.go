package schema

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// Marshal returns the answer that follows the schema and stands for msg: for
// examples in prompts, and for models that are scripted in tests. Unlike
// protojson's output, it holds the fields without presence that are zero, and maps
// as the dialect wants them. Equal messages give equal bytes.
//
// It fails for a message of another type, and for what JSON or the schema has no
// value for: a required field that is not set, NaN, infinities, and numbers of enums
// without a name. It checks no other rules.
func (s *Schema) Marshal(msg proto.Message) ([]byte, error) {
	m := msg.ProtoReflect()
	if got := m.Descriptor().FullName(); got != s.message.FullName() {
		return nil, fmt.Errorf("schema of %s: cannot marshal a %s", s.message.FullName(), got)
	}
	e := encoder{nulls: s.nulls}
	e.object(s.root, m)
	if e.err != nil {
		return nil, fmt.Errorf("schema of %s: marshal: %w", s.message.FullName(), e.err)
	}
	return e.out, nil
}

type encoder struct {
	out   []byte
	nulls bool
	err   error
}

func (e *encoder) write(text string) { e.out = append(e.out, text...) }

func (e *encoder) object(s *Shape, m protoreflect.Message) {
	e.write("{")
	first := true
	for _, p := range s.Properties {
		fd := p.Shape.Field
		missing := p.Missable && !m.Has(fd)
		if !p.Missable && fd.HasPresence() && !m.Has(fd) {
			e.fail(fd, errors.New("it is required and not set"))
		}
		if missing && !e.nulls {
			continue
		}
		if !first {
			e.write(",")
		}
		first = false
		e.out = appendValue(e.out, p.Name)
		e.write(":")
		if missing {
			e.write("null")
			continue
		}
		e.value(p.Shape, m.Get(fd))
	}
	e.write("}")
}

func (e *encoder) value(s *Shape, v protoreflect.Value) {
	switch s.Kind {
	case Object:
		e.object(s, v.Message())
	case List:
		e.write("[")
		for i := range v.List().Len() {
			if i > 0 {
				e.write(",")
			}
			e.value(s.Elem, v.List().Get(i))
		}
		e.write("]")
	case Map, Pairs:
		e.mapValue(s, v.Map())
	case Leaf:
		e.leaf(s.Field, v)
	}
}

func (e *encoder) mapValue(s *Shape, m protoreflect.Map) {
	var keys []protoreflect.MapKey
	m.Range(func(k protoreflect.MapKey, _ protoreflect.Value) bool {
		keys = append(keys, k)
		return true
	})
	slices.SortFunc(keys, func(a, b protoreflect.MapKey) int { return strings.Compare(a.String(), b.String()) })
	open, end := "[", "]"
	if s.Kind == Map {
		open, end = "{", "}"
	}
	e.write(open)
	for i, k := range keys {
		if i > 0 {
			e.write(",")
		}
		if s.Kind == Map {
			e.out = appendValue(e.out, k.String())
			e.write(":")
			e.value(s.Elem, m.Get(k))
			continue
		}
		e.write(`{"key":`)
		e.value(s.Key, k.Value())
		e.write(`,"value":`)
		e.value(s.Elem, m.Get(k))
		e.write("}")
	}
	e.write(end)
}

func (e *encoder) leaf(fd protoreflect.FieldDescriptor, v protoreflect.Value) {
	switch fd.Kind() {
	case protoreflect.BoolKind:
		e.out = strconv.AppendBool(e.out, v.Bool())
	case protoreflect.Int32Kind, protoreflect.Sint32Kind, protoreflect.Sfixed32Kind:
		e.out = strconv.AppendInt(e.out, v.Int(), 10)
	case protoreflect.Uint32Kind, protoreflect.Fixed32Kind:
		e.out = strconv.AppendUint(e.out, v.Uint(), 10)
	case protoreflect.Int64Kind, protoreflect.Sint64Kind, protoreflect.Sfixed64Kind,
		protoreflect.Uint64Kind, protoreflect.Fixed64Kind:
		e.out = appendValue(e.out, v.String())
	case protoreflect.FloatKind, protoreflect.DoubleKind:
		if f := v.Float(); math.IsNaN(f) || math.IsInf(f, 0) {
			e.fail(fd, fmt.Errorf("JSON has no number for %v", f))
		}
		e.write(single(fd, v))
	case protoreflect.StringKind:
		e.out = appendValue(e.out, v.String())
	case protoreflect.BytesKind:
		e.out = appendValue(e.out, base64.StdEncoding.EncodeToString(v.Bytes()))
	case protoreflect.EnumKind:
		value := fd.Enum().Values().ByNumber(v.Enum())
		if value == nil {
			e.fail(fd, fmt.Errorf("enum %s has no value %d", fd.Enum().FullName(), v.Enum()))
			return
		}
		e.out = appendValue(e.out, string(value.Name()))
	case protoreflect.MessageKind, protoreflect.GroupKind:
		e.wellKnown(fd, v.Message())
	}
}

func (e *encoder) wellKnown(fd protoreflect.FieldDescriptor, m protoreflect.Message) {
	if wellKnown(m.Descriptor()) == wrapper {
		inner := m.Descriptor().Fields().ByName("value")
		e.leaf(inner, m.Get(inner))
		return
	}
	data, err := protojson.Marshal(m.Interface())
	if err != nil {
		e.fail(fd, err)
		return
	}
	var b bytes.Buffer
	if err := json.Compact(&b, data); err != nil {
		e.fail(fd, err)
	}
	e.out = append(e.out, b.Bytes()...)
}

func (e *encoder) fail(fd protoreflect.FieldDescriptor, err error) {
	if e.err == nil {
		e.err = fmt.Errorf("field %s: %w", fd.FullName(), err)
	}
}
