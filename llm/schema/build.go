package schema

import (
	"fmt"
	"slices"
	"strings"

	"buf.build/gen/go/bufbuild/protovalidate/protocolbuffers/go/buf/validate"
	"buf.build/go/protovalidate"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/descriptorpb"

	millracev1 "github.com/millrace/millrace/proto/millrace/v1"
)

// builder makes the shape of a message in a dialect.
type builder struct {
	features
	stack    []protoreflect.FullName // messages being built
	problems []string
	// wordsOnly has rules only said, not made keywords: values that break them may
	// still be valid.
	wordsOnly bool
}

func (b *builder) problem(path, what string) {
	b.problems = append(b.problems, path+": "+what)
}

type known int

const (
	notWellKnown known = iota
	timestamp
	duration
	fieldMask
	empty
	wrapper
	refused
)

func wellKnown(md protoreflect.MessageDescriptor) known {
	if md.ParentFile().Package() != "google.protobuf" {
		return notWellKnown
	}
	switch md.Name() {
	case "Timestamp":
		return timestamp
	case "Duration":
		return duration
	case "FieldMask":
		return fieldMask
	case "Empty":
		return empty
	case "DoubleValue", "FloatValue", "Int64Value", "UInt64Value", "Int32Value", "UInt32Value", "BoolValue", "StringValue", "BytesValue":
		return wrapper
	case "Any", "Struct", "Value", "ListValue":
		return refused
	}
	return notWellKnown
}

// message returns the shape of a message. unchecked says that protovalidate skips
// the rules in it.
func (b *builder) message(md protoreflect.MessageDescriptor, path string, unchecked bool) *Shape {
	s := &Shape{Kind: Object, Message: md, typ: "object"}
	if slices.Contains(b.stack, md.FullName()) {
		b.problem(path, fmt.Sprintf("message %s contains itself, and a schema has to end: use a message of its own for the inner level", md.FullName()))
		return s
	}
	b.stack = append(b.stack, md.FullName())
	defer func() { b.stack = b.stack[:len(b.stack)-1] }()

	rules, err := protovalidate.ResolveMessageRules(md)
	if err != nil {
		b.problem(path, "its message rules cannot be read: "+err.Error())
	}
	if unchecked {
		rules = nil
	}
	fields := md.Fields()
	for i := range fields.Len() {
		fd := fields.Get(i)
		p := b.property(fd, rules, path+"."+string(fd.Name()), unchecked)
		s.Properties = append(s.Properties, p)
	}
	if rules != nil {
		b.expressions(s, rules.GetCelExpression(), rules.GetCel())
		for _, r := range rules.GetOneof() {
			s.say(oneofSentence(jsonNames(md, r.GetFields()), r.GetRequired()))
		}
	}
	return s
}

func jsonNames(md protoreflect.MessageDescriptor, names []string) []string {
	out := make([]string, 0, len(names))
	for _, name := range names {
		if fd := md.Fields().ByName(protoreflect.Name(name)); fd != nil {
			name = fd.JSONName()
		}
		out = append(out, name)
	}
	return out
}

func oneofSentence(names []string, required bool) string {
	if required {
		return "Set exactly one of " + strings.Join(names, ", ") + "."
	}
	return "Set at most one of " + strings.Join(names, ", ") + "."
}

// property returns the property of a field.
func (b *builder) property(fd protoreflect.FieldDescriptor, mr *validate.MessageRules, path string, unchecked bool) Property {
	rules, err := protovalidate.ResolveFieldRules(fd)
	if err != nil {
		b.problem(path, "its rules cannot be read: "+err.Error())
	}
	ignore := rules.GetIgnore()
	if !rules.HasIgnore() && inMessageOneof(mr, fd) {
		ignore = validate.Ignore_IGNORE_IF_ZERO_VALUE
	}
	if unchecked || ignore == validate.Ignore_IGNORE_ALWAYS {
		rules, unchecked = nil, true
	}
	p := Property{Name: fd.JSONName()}
	switch {
	case fd.Cardinality() == protoreflect.Required || rules.GetRequired():
	case fd.HasPresence(), ignore == validate.Ignore_IGNORE_IF_ZERO_VALUE:
		p.Missable = true
	}
	p.Shape = b.value(fd, path, unchecked)
	if text := description(fd); text != "" {
		p.Shape.words = append([]string{text}, p.Shape.words...)
	}
	b.rules(p.Shape, fd, rules, path)
	if rules.GetRequired() && !fd.HasPresence() {
		b.notZero(p.Shape)
	}
	if oneof := fd.ContainingOneof(); oneof != nil && !oneof.IsSynthetic() {
		p.Shape.say(b.oneof(oneof, unchecked))
	}
	return p
}

func inMessageOneof(mr *validate.MessageRules, fd protoreflect.FieldDescriptor) bool {
	return slices.ContainsFunc(mr.GetOneof(), func(r *validate.MessageOneofRule) bool {
		return slices.Contains(r.GetFields(), string(fd.Name()))
	})
}

func (b *builder) oneof(od protoreflect.OneofDescriptor, unchecked bool) string {
	var names []string
	for i := range od.Fields().Len() {
		names = append(names, od.Fields().Get(i).JSONName())
	}
	rules, err := protovalidate.ResolveOneofRules(od)
	if err != nil {
		b.problem(string(od.FullName()), "its rules cannot be read: "+err.Error())
	}
	return oneofSentence(names, rules.GetRequired() && !unchecked)
}

