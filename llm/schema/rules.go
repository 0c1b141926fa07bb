package schema

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"math"
	"math/big"
	"slices"
	"strconv"
	"strings"
	"time"

	"buf.build/gen/go/bufbuild/protovalidate/protocolbuffers/go/buf/validate"
	"buf.build/go/protovalidate"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/fieldmaskpb"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// keyword makes a rule a keyword if the dialect knows it, and says it otherwise, or
// if the dialect may not enforce it.
func (b *builder) keyword(s *Shape, name string, value any, sentence string) {
	known := !b.wordsOnly && slices.Contains(b.keywords, s.typ+"."+name)
	if known {
		s.set(name, value)
	}
	if !known || b.unsure {
		s.say(sentence)
	}
}

func (b *builder) bound(s *Shape, name, number, sentence string) {
	b.keyword(s, name, json.Number(number), sentence)
}

// format sets a format, or says it.
func (b *builder) format(s *Shape, name, sentence string) {
	if b.wordsOnly || !slices.Contains(b.formats, name) || s.has("pattern") {
		s.say(sentence)
		return
	}
	s.set("format", name)
	if b.unsure {
		s.say(sentence)
	}
}

// pattern sets a regular expression in RE2's syntax, or says the sentence.
func (b *builder) pattern(s *Shape, re, sentence string) {
	portable, ok := portablePattern(re, b.rawPatterns)
	if !ok || s.has("pattern") || s.has("format") {
		s.say(sentence)
		return
	}
	b.keyword(s, "pattern", portable, sentence)
}

// length bounds a string, in characters.
func (b *builder) length(s *Shape, name string, n uint64, sentence string) {
	if b.rawPatterns && (s.has("pattern") || s.has("format")) {
		s.say(sentence)
		return
	}
	b.keyword(s, name, n, sentence)
}

func (b *builder) minItems(s *Shape, n uint64, sentence string) {
	if most := b.maxMinItems; most > 0 && n > most {
		b.keyword(s, "minItems", most, sentence)
		s.say(sentence)
		return
	}
	b.keyword(s, "minItems", n, sentence)
}

// notZero applies required to a field without presence.
func (b *builder) notZero(s *Shape) {
	switch {
	case s.Kind == List || s.Kind == Pairs:
		if !s.has("minItems") {
			b.minItems(s, 1, "Must not be empty.")
		}
	case s.Kind == Map:
		s.say("Must not be empty.")
	case s.Field.Kind() == protoreflect.BoolKind:
		if b.noBoolEnum {
			s.say("Must be true.")
		} else {
			s.enum = []any{true}
		}
	case s.Field.Kind() == protoreflect.EnumKind:
		b.enumOnly(s, func(n protoreflect.EnumNumber) bool { return n != 0 }, string(s.Field.FullName()))
	case s.Field.Kind() == protoreflect.StringKind:
		if !s.has("minLength") {
			b.length(s, "minLength", 1, "Must not be empty.")
		}
	case s.Field.Kind() == protoreflect.BytesKind:
		s.say("Must not be empty.")
	default:
		s.say("Must not be 0.")
	}
}

func (b *builder) enumOnly(s *Shape, keep func(protoreflect.EnumNumber) bool, path string) {
	var names []string
	for _, name := range s.Names {
		number := s.Field.Enum().Values().ByName(protoreflect.Name(name)).Number()
		if keep(number) || b.wordsOnly && number == 0 {
			names = append(names, name)
		}
	}
	if len(names) == 0 {
		b.problem(path, "its rules leave no value of the enum: loosen them")
	}
	s.setNames(names)
}

// expressions says the CEL rules.
func (b *builder) expressions(s *Shape, plain []string, rules []*validate.Rule) {
	for _, e := range plain {
		s.say("Must satisfy the expression " + e + ".")
	}
	for _, r := range rules {
		if r.GetMessage() != "" {
			s.say("Rule: " + strings.TrimSuffix(r.GetMessage(), ".") + ".")
		} else {
			s.say("Must satisfy the expression " + r.GetExpression() + ".")
		}
	}
}

