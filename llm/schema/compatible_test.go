package schema_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/prototext"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/descriptorpb"

	"github.com/millrace/millrace/llm/internal/corpus"
	corpusv1 "github.com/millrace/millrace/llm/internal/corpus/millrace/corpus/v1"
	"github.com/millrace/millrace/llm/schema"
)

const oldFile = `
name: "a.proto" package: "a" syntax: "proto3"
message_type {
  name: "M"
  field { name: "text" number: 1 type: TYPE_STRING label: LABEL_OPTIONAL json_name: "text" }
  field { name: "count" number: 2 type: TYPE_INT32 label: LABEL_OPTIONAL json_name: "count" }
  field { name: "sub" number: 3 type: TYPE_MESSAGE type_name: ".a.S" label: LABEL_OPTIONAL json_name: "sub" }
  field { name: "kind" number: 4 type: TYPE_ENUM type_name: ".a.E" label: LABEL_OPTIONAL json_name: "kind" }
  field { name: "one" number: 5 type: TYPE_STRING label: LABEL_OPTIONAL json_name: "one" oneof_index: 0 }
  field { name: "list" number: 6 type: TYPE_SFIXED64 label: LABEL_REPEATED json_name: "list" }
  oneof_decl { name: "choice" }
  reserved_range { start: 20 end: 22 }
  reserved_name: "gone"
}
message_type {
  name: "S"
  field { name: "more" number: 1 type: TYPE_MESSAGE type_name: ".a.M" label: LABEL_OPTIONAL json_name: "more" }
  field { name: "leaf" number: 2 type: TYPE_DOUBLE label: LABEL_OPTIONAL json_name: "leaf" }
}
message_type { name: "T" }
enum_type {
  name: "E"
  value { name: "E_ZERO" number: 0 }
  value { name: "E_ONE" number: 1 }
  reserved_range { start: 7 end: 8 }
  reserved_name: "E_GONE"
}`

// file parses a file, after replacing pairs of texts.
func file(t testing.TB, replace ...string) protoreflect.FileDescriptor {
	t.Helper()
	text := oldFile
	for i := 0; i+1 < len(replace); i += 2 {
		if !strings.Contains(text, replace[i]) {
			t.Fatalf("there is no %q to replace", replace[i])
		}
		text = strings.Replace(text, replace[i], replace[i+1], 1)
	}
	var p descriptorpb.FileDescriptorProto
	if err := prototext.Unmarshal([]byte(text), &p); err != nil {
		t.Fatal(err)
	}
	f, err := protodesc.NewFile(&p, nil)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func message(f protoreflect.FileDescriptor) protoreflect.MessageDescriptor {
	return f.Messages().Get(0)
}

func TestCompatible(t *testing.T) {
	t.Parallel()
	const text = `field { name: "text" number: 1 type: TYPE_STRING label: LABEL_OPTIONAL json_name: "text" }`
	const count = `"count" number: 2 type: TYPE_INT32`
	const sub = `type: TYPE_MESSAGE type_name: ".a.S"`
	for name, c := range map[string]struct {
		replace []string
		want    string // in the only change; empty for none
	}{
		"the same":          {nil, ""},
		"new field":         {[]string{text, text + ` field { name: "new" number: 9 type: TYPE_BYTES label: LABEL_OPTIONAL json_name: "new" }`}, ""},
		"new enum value":    {[]string{`value { name: "E_ONE"`, `value { name: "E_TWO" number: 2 } value { name: "E_ONE"`}, ""},
		"sign":              {[]string{count, `"count" number: 2 type: TYPE_UINT32`}, ""},
		"sign of fixed":     {[]string{"TYPE_SFIXED64", "TYPE_FIXED64"}, ""},
		"presence":          {[]string{count, `"count" number: 2 proto3_optional: true oneof_index: 1 type: TYPE_INT32`, `oneof_decl { name: "choice" }`, `oneof_decl { name: "choice" } oneof_decl { name: "_count" }`}, ""},
		"deleted, reserved": {[]string{text, `reserved_range { start: 1 end: 2 } reserved_name: "text"`}, ""},
		"enum value gone, reserved": {
			[]string{`value { name: "E_ONE" number: 1 }`, `reserved_range { start: 1 end: 1 } reserved_name: "E_ONE"`}, "",
		},
		"deleted":                {[]string{text, `reserved_name: "text"`}, `a.M.text: deleted, but number 1 is not reserved: add "reserved 1;"`},
		"deleted, name free":     {[]string{text, `reserved_range { start: 1 end: 2 }`}, `a.M.text: deleted, but its name is not reserved: add 'reserved "text";'`},
		"renamed":                {[]string{`name: "text" number: 1`, `name: "words" number: 1`}, "a.M.text: number 1 is now called words"},
		"JSON name":              {[]string{`json_name: "text"`, `json_name: "words"`}, `its JSON name was "text" and is "words"`},
		"type":                   {[]string{count, `"count" number: 2 type: TYPE_INT64`}, "a.M.count: was int32 and is int64"},
		"zigzag":                 {[]string{count, `"count" number: 2 type: TYPE_SINT32`}, "was int32 and is sint32"},
		"string to bytes":        {[]string{`number: 1 type: TYPE_STRING`, `number: 1 type: TYPE_BYTES`}, "was string and is bytes"},
		"message":                {[]string{sub, `type: TYPE_MESSAGE type_name: ".a.T"`}, "a.M.sub: was a.S and is a.T"},
		"repeated":               {[]string{count + " label: LABEL_OPTIONAL", count + " label: LABEL_REPEATED"}, "was singular and is repeated"},
		"out of the oneof":       {[]string{`json_name: "one" oneof_index: 0`, `json_name: "one"`, `oneof_decl { name: "choice" }`, ``}, "was in oneof choice and is in no oneof"},
		"oneof renamed":          {[]string{`oneof_decl { name: "choice" }`, `oneof_decl { name: "other" }`}, "was in oneof choice and is in oneof other"},
		"into the oneof":         {[]string{`"kind" number: 4`, `"kind" number: 4 oneof_index: 0`}, "was in no oneof and is in oneof choice"},
		"deep inside":            {[]string{"TYPE_DOUBLE", "TYPE_FLOAT"}, "a.S.leaf: was double and is float"},
		"enum value renamed":     {[]string{`"E_ONE" number: 1`, `"E_UNO" number: 1`}, "E_ONE: number 1 is now called E_UNO"},
		"enum value renumbered":  {[]string{`"E_ONE" number: 1`, `"E_ONE" number: 3`}, "its number was 1 and is 3"},
		"enum value deleted":     {[]string{`value { name: "E_ONE" number: 1 }`, `reserved_name: "E_ONE"`}, "number 1 is not reserved"},
		"name not reserved":      {[]string{`reserved_name: "gone"`, ``}, `name "gone" is no longer reserved`},
		"number not reserved":    {[]string{`start: 20 end: 22`, `start: 20 end: 21`}, "number 21 is no longer reserved"},
		"enum name not reserved": {[]string{`reserved_name: "E_GONE"`, ``}, `name "E_GONE" is no longer reserved`},
		"enum not reserved":      {[]string{`start: 7 end: 8`, `start: 7 end: 7`}, "numbers 7 to 8 are no longer reserved"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			err := schema.Compatible(message(file(t)), message(file(t, c.replace...)))
			if c.want == "" {
				if err != nil {
					t.Error(err)
				}
				return
			}
			bad, ok := errors.AsType[*schema.Incompatible](err)
			if !ok || len(bad.Changes) != 1 || !strings.Contains(bad.Changes[0], c.want) {
				t.Errorf("got %v", err)
			}
		})
	}
}

