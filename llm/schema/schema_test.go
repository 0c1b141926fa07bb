package schema_test

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/millrace/millrace/llm/internal/corpus"
	corpusv1 "github.com/millrace/millrace/llm/internal/corpus/millrace/corpus/v1"
	"github.com/millrace/millrace/llm/schema"
)

func ExampleFor() {
	s, err := schema.For((&corpusv1.Leaf{}).ProtoReflect().Descriptor(), schema.OpenAI)
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(s.Name())
	fmt.Printf("%s\n", s.JSON())
	// Output:
	// millrace_corpus_v1_Leaf
	// {"type":"object","properties":{"name":{"type":"string"},"weight":{"type":"integer"}},"required":["name","weight"],"additionalProperties":false}
}

func ExampleSchema_Marshal() {
	s, err := schema.For((&corpusv1.Maps{}).ProtoReflect().Descriptor(), schema.Anthropic)
	if err != nil {
		fmt.Println(err)
		return
	}
	text, err := s.Marshal(&corpusv1.Maps{Urgencies: map[int64]corpusv1.Urgency{7: corpusv1.Urgency_URGENCY_LOW}})
	fmt.Println(string(text), err)
	// Output:
	// {"strings":[],"leaves":[],"urgencies":[{"key":"7","value":"URGENCY_LOW"}],"doubles":[],"blobs":[],"durations":[]} <nil>
}

func TestNoSchema(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		message proto.Message
		dialect schema.Dialect
		want    []string // one in each problem
	}{
		"recursion":      {&corpusv1.Recursive{}, schema.OpenAI, []string{"Recursive.children[]: message millrace.corpus.v1.Recursive contains itself"}},
		"anything":       {&corpusv1.Unsupported{}, schema.Gemini, []string{"Unsupported.any: google.protobuf.Any", "Unsupported.struct: ", "Unsupported.value: "}},
		"broken rule":    {&corpusv1.BadRule{}, schema.VLLM, []string{"BadRule: its rules do not compile"}},
		"no object":      {&timestamppb.Timestamp{}, schema.OpenAI, []string{"wrap it in a message of your own"}},
		"too many":       {&corpusv1.Many{}, schema.Azure, []string{"101 properties, the dialect allows 100", "6 levels of nested objects, the dialect allows 5"}},
		"too optional":   {&corpusv1.Many{}, schema.Anthropic, []string{"26 optional properties, the dialect allows 24"}},
		"nothing is let": {&corpusv1.Impossible{}, schema.OpenAI, []string{"Impossible.urgency: its rules leave no value"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := schema.For(c.message.ProtoReflect().Descriptor(), c.dialect)
			bad, ok := errors.AsType[*schema.Error](err)
			if !ok {
				t.Fatalf("got %v", err)
			}
			if len(bad.Problems) != len(c.want) {
				t.Fatalf("got %q", bad.Problems)
			}
			for i, want := range c.want {
				if !strings.Contains(bad.Problems[i], want) {
					t.Errorf("%q does not say %q", bad.Problems[i], want)
				}
			}
		})
	}
	if _, err := schema.For((&corpusv1.Leaf{}).ProtoReflect().Descriptor(), "none"); err == nil || !strings.Contains(err.Error(), "anthropic") {
		t.Errorf("an unknown dialect gave %v", err)
	}
	for _, d := range []schema.Dialect{schema.OpenAI, schema.Gemini, schema.VLLM, schema.LlamaCpp, schema.Portable} {
		if _, err := schema.For((&corpusv1.Many{}).ProtoReflect().Descriptor(), d); err != nil {
			t.Error(err)
		}
	}
}

// The fingerprint is on every record: it stands for the bytes, and only for them.
func TestFingerprint(t *testing.T) {
	t.Parallel()
	a, b := must(t, &corpusv1.Leaf{}, schema.OpenAI), must(t, &corpusv1.Leaf{}, schema.Gemini)
	if string(a.JSON()) != string(b.JSON()) || a.Fingerprint() != b.Fingerprint() {
		t.Error("equal schemas have two fingerprints")
	}
	if c := must(t, &corpusv1.Triage{}, schema.OpenAI); c.Fingerprint() == a.Fingerprint() || len(c.Fingerprint()) != 32 {
		t.Errorf("fingerprints %s and %s", a.Fingerprint(), c.Fingerprint())
	}
	a.JSON()[0] = 'x'
	if a.JSON()[0] != '{' {
		t.Error("the caller can change the schema")
	}
}

