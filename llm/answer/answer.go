// Package answer turns the text of a model into a valid message, or into a list of
// what is wrong with it: tolerant JSON, then Protobuf, then the rules of the
// message, then the user's own check.
package answer

import (
	"errors"
	"fmt"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/millrace/millrace/llm/schema"
)

// Parse reads an answer into a message.
//
// Around the one JSON object there may be other text and a code fence, and trailing
// commas in it. Refused are duplicate and unknown names, numbers for enums, two
// members of a oneof, null in a list, required properties that are missing or null
// (a list or a map may be: it is empty then), more than [MaxBytes] and more than
// [MaxDepth] levels. Maps may be objects or, if the schema has them so, arrays of
// {key, value}. Then protojson, the protovalidate rules and check apply; check may
// be nil, and may return a *[Violations] of its own.
//
// The error is a *[Violations] for an answer that does not follow the contract, a
// panic of check among it. Any other error is a mistake of the caller: a nil
// message, or one of another type than the schema. After an error into is empty.
// Parse never panics and may be called concurrently.
func Parse(text string, s *schema.Schema, into proto.Message, check func(proto.Message) error) error {
	if into == nil || s == nil || !into.ProtoReflect().IsValid() {
		return errors.New("answer: Parse needs a schema and a message to read into")
	}
	if got := into.ProtoReflect().Descriptor().FullName(); got != s.Message().FullName() {
		return fmt.Errorf("answer: the schema is that of %s, the message a %s: pass a message of the schema's type", s.Message().FullName(), got)
	}
	proto.Reset(into)
	if bad := parse(text, s, into, check); bad != nil {
		proto.Reset(into)
		return bad
	}
	return nil
}

func parse(text string, s *schema.Schema, into proto.Message, check func(proto.Message) error) *Violations {
	obj, bad := find(text)
	if bad != nil {
		return bad
	}
	var r rewriter
	r.object(s.Shape(), obj, "")
	if len(r.bad) > 0 {
		return &Violations{List: r.bad}
	}
	options := protojson.UnmarshalOptions{RecursionLimit: MaxDepth}
	if err := options.Unmarshal(r.out, into); err != nil {
		if found := locate(s, obj); len(found) > 0 {
			return &Violations{List: found}
		}
		return violation("", RuleType, "a value does not fit its field")
	}
	if err := s.Validate(into); err != nil {
		return ofRules(err, s.Message())
	}
	if check == nil {
		return nil
	}
	if err := checked(check, into); err != nil {
		if own, ok := errors.AsType[*Violations](err); ok && own != nil && len(own.List) > 0 {
			return own
		}
		return violation("", RuleCheck, "%v", err)
	}
	return recheck(s, into)
}

// recheck validates once more, since a check may have changed the message.
func recheck(s *schema.Schema, msg proto.Message) *Violations {
	if err := s.Validate(msg); err != nil {
		return ofRules(err, s.Message())
	}
	return nil
}

// checked calls the user's check and makes a panic an error.
func checked(check func(proto.Message) error, msg proto.Message) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("the check panicked: %v", p)
		}
	}()
	return check(msg)
}
