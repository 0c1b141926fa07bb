package prompt

import (
	"bytes"
	"encoding/json"
	"fmt"
	"regexp"
	"strings"
	"unicode"
	"unicode/utf8"

	"google.golang.org/protobuf/encoding/protojson"
)

var protoJSON = protojson.MarshalOptions{}

// compact takes out the white space that protojson varies from build to build.
func compact(raw []byte) (string, error) {
	var b bytes.Buffer
	if err := json.Compact(&b, raw); err != nil {
		return "", err
	}
	return b.String(), nil
}

// Clean returns text without what a reader does not see and a model may obey:
// format and control characters (but for tab and line ends), tags, variation
// selectors, fillers. What is not UTF-8 becomes U+FFFD.
func Clean(text string) string {
	return strings.Map(func(r rune) rune {
		if invisible(r) {
			return -1
		}
		return r
	}, strings.ToValidUTF8(text, "\uFFFD"))
}

func invisible(r rune) bool {
	switch {
	case r == '\t' || r == '\n' || r == '\r':
		return false
	case r < 0x7F:
		return r < 0x20
	case unicode.Is(unicode.Cc, r), unicode.Is(unicode.Cf, r), unicode.Is(unicode.Variation_Selector, r),
		unicode.Is(unicode.Other_Default_Ignorable_Code_Point, r), unicode.Is(unicode.Co, r):
		return true
	}
	return r >= 0xE0000 && r <= 0xE0FFF // tags and the rest of their plane's ignorables
}

// marks finds what could be taken for a delimiter.
var marks = regexp.MustCompile(`(?i)<(\s*/?\s*data)`)

// Delimit returns text as data: cleaned, cut at most bytes, and between <data> and
// </data>, of which the text itself has none.
func Delimit(text string, most int) string {
	text = Clean(text)
	if n := len(text); n > most {
		cut := most
		for cut > 0 && !utf8.RuneStart(text[cut]) {
			cut--
		}
		text = fmt.Sprintf("%s… [cut, %d bytes in all]", text[:cut], n)
	}
	return "<data>" + marks.ReplaceAllString(text, "&lt;$1") + "</data>"
}
