package schema

import (
	"fmt"

	"buf.build/gen/go/bufbuild/protovalidate/protocolbuffers/go/buf/validate"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// wellKnownStrings says how the well-known string rules look: as a format of JSON
// schema, as a pattern, and in words.
var wellKnownStrings = map[protoreflect.Name]struct{ format, pattern, words string }{
	"email":               {"email", "", "an email address"},
	"hostname":            {"hostname", "", "a host name"},
	"ip":                  {"", "", "an IP address"},
	"ipv4":                {"ipv4", "", "an IPv4 address"},
	"ipv6":                {"ipv6", "", "an IPv6 address"},
	"uri":                 {"uri", "", "a URI with a scheme"},
	"uri_ref":             {"", "", "a URI or a relative reference"},
	"address":             {"", "", "a host name or an IP address"},
	"uuid":                {"uuid", "", "a UUID"},
	"tuuid":               {"", `^[0-9a-fA-F]{32}$`, "a UUID without dashes"},
	"ulid":                {"", `^[0-7][0-9A-HJKMNP-TV-Za-hjkmnp-tv-z]{25}$`, "a ULID"},
	"ip_with_prefixlen":   {"", "", "an IP address with a prefix length, such as 10.0.0.1/8"},
	"ipv4_with_prefixlen": {"", "", "an IPv4 address with a prefix length, such as 10.0.0.1/8"},
	"ipv6_with_prefixlen": {"", "", "an IPv6 address with a prefix length, such as fd00::1/8"},
	"ip_prefix":           {"", "", "an IP network, such as 10.0.0.0/8"},
	"ipv4_prefix":         {"", "", "an IPv4 network, such as 10.0.0.0/8"},
	"ipv6_prefix":         {"", "", "an IPv6 network, such as fd00::/8"},
	"host_and_port":       {"", "", "a host and a port, such as example.com:443"},
	"protobuf_fqn":        {"", `^[A-Za-z_][A-Za-z_0-9]*(\.[A-Za-z_][A-Za-z_0-9]*)*$`, "a full Protobuf name"},
	"protobuf_dot_fqn":    {"", `^\.[A-Za-z_][A-Za-z_0-9]*(\.[A-Za-z_][A-Za-z_0-9]*)*$`, "a full Protobuf name with a leading dot"},
	"http_header_name":    {"", "", "the name of an HTTP header"},
	"http_header_value":   {"", "", "the value of an HTTP header"},
}

func (b *builder) stringRules(s *Shape, set ruleSet, r *validate.StringRules) {
	b.only(s, set)
	if _, ok := set.take("pattern"); ok {
		b.pattern(s, r.GetPattern(), "Must match the regular expression `"+r.GetPattern()+"`.")
	}
	b.wellKnown(s, set, r)
	for _, c := range []struct {
		rule  protoreflect.Name
		n     uint64
		key   []string
		words string
	}{
		{"len", r.GetLen(), []string{"minLength", "maxLength"}, "Exactly %s."},
		{"min_len", r.GetMinLen(), []string{"minLength"}, "At least %s."},
		{"max_len", r.GetMaxLen(), []string{"maxLength"}, "At most %s."},
		{"len_bytes", r.GetLenBytes(), nil, "Exactly %s of UTF-8."},
		{"min_bytes", r.GetMinBytes(), nil, "At least %s of UTF-8."},
		{"max_bytes", r.GetMaxBytes(), nil, "At most %s of UTF-8."},
	} {
		if _, ok := set.take(c.rule); !ok {
			continue
		}
		unit := count(c.n, "character", "characters")
		if len(c.key) == 0 {
			unit = count(c.n, "byte", "bytes")
		}
		sentence := fmt.Sprintf(c.words, unit)
		if len(c.key) == 0 {
			s.say(sentence)
		}
		for i, key := range c.key {
			if i == len(c.key)-1 {
				b.length(s, key, c.n, sentence)
			} else {
				b.length(s, key, c.n, "")
			}
		}
	}
}

func (b *builder) wellKnown(s *Shape, set ruleSet, r *validate.StringRules) {
	od := set.m.Descriptor().Oneofs().ByName("well_known")
	which := set.m.WhichOneof(od)
	if which == nil {
		return
	}
	v, _ := set.take(which.Name())
	name := which.Name()
	if name == "well_known_regex" {
		set.take("strict")
		switch r.GetWellKnownRegex() {
		case validate.KnownRegex_KNOWN_REGEX_HTTP_HEADER_NAME:
			name = "http_header_name"
		case validate.KnownRegex_KNOWN_REGEX_HTTP_HEADER_VALUE:
			name = "http_header_value"
		default:
			return
		}
	} else if !v.Bool() {
		return
	}
	k, ok := wellKnownStrings[name]
	sentence := "Must be " + k.words + "."
	switch {
	case !ok:
		s.say(ruleSentence(which, "true"))
	case k.format != "":
		b.format(s, k.format, sentence)
	case k.pattern != "":
		b.pattern(s, k.pattern, sentence)
	default:
		s.say(sentence)
	}
}

func (b *builder) bytesRules(s *Shape, set ruleSet, r *validate.BytesRules) {
	b.only(s, set)
	for _, c := range []struct {
		rule  protoreflect.Name
		n     uint64
		words string
	}{
		{"len", r.GetLen(), "Exactly %s."},
		{"min_len", r.GetMinLen(), "At least %s."},
		{"max_len", r.GetMaxLen(), "At most %s."},
	} {
		if _, ok := set.take(c.rule); ok {
			s.say(fmt.Sprintf(c.words, count(c.n, "byte", "bytes")))
		}
	}
	if _, ok := set.take("pattern"); ok {
		s.say("The bytes must match the regular expression `" + r.GetPattern() + "`.")
	}
	for rule, words := range map[protoreflect.Name]string{
		"ip": "The bytes of an IP address, 4 or 16.", "ipv4": "The 4 bytes of an IPv4 address.",
		"ipv6": "The 16 bytes of an IPv6 address.", "uuid": "The 16 bytes of a UUID.",
	} {
		if v, ok := set.take(rule); ok && v.Bool() { // one at most: a oneof
			s.say(words)
		}
	}
}
