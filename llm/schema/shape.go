package schema

import (
	"encoding/json"
	"slices"
	"strings"

	"google.golang.org/protobuf/reflect/protoreflect"
)

// A Kind is what a value of an answer is in JSON.
type Kind int

// The kinds.
const (
	Object Kind = iota // a message as an object
	List               // a repeated field as an array
	Map                // a map as an object
	Pairs              // a map as an array of objects with key and value
	Leaf               // a scalar, an enum, or a well-known message
)

// The names of the properties of Pairs.
const (
	pairKey   = "key"
	pairValue = "value"
)

// A Shape says how a value looks in an answer.
type Shape struct {
	Kind Kind
	// Field is what the value belongs to; nil for the root.
	Field protoreflect.FieldDescriptor
	// Message is that of an Object.
	Message    protoreflect.MessageDescriptor
	Properties []Property // of an Object, in order of declaration
	Key, Elem  *Shape     // of a Map or Pairs; of a List only Elem
	// Names are the values of an enum that may be answered.
	Names []string

	typ      string
	words    []string // sentences of the description
	enum     []any    // strings, json.Number or bool
	keywords []keyword
}

// A Property is a member of an object.
type Property struct {
	Name  string // the JSON name
	Shape *Shape
	// Missable says that the property may be left out or null.
	Missable bool
}

// Property returns the property of a name, that of JSON or of the .proto file; nil
// if there is none.
func (s *Shape) Property(name string) *Property {
	for i := range s.Properties {
		p := &s.Properties[i]
		if p.Name == name || string(p.Shape.Field.Name()) == name {
			return p
		}
	}
	return nil
}

type keyword struct {
	name  string
	value any
}

func (s *Shape) has(name string) bool {
	for _, k := range s.keywords {
		if k.name == name {
			return true
		}
	}
	return false
}

func (s *Shape) set(name string, value any) {
	for i := range s.keywords {
		if s.keywords[i].name == name {
			s.keywords[i].value = value
			return
		}
	}
	s.keywords = append(s.keywords, keyword{name, value})
}

func (s *Shape) unset(name string) {
	for i := range s.keywords {
		if s.keywords[i].name == name {
			s.keywords = append(s.keywords[:i], s.keywords[i+1:]...)
			return
		}
	}
}

func (s *Shape) say(sentence string) {
	if sentence != "" {
		s.words = append(s.words, sentence)
	}
}

// appendJSON appends the JSON schema of the shape, its members always in the same
// order. nullable adds null: to the types of a leaf, as an alternative to the rest.
func (s *Shape) appendJSON(dst []byte, nulls, nullable bool) []byte {
	if nullable && s.Kind != Leaf {
		dst = append(dst, `{"anyOf":[`...)
		dst = s.appendJSON(dst, nulls, false)
		return append(dst, `,{"type":"null"}]}`...)
	}
	if nullable {
		dst = append(dst, `{"type":[`...)
		dst = append(appendValue(dst, s.typ), `,"null"]`...)
	} else {
		dst = appendValue(append(dst, `{"type":`...), s.typ)
	}
	if len(s.words) > 0 {
		dst = appendValue(append(dst, `,"description":`...), strings.Join(s.words, " "))
	}
	if len(s.enum) > 0 {
		enum := s.enum
		if nullable {
			enum = append(slices.Clip(enum), nil)
		}
		dst = appendValue(append(dst, `,"enum":`...), enum)
	}
	for _, k := range s.keywords {
		dst = appendValue(append(dst, ','), k.name)
		dst = appendValue(append(dst, ':'), k.value)
	}
	switch s.Kind {
	case Object:
		dst = s.appendProperties(dst, nulls)
	case List:
		dst = s.Elem.appendJSON(append(dst, `,"items":`...), nulls, false)
	case Map:
		dst = s.Elem.appendJSON(append(dst, `,"additionalProperties":`...), nulls, false)
	case Pairs:
		pair := Shape{Kind: Object, typ: "object", Properties: []Property{
			{Name: pairKey, Shape: s.Key}, {Name: pairValue, Shape: s.Elem},
		}}
		dst = pair.appendJSON(append(dst, `,"items":`...), nulls, false)
	case Leaf:
	}
	return append(dst, '}')
}

func (s *Shape) appendProperties(dst []byte, nulls bool) []byte {
	dst = append(dst, `,"properties":{`...)
	var required []string
	for i, p := range s.Properties {
		if i > 0 {
			dst = append(dst, ',')
		}
		dst = append(appendValue(dst, p.Name), ':')
		dst = p.Shape.appendJSON(dst, nulls, nulls && p.Missable)
		if nulls || !p.Missable {
			required = append(required, p.Name)
		}
	}
	dst = append(dst, '}')
	if len(required) > 0 {
		dst = appendValue(append(dst, `,"required":`...), required)
	}
	return append(dst, `,"additionalProperties":false`...)
}

// appendValue appends a string, number, bool, null or list of them.
func appendValue(dst []byte, v any) []byte {
	var b strings.Builder
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		panic("schema: " + err.Error()) // the values are our own
	}
	return append(dst, strings.TrimSuffix(b.String(), "\n")...)
}
