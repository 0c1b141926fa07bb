package answer_test

import (
	"errors"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/millrace/millrace/llm/answer"
	corpusv1 "github.com/millrace/millrace/llm/internal/corpus/millrace/corpus/v1"
	"github.com/millrace/millrace/llm/schema"
)

func TestFindsTheAnswer(t *testing.T) {
	t.Parallel()
	want := &corpusv1.Leaf{Name: "a{b", Weight: 2}
	for name, text := range map[string]string{
		"bare":            `{"name":"a{b","weight":2}`,
		"white space":     " \n\t{ \"name\" : \"a{b\" , \"weight\" : 2 }\r\n",
		"fence":           "```json\n{\"name\":\"a{b\",\"weight\":2}\n```",
		"fence and words": "Here it is:\n```\n{\"name\":\"a{b\",\"weight\":2}\n```\nAnything else?",
		"braces before":   `The template {name} and {{x}} give {"name":"a{b","weight":2}`,
		"braces after":    `{"name":"a{b","weight":2} as in {name}`,
		"trailing commas": `{"name":"a{b","weight":2 , }`,
		"in an array":     `[{"name":"a{b","weight":2}]`,
		"thoughts":        "<think>maybe {\"name\":\"x\",\"weight\":1}?</think>{\"name\":\"a{b\",\"weight\":2}",
		"escapes":         `{"name":"\u0061{b","weight":2}`,
		"exponent":        `{"name":"a{b","weight":2e0}`,
		"quoted number":   `{"name":"a{b","weight":"2"}`,
		"byte order mark": "\ufeff{\"name\":\"a{b\",\"weight\":2}",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var got corpusv1.Leaf
			if err := answer.Parse(text, must(t, &got, schema.OpenAI), &got, nil); err != nil {
				t.Fatal(err)
			}
			if !proto.Equal(&got, want) {
				t.Errorf("got %v", &got)
			}
		})
	}
}

