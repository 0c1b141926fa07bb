package serde

import (
	"bytes"
	"encoding/hex"
	"math"
	"reflect"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

type order struct {
	ID    string         `json:"id"`
	Cents int64          `json:"cents"`
	Tags  map[string]int `json:"tags,omitempty"`
}

// row is a value with its expected encoding, as Kafka's Java serializers write
// it where they have the type.
type row[T any] struct {
	name    string
	value   T
	encoded string // hex
}

func testRows[T any](t *testing.T, s Serde[T], rows []row[T]) {
	t.Helper()
	for _, r := range rows {
		t.Run(s.Name()+"/"+r.name, func(t *testing.T) {
			t.Parallel()
			got, err := s.Append([]byte("pre"), r.value)
			if err != nil {
				t.Fatalf("Append: %v", err)
			}
			if !bytes.HasPrefix(got, []byte("pre")) || hex.EncodeToString(got[3:]) != r.encoded {
				t.Errorf("Append after %q = %x, want %s behind it", "pre", got, r.encoded)
			}
			alone, err := s.Append(nil, r.value)
			if err != nil || alone == nil || hex.EncodeToString(alone) != r.encoded {
				t.Errorf("Append(nil) = %#v, %v, want %s", alone, err, r.encoded)
			}
			back, err := s.Decode(alone)
			if err != nil {
				t.Fatalf("Decode: %v", err)
			}
			if !same(any(back), any(r.value)) {
				t.Errorf("Decode = %v, want %v", back, r.value)
			}
		})
	}
}

func same(a, b any) bool {
	if m, ok := a.(proto.Message); ok {
		return proto.Equal(m, b.(proto.Message))
	}
	if f, ok := a.(float64); ok {
		return math.Float64bits(f) == math.Float64bits(b.(float64))
	}
	return reflect.DeepEqual(a, b)
}

func TestEncodings(t *testing.T) {
	t.Parallel()
	testRows(t, String(), []row[string]{
		{"empty", "", ""}, {"ascii", "ab", "6162"}, {"utf8", "é", "c3a9"}, {"not utf8", "\xff", "ff"},
	})
	testRows(t, Bytes(), []row[[]byte]{{"empty", []byte{}, ""}, {"zeros", []byte{0, 0}, "0000"}})
	testRows(t, Int32(), []row[int32]{
		{"zero", 0, "00000000"},
		{"one", 1, "00000001"},
		{"minus one", -1, "ffffffff"},
		{"min", math.MinInt32, "80000000"},
		{"max", math.MaxInt32, "7fffffff"},
	})
	testRows(t, Int64(), []row[int64]{
		{"258", 258, "0000000000000102"},
		{"minus two", -2, "fffffffffffffffe"},
		{"min", math.MinInt64, "8000000000000000"},
		{"max", math.MaxInt64, "7fffffffffffffff"},
	})
	testRows(t, Float64(), []row[float64]{
		{"one", 1, "3ff0000000000000"},
		{"minus zero", math.Copysign(0, -1), "8000000000000000"},
		{"infinity", math.Inf(1), "7ff0000000000000"},
		{"NaN with payload", math.Float64frombits(0x7ff8000000000001), "7ff8000000000001"},
	})
	testRows(t, Bool(), []row[bool]{{"true", true, "01"}, {"false", false, "00"}})
	testRows(t, JSON[order](), []row[order]{
		{"plain", order{ID: "a<b", Cents: -1}, hex.EncodeToString([]byte(`{"id":"a<b","cents":-1}`))},
		{"sorted map", order{Tags: map[string]int{"b": 2, "a": 1}}, hex.EncodeToString([]byte(`{"id":"","cents":0,"tags":{"a":1,"b":2}}`))},
	})
	testRows(t, JSON[*order](), []row[*order]{{"pointer", &order{ID: "x"}, hex.EncodeToString([]byte(`{"id":"x","cents":0}`))}})
	testRows(t, Proto[*wrapperspb.StringValue](), []row[*wrapperspb.StringValue]{
		{"empty", &wrapperspb.StringValue{}, ""}, {"text", wrapperspb.String("hi"), "0a026869"},
	})
}

func TestBytesNil(t *testing.T) {
	t.Parallel()
	if b, err := Bytes().Append(nil, nil); err != nil || b == nil {
		t.Errorf("Append(nil, nil) = %#v, %v, want an empty slice", b, err)
	}
	if b, err := Bytes().Decode(nil); err != nil || b == nil {
		t.Errorf("Decode(nil) = %#v, %v, want an empty slice", b, err)
	}
}

func decodeError[T any](s Serde[T], data []byte) error {
	_, err := s.Decode(data)
	return err
}

func TestDecodeErrors(t *testing.T) {
	t.Parallel()
	deep := structpb.NewNullValue()
	for range 60 { // two levels of nesting each
		deep = structpb.NewListValue(&structpb.ListValue{Values: []*structpb.Value{deep}})
	}
	nested, err := proto.Marshal(deep)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name, want string
		err        error
	}{
		{"int32 short", "serde int32: 3 bytes, want 4", decodeError(Int32(), make([]byte, 3))},
		{"int32 long", "serde int32: 8 bytes, want 4", decodeError(Int32(), make([]byte, 8))},
		{"int64 empty", "serde int64: 0 bytes, want 8", decodeError(Int64(), nil)},
		{"float64 long", "serde float64: 9 bytes, want 8", decodeError(Float64(), make([]byte, 9))},
		{"bool empty", "serde bool: 0 bytes, want 1", decodeError(Bool(), nil)},
		{"bool two", "serde bool: byte 0x2, want 0 or 1", decodeError(Bool(), []byte{2})},
		{"json cut", "serde json: decode serde.order: unexpected end", decodeError(JSON[order](), []byte(`{"id":`))},
		{"json empty", "serde json: decode serde.order: unexpected end", decodeError(JSON[order](), nil)},
		{"json trailing", "invalid character", decodeError(JSON[order](), []byte(`{}{}`))},
		{"json type", "cannot unmarshal", decodeError(JSON[order](), []byte(`{"cents":"1"}`))},
		{"json null", "JSON null", decodeError(JSON[order](), []byte(" null\n"))},
		{"proto cut", "serde proto(google.protobuf.StringValue): decode", decodeError(Proto[*wrapperspb.StringValue](), []byte{0x0a, 9, 'x'})},
		{"proto not utf8", "UTF-8", decodeError(Proto[*wrapperspb.StringValue](), []byte{0x0a, 1, 0xff})},
		{"proto deep", "recursion", decodeError(Proto[*structpb.Value](), nested)},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			if c.err == nil || !strings.Contains(c.err.Error(), c.want) {
				t.Errorf("error = %v, want one with %q", c.err, c.want)
			}
		})
	}
}

