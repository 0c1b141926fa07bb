package cases

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
)

// env is what an expression sees; nil is null.
type env struct{ key, value, aggregate any }

// expression parses a function of a case: terms joined by " + ", each of key,
// value, aggregate (or old), one of these modulo a number, or a 'literal'. One term
// that is a name is the thing itself, everything else is text. Behind " unless " is
// a condition, for which the result is null.
func expression(s string) (func(env) any, error) {
	if s == "aggregate with every occurrence of value removed" {
		return func(e env) any { return strings.ReplaceAll(text(e.aggregate), text(e.value), "") }, nil
	}
	if then, unless, ok := strings.Cut(s, " unless "); ok {
		f, err := expression(then)
		if err != nil {
			return nil, err
		}
		null, err := condition(unless)
		return func(e env) any {
			if null(e) {
				return nil
			}
			return f(e)
		}, err
	}
	var terms []func(env) any
	for t := range strings.SplitSeq(strings.TrimSpace(s), " + ") {
		f, err := term(t)
		if err != nil {
			return nil, err
		}
		terms = append(terms, f)
	}
	if len(terms) == 1 {
		return terms[0], nil
	}
	return func(e env) any {
		var out strings.Builder
		for _, t := range terms {
			out.WriteString(text(t(e)))
		}
		return out.String()
	}, nil
}

func term(s string) (func(env) any, error) {
	if len(s) >= 2 && strings.HasPrefix(s, "'") && strings.HasSuffix(s, "'") {
		literal := s[1 : len(s)-1]
		return func(env) any { return literal }, nil
	}
	if of, mod, ok := strings.Cut(s, " % "); ok {
		f, err := term(of)
		n, bad := strconv.ParseUint(mod, 10, 32)
		if err != nil || bad != nil || n == 0 {
			return nil, Unsupported(fmt.Sprintf("expression %q", s))
		}
		return func(e env) any { return strconv.FormatUint(checksum(text(f(e)))%n, 10) }, nil
	}
	switch s {
	case "key":
		return func(e env) any { return e.key }, nil
	case "value":
		return func(e env) any { return e.value }, nil
	case "aggregate", "old":
		return func(e env) any { return e.aggregate }, nil
	}
	return nil, Unsupported(fmt.Sprintf("expression %q", s))
}

// condition parses the comparison of two expressions: "value % 3 == '1'".
func condition(s string) (func(env) bool, error) {
	left, right, ok := strings.Cut(s, " == ")
	if !ok {
		return nil, Unsupported(fmt.Sprintf("condition %q", s))
	}
	l, err := expression(left)
	if err != nil {
		return nil, err
	}
	r, err := expression(right)
	return func(e env) bool { return text(l(e)) == text(r(e)) }, err
}

func checksum(s string) uint64 {
	sum := uint64(0)
	for _, b := range []byte(s) {
		sum = (sum*31 + uint64(b)) % 1_000_003
	}
	return sum
}

// text is what an expression sees of a value.
func text(v any) string {
	switch v := v.(type) {
	case nil:
		return "null"
	case string:
		return v
	case float64:
		return strconv.FormatFloat(v, 'f', -1, 64)
	}
	data, err := json.Marshal(v)
	if err != nil {
		panic(err) // it came from JSON
	}
	return string(data)
}

// selector parses what chooses the key and value of a group, by name or as
// expressions.
func (st Step) selector() (func(key, value any) (any, any), error) {
	switch st.Select {
	case "":
		return st.mapping()
	case "key<-key (unchanged), value<-value":
		return func(k, v any) (any, any) { return k, v }, nil
	case "key<-value, value<-value":
		return func(_, v any) (any, any) { return v, v }, nil
	case "key<-value, value<-key":
		return func(k, v any) (any, any) { return v, k }, nil
	case "key<-value, value<-value; row key 'null': new key is null; row key 'NULL': the selector returns nothing (both are skipped)":
		return func(k, v any) (any, any) {
			if k == "null" || k == "NULL" {
				return nil, v
			}
			return v, v
		}, nil
	case "key<-first char of row key, value<-second char of row key":
		return func(k, _ any) (any, any) { return text(k)[:1], text(k)[1:2] }, nil
	}
	return nil, Unsupported(fmt.Sprintf("groupBy with %q", st.Select))
}

// mapping parses the expressions of a new key and value; those left out change
// nothing.
func (st Step) mapping() (func(key, value any) (any, any), error) {
	key, err := expression(or(st.Key, "key"))
	if err != nil {
		return nil, err
	}
	value, err := expression(or(st.Value, "value"))
	return func(k, v any) (any, any) {
		e := env{key: k, value: v}
		return key(e), value(e)
	}, err
}

func or(s, other string) string {
	if s == "" {
		return other
	}
	return s
}