func TestRefuses(t *testing.T) {
	t.Parallel()
	leaf, lists, maps := &corpusv1.Leaf{}, &corpusv1.Lists{}, &corpusv1.Maps{}
	choice, triage, scalars := &corpusv1.Choice{}, &corpusv1.Triage{}, &corpusv1.Scalars{}
	zero := func(change string) string { // all scalars zero, but for one
		text := `{"double":0,"float":0,"int32":0,"int64":"0","uint32":0,"uint64":"0","sint32":0,"sint64":"0","fixed32":0,` +
			`"fixed64":"0","sfixed32":0,"sfixed64":"0","bool":false,"string":"","bytes":"","urgency":"URGENCY_LOW"}`
		name, _, _ := strings.Cut(change, ":")
		at := strings.Index(text, name+":")
		end := at + strings.IndexAny(text[at:], ",}")
		return text[:at] + change + text[end:]
	}
	for name, c := range map[string]struct {
		message proto.Message
		text    string
		want    string // path and rule
	}{
		"nothing":            {leaf, ``, `[json.none]`},
		"words":              {leaf, `I cannot help with {that}.`, `[json.none]`},
		"too long":           {leaf, strings.Repeat(" ", answer.MaxBytes) + `{}`, `[json.size]`},
		"not UTF-8":          {leaf, "{\"name\":\"\xff\",\"weight\":1}", `[json.syntax]`},
		"cut off":            {leaf, `{"name":"a","wei`, `[json.syntax]`},
		"cut off inside":     {lists, `{"leaves":[{"name":"a","weight":1},`, `[json.syntax]`},
		"no colon":           {leaf, `{"name" "a","weight":1}`, `[json.syntax]`},
		"two commas":         {lists, `{"bools":[true,,]}`, `[json.syntax]`},
		"only a comma":       {lists, `{"bools":[,]}`, `[json.syntax]`},
		"single quotes":      {leaf, `{'name':'a','weight':1}`, `[json.none]`},
		"comment":            {leaf, `{"name":"a",/* w */"weight":1}`, `[json.syntax]`},
		"two answers":        {leaf, `{"name":"a","weight":1} or {"name":"b","weight":1}`, `[json.ambiguous]`},
		"one and a half":     {leaf, `[{"name":"a","weight":1},{"name":`, `[json.ambiguous]`},
		"deep":               {leaf, `{"name":` + strings.Repeat("[", 200) + strings.Repeat("]", 200) + `}`, `[json.depth]`},
		"twice":              {leaf, `{"name":"a","name":"b","weight":1}`, `name [json.duplicate]`},
		"twice in a list":    {lists, `{"leaves":[{"name":"a","weight":1,"name":"b"}]}`, `leaves[0].name [json.duplicate]`},
		"both names":         {lists, `{"strings":["a"],"strings":["b"]}`, `strings [json.duplicate]`},
		"unknown":            {leaf, `{"name":"a","weight":1,"colour":"red"}`, `colour [json.unknown_field]`},
		"missing":            {leaf, `{"name":"a"}`, `weight [json.missing]`},
		"null":               {leaf, `{"name":null,"weight":1}`, `name [json.missing]`},
		"null in a list":     {lists, `{"strings":[null]}`, `strings[0] [json.type]`},
		"null in a map":      {maps, `{"strings":{"a":null}}`, `strings["a"] [json.type]`},
		"array for object":   {lists, `{"leaves":[[]]}`, `leaves[0] [json.type]`},
		"value for array":    {lists, `{"strings":"a"}`, `strings [json.type]`},
		"object for scalar":  {leaf, `{"name":{},"weight":1}`, `name [json.type]`},
		"number for string":  {leaf, `{"name":1,"weight":1}`, `name [json.type]`},
		"fraction":           {leaf, `{"name":"a","weight":1.5}`, `weight [json.type]`},
		"too large":          {leaf, `{"name":"a","weight":3000000000}`, `weight [json.type]`},
		"huge exponent":      {leaf, `{"name":"a","weight":1e999999999}`, `weight [json.type]`},
		"bool for int":       {leaf, `{"name":"a","weight":true}`, `weight [json.type]`},
		"in a list":          {lists, `{"longs":["1","x"]}`, `longs[1] [json.type]`},
		"date only":          {lists, `{"times":["2026-01-31"]}`, `times[0] [json.type]`},
		"map value":          {maps, `{"doubles":{"true":"x"}}`, `doubles["true"] [json.type]`},
		"map key":            {maps, `{"doubles":{"maybe":1}}`, `doubles [json.type]`},
		"map key too large":  {maps, `{"leaves":[{"key":3000000000,"value":{"name":"a","weight":1}}]}`, `leaves [json.type]`},
		"key of a type":      {maps, `{"strings":[{"key":1,"value":"a"}]}`, `strings[0].key [json.type]`},
		"pair without value": {maps, `{"strings":[{"key":"a"}]}`, `strings[0] [json.missing]`},
		"pair with more":     {maps, `{"strings":[{"key":"a","value":"b","c":1}]}`, `strings[0].c [json.unknown_field]`},
		"key twice":          {maps, `{"strings":[{"key":"a","value":"b"},{"key":"a","value":"c"}]}`, `strings["a"] [json.duplicate]`},
		"key twice as int":   {maps, `{"urgencies":[{"key":1,"value":"URGENCY_LOW"},{"key":"01","value":"URGENCY_LOW"}]}`, `urgencies["1"] [json.duplicate]`},
		"value of a map":     {maps, `{"strings":3}`, `strings [json.type]`},
		"enum number":        {lists, `{"urgencies":[1]}`, `urgencies[0] [json.enum]`},
		"enum unknown":       {lists, `{"urgencies":["URGENT"]}`, `urgencies[0] [json.enum]`},
		"oneof":              {choice, `{"text":"a","number":1}`, `number [json.oneof]`},
		"oneof with null":    {choice, `{"text":null,"number":null}`, `kind [required]`},
		"not a number":       {scalars, zero(`"double":"NaN"`), `double [json.type]`},
		"infinite":           {scalars, zero(`"float":"-Infinity"`), `float [json.type]`},
		"float too large":    {scalars, zero(`"float":1e39`), `float [json.type]`},
		"not base64":         {scalars, zero(`"bytes":"*"`), `bytes [json.type]`},
		"negative":           {scalars, zero(`"uint64":"-1"`), `uint64 [json.type]`},
		"rule":               {triage, `{"evidence":"a","urgency":"URGENCY_LOW","confidence":2,"tags":[]}`, `confidence [double.gte_lte]`},
		"rule of an item":    {triage, `{"evidence":"a","urgency":"URGENCY_LOW","confidence":1,"tags":["ok","NO"]}`, `tags[1] [string.pattern]`},
		"unspecified":        {triage, `{"evidence":"a","urgency":"URGENCY_UNSPECIFIED","confidence":1,"tags":[]}`, `urgency [enum.not_in]`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			into := c.message.ProtoReflect().New().Interface()
			err := answer.Parse(c.text, must(t, into, schema.OpenAI), into, nil)
			bad, ok := errors.AsType[*answer.Violations](err)
			if !ok {
				t.Fatalf("got %v", err)
			}
			var got []string
			for _, v := range bad.List {
				got = append(got, strings.TrimSpace(v.Path+" ["+v.Rule+"]"))
			}
			if strings.Join(got, " ") != c.want {
				t.Errorf("got %v, want %s", bad, c.want)
			}
		})
	}
}

// A model gets all that is wrong in one go, since each re-ask costs.
func TestAllViolationsAtOnce(t *testing.T) {
	t.Parallel()
	var into corpusv1.Lists
	err := answer.Parse(`{"longs":["x",1],"bools":["maybe"],"urgencies":["A"],"blobs":7,"leaves":[{"name":"a"}],"y":1}`,
		must(t, &into, schema.OpenAI), &into, nil)
	bad, ok := errors.AsType[*answer.Violations](err)
	if !ok {
		t.Fatal(err)
	}
	if len(bad.List) != 4 { // those of types in scalars come once the rest is right
		t.Errorf("got %v", bad)
	}
	err = answer.Parse(`{"longs":["x",1],"bools":["maybe"]}`, must(t, &into, schema.OpenAI), &into, nil)
	if bad, ok = errors.AsType[*answer.Violations](err); !ok || len(bad.List) != 2 {
		t.Errorf("got %v", err)
	}
}