// rules applies the rules of a field, an element, a map key or a map value.
func (b *builder) rules(s *Shape, fd protoreflect.FieldDescriptor, r *validate.FieldRules, path string) {
	if r == nil {
		return
	}
	b.expressions(s, r.GetCelExpression(), r.GetCel())
	m := r.ProtoReflect()
	which := m.WhichOneof(m.Descriptor().Oneofs().ByName("type"))
	if which == nil {
		return
	}
	set := ruleSet{m.Get(which).Message(), map[protoreflect.Name]bool{}}
	switch which.Name() {
	case "string":
		b.stringRules(s, set, r.GetString())
	case "bytes":
		b.bytesRules(s, set, r.GetBytes())
	case "bool":
		b.only(s, set)
	case "enum":
		b.enumRules(s, set, r.GetEnum(), path)
	case "repeated":
		b.repeatedRules(s, set, r.GetRepeated(), path)
	case "map":
		b.mapRules(s, set, r.GetMap(), path)
	case "duration":
		b.only(s, set)
		b.bounds(s, set)
	case "timestamp", "field_mask", "any":
		b.bounds(s, set)
	default:
		b.numberRules(s, set)
	}
	b.rest(s, set)
}

// ruleSet is a message of rules, with those that are done.
type ruleSet struct {
	m    protoreflect.Message
	done map[protoreflect.Name]bool
}

// take returns a rule if it is set, and marks it as done.
func (r ruleSet) take(name protoreflect.Name) (protoreflect.Value, bool) {
	fd := r.m.Descriptor().Fields().ByName(name)
	if fd == nil || !r.m.Has(fd) {
		return protoreflect.Value{}, false
	}
	r.done[name] = true
	return r.m.Get(fd), true
}

// text returns a rule's value as an answer would have it.
func (r ruleSet) text(name protoreflect.Name) (string, bool) {
	v, ok := r.take(name)
	if !ok {
		return "", false
	}
	return plain(r.m.Descriptor().Fields().ByName(name), v), true
}

// only applies const and in.
func (b *builder) only(s *Shape, set ruleSet) {
	for _, name := range []protoreflect.Name{"in", "const"} {
		v, ok := set.take(name)
		if !ok {
			continue
		}
		fd := set.m.Descriptor().Fields().ByName(name)
		if b.wordsOnly || b.noBoolEnum && s.typ == "boolean" {
			s.say(ruleSentence(fd, plain(fd, v)))
			continue
		}
		for _, implied := range []string{"pattern", "format", "minimum"} {
			s.unset(implied)
		}
		s.enum = nil
		if !fd.IsList() {
			s.enum = []any{jsonValue(fd, v)}
			continue
		}
		for i := range v.List().Len() {
			s.enum = append(s.enum, jsonValue(fd, v.List().Get(i)))
		}
	}
}

func (b *builder) numberRules(s *Shape, set ruleSet) {
	b.only(s, set)
	set.take("finite") // JSON has no other numbers
	b.bounds(s, set)
}

// bounds applies lt, lte, gt and gte.
func (b *builder) bounds(s *Shape, set ruleSet) {
	upper, upperWord, upperKey := "", "", ""
	if v, ok := set.text("lt"); ok {
		upper, upperWord, upperKey = v, "less than ", "exclusiveMaximum"
	} else if v, ok := set.text("lte"); ok {
		upper, upperWord, upperKey = v, "at most ", "maximum"
	}
	lower, lowerWord, lowerKey := "", "", ""
	if v, ok := set.text("gt"); ok {
		lower, lowerWord, lowerKey = v, "greater than ", "exclusiveMinimum"
	} else if v, ok := set.text("gte"); ok {
		lower, lowerWord, lowerKey = v, "at least ", "minimum"
	}
	if upper != "" && lower != "" && set.crossed() {
		s.say("Must be " + lowerWord + lower + " or " + upperWord + upper + ".")
		return
	}
	for _, side := range []struct{ key, word, value string }{{lowerKey, lowerWord, lower}, {upperKey, upperWord, upper}} {
		if side.value == "" {
			continue
		}
		sentence := "Must be " + side.word + side.value + "."
		if s.typ != "integer" && s.typ != "number" || math.IsInf(number(side.value), 0) || math.IsNaN(number(side.value)) {
			s.say(sentence)
			continue
		}
		if strings.HasSuffix(side.key, "inimum") {
			s.unset("minimum") // that of unsigned numbers
		}
		b.bound(s, side.key, side.value, sentence)
	}
}

func number(text string) float64 {
	f, err := strconv.ParseFloat(text, 64)
	if err != nil {
		return math.NaN()
	}
	return f
}

// crossed says that the upper bound lies below the lower one: the values between
// them are the ones forbidden.
func (r ruleSet) crossed() bool {
	var upper, lower *big.Rat
	for _, side := range []struct {
		names []protoreflect.Name
		to    **big.Rat
	}{{[]protoreflect.Name{"lt", "lte"}, &upper}, {[]protoreflect.Name{"gt", "gte"}, &lower}} {
		for _, name := range side.names {
			if fd := r.m.Descriptor().Fields().ByName(name); fd != nil && r.m.Has(fd) {
				*side.to = rational(fd, r.m.Get(fd))
			}
		}
	}
	return upper != nil && lower != nil && upper.Cmp(lower) < 0
}

