package schema_test

import (
	"bytes"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/millrace/millrace/llm/internal/corpus"
	"github.com/millrace/millrace/llm/schema"
)

var rewrite = flag.Bool("rewrite", false, "rewrite the golden schemas")

func name(m proto.Message) string { return string(m.ProtoReflect().Descriptor().Name()) }

func must(t testing.TB, m proto.Message, d schema.Dialect) *schema.Schema {
	t.Helper()
	s, err := schema.For(m.ProtoReflect().Descriptor(), d)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// A changed schema changes the fingerprint on every record, and empties the
// providers' caches: a diff here wants a reason.
func TestGoldenSchemas(t *testing.T) {
	t.Parallel()
	for _, d := range schema.Dialects() {
		for _, m := range corpus.Valid() {
			t.Run(string(d)+"/"+name(m), func(t *testing.T) {
				t.Parallel()
				s := must(t, m, d)
				var got bytes.Buffer
				if err := json.Indent(&got, s.JSON(), "", "  "); err != nil {
					t.Fatal(err)
				}
				got.WriteByte('\n')
				file := filepath.Join("testdata", string(d), name(m)+".json")
				if *rewrite {
					if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
						t.Fatal(err)
					}
					if err := os.WriteFile(file, got.Bytes(), 0o644); err != nil {
						t.Fatal(err)
					}
				}
				want, err := os.ReadFile(file)
				if err != nil {
					t.Fatal(err)
				}
				if !bytes.Equal(got.Bytes(), want) {
					t.Errorf("the schema differs from %s (-rewrite rewrites it):\n%s", file, &got)
				}
				if again := must(t, m, d); again.Fingerprint() != s.Fingerprint() {
					t.Error("a second schema has another fingerprint")
				}
			})
		}
	}
}
