package answer

import (
	"encoding/json"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/dynamicpb"

	"github.com/millrace/millrace/llm/schema"
)

// Bounds of violations.
const (
	maxQuote      = 64  // bytes of the answer that a violation quotes
	maxViolations = 100 // kept of one answer
)

// rewriter turns an answer into what protojson reads, and lists what the shape does
// not allow: maps become objects, nulls are left out.
type rewriter struct {
	out []byte
	bad []Violation
	// leaf is called for each scalar with its encoding, if not nil.
	leaf func(s *schema.Shape, path string, value []byte)
}

func (r *rewriter) report(path, rule, format string, args ...any) {
	if len(r.bad) < maxViolations {
		r.bad = append(r.bad, Violation{path, rule, fmt.Sprintf(format, args...)})
	}
}

func (r *rewriter) write(text string) { r.out = append(r.out, text...) }

func (r *rewriter) encode(v any) {
	if n, ok := v.(json.Number); ok {
		r.write(n.String())
		return
	}
	data, err := json.Marshal(v)
	if err != nil { // strings, numbers that were read, and bools
		panic("answer: " + err.Error())
	}
	r.out = append(r.out, data...)
}

func (r *rewriter) object(s *schema.Shape, obj object, path string) {
	seen := map[string]bool{}
	oneofs := map[protoreflect.Name]string{}
	r.write("{")
	first := true
	for _, m := range obj {
		at := join(path, m.name)
		p := s.Property(m.name)
		if p == nil {
			r.report(at, RuleUnknown, "there is no such field; the fields are %s", fields(s))
			continue
		}
		if seen[p.Name] {
			r.report(at, RuleDuplicate, "is there twice, also as %s", p.Name)
			continue
		}
		if m.value == nil {
			continue
		}
		seen[p.Name] = true
		if od := p.Shape.Field.ContainingOneof(); od != nil && !od.IsSynthetic() {
			if other, ok := oneofs[od.Name()]; ok {
				r.report(at, RuleOneof, "only one of %s and %s may be set", other, p.Name)
			}
			oneofs[od.Name()] = p.Name
		}
		if !first {
			r.write(",")
		}
		first = false
		r.encode(p.Name)
		r.write(":")
		r.value(p.Shape, m.value, at)
	}
	for _, p := range s.Properties {
		if !seen[p.Name] && !p.Missable && p.Shape.Kind != schema.List && p.Shape.Kind != schema.Map && p.Shape.Kind != schema.Pairs {
			r.report(join(path, p.Name), RuleMissing, "is required and missing or null")
		}
	}
	r.write("}")
}

func fields(s *schema.Shape) string {
	var names []string
	for _, p := range s.Properties {
		names = append(names, p.Name)
	}
	return cut(strings.Join(names, ", "), 200)
}

func (r *rewriter) value(s *schema.Shape, v any, path string) {
	switch s.Kind {
	case schema.Object:
		if obj, ok := v.(object); ok {
			r.object(s, obj, path)
			return
		}
		r.wrong(path, "an object", v)
	case schema.List:
		list, ok := v.([]any)
		if !ok {
			r.wrong(path, "an array", v)
			return
		}
		r.write("[")
		for i, item := range list {
			if i > 0 {
				r.write(",")
			}
			at := path + "[" + strconv.Itoa(i) + "]"
			if item == nil {
				r.report(at, RuleType, "null is not a value of a list")
				continue
			}
			r.value(s.Elem, item, at)
		}
		r.write("]")
	case schema.Map, schema.Pairs:
		r.mapValue(s, v, path)
	case schema.Leaf:
		r.scalar(s, v, path)
	}
}

// wrong reports a value of the wrong kind.
func (r *rewriter) wrong(path, want string, v any) {
	r.report(path, RuleType, "has to be %s, not %s", want, describe(v))
}

func describe(v any) string {
	switch v := v.(type) {
	case nil:
		return "null"
	case object:
		return "an object"
	case []any:
		return "an array"
	case string:
		return strconv.Quote(cut(v, maxQuote))
	case json.Number:
		return cut(v.String(), maxQuote)
	}
	return fmt.Sprint(v)
}

// mapValue writes a map as an object, which protojson reads.
func (r *rewriter) mapValue(s *schema.Shape, v any, path string) {
	var entries []member
	switch v := v.(type) {
	case object:
		entries = v
	case []any:
		if s.Kind != schema.Pairs {
			r.wrong(path, "an object", v)
			return
		}
		entries = r.pairs(s, v, path)
	default:
		r.wrong(path, "a map", v)
		return
	}
	seen := map[string]bool{}
	r.write("{")
	for i, e := range entries {
		key, ok := mapKey(s.Key.Field, e.name)
		if !ok {
			r.report(path, RuleType, "%s is not a key: it has to be %s", describe(e.name), typeWords(s.Key.Field))
			continue
		}
		e.name = key
		at := path + "[" + strconv.Quote(cut(e.name, maxQuote)) + "]"
		if seen[e.name] {
			r.report(at, RuleDuplicate, "the key is there twice")
			continue
		}
		seen[e.name] = true
		if e.value == nil {
			r.report(at, RuleType, "null is not a value of a map")
			continue
		}
		if i > 0 {
			r.write(",")
		}
		r.encode(e.name)
		r.write(":")
		r.value(s.Elem, e.value, at)
	}
	r.write("}")
}