func TestMapsBothWays(t *testing.T) {
	t.Parallel()
	want := &corpusv1.Maps{Strings: map[string]string{"a": "b"}}
	for _, d := range schema.Dialects() {
		s := must(t, want, d)
		for _, text := range []string{`{"strings":{"a":"b"}}`, `{"strings":[{"key":"a","value":"b"}]}`} {
			var got corpusv1.Maps
			err := answer.Parse(text, s, &got, nil)
			pairs := s.Shape().Property("strings").Shape.Kind == schema.Pairs
			switch {
			case strings.Contains(text, "[") && !pairs:
				if err == nil {
					t.Errorf("%s: pairs passed, and the schema has objects", d)
				}
			case err != nil || !proto.Equal(&got, want):
				t.Errorf("%s: %s gave %v, %v", d, text, &got, err)
			}
		}
	}
}

func TestUsersCheck(t *testing.T) {
	t.Parallel()
	const text = `{"name":"a","weight":1}`
	own := &answer.Violations{List: []answer.Violation{{Path: "name", Rule: "mine", Message: "no"}}}
	for name, c := range map[string]struct {
		check func(proto.Message) error
		want  string
	}{
		"passes": {func(proto.Message) error { return nil }, ""},
		"fails":  {func(proto.Message) error { return errors.New("unknown product") }, "unknown product [check]"},
		"own":    {func(proto.Message) error { return own }, "name: no [mine]"},
		"panics": {func(proto.Message) error { panic("oh") }, "the check panicked: oh [check]"},
		"empty":  {func(proto.Message) error { return &answer.Violations{} }, "[check]"},
		"nil":    {func(proto.Message) error { return (*answer.Violations)(nil) }, "[check]"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var into corpusv1.Leaf
			err := answer.Parse(text, must(t, &into, schema.OpenAI), &into, c.check)
			if c.want == "" {
				if err != nil {
					t.Error(err)
				}
				return
			}
			if _, ok := errors.AsType[*answer.Violations](err); !ok || !strings.HasSuffix(err.Error(), c.want) {
				t.Errorf("got %v", err)
			}
			if proto.Size(&into) != 0 {
				t.Errorf("left %v", &into)
			}
		})
	}
}

// A check that repairs a message must not break its rules.
func TestCheckCannotBreakRules(t *testing.T) {
	t.Parallel()
	var into corpusv1.Triage
	err := answer.Parse(`{"evidence":"a","urgency":"URGENCY_LOW","confidence":1,"tags":[]}`, must(t, &into, schema.OpenAI), &into,
		func(m proto.Message) error { m.(*corpusv1.Triage).Confidence = 3; return nil })
	if _, ok := errors.AsType[*answer.Violations](err); !ok {
		t.Errorf("got %v", err)
	}
}

func TestMistakesOfTheCaller(t *testing.T) {
	t.Parallel()
	s := must(t, &corpusv1.Leaf{}, schema.OpenAI)
	for name, err := range map[string]error{
		"no message":    answer.Parse("{}", s, nil, nil),
		"nil message":   answer.Parse("{}", s, (*corpusv1.Leaf)(nil), nil),
		"no schema":     answer.Parse("{}", nil, &corpusv1.Leaf{}, nil),
		"other message": answer.Parse("{}", s, &corpusv1.Lists{}, nil),
	} {
		if _, ok := errors.AsType[*answer.Violations](err); ok || err == nil {
			t.Errorf("%s: got %v", name, err)
		}
	}
}

func TestPromptIsBounded(t *testing.T) {
	t.Parallel()
	v := &answer.Violations{}
	for range 50 {
		v.List = append(v.List, answer.Violation{Path: "a", Rule: "r", Message: strings.Repeat("é\n", 1000)})
	}
	got := v.Prompt()
	if len(got) > 20*310+200 || !strings.Contains(got, "and 30 more") || strings.Count(got, "\n") != 22 {
		t.Errorf("%d bytes: %s", len(got), got)
	}
}

func FuzzParse(f *testing.F) {
	for _, text := range []string{
		`{"evidence":"a","urgency":"URGENCY_LOW","confidence":1,"tags":["ab"],"reply":null}`,
		"```json\n{\"evidence\":\"a\",\"confidence\":1e-1,}\n```", `{"tags":[{"key":1,"value":2}]}`, `{"x":[[[{"a":{`, `{"a":"\ud800"}`,
	} {
		f.Add(text)
	}
	schemas := []*schema.Schema{
		must(f, &corpusv1.Triage{}, schema.OpenAI), must(f, &corpusv1.Maps{}, schema.Anthropic), must(f, &corpusv1.Choice{}, schema.Gemini),
		must(f, &corpusv1.WellKnown{}, schema.VLLM), must(f, &corpusv1.Scalars{}, schema.LlamaCpp), must(f, &corpusv1.Nested{}, schema.Portable),
	}
	f.Fuzz(func(t *testing.T, text string) {
		for _, s := range schemas {
			check(t, s, text)
		}
	})
}
