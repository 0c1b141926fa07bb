package schema

import (
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/anypb"

	millracev1 "github.com/millrace/millrace/proto/millrace/v1"
)

// Mask stands for the text of a sensitive string.
const Mask = "[redacted]"

// Sensitive reports whether a field has the option (millrace.v1.sensitive).
func Sensitive(fd protoreflect.FieldDescriptor) bool {
	return option[bool](fd, millracev1.E_Sensitive)
}

// Redact returns a copy of a message without what is sensitive, at any depth, in
// lists and maps too: a string becomes [Mask] unless it is empty, anything else is
// cleared. What cannot be judged is cleared as well: unknown fields, and an Any
// whose type is not linked in. Redact returns a nil message as it is.
func Redact[M proto.Message](msg M) M {
	if m := msg.ProtoReflect(); !m.IsValid() {
		return msg
	}
	out := proto.CloneOf(msg)
	redact(out.ProtoReflect())
	return out
}

func redact(m protoreflect.Message) {
	m.SetUnknown(nil)
	if a, ok := m.Interface().(*anypb.Any); ok {
		redactAny(a)
		return
	}
	m.Range(func(fd protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		switch {
		case Sensitive(fd) && fd.Kind() == protoreflect.StringKind && !fd.IsList() && !fd.IsMap():
			m.Set(fd, protoreflect.ValueOfString(Mask))
		case Sensitive(fd):
			m.Clear(fd)
		case fd.IsMap():
			if fd.MapValue().Message() != nil {
				v.Map().Range(func(_ protoreflect.MapKey, v protoreflect.Value) bool {
					redact(v.Message())
					return true
				})
			}
		case fd.Message() == nil:
		case fd.IsList():
			for i := range v.List().Len() {
				redact(v.List().Get(i).Message())
			}
		default:
			redact(v.Message())
		}
		return true
	})
}

func redactAny(a *anypb.Any) {
	inner, err := a.UnmarshalNew()
	if err != nil {
		a.Value = nil
		return
	}
	redact(inner.ProtoReflect())
	if err := a.MarshalFrom(inner); err != nil {
		a.Value = nil
	}
}