// rational returns a bound as a number; nil for infinities.
func rational(fd protoreflect.FieldDescriptor, v protoreflect.Value) *big.Rat {
	if fd.Message() != nil {
		fields := fd.Message().Fields()
		seconds, nanos := v.Message().Get(fields.ByName("seconds")).Int(), v.Message().Get(fields.ByName("nanos")).Int()
		r := new(big.Rat).SetInt64(seconds)
		return r.Add(r, big.NewRat(nanos, int64(time.Second)))
	}
	r, ok := new(big.Rat).SetString(plain(fd, v))
	if !ok {
		return nil
	}
	return r
}

func (b *builder) enumRules(s *Shape, set ruleSet, r *validate.EnumRules, path string) {
	set.take("defined_only") // always, since an answer has to name the value
	if _, ok := set.take("const"); ok {
		b.enumOnly(s, func(n protoreflect.EnumNumber) bool { return int32(n) == r.GetConst() }, path)
	}
	if _, ok := set.take("in"); ok {
		b.enumOnly(s, func(n protoreflect.EnumNumber) bool { return slices.Contains(r.GetIn(), int32(n)) }, path)
	}
	if _, ok := set.take("not_in"); ok {
		b.enumOnly(s, func(n protoreflect.EnumNumber) bool { return !slices.Contains(r.GetNotIn(), int32(n)) }, path)
	}
}

func (b *builder) repeatedRules(s *Shape, set ruleSet, r *validate.RepeatedRules, path string) {
	if _, ok := set.take("min_items"); ok && r.GetMinItems() > 0 {
		b.minItems(s, r.GetMinItems(), "At least "+count(r.GetMinItems(), "item", "items")+".")
	}
	if _, ok := set.take("max_items"); ok {
		b.keyword(s, "maxItems", r.GetMaxItems(), "At most "+count(r.GetMaxItems(), "item", "items")+".")
	}
	if _, ok := set.take("unique"); ok && r.GetUnique() {
		s.say("All items must be different.")
	}
	if _, ok := set.take("items"); ok {
		b.element(s.Elem, s.Field, r.GetItems(), path+"[]")
	}
}

func (b *builder) mapRules(s *Shape, set ruleSet, r *validate.MapRules, path string) {
	if _, ok := set.take("min_pairs"); ok && r.GetMinPairs() > 0 {
		sentence := "At least " + count(r.GetMinPairs(), "entry", "entries") + "."
		if s.Kind == Pairs {
			b.minItems(s, r.GetMinPairs(), sentence)
		} else {
			s.say(sentence)
		}
	}
	if _, ok := set.take("max_pairs"); ok {
		sentence := "At most " + count(r.GetMaxPairs(), "entry", "entries") + "."
		if s.Kind == Pairs {
			b.keyword(s, "maxItems", r.GetMaxPairs(), sentence)
		} else {
			s.say(sentence)
		}
	}
	if _, ok := set.take("keys"); ok {
		if s.Kind == Map { // the schema has no place for its keys but the description
			outer := b.wordsOnly
			b.wordsOnly = true
			b.element(s.Key, s.Field.MapKey(), r.GetKeys(), path+".key")
			b.wordsOnly = outer
		} else {
			b.element(s.Key, s.Field.MapKey(), r.GetKeys(), path+".key")
		}
	}
	if _, ok := set.take("values"); ok {
		b.element(s.Elem, s.Field.MapValue(), r.GetValues(), path+".value")
	}
	if s.Kind == Map && len(s.Key.words) > 0 {
		s.say("Keys: " + strings.Join(s.Key.words, " "))
	}
}

// element applies the rules of an item, a key or a value.
func (b *builder) element(s *Shape, fd protoreflect.FieldDescriptor, r *validate.FieldRules, path string) {
	switch r.GetIgnore() {
	case validate.Ignore_IGNORE_ALWAYS:
		return
	case validate.Ignore_IGNORE_IF_ZERO_VALUE:
		outer := b.wordsOnly
		b.wordsOnly = true
		b.rules(s, fd, r, path)
		b.wordsOnly = outer
		s.say("Or empty.")
		return
	}
	b.rules(s, fd, r, path)
}

