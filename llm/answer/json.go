package answer

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"strconv"
	"strings"
	"unicode/utf8"
)

// Bounds of an answer.
const (
	// MaxBytes is the longest text that is looked at, 1 MiB: twice what a model writes
	// with 128,000 tokens.
	MaxBytes = 1 << 20
	// MaxDepth is how deep objects and arrays may lie in each other.
	MaxDepth = 100
)

// maxCandidates bounds the pairs of braces that are passed over before an answer.
const maxCandidates = 32

// object is a JSON object with its members in order; an array is []any, a number
// json.Number, and null nil.
type object []member

type member struct {
	name  string
	value any
}

// find returns the one JSON object in a text: the whole, or within a code fence, or
// with other text around it. Trailing commas are left out. Two objects are refused,
// since nobody can say which one was meant.
func find(text string) (object, *Violations) {
	switch {
	case len(text) > MaxBytes:
		return nil, violation("", RuleSize, "the answer has %d bytes, %d are allowed", len(text), MaxBytes)
	case !utf8.ValidString(text):
		return nil, violation("", RuleSyntax, "the answer is not valid UTF-8")
	}
	text = withoutThoughts(text)
	for range maxCandidates {
		open := strings.IndexByte(text, '{')
		if open < 0 {
			break
		}
		text = text[open:]
		end := balanced(text)
		if end < 0 {
			return nil, violation("", RuleSyntax, "the JSON object does not end: the answer is cut off, or a bracket or quote is missing")
		}
		// An object within one that is malformed is not the answer.
		if !looksLikeObject(text) {
			text = text[end:]
			continue
		}
		if anyObject(text[end:]) {
			return nil, violation("", RuleAmbiguous, "there is more than one JSON object in the answer")
		}
		return decode(text[:end])
	}
	return nil, violation("", RuleNone, "there is no JSON object in the answer")
}

// looksLikeObject tells the beginning of an object from other uses of braces.
func looksLikeObject(text string) bool {
	rest := strings.TrimLeft(text[1:], " \t\r\n")
	return rest != "" && (rest[0] == '"' || rest[0] == '}')
}

// anyObject reports whether a JSON object begins in a text.
func anyObject(text string) bool {
	for {
		open := strings.IndexByte(text, '{')
		if open < 0 {
			return false
		}
		text = text[open:]
		if looksLikeObject(text) {
			return true
		}
		text = text[1:]
	}
}

// withoutThoughts drops the thoughts that some local models write before the answer.
func withoutThoughts(text string) string {
	if rest, ok := strings.CutPrefix(strings.TrimSpace(text), "<think>"); ok {
		if _, after, ok := strings.Cut(rest, "</think>"); ok {
			return after
		}
	}
	return text
}

// balanced returns the length of the object that text begins with, -1 if it does
// not end.
func balanced(text string) int {
	depth := 0
	for i := 0; i < len(text); i++ {
		switch text[i] {
		case '{', '[':
			depth++
		case '}', ']':
			depth--
			if depth == 0 {
				return i + 1
			}
		case '"':
			i = stringEnd(text, i)
		}
	}
	return -1
}

// stringEnd returns where the string that begins at i ends: at its closing quote,
// or at the end of the text.
func stringEnd(text string, i int) int {
	for i++; i < len(text); i++ {
		switch text[i] {
		case '\\':
			i++
		case '"':
			return i
		}
	}
	return len(text)
}

// withoutTrailingCommas drops each comma that only white space separates from the
// end of its object or array.
func withoutTrailingCommas(text string) []byte {
	out := make([]byte, 0, len(text))
	for i := 0; i < len(text); i++ {
		switch c := text[i]; c {
		case '"':
			end := min(stringEnd(text, i), len(text)-1)
			out = append(out, text[i:end+1]...)
			i = end
		case '}', ']':
			trimmed := bytes.TrimRight(out, " \t\r\n")
			// Not one that follows nothing: [,] stays malformed.
			if n := len(trimmed); n > 1 && trimmed[n-1] == ',' {
				before := bytes.TrimRight(trimmed[:n-1], " \t\r\n")
				if last := before[max(0, len(before)-1):]; len(last) == 1 && last[0] != ',' && last[0] != '[' && last[0] != '{' {
					out = trimmed[:n-1]
				}
			}
			out = append(out, c)
		default:
			out = append(out, c)
		}
	}
	return out
}

// decode reads one JSON object.
func decode(text string) (object, *Violations) {
	dec := json.NewDecoder(bytes.NewReader(withoutTrailingCommas(text)))
	dec.UseNumber()
	d := decoder{dec: dec}
	v, err := d.value()
	if err == nil {
		if _, err = dec.Token(); errors.Is(err, io.EOF) {
			err = nil
		} else if err == nil {
			err = errors.New("text after the end")
		}
	}
	if d.bad != nil {
		return nil, d.bad
	}
	if err != nil {
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			err = errors.New("unexpected end")
		}
		return nil, violation("", RuleSyntax, "not valid JSON: %v", err)
	}
	obj, ok := v.(object)
	if !ok {
		return nil, violation("", RuleNone, "the answer is not a JSON object")
	}
	return obj, nil
}

// decoder reads JSON into objects that keep the order of their members. Syntax
// errors are errors; what is JSON and refused is bad.
type decoder struct {
	dec  *json.Decoder
	path []string // of names and indexes
	bad  *Violations
}

func (d *decoder) value() (any, error) {
	tok, err := d.dec.Token()
	if err != nil {
		return nil, err
	}
	delim, ok := tok.(json.Delim)
	if !ok {
		return tok, nil
	}
	if len(d.path) == MaxDepth {
		d.bad = violation("", RuleDepth, "objects and arrays are nested deeper than %d", MaxDepth)
		return nil, errors.New("too deep")
	}
	if delim == '[' {
		list := []any{}
		for d.dec.More() {
			d.path = append(d.path, "["+strconv.Itoa(len(list))+"]")
			v, err := d.value()
			if err != nil {
				return nil, err
			}
			d.path = d.path[:len(d.path)-1]
			list = append(list, v)
		}
		_, err = d.dec.Token()
		return list, err
	}
	obj := object{}
	names := map[string]bool{}
	for d.dec.More() {
		tok, err := d.dec.Token()
		if err != nil {
			return nil, err
		}
		name, ok := tok.(string)
		if !ok {
			return nil, errors.New("a name is not a string")
		}
		d.path = append(d.path, name)
		if names[name] && d.bad == nil {
			d.bad = violation(d.at(), RuleDuplicate, "is there twice")
		}
		names[name] = true
		v, err := d.value()
		if err != nil {
			return nil, err
		}
		d.path = d.path[:len(d.path)-1]
		obj = append(obj, member{name, v})
	}
	_, err = d.dec.Token()
	return obj, err
}

// at returns the path of the value being read.
func (d *decoder) at() string {
	path := ""
	for _, part := range d.path {
		if strings.HasPrefix(part, "[") {
			path += part
		} else {
			path = join(path, part)
		}
	}
	return path
}

// join appends a name of the answer to a path.
func join(path, name string) string {
	name = cut(oneLine(name), maxQuote)
	if path == "" {
		return name
	}
	return path + "." + name
}
