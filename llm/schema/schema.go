// Package schema makes the JSON schema of a Protobuf message, as the providers of
// models understand it, out of its descriptor and its protovalidate rules. The
// message is the only contract: package answer enforces the same rules on what
// comes back, whatever the provider promised.
package schema

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"buf.build/go/protovalidate"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/dynamicpb"
)

// A Schema is the JSON schema of a message in a dialect. It is immutable and safe
// for concurrent use.
type Schema struct {
	dialect     Dialect
	message     protoreflect.MessageDescriptor
	root        *Shape
	nulls       bool
	json        []byte
	fingerprint string
	validator   protovalidate.Validator
}

// For returns the schema of a message in a dialect.
//
// Fields appear under their JSON names, in the order of declaration: put fields of
// evidence and reasoning before those that follow from them. A field without
// presence is required; an optional, message or oneof field may be left out (where
// a dialect demands all properties, it is null instead), unless it has the rule
// required. 64-bit integers are strings, enums are names, bytes are base64, maps
// are arrays of {key, value} where the dialect has no maps. A rule becomes a keyword
// where the dialect enforces it and a sentence in the description otherwise. A
// field's own description comes from the option (millrace.v1.description), or from
// its comment if the descriptor carries comments.
//
// One error lists all that prevents a schema: recursion, Any, Struct and Value,
// rules that do not compile, and limits of the dialect, each with what to do.
func For(md protoreflect.MessageDescriptor, d Dialect) (*Schema, error) {
	f, err := featuresOf(d)
	if err != nil {
		return nil, fmt.Errorf("schema of %s: %w", md.FullName(), err)
	}
	b := &builder{features: f}
	if wellKnown(md) != notWellKnown {
		b.problem(string(md.Name()), "an answer has to be an object: wrap it in a message of your own")
	}
	root := b.message(md, string(md.Name()), false)
	var t totals
	if len(b.problems) == 0 {
		t.count(root, 0)
		b.problems = append(b.problems, f.limits.check(t)...)
	}
	validator, err := compile(md)
	if err != nil {
		b.problem(string(md.Name()), "its rules do not compile: "+err.Error())
	}
	if len(b.problems) > 0 {
		return nil, &Error{Message: md.FullName(), Dialect: d, Problems: b.problems}
	}
	s := &Schema{dialect: d, message: md, root: root, nulls: f.allRequired, validator: validator}
	s.json = root.appendJSON(nil, f.allRequired, false)
	sum := sha256.Sum256(s.json)
	s.fingerprint = hex.EncodeToString(sum[:16])
	return s, nil
}

// compile compiles the rules of md and of all messages in it, now rather than at
// the first answer.
func compile(md protoreflect.MessageDescriptor) (protovalidate.Validator, error) {
	v, err := protovalidate.New(protovalidate.WithMessageDescriptors(md))
	if err != nil {
		return nil, err
	}
	err = v.Validate(dynamicpb.NewMessage(md))
	if bad, ok := errors.AsType[*protovalidate.CompilationError](err); ok {
		return nil, bad
	}
	return v, nil
}

// Dialect returns the dialect.
func (s *Schema) Dialect() Dialect { return s.dialect }

// Message returns the descriptor of the message.
func (s *Schema) Message() protoreflect.MessageDescriptor { return s.message }

// Shape returns how an answer looks: an Object.
func (s *Schema) Shape() *Shape { return s.root }

// JSON returns the schema. Equal messages and rules give equal bytes.
func (s *Schema) JSON() json.RawMessage { return slices.Clone(s.json) }

// Fingerprint returns 32 hexadecimal digits that stand for the bytes of the schema.
func (s *Schema) Fingerprint() string { return s.fingerprint }

// Name returns a name for the schema that every provider accepts: the message's
// name with _ for what is not a letter or digit, at most 64 characters.
func (s *Schema) Name() string {
	name := strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' {
			return r
		}
		return '_'
	}, string(s.message.FullName()))
	return name[max(0, len(name)-64):]
}

// Validate checks a message against its protovalidate rules. The error is a
// *protovalidate.ValidationError if a rule is broken.
func (s *Schema) Validate(msg proto.Message) error { return s.validator.Validate(msg) }

// An Error says why a message has no schema in a dialect.
type Error struct {
	Message  protoreflect.FullName
	Dialect  Dialect
	Problems []string // each with where and what to do
}

// Error lists all problems.
func (e *Error) Error() string {
	return fmt.Sprintf("message %s has no JSON schema in the dialect %s:\n- %s",
		e.Message, e.Dialect, strings.Join(e.Problems, "\n- "))
}
