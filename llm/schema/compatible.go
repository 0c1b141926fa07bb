package schema

import (
	"fmt"
	"strings"

	"google.golang.org/protobuf/reflect/protoreflect"
)

// Incompatible says how a message changed so that records of both versions cannot
// lie in one topic.
type Incompatible struct {
	Message protoreflect.FullName
	Changes []string
}

// Error lists all changes and what to do.
func (e *Incompatible) Error() string {
	return fmt.Sprintf("message %s changed so that readers of the old version misread the new one, or the other way round:\n- %s\n"+
		"undo the changes (add new fields instead; reserve the number and name of what you delete), or write to a new topic",
		e.Message, strings.Join(e.Changes, "\n- "))
}

// Compatible reports whether records and JSON of two versions of a message can be
// read by programs with either version. The error is an *[Incompatible] that lists
// what breaks that. The rules are buf's category WIRE_JSON: a field keeps its
// number, name, JSON name, type, cardinality, default and oneof; what is deleted is
// reserved by number and name; the same goes for values of enums, and for all
// messages within. 32-bit integers may change their sign (int32 and uint32, fixed32
// and sfixed32), 64-bit ones too.
func Compatible(old, new protoreflect.MessageDescriptor) error {
	c := comparison{seen: map[protoreflect.FullName]bool{}}
	if old.FullName() != new.FullName() {
		c.change(old, "it is now called %s: keep the name", new.FullName())
	}
	c.messages(old, new)
	if len(c.changes) > 0 {
		return &Incompatible{Message: old.FullName(), Changes: c.changes}
	}
	return nil
}

type comparison struct {
	seen    map[protoreflect.FullName]bool
	changes []string
}

func (c *comparison) change(d protoreflect.Descriptor, format string, args ...any) {
	c.changes = append(c.changes, string(d.FullName())+": "+fmt.Sprintf(format, args...))
}

func (c *comparison) messages(old, new protoreflect.MessageDescriptor) {
	if c.seen[old.FullName()] {
		return
	}
	c.seen[old.FullName()] = true
	for i := range old.Fields().Len() {
		was := old.Fields().Get(i)
		is := new.Fields().ByNumber(was.Number())
		if is == nil {
			c.deleted(was, int32(was.Number()), new.ReservedRanges().Has(was.Number()), new.ReservedNames().Has(was.Name()))
			continue
		}
		c.fields(was, is)
	}
	for i := range new.Fields().Len() {
		is := new.Fields().Get(i)
		if is.Cardinality() == protoreflect.Required && old.Fields().ByNumber(is.Number()) == nil {
			c.change(is, "a new field cannot be required: make it optional")
		}
	}
	for i := range old.ReservedRanges().Len() {
		r := old.ReservedRanges().Get(i)
		for n := r[0]; n < r[1] && n < r[0]+1000; n++ {
			if !new.ReservedRanges().Has(n) {
				c.change(new, "number %d is no longer reserved: reserve it again", n)
				break
			}
		}
	}
	for i := range old.ReservedNames().Len() {
		if name := old.ReservedNames().Get(i); !new.ReservedNames().Has(name) {
			c.change(new, "name %q is no longer reserved: reserve it again", name)
		}
	}
}

func (c *comparison) deleted(d protoreflect.Descriptor, number int32, numberReserved, nameReserved bool) {
	if !numberReserved {
		c.change(d, "deleted, but number %d is not reserved: add \"reserved %d;\"", number, number)
	}
	if !nameReserved {
		c.change(d, "deleted, but its name is not reserved: add 'reserved \"%s\";'", d.Name())
	}
}