func appendError[T any](t *testing.T, s Serde[T], v T) error {
	t.Helper()
	dst, err := s.Append([]byte("pre"), v)
	if string(dst) != "pre" {
		t.Errorf("%s: a failed Append returned %q, want dst as it was", s.Name(), dst)
	}
	return err
}

func TestAppendErrors(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name, want string
		err        error
	}{
		{"json nil", "JSON null", appendError(t, JSON[*order](), nil)},
		{"json unsupported", "unsupported type: chan int", appendError(t, JSON[chan int](), nil)},
		{"json NaN", "unsupported value: NaN", appendError(t, JSON[float64](), math.NaN())},
		{"proto nil", "the message is nil", appendError(t, Proto[*wrapperspb.StringValue](), nil)},
		{"proto not utf8", "UTF-8", appendError(t, Proto[*wrapperspb.StringValue](), wrapperspb.String("\xff"))},
		{"proto required", "required", appendError(t, Proto[*descriptorpb.UninterpretedOption_NamePart](), &descriptorpb.UninterpretedOption_NamePart{})},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			if c.err == nil || !strings.Contains(c.err.Error(), c.want) {
				t.Errorf("error = %v, want one with %q", c.err, c.want)
			}
		})
	}
}

// A map's order is random in Go: only deterministic marshalling gives equal rows
// equal bytes.
func TestProtoIsDeterministic(t *testing.T) {
	t.Parallel()
	s := Proto[*structpb.Struct]()
	fields := map[string]any{}
	for k := range strings.SplitSeq("abcdefghijklmnop", "") {
		fields[k] = k
	}
	var first []byte
	for range 50 {
		m, err := structpb.NewStruct(fields)
		if err != nil {
			t.Fatal(err)
		}
		b, err := s.Append(nil, m)
		if err != nil {
			t.Fatal(err)
		}
		if first == nil {
			first = b
		}
		if !bytes.Equal(b, first) {
			t.Fatalf("two encodings of one message:\n%x\n%x", first, b)
		}
	}
}

func TestProtoKeepsUnknownFields(t *testing.T) {
	t.Parallel()
	data := []byte{0x0a, 2, 'h', 'i', 0x10, 7} // field 2 is unknown to StringValue
	s := Proto[*wrapperspb.StringValue]()
	m, err := s.Decode(data)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := s.Append(nil, m); err != nil || !bytes.Equal(got, data) {
		t.Errorf("round trip = %x, %v, want %x", got, err, data)
	}
}

