package schema_test

import (
	"bytes"
	"math/rand/v2"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"
	"google.golang.org/protobuf/proto"

	"github.com/millrace/millrace/llm/internal/corpus"
	"github.com/millrace/millrace/llm/schema"
)

// validator compiles a schema with a validator of another author.
func validator(t testing.TB, s *schema.Schema) *jsonschema.Schema {
	t.Helper()
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(s.JSON()))
	if err != nil {
		t.Fatal(err)
	}
	c := jsonschema.NewCompiler()
	c.AssertFormat()
	if err := c.AddResource("schema.json", doc); err != nil {
		t.Fatal(err)
	}
	compiled, err := c.Compile("schema.json")
	if err != nil {
		t.Fatal(err)
	}
	return compiled
}

func accepts(t testing.TB, v *jsonschema.Schema, text []byte) error {
	t.Helper()
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(text))
	if err != nil {
		t.Fatalf("%v: %s", err, text)
	}
	return v.Validate(doc)
}

// The schema must not forbid a model what the message allows: whatever the rules
// accept, every dialect's schema accepts.
func TestSchemasAcceptWhatRulesAccept(t *testing.T) {
	t.Parallel()
	for _, d := range schema.Dialects() {
		for _, valid := range corpus.Valid() {
			t.Run(string(d)+"/"+name(valid), func(t *testing.T) {
				t.Parallel()
				s := must(t, valid, d)
				v := validator(t, s)
				tried, refused := 0, 0
				for seed := range uint64(150) {
					r := rand.New(rand.NewPCG(seed, 1))
					m := proto.Clone(valid)
					for range int(seed % 5) { // the first one as it is
						corpus.Mutate(r, m.ProtoReflect())
					}
					text, err := s.Marshal(m)
					if err != nil {
						if s.Validate(m) == nil && proto.CheckInitialized(m) == nil {
							t.Fatalf("seed %d: %v", seed, err)
						}
						continue
					}
					if err := s.Validate(m); err != nil {
						if seed == 0 {
							t.Fatalf("the message of the corpus is not valid: %v", err)
						}
						if accepts(t, v, text) != nil {
							refused++
						}
						continue
					}
					tried++
					if err := accepts(t, v, text); err != nil {
						t.Fatalf("seed %d: the rules accept %s, the schema does not: %v", seed, text, err)
					}
				}
				if tried < 20 {
					t.Errorf("only %d valid messages tried", tried)
				}
				t.Logf("%d valid messages accepted, %d invalid ones refused", tried, refused)
			})
		}
	}
}