func (c *comparison) fields(was, is protoreflect.FieldDescriptor) {
	if was.Name() != is.Name() {
		c.change(was, "number %d is now called %s: a new meaning takes a new number", was.Number(), is.Name())
		return
	}
	if was.JSONName() != is.JSONName() {
		c.change(was, "its JSON name was %q and is %q: set json_name", was.JSONName(), is.JSONName())
	}
	if a, b := cardinality(was), cardinality(is); a != b {
		c.change(was, "was %s and is %s: add a new field instead", a, b)
		return
	}
	if a, b := oneofName(was), oneofName(is); a != b {
		c.change(was, "was %s and is %s: move it back", inOneof(a), inOneof(b))
	}
	if was.IsMap() {
		c.types(was, was.MapKey(), is.MapKey(), "keys ")
		c.types(was, was.MapValue(), is.MapValue(), "values ")
		return
	}
	c.types(was, was, is, "")
	if was.HasPresence() && is.HasPresence() && was.Message() == nil && is.Message() == nil && was.Kind() == is.Kind() &&
		!was.Default().Equal(is.Default()) {
		c.change(was, "its default was %v and is %v: keep it", was.Default(), is.Default())
	}
}

func (c *comparison) types(at, was, is protoreflect.FieldDescriptor, part string) {
	if typeGroup(was.Kind()) != typeGroup(is.Kind()) {
		c.change(at, "%swas %s and is %s: add a new field instead", part, typeName(was), typeName(is))
		return
	}
	switch {
	case was.Enum() != nil:
		c.enums(was.Enum(), is.Enum())
	case was.Message() != nil && was.Message().FullName() != is.Message().FullName():
		c.change(at, "%swas %s and is %s: add a new field instead", part, typeName(was), typeName(is))
	case was.Message() != nil:
		c.messages(was.Message(), is.Message())
	}
}

func (c *comparison) enums(old, new protoreflect.EnumDescriptor) {
	if c.seen[old.FullName()] {
		return
	}
	c.seen[old.FullName()] = true
	for i := range old.Values().Len() {
		was := old.Values().Get(i)
		is := new.Values().ByName(was.Name())
		switch {
		case is != nil && is.Number() == was.Number():
		case is != nil:
			c.change(was, "its number was %d and is %d: keep the number", was.Number(), is.Number())
		case new.Values().ByNumber(was.Number()) != nil:
			c.change(was, "number %d is now called %s: keep the name", was.Number(), new.Values().ByNumber(was.Number()).Name())
		default:
			c.deleted(was, int32(was.Number()), new.ReservedRanges().Has(was.Number()), new.ReservedNames().Has(was.Name()))
		}
	}
	for i := range old.ReservedNames().Len() {
		if name := old.ReservedNames().Get(i); !new.ReservedNames().Has(name) {
			c.change(new, "name %q is no longer reserved: reserve it again", name)
		}
	}
	for i := range old.ReservedRanges().Len() {
		r := old.ReservedRanges().Get(i) // inclusive
		if !new.ReservedRanges().Has(r[0]) || !new.ReservedRanges().Has(r[1]) {
			c.change(new, "numbers %d to %d are no longer reserved: reserve them again", r[0], r[1])
		}
	}
}

func cardinality(fd protoreflect.FieldDescriptor) string {
	switch {
	case fd.IsMap():
		return "a map"
	case fd.IsList():
		return "repeated"
	case fd.Cardinality() == protoreflect.Required:
		return "required"
	}
	return "singular"
}

func oneofName(fd protoreflect.FieldDescriptor) protoreflect.Name {
	if od := fd.ContainingOneof(); od != nil && !od.IsSynthetic() {
		return od.Name()
	}
	return ""
}

func inOneof(name protoreflect.Name) string {
	if name == "" {
		return "in no oneof"
	}
	return "in oneof " + string(name)
}

// typeGroup returns the kind that stands for all that are read alike on the wire
// and in JSON.
func typeGroup(k protoreflect.Kind) protoreflect.Kind {
	switch k {
	case protoreflect.Uint32Kind:
		return protoreflect.Int32Kind
	case protoreflect.Uint64Kind:
		return protoreflect.Int64Kind
	case protoreflect.Fixed32Kind:
		return protoreflect.Sfixed32Kind
	case protoreflect.Fixed64Kind:
		return protoreflect.Sfixed64Kind
	}
	return k
}

func typeName(fd protoreflect.FieldDescriptor) string {
	if fd.Message() != nil {
		return string(fd.Message().FullName())
	}
	return fd.Kind().String()
}
