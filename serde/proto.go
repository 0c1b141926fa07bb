package serde

import (
	"fmt"
	"reflect"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// maxDepth bounds how deep messages may be nested in input, as Protobuf's other
// implementations do; the Go default of 10,000 lets a small record use much stack.
const maxDepth = 100

// Proto returns the serde of a generated Protobuf message in the binary format;
// M is the pointer type, for example *supportv1.Ticket. Equal messages encode to
// equal bytes within one build of the program. Decoding keeps unknown fields and
// refuses messages nested deeper than 100.
//
// Its name holds the message's full name, so that state of one message is not
// read as another. Proto panics if M is not a generated message type.
func Proto[M proto.Message]() Serde[M] {
	var zero M
	if t := reflect.TypeFor[M](); t.Kind() != reflect.Pointer || t.Elem().Kind() != reflect.Struct {
		panic(fmt.Sprintf("serde.Proto: %s is not a generated message type, such as *supportv1.Ticket", t))
	}
	typ := zero.ProtoReflect().Type()
	return &protoSerde[M]{
		typ:       typ,
		name:      "proto(" + string(typ.Descriptor().FullName()) + ")",
		marshal:   proto.MarshalOptions{Deterministic: true},
		unmarshal: proto.UnmarshalOptions{RecursionLimit: maxDepth},
	}
}

type protoSerde[M proto.Message] struct {
	typ       protoreflect.MessageType
	name      string
	marshal   proto.MarshalOptions
	unmarshal proto.UnmarshalOptions
}

func (s *protoSerde[M]) Append(dst []byte, v M) ([]byte, error) {
	if !v.ProtoReflect().IsValid() {
		return dst, fmt.Errorf("serde %s: the message is nil; use a record without a value instead", s.name)
	}
	out, err := s.marshal.MarshalAppend(dst, v)
	if err != nil {
		return dst, fmt.Errorf("serde %s: encode: %w", s.name, err)
	}
	return notNil(out), nil
}

func (s *protoSerde[M]) Decode(data []byte) (M, error) {
	m := s.typ.New().Interface().(M)
	if err := s.unmarshal.Unmarshal(data, m); err != nil {
		var zero M
		return zero, fmt.Errorf("serde %s: decode: %w", s.name, err)
	}
	return m, nil
}

func (s *protoSerde[M]) Name() string { return s.name }
