// Package corpus makes messages for the tests of schemas and answers.
package corpus

import (
	"math/rand/v2"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/fieldmaskpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	corpusv1 "github.com/millrace/millrace/llm/internal/corpus/millrace/corpus/v1"
)

// Valid returns a message of each type that has a schema, each one valid.
func Valid() []proto.Message {
	leaf := &corpusv1.Leaf{Name: "l", Weight: 1}
	inner := &corpusv1.Nested_Inner{Leaf: leaf, Leaves: []*corpusv1.Leaf{leaf}, Named: map[string]*corpusv1.Leaf{"n": leaf}}
	return []proto.Message{
		&corpusv1.Triage{Evidence: "it burns", Urgency: corpusv1.Urgency_URGENCY_CRITICAL, Confidence: 0.75, Tags: []string{"fire", "no-water"}},
		&corpusv1.Scalars{},
		&corpusv1.Presence{Needed: leaf},
		&corpusv1.Choice{Kind: &corpusv1.Choice_Text{Text: "t"}},
		&corpusv1.Lists{},
		&corpusv1.Maps{},
		&corpusv1.WellKnown{},
		&corpusv1.Nested{Inner: inner, Inners: []*corpusv1.Nested_Inner{inner}},
		&corpusv1.NumberRules{
			Double: 9.5, Float: 1.5, Int32: -5, Int64: 11, Uint32: 7, Uint64: 1<<64 - 1, Outside: 4, Sint64: -1,
			Fixed32: 100, Fixed64: 1, Sfixed32: 0, Sfixed64: -3, Nonzero: -9,
		},
		&corpusv1.OtherRules{
			Agreed: true, Magic: []byte("abc"), Token: []byte("two"), Address: []byte{127, 0, 0, 1}, Digits: []byte("42"),
			One: corpusv1.Urgency_URGENCY_HIGH, Some: corpusv1.Urgency_URGENCY_UNSPECIFIED, Set: corpusv1.Urgency_URGENCY_LOW,
			After: timestamppb.New(time.Unix(1_500_000_000, 5)), Short: durationpb.New(500 * time.Millisecond),
			Fixed: durationpb.New(90 * time.Second), Mask: &fieldmaskpb.FieldMask{Paths: []string{"a_b"}},
			Scores: map[string]int32{"a": 0, "b": 100}, Distinct: []int32{3, 1}, SomeStrings: []string{""},
			SomeBytes: []byte{0}, Yes: true, Recent: timestamppb.Now(),
		},
		&corpusv1.StringRules{
			Const: "fixed", In: "green", NotIn: "", Length: "äöü", Exact: "four", Bytes: "é", Anchored: "ABC-007", Floating: "x1y",
			Prefix: "pre-post", Email: "a@example.com", Hostname: "example.com", Ip: "::1", Ipv4: "127.0.0.1", Ipv6: "::1",
			Uri: "https://example.com/a", UriRef: "../b", Address: "example.com", Uuid: "7c9e6679-7425-40de-944b-e07fc1f90ae7",
			Tuuid: "7c9e6679742540de944be07fc1f90ae7", Ulid: "01ARZ3NDEKTSV4RRFFQ69G5FAV", Network: "10.0.0.1/8",
			HostAndPort: "example.com:443", Header: "x-a", Fqn: "a.b.C", Nonempty: "\x00", Polite: "now, please",
		},
		&corpusv1.Expressions{First: 1, Last: 4, Here: "h"},
		&corpusv1.Ignored{Always: "not an address", Unchecked: &corpusv1.Triage{Confidence: 7}, Some: []string{"", "abc"}},
		&corpusv1.Old{Must: new("")},
	}
}

// Mutate changes a field of a message, or of one within it, at random.
func Mutate(r *rand.Rand, m protoreflect.Message) {
	fields := m.Descriptor().Fields()
	if fields.Len() == 0 {
		return
	}
	fd := fields.Get(r.IntN(fields.Len()))
	switch {
	case r.IntN(8) == 0:
		m.Clear(fd)
	case fd.IsMap():
		v := m.Mutable(fd).Map()
		value := v.NewValue()
		if fd.MapValue().Message() == nil {
			value = scalar(r, fd.MapValue())
		} else {
			fill(r, value.Message())
		}
		v.Set(scalar(r, fd.MapKey()).MapKey(), value)
	case fd.IsList():
		v := m.Mutable(fd).List()
		if fd.Message() == nil {
			v.Append(scalar(r, fd))
		} else {
			fill(r, v.AppendMutable().Message())
		}
	case fd.Message() != nil:
		fill(r, m.Mutable(fd).Message())
	default:
		m.Set(fd, scalar(r, fd))
	}
}

// fill makes a message within another one.
func fill(r *rand.Rand, m protoreflect.Message) {
	switch msg := m.Interface().(type) {
	case *timestamppb.Timestamp:
		proto.Merge(msg, timestamppb.New(time.Unix(r.Int64N(4e9), r.Int64N(1e9))))
	case *durationpb.Duration:
		proto.Merge(msg, durationpb.New(time.Duration(r.Int64N(1e12)-1e10)))
	case *fieldmaskpb.FieldMask:
		msg.Paths = append(msg.Paths, []string{"a_b", "c", "d.e_f"}[r.IntN(3)])
	default:
		Mutate(r, m)
	}
}

func scalar(r *rand.Rand, fd protoreflect.FieldDescriptor) protoreflect.Value {
	n := []int64{0, 1, -1, 2, 7, 100, r.Int64N(1 << 31), -r.Int64N(1 << 31)}[r.IntN(8)]
	u := []uint64{0, 1, 7, 1<<32 - 1, uint64(r.Uint32())}[r.IntN(5)]
	switch fd.Kind() {
	case protoreflect.BoolKind:
		return protoreflect.ValueOfBool(r.IntN(2) == 0)
	case protoreflect.Int32Kind, protoreflect.Sint32Kind, protoreflect.Sfixed32Kind:
		return protoreflect.ValueOfInt32(int32(n))
	case protoreflect.Uint32Kind, protoreflect.Fixed32Kind:
		return protoreflect.ValueOfUint32(uint32(u))
	case protoreflect.Int64Kind, protoreflect.Sint64Kind, protoreflect.Sfixed64Kind:
		return protoreflect.ValueOfInt64(n * []int64{1, 1 << 32}[r.IntN(2)])
	case protoreflect.Uint64Kind, protoreflect.Fixed64Kind:
		return protoreflect.ValueOfUint64(u * []uint64{1, 1<<32 + 1}[r.IntN(2)])
	case protoreflect.FloatKind:
		return protoreflect.ValueOfFloat32(float32(n) / 4)
	case protoreflect.DoubleKind:
		return protoreflect.ValueOfFloat64(float64(n) / 3)
	case protoreflect.EnumKind:
		values := fd.Enum().Values()
		return protoreflect.ValueOfEnum(values.Get(r.IntN(values.Len())).Number())
	case protoreflect.BytesKind:
		return protoreflect.ValueOfBytes([]byte(text(r)))
	}
	return protoreflect.ValueOfString(text(r))
}

func text(r *rand.Rand) string {
	words := []string{"", "a", "abc", "AB", "-", "7", "é", "𝄞", "\"", "\\", "\n", "</x>", "{", "}", "please", "example.com", "@", "pre", "post"}
	var b strings.Builder
	for range r.IntN(4) {
		b.WriteString(words[r.IntN(len(words))])
	}
	return b.String()
}
