package schema

import (
	"regexp"
	"testing"
)

func TestPortablePattern(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ re, want, raw string }{ // empty: in words only
		{`^abc$`, `^abc$`, `^abc$`},
		{`\Aa\z`, `^a$`, `^a$`},
		{`^\d{3}-\w+$`, `^[0-9]{3}-[0-9A-Z_a-z]+$`, `^[0-9]{3}-[0-9A-Z_a-z]+$`},
		{`^(?:a|bc)*$`, `^(a|bc)*$`, `^(a|bc)*$`},
		{`^(?P<x>a+?)$`, `^(a+)$`, `^(a+)$`},
		{`^(?i)ab$`, `^[aA][bB]$`, `^[aA][bB]$`},
		{`^[^,]+$`, `^[^,]+$`, ``},
		{`^.*$`, `^[^\n]*$`, ``},
		{`^"x"$`, `^"x"$`, ``},
		{`^\\$`, `^\\$`, ``},
		{`^\$\.$`, `^\$\.$`, `^\$\.$`},
		{`^[\]\[^-]$`, `^[\-\[\]\x5e]$`, `^[\-\[\]\x5e]$`},
		{`^\x{e9}$`, `^é$`, `^é$`},
		{`^[a-c]{2,}$`, `^[a-c]{2,}$`, `^[a-c]{2,}$`},
		{`^[a-c]{2,5}$`, `^[a-c]{2,5}$`, `^[a-c]{2,5}$`},
		{`^(ab){2}$`, `^(ab){2}$`, `^(ab){2}$`},
		{`^a(|b)$`, `^a(|b)$`, `^a(|b)$`},
		{`^\t$`, `^\t$`, ``},
		{`abc`, ``, ``},
		{`^abc`, ``, ``},
		{`^a$|^b$`, ``, ``},
		{`(^a$)`, ``, ``},
		{`^a\b$`, ``, ``},
		{`(?m)^a$`, ``, ``},
		{`^(?s).$`, ``, ``},
		{`^\p{L}$`, ``, ``},
		{`^𝄞$`, ``, ``},
		{`^(`, ``, ``},
	} {
		if got, _ := portablePattern(c.re, false); got != c.want {
			t.Errorf("%s became %q, want %q", c.re, got, c.want)
		}
		if got, _ := portablePattern(c.re, true); got != c.raw {
			t.Errorf("%s became %q raw, want %q", c.re, got, c.raw)
		}
	}
}

// What is rewritten matches the same strings.
func FuzzPortablePattern(f *testing.F) {
	f.Add(`^[a-z]+$`, "abc")
	f.Add(`^(?i)(k|\d{2,3})*[^x]$`, "K12k")
	f.Add(`^a(|b)[\]-]?$`, "a]")
	f.Fuzz(func(t *testing.T, re, text string) {
		want, err := regexp.Compile(re)
		if err != nil {
			return
		}
		for _, raw := range []bool{false, true} {
			portable, ok := portablePattern(re, raw)
			if !ok {
				continue
			}
			got, err := regexp.Compile(portable)
			if err != nil {
				t.Fatalf("%q became %q: %v", re, portable, err)
			}
			if got.MatchString(text) != want.MatchString(text) {
				t.Fatalf("%q became %q, and they disagree on %q", re, portable, text)
			}
		}
	})
}
