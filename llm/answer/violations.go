package answer

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"buf.build/gen/go/bufbuild/protovalidate/protocolbuffers/go/buf/validate"
	"buf.build/go/protovalidate"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// The ids of what is wrong with an answer before the rules of its message apply.
const (
	RuleSize      = "json.size"          // longer than MaxBytes
	RuleNone      = "json.none"          // no JSON object in the text
	RuleSyntax    = "json.syntax"        // malformed, cut off, not UTF-8
	RuleAmbiguous = "json.ambiguous"     // more than one object
	RuleDepth     = "json.depth"         // nested deeper than MaxDepth
	RuleDuplicate = "json.duplicate"     // a name twice in an object, a key twice in a map
	RuleUnknown   = "json.unknown_field" // a name that the schema does not have
	RuleMissing   = "json.missing"       // a required property is left out or null
	RuleType      = "json.type"          // a value that its field cannot hold
	RuleEnum      = "json.enum"          // not a name of the enum
	RuleOneof     = "json.oneof"         // two members of a oneof
	RuleRuntime   = "rule.runtime"       // an expression of a rule failed on the answer
	RuleCheck     = "check"              // the user's check
)

// A Violation is one thing that is wrong with an answer.
type Violation struct {
	// Path leads to it, with the names of JSON: items[2].price; empty for the whole.
	Path string `json:"path,omitempty"`
	// Rule is the id of the rule: of protovalidate, as string.min_len, or one of the
	// constants here.
	Rule string `json:"rule"`
	// Message says what is wrong. It may quote the answer.
	Message string `json:"message"`
}

// String returns path, message and rule.
func (v Violation) String() string {
	path := v.Path
	if path != "" {
		path += ": "
	}
	return path + v.Message + " [" + v.Rule + "]"
}

// Violations is the error of an answer that does not follow its contract: all that
// is wrong with it, at least one.
type Violations struct {
	List []Violation `json:"violations"`
}

// Error lists the violations. It may quote the answer.
func (v *Violations) Error() string {
	texts := make([]string, len(v.List))
	for i, one := range v.List {
		texts[i] = one.String()
	}
	return "the answer violates its contract: " + strings.Join(texts, "; ")
}

// Bounds of what Prompt writes.
const (
	promptViolations = 20
	promptMessage    = 300 // bytes of one violation
)

// Prompt returns the request to answer again, to be sent after the bad answer. It
// holds at most 20 violations, each cut at 300 bytes.
func (v *Violations) Prompt() string {
	var b strings.Builder
	b.WriteString("Your answer does not follow the required format:\n")
	for i, one := range v.List {
		if i == promptViolations {
			fmt.Fprintf(&b, "- and %d more\n", len(v.List)-i)
			break
		}
		b.WriteString("- " + cut(oneLine(one.String()), promptMessage) + "\n")
	}
	b.WriteString("Answer again: one complete JSON object that follows the schema, and nothing else.")
	return b.String()
}

func oneLine(text string) string { return strings.Join(strings.Fields(text), " ") }

// cut returns at most n bytes of text, whole characters, marked if cut.
func cut(text string, n int) string {
	if len(text) <= n {
		return text
	}
	n -= len("…")
	for n > 0 && text[n]&0xC0 == 0x80 {
		n--
	}
	return text[:n] + "…"
}

func violation(path, rule, format string, args ...any) *Violations {
	return &Violations{List: []Violation{{path, rule, fmt.Sprintf(format, args...)}}}
}

// ofRules turns an error of protovalidate into violations.
func ofRules(err error, md protoreflect.MessageDescriptor) *Violations {
	invalid, ok := errors.AsType[*protovalidate.ValidationError](err)
	if !ok {
		return violation("", RuleRuntime, "a rule could not be evaluated: %v", err)
	}
	v := &Violations{}
	for _, one := range invalid.Violations {
		path := fieldPath(md, one.Proto.GetField())
		if one.Proto.GetForKey() {
			path += " (key)"
		}
		message := one.Proto.GetMessage()
		if message == "" {
			message = "does not satisfy the rule"
		}
		v.List = append(v.List, Violation{path, one.Proto.GetRuleId(), message})
	}
	if len(v.List) == 0 {
		return violation("", RuleRuntime, "the rules refused it without a reason")
	}
	// Maps are checked in random order; what is sent and stored should not be.
	slices.SortStableFunc(v.List, func(a, b Violation) int {
		return cmp.Or(strings.Compare(a.Path, b.Path), strings.Compare(a.Rule, b.Rule))
	})
	return v
}

// fieldPath writes a path with the names of JSON.
func fieldPath(md protoreflect.MessageDescriptor, p *validate.FieldPath) string {
	var b strings.Builder
	for _, e := range p.GetElements() {
		name := e.GetFieldName()
		var fd protoreflect.FieldDescriptor
		if md != nil {
			if fd = md.Fields().ByName(protoreflect.Name(name)); fd != nil {
				name = fd.JSONName()
			}
		}
		if b.Len() > 0 {
			b.WriteByte('.')
		}
		b.WriteString(name)
		switch e.WhichSubscript() {
		case validate.FieldPathElement_Index_case:
			fmt.Fprintf(&b, "[%d]", e.GetIndex())
		case validate.FieldPathElement_BoolKey_case:
			fmt.Fprintf(&b, "[%t]", e.GetBoolKey())
		case validate.FieldPathElement_IntKey_case:
			fmt.Fprintf(&b, "[%d]", e.GetIntKey())
		case validate.FieldPathElement_UintKey_case:
			fmt.Fprintf(&b, "[%d]", e.GetUintKey())
		case validate.FieldPathElement_StringKey_case:
			b.WriteString("[" + strconv.Quote(e.GetStringKey()) + "]")
		}
		md = nil
		switch {
		case fd == nil:
		case fd.IsMap():
			md = fd.MapValue().Message()
		default:
			md = fd.Message()
		}
	}
	return b.String()
}