// rest says the rules that nothing else took, predefined ones among them.
func (b *builder) rest(s *Shape, set ruleSet) {
	var left []protoreflect.FieldDescriptor
	set.m.Range(func(fd protoreflect.FieldDescriptor, _ protoreflect.Value) bool {
		if fd.IsExtension() || !set.done[fd.Name()] {
			left = append(left, fd)
		}
		return true
	})
	slices.SortFunc(left, func(a, b protoreflect.FieldDescriptor) int { return int(a.Number() - b.Number()) })
	for _, fd := range left {
		v := set.m.Get(fd)
		if fd.IsExtension() {
			if p, err := protovalidate.ResolvePredefinedRules(fd); err == nil && len(p.GetCel()) > 0 {
				for _, r := range p.GetCel() {
					s.say("Rule " + string(fd.Name()) + " (" + plain(fd, v) + "): " + strings.TrimSuffix(r.GetMessage(), ".") + ".")
				}
				continue
			}
		}
		s.say(ruleSentence(fd, plain(fd, v)))
	}
}

func count(n uint64, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return strconv.FormatUint(n, 10) + " " + many
}

// ruleSentence says a rule. Strings are quoted; bytes are those of the base64.
func ruleSentence(fd protoreflect.FieldDescriptor, value string) string {
	switch fd.Name() {
	case "const":
		return "Must be " + value + "."
	case "in":
		return "Must be one of " + value + "."
	case "not_in":
		return "Must not be one of " + value + "."
	case "example":
		return "For example " + value + "."
	case "prefix":
		return "Must begin with " + value + "."
	case "suffix":
		return "Must end with " + value + "."
	case "contains":
		return "Must contain " + value + "."
	case "not_contains":
		return "Must not contain " + value + "."
	case "lt_now":
		return "Must lie in the past."
	case "gt_now":
		return "Must lie in the future."
	case "within":
		return "Must lie within " + value + " of now."
	}
	return fmt.Sprintf("Must satisfy the rule %s (%s).", strings.ReplaceAll(string(fd.Name()), "_", " "), value)
}

// jsonValue returns a rule's value as it is in an answer.
func jsonValue(fd protoreflect.FieldDescriptor, v protoreflect.Value) any {
	switch fd.Kind() {
	case protoreflect.BoolKind:
		return v.Bool()
	case protoreflect.Int32Kind, protoreflect.Sint32Kind, protoreflect.Sfixed32Kind,
		protoreflect.Uint32Kind, protoreflect.Fixed32Kind, protoreflect.FloatKind, protoreflect.DoubleKind:
		return json.Number(single(fd, v))
	}
	return single(fd, v)
}

// plain returns a rule's value in words, a list with commas.
func plain(fd protoreflect.FieldDescriptor, v protoreflect.Value) string {
	values := []protoreflect.Value{v}
	if fd.IsList() {
		values = nil
		for i := range v.List().Len() {
			values = append(values, v.List().Get(i))
		}
	}
	var texts []string
	for _, v := range values {
		switch fd.Kind() {
		case protoreflect.StringKind:
			texts = append(texts, strconv.Quote(v.String()))
		case protoreflect.BytesKind:
			texts = append(texts, "the bytes of "+single(fd, v))
		default:
			texts = append(texts, single(fd, v))
		}
	}
	return strings.Join(texts, ", ")
}

func single(fd protoreflect.FieldDescriptor, v protoreflect.Value) string {
	switch fd.Kind() {
	case protoreflect.FloatKind:
		return strconv.FormatFloat(v.Float(), 'g', -1, 32)
	case protoreflect.DoubleKind:
		return strconv.FormatFloat(v.Float(), 'g', -1, 64)
	case protoreflect.BytesKind:
		return base64.StdEncoding.EncodeToString(v.Bytes())
	case protoreflect.MessageKind:
		switch m := v.Message().Interface().(type) {
		case *timestamppb.Timestamp:
			return m.AsTime().Format(time.RFC3339Nano)
		case *durationpb.Duration:
			return seconds(m)
		case *fieldmaskpb.FieldMask:
			return strings.Join(m.GetPaths(), ",")
		}
	}
	return v.String()
}

// seconds formats a duration as Protobuf's JSON does: with 0, 3, 6 or 9 digits.
func seconds(d *durationpb.Duration) string {
	sign := ""
	s, n := d.GetSeconds(), d.GetNanos()
	if s < 0 || n < 0 {
		sign, s, n = "-", -s, -n
	}
	text := fmt.Sprintf("%s%d.%09d", sign, s, n)
	for range 3 {
		text = strings.TrimSuffix(text, "000")
	}
	return strings.TrimSuffix(text, ".") + "s"
}