// pairs reads an array of {key, value}.
func (r *rewriter) pairs(s *schema.Shape, list []any, path string) []member {
	var entries []member
	for i, item := range list {
		at := path + "[" + strconv.Itoa(i) + "]"
		obj, ok := item.(object)
		if !ok {
			r.wrong(at, "an object with key and value", item)
			continue
		}
		var key, value any
		for _, m := range obj {
			switch m.name {
			case "key":
				key = m.value
			case "value":
				value = m.value
			default:
				r.report(join(at, m.name), RuleUnknown, "there is no such field; the fields are key, value")
			}
		}
		if key == nil || value == nil {
			r.report(at, RuleMissing, "key and value are required")
			continue
		}
		name, ok := keyText(key)
		if _, text := key.(string); !ok || s.Key.Field.Kind() == protoreflect.StringKind && !text {
			r.report(at+".key", RuleType, "%s is not a key: it has to be %s", describe(key), typeWords(s.Key.Field))
			continue
		}
		entries = append(entries, member{name, value})
	}
	return entries
}

// keyText returns the key of a pair as text.
func keyText(key any) (string, bool) {
	switch key := key.(type) {
	case string:
		return key, true
	case bool:
		return strconv.FormatBool(key), true
	case json.Number:
		return key.String(), true
	}
	return "", false
}

// mapKey returns the one text that a key has as a name of an object.
func mapKey(fd protoreflect.FieldDescriptor, text string) (string, bool) {
	bits := 64
	switch fd.Kind() {
	case protoreflect.StringKind:
		return text, true
	case protoreflect.BoolKind:
		return text, text == "true" || text == "false"
	case protoreflect.Uint32Kind, protoreflect.Fixed32Kind:
		bits = 32
		fallthrough
	case protoreflect.Uint64Kind, protoreflect.Fixed64Kind:
		n, err := strconv.ParseUint(text, 10, bits)
		return strconv.FormatUint(n, 10), err == nil
	case protoreflect.Int32Kind, protoreflect.Sint32Kind, protoreflect.Sfixed32Kind:
		bits = 32
	}
	n, err := strconv.ParseInt(text, 10, bits)
	return strconv.FormatInt(n, 10), err == nil
}

func (r *rewriter) scalar(s *schema.Shape, v any, path string) {
	switch v.(type) {
	case object, []any:
		r.wrong(path, typeWords(s.Field), v)
		return
	}
	if s.Field.Kind() == protoreflect.EnumKind {
		name, ok := v.(string)
		if !ok || !known(s, name) {
			r.report(path, RuleEnum, "%s is not one of %s", describe(v), cut(strings.Join(s.Names, ", "), 400))
			return
		}
	}
	if text, ok := v.(string); ok && strings.HasPrefix(typeWords(s.Field), "a number") {
		if f, err := strconv.ParseFloat(text, 64); err != nil || math.IsNaN(f) || math.IsInf(f, 0) {
			r.wrong(path, typeWords(s.Field), v)
			return
		}
	}
	start := len(r.out)
	r.encode(v)
	if r.leaf != nil {
		r.leaf(s, path, r.out[start:])
	}
}

// known reports whether an enum has a name; whether it is allowed is for the rules.
func known(s *schema.Shape, name string) bool {
	return slices.Contains(s.Names, name) || s.Field.Enum().Values().ByName(protoreflect.Name(name)) != nil
}

func typeWords(fd protoreflect.FieldDescriptor) string {
	switch fd.Kind() {
	case protoreflect.BoolKind:
		return "true or false"
	case protoreflect.StringKind:
		return "a string"
	case protoreflect.BytesKind:
		return "a string in base64"
	case protoreflect.EnumKind:
		return "the name of an enum value"
	case protoreflect.FloatKind, protoreflect.DoubleKind:
		return "a number"
	case protoreflect.Int32Kind, protoreflect.Sint32Kind, protoreflect.Sfixed32Kind:
		return "an integer of 32 bits"
	case protoreflect.Uint32Kind, protoreflect.Fixed32Kind:
		return "an integer of 32 bits that is not negative"
	case protoreflect.Int64Kind, protoreflect.Sint64Kind, protoreflect.Sfixed64Kind:
		return "an integer of 64 bits as a string"
	case protoreflect.Uint64Kind, protoreflect.Fixed64Kind:
		return "an integer of 64 bits that is not negative, as a string"
	case protoreflect.MessageKind, protoreflect.GroupKind:
		switch fd.Message().Name() {
		case "Timestamp":
			return "a time such as 2026-01-31T12:00:00Z"
		case "Duration":
			return "seconds such as 1.5s"
		case "FieldMask":
			return "paths of fields separated by commas"
		}
		if inner := fd.Message().Fields().ByName("value"); inner != nil {
			return typeWords(inner)
		}
	}
	return "a " + fd.Kind().String()
}

// locate returns the values that protojson refuses, each read by itself: its own
// errors name no path and differ from build to build.
func locate(s *schema.Schema, obj object) []Violation {
	var r rewriter
	found := []Violation{}
	r.leaf = func(s *schema.Shape, path string, value []byte) {
		if len(found) == maxViolations {
			return
		}
		fd := s.Field
		text := fmt.Sprintf(`{"%s":%s}`, fd.Name(), value)
		if fd.IsList() {
			text = fmt.Sprintf(`{"%s":[%s]}`, fd.Name(), value)
		}
		if protojson.Unmarshal([]byte(text), dynamicpb.NewMessage(fd.ContainingMessage())) != nil {
			found = append(found, Violation{path, RuleType, cut(string(value), maxQuote) + " is not " + typeWords(fd)})
		}
	}
	r.object(s.Shape(), obj, "")
	return found
}
