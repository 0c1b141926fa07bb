package answer_test

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"testing"

	"buf.build/go/protovalidate"
	"google.golang.org/protobuf/proto"

	"github.com/millrace/millrace/llm/answer"
	"github.com/millrace/millrace/llm/internal/corpus"
	"github.com/millrace/millrace/llm/schema"
)

func must(t testing.TB, m proto.Message, d schema.Dialect) *schema.Schema {
	t.Helper()
	s, err := schema.For(m.ProtoReflect().Descriptor(), d)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// Whatever is done to an answer: either it is refused with reasons, or the message
// is valid and the answer stands for it.
func TestNothingInvalidPasses(t *testing.T) {
	t.Parallel()
	for _, d := range schema.Dialects() {
		for _, valid := range corpus.Valid() {
			t.Run(string(d)+"/"+string(valid.ProtoReflect().Descriptor().Name()), func(t *testing.T) {
				t.Parallel()
				s := must(t, valid, d)
				passed, refused := 0, 0
				for seed := range uint64(150) {
					r := rand.New(rand.NewPCG(seed, 2))
					m := proto.Clone(valid)
					for range seed % 6 {
						corpus.Mutate(r, m.ProtoReflect())
					}
					text, err := s.Marshal(m)
					if err != nil {
						if protovalidate.Validate(m) == nil && proto.CheckInitialized(m) == nil {
							t.Fatal(err)
						}
						continue
					}
					damaged := damage(r, text)
					if ok := check(t, s, string(damaged)); ok {
						passed++
					} else {
						refused++
					}
					// Undamaged, an answer passes exactly if its message is valid, and is it.
					got := m.ProtoReflect().New().Interface()
					err = answer.Parse("Sure!\n```json\n"+string(text)+"\n```\n", s, got, nil)
					if invalid := protovalidate.Validate(m); (err == nil) != (invalid == nil) {
						t.Fatalf("seed %d: the rules say %v, Parse says %v: %s", seed, invalid, err, text)
					}
					if err == nil && !proto.Equal(got, m) {
						t.Fatalf("seed %d: %s was read as %v, not as %v", seed, text, got, m)
					}
				}
				if refused == 0 {
					t.Error("no damage was noticed")
				}
				t.Logf("%d damaged answers passed, %d were refused", passed, refused)
			})
		}
	}
}

// check parses an answer, and reports whether it passed; the properties that hold
// for any text are checked.
func check(t testing.TB, s *schema.Schema, text string) bool {
	t.Helper()
	into, err := message(s)
	if err != nil {
		t.Fatal(err)
	}
	err = answer.Parse(text, s, into, nil)
	if err == nil {
		if err := protovalidate.Validate(into); err != nil {
			t.Fatalf("%q passed: %v", text, err)
		}
		return true
	}
	bad, ok := errors.AsType[*answer.Violations](err)
	if !ok || len(bad.List) == 0 {
		t.Fatalf("%q: %v is not a list of violations", text, err)
	}
	for _, v := range bad.List {
		if v.Rule == "" || v.Message == "" {
			t.Fatalf("%q: a violation says nothing: %+v", text, v)
		}
	}
	if len(bad.Prompt()) > 10_000 {
		t.Fatalf("%q: the prompt has %d bytes", text, len(bad.Prompt()))
	}
	if proto.Size(into) != 0 {
		t.Fatalf("%q was refused and left %v", text, into)
	}
	return false
}

func message(s *schema.Schema) (proto.Message, error) {
	for _, m := range corpus.Valid() {
		if m.ProtoReflect().Descriptor() == s.Message() {
			return m.ProtoReflect().New().Interface(), nil
		}
	}
	return nil, errors.New("not a message of the corpus")
}

// damage does to an answer what models do.
func damage(r *rand.Rand, text []byte) []byte {
	text = bytes.Clone(text)
	for range 1 + r.IntN(3) {
		at := r.IntN(len(text))
		switch r.IntN(7) {
		case 0: // cut off
			text = text[:at+1]
		case 1: // a trailing comma
			text = bytes.Replace(text, []byte("}"), []byte(",}"), 1)
		case 2: // another type
			text = bytes.Replace(text, []byte(":"), []byte(`:7,"x":`), 1)
		case 3:
			text = bytes.Replace(text, []byte(`"`), []byte(`null`), 1)
		case 4:
			text[at] = byte(r.IntN(256))
		case 5: // twice
			text = append(text, text...)
		case 6:
			text = append(text[:at:at], append([]byte([]string{`"`, "{", "}", "[", "]", ",", "-", "0", "e9", "\\", "null"}[r.IntN(11)]), text[at:]...)...)
		}
	}
	return text
}