// description returns what the field means: the option, or the comment.
func description(fd protoreflect.FieldDescriptor) string {
	if text := option[string](fd, millracev1.E_Description); text != "" {
		return text
	}
	comment := fd.ParentFile().SourceLocations().ByDescriptor(fd).LeadingComments
	return strings.Join(strings.Fields(comment), " ")
}

// option returns an option of a field, also if the descriptor was read without
// knowing it.
func option[T any](fd protoreflect.FieldDescriptor, ext protoreflect.ExtensionType) T {
	var none T
	opts, ok := fd.Options().(*descriptorpb.FieldOptions)
	if !ok || opts == nil {
		return none
	}
	if !proto.HasExtension(opts, ext) && len(opts.ProtoReflect().GetUnknown()) > 0 {
		known := &descriptorpb.FieldOptions{}
		if proto.Unmarshal(opts.ProtoReflect().GetUnknown(), known) != nil {
			return none
		}
		opts = known
	}
	v, ok := proto.GetExtension(opts, ext).(T)
	if !ok {
		return none
	}
	return v
}

// value returns the shape of a field's value, without rules.
func (b *builder) value(fd protoreflect.FieldDescriptor, path string, unchecked bool) *Shape {
	switch {
	case fd.IsMap():
		s := &Shape{Kind: Pairs, Field: fd, typ: "array"}
		s.Key = b.single(fd.MapKey(), path+".key", unchecked)
		s.Elem = b.single(fd.MapValue(), path+".value", unchecked)
		if b.nativeMaps {
			s.Kind, s.typ = Map, "object"
		} else {
			s.say("An array of objects with key and value; keys must be different.")
		}
		return s
	case fd.IsList():
		return &Shape{Kind: List, Field: fd, typ: "array", Elem: b.single(fd, path+"[]", unchecked)}
	}
	return b.single(fd, path, unchecked)
}

func (b *builder) single(fd protoreflect.FieldDescriptor, path string, unchecked bool) *Shape {
	s := &Shape{Kind: Leaf, Field: fd}
	switch fd.Kind() {
	case protoreflect.BoolKind:
		s.typ = "boolean"
	case protoreflect.Int32Kind, protoreflect.Sint32Kind, protoreflect.Sfixed32Kind:
		s.typ = "integer"
	case protoreflect.Uint32Kind, protoreflect.Fixed32Kind:
		s.typ = "integer"
		b.bound(s, "minimum", "0", "Must not be negative.")
	case protoreflect.Int64Kind, protoreflect.Sint64Kind, protoreflect.Sfixed64Kind:
		s.typ = "string"
		b.pattern(s, `^-?(0|[1-9][0-9]{0,18})$`, "A 64-bit integer as a string of decimal digits.")
	case protoreflect.Uint64Kind, protoreflect.Fixed64Kind:
		s.typ = "string"
		b.pattern(s, `^(0|[1-9][0-9]{0,19})$`, "A 64-bit integer that is not negative, as a string of decimal digits.")
	case protoreflect.FloatKind, protoreflect.DoubleKind:
		s.typ = "number"
	case protoreflect.StringKind:
		s.typ = "string"
	case protoreflect.BytesKind:
		s.typ = "string"
		s.say("Bytes in base64.")
	case protoreflect.EnumKind:
		b.enum(s, fd.Enum(), path)
	case protoreflect.MessageKind, protoreflect.GroupKind:
		return b.embedded(s, fd, path, unchecked)
	}
	return s
}

func (b *builder) enum(s *Shape, ed protoreflect.EnumDescriptor, path string) {
	s.typ = "string"
	if ed.FullName() == "google.protobuf.NullValue" {
		b.problem(path, "NullValue is not supported: take the field out")
	}
	for i := range ed.Values().Len() {
		v := ed.Values().Get(i)
		if ed.Values().ByNumber(v.Number()) == v { // not an alias
			s.Names = append(s.Names, string(v.Name()))
		}
	}
	s.setNames(s.Names)
}

func (s *Shape) setNames(names []string) {
	s.Names, s.enum = names, nil
	for _, name := range names {
		s.enum = append(s.enum, name)
	}
}

func (b *builder) embedded(s *Shape, fd protoreflect.FieldDescriptor, path string, unchecked bool) *Shape {
	md := fd.Message()
	switch wellKnown(md) {
	case timestamp:
		s.typ = "string"
		b.format(s, "date-time", "A time in RFC 3339, such as 2026-01-31T12:00:00Z.")
	case duration:
		s.typ = "string"
		b.pattern(s, `^-?[0-9]+(\.[0-9]+)?s$`, "Seconds with the letter s, such as 1.5s.")
	case fieldMask:
		s.typ = "string"
		s.say("Paths of fields in lowerCamelCase, separated by commas.")
	case empty:
		s = &Shape{Kind: Object, Field: fd, Message: md, typ: "object"}
	case wrapper:
		inner := b.single(md.Fields().ByName("value"), path, unchecked)
		inner.Field = fd
		return inner
	case refused:
		b.problem(path, fmt.Sprintf("%s can hold anything, which no schema describes: use a message of your own, or a string", md.FullName()))
	case notWellKnown:
		s = b.message(md, path, unchecked)
		s.Field = fd
	}
	return s
}