func TestNames(t *testing.T) {
	t.Parallel()
	for want, got := range map[string]string{
		"string": String().Name(), "bytes": Bytes().Name(), "int32": Int32().Name(), "int64": Int64().Name(),
		"float64": Float64().Name(), "bool": Bool().Name(), "json": JSON[order]().Name(),
		"proto(google.protobuf.StringValue)": Proto[*wrapperspb.StringValue]().Name(),
	} {
		if got != want {
			t.Errorf("name %q, want %q", got, want)
		}
	}
}

func TestProtoRefusesOtherTypes(t *testing.T) {
	t.Parallel()
	defer func() {
		if r, _ := recover().(string); !strings.Contains(r, "proto.Message is not a generated message type") &&
			!strings.Contains(r, "protoreflect.ProtoMessage is not a generated message type") {
			t.Errorf("panic = %q", r)
		}
	}()
	Proto[proto.Message]()
}

func allocs[T any](t *testing.T, s Serde[T], v T) {
	t.Helper()
	buf := make([]byte, 0, 64)
	if n := testing.AllocsPerRun(100, func() {
		b, err := s.Append(buf, v)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.Decode(b); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("%s: %v allocations for Append and Decode, want 0", s.Name(), n)
	}
}

func TestPrimitivesDoNotAllocate(t *testing.T) {
	allocs(t, String(), "some text")
	allocs(t, Bytes(), []byte("some text"))
	allocs(t, Int32(), 1)
	allocs(t, Int64(), 1)
	allocs(t, Float64(), 1)
	allocs(t, Bool(), true)
}

// fuzzSerde checks that no input panics, and that what decodes survives a round
// trip: decode, encode, decode gives the same value, and the second encoding
// equals the first.
func fuzzSerde[T any](t *testing.T, s Serde[T], data []byte) {
	t.Helper()
	v, err := s.Decode(bytes.Clone(data))
	if err != nil {
		return
	}
	once, err := s.Append(nil, v)
	if err != nil {
		t.Fatalf("%s: %x decodes to %v, which does not encode: %v", s.Name(), data, v, err)
	}
	again, err := s.Decode(once)
	if err != nil {
		t.Fatalf("%s: %x does not decode: %v", s.Name(), once, err)
	}
	twice, err := s.Append(nil, again)
	if err != nil || !bytes.Equal(once, twice) {
		t.Fatalf("%s: encodings %x and %x differ (%v)", s.Name(), once, twice, err)
	}
}

func FuzzDecode(f *testing.F) {
	for _, seed := range [][]byte{
		nil,
		{0},
		{1},
		{2},
		[]byte("text"),
		{0x0a, 2, 'h', 'i'},
		make([]byte, 4), make([]byte, 8),
		[]byte(`{"id":"a","cents":3,"tags":{"x":1}}`), []byte("null"), []byte(`{"k":[1,{"z":null}]}`),
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		fuzzSerde(t, String(), data)
		fuzzSerde(t, Bytes(), data)
		fuzzSerde(t, Int32(), data)
		fuzzSerde(t, Int64(), data)
		fuzzSerde(t, Float64(), data)
		fuzzSerde(t, Bool(), data)
		fuzzSerde(t, JSON[order](), data)
		fuzzSerde(t, JSON[any](), data)
		fuzzSerde(t, Proto[*wrapperspb.StringValue](), data)
		fuzzSerde(t, Proto[*structpb.Value](), data)
	})
}

// FuzzRoundTrip checks the other direction: every value survives.
func FuzzRoundTrip(f *testing.F) {
	f.Add("", int64(0), 0.0, false)
	f.Add("é\x00\xff", int64(math.MinInt64), math.Inf(-1), true)
	f.Fuzz(func(t *testing.T, text string, n int64, x float64, b bool) {
		roundTrip(t, String(), text)
		roundTrip(t, Bytes(), []byte(text))
		roundTrip(t, Int32(), int32(n))
		roundTrip(t, Int64(), n)
		roundTrip(t, Float64(), x)
		roundTrip(t, Bool(), b)
		roundTrip(t, Proto[*wrapperspb.BytesValue](), wrapperspb.Bytes([]byte(text)))
	})
}

func roundTrip[T any](t *testing.T, s Serde[T], v T) {
	t.Helper()
	data, err := s.Append(nil, v)
	if err != nil {
		t.Fatalf("%s: encode %v: %v", s.Name(), v, err)
	}
	back, err := s.Decode(data)
	if err != nil || !same(any(back), any(v)) {
		t.Fatalf("%s: %v came back as %v (%v)", s.Name(), v, back, err)
	}
}
