package schema

import (
	"fmt"
	"regexp/syntax"
	"strings"
	"unicode"
)

// maxRanges bounds a character class: larger ones are Unicode classes, which the
// grammars of providers write out.
const maxRanges = 32

// portablePattern rewrites a regular expression of RE2 in what all dialects read
// alike: anchored at both ends and only there, plain groups, and classes written
// out. It reports false for what they read differently or not at all.
//
// raw refuses also what has to be escaped in JSON: grammars that put the text of a
// pattern into the JSON as it is would make invalid JSON of it.
func portablePattern(re string, raw bool) (string, bool) {
	tree, err := syntax.Parse(re, syntax.Perl)
	if err != nil {
		return "", false
	}
	subs := []*syntax.Regexp{tree}
	if tree.Op == syntax.OpConcat {
		subs = tree.Sub
	}
	if len(subs) < 2 || subs[0].Op != syntax.OpBeginText || subs[len(subs)-1].Op != syntax.OpEndText {
		return "", false
	}
	w := patternWriter{raw: raw}
	w.WriteByte('^')
	for _, sub := range subs[1 : len(subs)-1] {
		w.write(sub, true)
	}
	w.WriteByte('$')
	if w.failed {
		return "", false
	}
	return w.String(), true
}

type patternWriter struct {
	strings.Builder
	raw    bool
	failed bool
}

// write writes a part. within says that it stands in a sequence, so alternatives
// need a group.
func (w *patternWriter) write(re *syntax.Regexp, within bool) {
	switch re.Op {
	case syntax.OpEmptyMatch:
	case syntax.OpLiteral:
		for _, r := range re.Rune {
			w.literal(r, re.Flags&syntax.FoldCase != 0)
		}
	case syntax.OpCharClass:
		w.class(re.Rune)
	case syntax.OpAnyCharNotNL:
		w.class([]rune{0, '\n' - 1, '\n' + 1, unicode.MaxRune})
	case syntax.OpCapture:
		w.group(re.Sub[0])
	case syntax.OpConcat:
		for _, sub := range re.Sub {
			w.write(sub, true)
		}
	case syntax.OpAlternate:
		if within {
			w.group(re)
			return
		}
		for i, sub := range re.Sub {
			if i > 0 {
				w.WriteByte('|')
			}
			w.write(sub, true)
		}
	case syntax.OpStar:
		w.repeat(re.Sub[0], "*")
	case syntax.OpPlus:
		w.repeat(re.Sub[0], "+")
	case syntax.OpQuest:
		w.repeat(re.Sub[0], "?")
	case syntax.OpRepeat:
		switch {
		case re.Max == re.Min:
			w.repeat(re.Sub[0], fmt.Sprintf("{%d}", re.Min))
		case re.Max < 0:
			w.repeat(re.Sub[0], fmt.Sprintf("{%d,}", re.Min))
		default:
			w.repeat(re.Sub[0], fmt.Sprintf("{%d,%d}", re.Min, re.Max))
		}
	default: // inner anchors, word boundaries, any character, no match
		w.failed = true
	}
}

func (w *patternWriter) group(re *syntax.Regexp) {
	w.WriteByte('(')
	w.write(re, false)
	w.WriteByte(')')
}

func (w *patternWriter) repeat(re *syntax.Regexp, times string) {
	switch {
	case re.Op == syntax.OpCharClass, re.Op == syntax.OpCapture, re.Op == syntax.OpAnyCharNotNL,
		re.Op == syntax.OpLiteral && len(re.Rune) == 1:
		w.write(re, true)
	default:
		w.group(re)
	}
	w.WriteString(times)
}

func (w *patternWriter) literal(r rune, fold bool) {
	if fold && unicode.SimpleFold(r) != r {
		var ranges []rune
		for f := unicode.SimpleFold(r); ; f = unicode.SimpleFold(f) {
			ranges = append(ranges, f, f)
			if f == r {
				break
			}
		}
		w.class(ranges)
		return
	}
	w.check(r, r)
	if strings.ContainsRune(`\.+*?()|[]{}^$`, r) {
		w.WriteByte('\\')
		w.WriteRune(r)
		return
	}
	w.char(r)
}

// check fails on characters that JSON escapes.
func (w *patternWriter) check(from, to rune) {
	if w.raw && (from < ' ' || from <= '"' && to >= '"' || from <= '\\' && to >= '\\') {
		w.failed = true
	}
}

// class writes a character class out of pairs of bounds, as what it excludes if it
// reaches the end of Unicode.
func (w *patternWriter) class(ranges []rune) {
	for i := 0; i < len(ranges); i += 2 {
		w.check(ranges[i], ranges[i+1])
	}
	w.WriteByte('[')
	if len(ranges) > 0 && ranges[0] == 0 && ranges[len(ranges)-1] == unicode.MaxRune {
		w.WriteByte('^')
		var inverse []rune
		for i := 1; i+1 < len(ranges); i += 2 {
			inverse = append(inverse, ranges[i]+1, ranges[i+1]-1)
		}
		ranges = inverse
	}
	if len(ranges) == 0 || len(ranges) > 2*maxRanges {
		w.failed = true
	}
	for i := 0; i+1 < len(ranges); i += 2 {
		w.classChar(ranges[i])
		if ranges[i+1] == ranges[i] {
			continue
		}
		if ranges[i+1] > ranges[i]+1 {
			w.WriteByte('-')
		}
		w.classChar(ranges[i+1])
	}
	w.WriteByte(']')
}

func (w *patternWriter) classChar(r rune) {
	switch r {
	case '\\', ']', '[', '-':
		w.WriteByte('\\')
		w.WriteRune(r)
	case '^':
		w.WriteString(`\x5e`)
	default:
		w.char(r)
	}
}

func (w *patternWriter) char(r rune) {
	switch {
	case r == '\n':
		w.WriteString(`\n`)
	case r == '\r':
		w.WriteString(`\r`)
	case r == '\t':
		w.WriteString(`\t`)
	case r < ' ' || r >= 0x7f && r < 0xa0:
		fmt.Fprintf(w, `\x%02x`, r)
	case r > 0xffff || r >= 0xd800 && r < 0xe000: // two units in engines that count UTF-16
		w.failed = true
	default:
		w.WriteRune(r)
	}
}
