package answer

import (
	"bytes"
	"encoding/json"
	"testing"
	"unicode/utf8"
)

// Text that is one JSON object is read as encoding/json reads it, and what is read
// of other text is within it.
func FuzzTolerantJSON(f *testing.F) {
	for _, text := range []string{
		`{}`, `{"a":[1,2,],}`, `text {"a":"}"} text`, "```\n{\"a\":\"\\\"\"}\n```", `{"a":{"b":[]}}`, `{ "a" : "," , }`, `{x} {"a":1}`, `<think>{</think>{"a":0}`,
	} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		obj, bad := find(text)
		if (obj == nil) == (bad == nil) {
			t.Fatalf("%q: %v and %v", text, obj, bad)
		}
		trimmed := bytes.TrimSpace([]byte(text))
		if !json.Valid(trimmed) || trimmed[0] != '{' || !utf8.ValidString(text) {
			return
		}
		if bad != nil {
			if rule := bad.List[0].Rule; rule != RuleDuplicate && rule != RuleDepth && rule != RuleSize {
				t.Fatalf("%q is JSON: %v", text, bad)
			}
			return
		}
		var want any
		if err := json.Unmarshal(trimmed, &want); err != nil {
			return // a number out of range
		}
		got, err := json.Marshal(toPlain(obj))
		if err != nil {
			t.Fatal(err)
		}
		var again any
		if err := json.Unmarshal(got, &again); err != nil {
			t.Fatal(err)
		}
		a, err := json.Marshal(want)
		if err != nil {
			t.Fatal(err)
		}
		b, err := json.Marshal(again)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(a, b) {
			t.Fatalf("%q was read as %s", text, b)
		}
	})
}

func toPlain(v any) any {
	switch v := v.(type) {
	case object:
		m := map[string]any{}
		for _, e := range v {
			m[e.name] = toPlain(e.value)
		}
		return m
	case []any:
		list := make([]any, len(v))
		for i, e := range v {
			list[i] = toPlain(e)
		}
		return list
	}
	return v
}