func TestCompatibleOfProto2(t *testing.T) {
	t.Parallel()
	base := func(replace ...string) protoreflect.MessageDescriptor {
		return message(file(t, append([]string{`syntax: "proto3"`, `syntax: "proto2"`}, replace...)...))
	}
	const count = `"count" number: 2 type: TYPE_INT32`
	for name, c := range map[string]struct{ replace, want string }{
		"default":      {count + ` default_value: "3"`, "its default was 0 and is 3"},
		"new required": {`"new" number: 9 json_name: "new" type: TYPE_BYTES label: LABEL_REQUIRED } field { name: ` + count, "a new field cannot be required"},
	} {
		if err := schema.Compatible(base(), base(count, c.replace)); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %v", name, err)
		}
	}
}

func ExampleCompatible() {
	err := schema.Compatible((&corpusv1.Leaf{}).ProtoReflect().Descriptor(), (&corpusv1.Old{}).ProtoReflect().Descriptor())
	fmt.Println(err)
	// Output:
	// message millrace.corpus.v1.Leaf changed so that readers of the old version misread the new one, or the other way round:
	// - millrace.corpus.v1.Leaf: it is now called millrace.corpus.v1.Old: keep the name
	// - millrace.corpus.v1.Leaf.name: number 1 is now called must: a new meaning takes a new number
	// - millrace.corpus.v1.Leaf.weight: number 2 is now called may: a new meaning takes a new number
	// undo the changes (add new fields instead; reserve the number and name of what you delete), or write to a new topic
}

// What is stored today is compared with the program of tomorrow.
func TestDescriptorsAreStored(t *testing.T) {
	t.Parallel()
	messages := append(corpus.Valid(), &corpusv1.Recursive{}, &corpusv1.Secrets{}, &corpusv1.Unsupported{})
	for _, m := range messages {
		md := m.ProtoReflect().Descriptor()
		data, err := schema.MarshalDescriptor(md)
		if err != nil {
			t.Fatal(err)
		}
		again, err := schema.MarshalDescriptor(md)
		if err != nil || string(again) != string(data) {
			t.Errorf("%s: other bytes the second time", name(m))
		}
		if len(data) > 20_000 || strings.Contains(string(data), "buf.validate.FieldRules") {
			t.Errorf("%s: %d bytes, with more than the message needs", name(m), len(data))
		}
		stored, err := schema.UnmarshalDescriptor(data, md.FullName())
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(schema.Compatible(stored, md), schema.Compatible(md, stored)); err != nil {
			t.Errorf("%s: %v", name(m), err)
		}
	}
	if _, err := schema.UnmarshalDescriptor([]byte("x"), "a.M"); err == nil {
		t.Error("nonsense was read")
	}
	set, err := proto.Marshal(&descriptorpb.FileDescriptorSet{File: []*descriptorpb.FileDescriptorProto{protodesc.ToFileDescriptorProto(file(t))}})
	if err != nil {
		t.Fatal(err)
	}
	for _, wrong := range []protoreflect.FullName{"a.Missing", "a.E"} {
		if _, err := schema.UnmarshalDescriptor(set, wrong); err == nil {
			t.Errorf("%s was found", wrong)
		}
	}
}