// No dialect gets a keyword that its provider answers with an error.
func TestKeywordsOfDialects(t *testing.T) {
	t.Parallel()
	for d, never := range map[schema.Dialect][]string{
		schema.OpenAI:    {`"minLength"`, `"maxLength"`, `"default"`, `"$ref"`, `"oneOf"`, `"allOf"`, `"uniqueItems"`, `"format":"uri"`},
		schema.Anthropic: {`"minimum"`, `"maximum"`, `"exclusiveM`, `"minLength"`, `"maxLength"`, `"maxItems"`, `"minItems":2`, `"anyOf"`, `"null"`, `"additionalProperties":{`},
		schema.Gemini:    {`"pattern"`, `"minLength"`, `"maxLength"`, `"exclusiveM`, `"format":"u`, `"format":"e`, `"anyOf"`, `"enum":[true]`},
		schema.VLLM:      {`"uniqueItems"`, `"propertyNames"`, `"multipleOf"`, `"format":"duration"`},
		schema.LlamaCpp:  {`"format":"e`, `"format":"uri`, `"anyOf"`, `"propertyNames"`},
		schema.Portable:  {`"pattern"`, `"format"`, `"minimum"`, `"minItems"`, `"additionalProperties":{`},
	} {
		for _, m := range corpus.Valid() {
			text := string(must(t, m, d).JSON())
			for _, keyword := range never {
				if strings.Contains(text, keyword) {
					t.Errorf("%s: the schema of %s has %s", d, name(m), keyword)
				}
			}
		}
	}
}

func TestMarshalRefuses(t *testing.T) {
	t.Parallel()
	for name, m := range map[string]proto.Message{
		"NaN":       &corpusv1.Scalars{Double: math.NaN()},
		"infinity":  &corpusv1.Scalars{Float: float32(math.Inf(1))},
		"enum":      &corpusv1.Scalars{Urgency: 99},
		"unset":     &corpusv1.Presence{},
		"timestamp": &corpusv1.WellKnown{Timestamp: &timestamppb.Timestamp{Seconds: math.MaxInt64}},
	} {
		if text, err := must(t, m, schema.OpenAI).Marshal(m); err == nil {
			t.Errorf("%s: got %s", name, text)
		}
	}
	if _, err := must(t, &corpusv1.Leaf{}, schema.OpenAI).Marshal(&corpusv1.Maps{}); err == nil {
		t.Error("another message was marshalled")
	}
}

func TestRedact(t *testing.T) {
	t.Parallel()
	secret := func() *corpusv1.Secrets {
		return &corpusv1.Secrets{
			Name: "open", Email: "planted", Phones: []string{"planted"}, Account: 424242, Home: &corpusv1.Leaf{Name: "planted"},
			Keys: map[string]string{"planted": "planted"}, Login: &corpusv1.Secrets_Passkey{Passkey: []byte("planted")},
		}
	}
	m := secret()
	m.Child = secret()
	m.Child.Login = &corpusv1.Secrets_Password{Password: "planted"}
	m.Children = []*corpusv1.Secrets{secret(), {Name: "open"}}
	m.Others = map[string]*corpusv1.Secrets{"a": secret()}
	wrapped, err := anypb.New(secret())
	if err != nil {
		t.Fatal(err)
	}
	m.Any = wrapped
	m.ProtoReflect().SetUnknown([]byte{0x82, 0x7d, 7, 'p', 'l', 'a', 'n', 't', 'e', 'd'})
	before := proto.Clone(m)

	got := schema.Redact(m)
	data, err := proto.Marshal(got)
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(data), "planted") || strings.Contains(got.String(), "424242") {
		t.Errorf("left in %v", got)
	}
	if n := strings.Count(got.String(), schema.Mask); n < 4 {
		t.Errorf("%d masks in %v", n, got)
	}
	if got.GetName() != "open" || got.GetChildren()[1].GetEmail() != "" || got.GetChild().GetPassword() != schema.Mask {
		t.Errorf("got %v", got)
	}
	if !proto.Equal(m, before) {
		t.Error("the message itself was changed")
	}
	if got := schema.Redact((*corpusv1.Secrets)(nil)); got != nil {
		t.Errorf("nil became %v", got)
	}
	m.Any.TypeUrl = "type.googleapis.com/not.linked.In"
	if got := schema.Redact(m); len(got.GetAny().GetValue()) != 0 {
		t.Errorf("an unknown Any was kept: %v", got)
	}
}

func TestSensitiveFields(t *testing.T) {
	t.Parallel()
	var got []string
	fields := (&corpusv1.Secrets{}).ProtoReflect().Descriptor().Fields()
	for i := range fields.Len() {
		if schema.Sensitive(fields.Get(i)) {
			got = append(got, string(fields.Get(i).Name()))
		}
	}
	if want := []string{"email", "phones", "account", "home", "keys", "password", "passkey"}; !slices.Equal(got, want) {
		t.Errorf("got %v", got)
	}
}
