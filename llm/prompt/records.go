package prompt

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	millracev1 "github.com/millrace/millrace/proto/millrace/v1"
)

// The labels of a prompt. Without a label, a step uses the version in its program.
const (
	// Prod is the version that events get.
	Prod = "prod"
	// Canary is the version that a share of the keys gets.
	Canary = "canary"
	// BuiltIn and Pinned are not labels in the topic: they say that a version is the
	// program's own, or that the event asks for it, as a replayed dead letter may.
	BuiltIn = "built-in"
	Pinned  = "pinned"
)

// A Record is one of the topic <app>.prompts; a nil Value deletes its key.
type Record struct {
	Key   string
	Value []byte
}

// Topic returns the name of an application's topic of prompts.
func Topic(app string) string { return app + ".prompts" }

func versionKey(name, version string) string { return "version/" + name + "/" + version }
func labelKey(name, label string) string     { return "label/" + name + "/" + label }

func record(key string, r *millracev1.PromptRecord) Record {
	value, err := proto.MarshalOptions{Deterministic: true}.Marshal(r)
	if err != nil { // New and the checks below refuse what is not UTF-8
		panic(err)
	}
	return Record{Key: key, Value: value}
}

// Record returns the record of the version, published at a time with a note.
func (p *Prompt) Record(at time.Time, note string) Record {
	c := p.cfg
	return record(versionKey(c.Name, p.version), &millracev1.PromptRecord{Kind: &millracev1.PromptRecord_Version{Version: &millracev1.PromptVersion{
		Name: c.Name, Version: p.version, System: p.system, User: c.User,
		MaxValue: int64(c.MaxValue), MaxBytes: int64(c.MaxBytes), Created: at.UnixMilli(), Note: strings.ToValidUTF8(note, ""),
	}}})
}

// fromVersion returns the prompt of a stored version, which must be what its hash says.
func fromVersion(v *millracev1.PromptVersion) (*Prompt, error) {
	if v.GetName() == "" || v.GetMaxValue() < 1 || v.GetMaxBytes() < 1 || strings.TrimSpace(v.GetUser()) == "" {
		return nil, fmt.Errorf("prompt %q, version %s: name, template or bounds are missing", v.GetName(), v.GetVersion())
	}
	c := Config{Name: v.Name, System: v.System, User: v.User, MaxValue: int(v.MaxValue), MaxBytes: int(v.MaxBytes)}
	p, err := compile(c, v.System)
	if err != nil {
		return nil, err
	}
	if p.version != v.Version {
		return nil, fmt.Errorf("prompt %q: what is stored as version %s has the hash %s: versions do not change", v.Name, v.Version, p.version)
	}
	return p, nil
}

// decode reads a record. The key must be that of what it holds.
func decode(r Record) (*millracev1.PromptRecord, error) {
	m := &millracev1.PromptRecord{}
	if err := proto.Unmarshal(r.Value, m); err != nil {
		return nil, fmt.Errorf("record %q: %w", r.Key, err)
	}
	want := ""
	switch k := m.Kind.(type) {
	case *millracev1.PromptRecord_Version:
		want = versionKey(k.Version.GetName(), k.Version.GetVersion())
	case *millracev1.PromptRecord_Label:
		want = labelKey(k.Label.GetName(), k.Label.GetLabel())
	case *millracev1.PromptRecord_Contract:
		want = contractKey(k.Contract.GetStep(), k.Contract.GetGeneration())
	}
	if want != r.Key {
		return nil, fmt.Errorf("record %q: it holds %q", r.Key, want)
	}
	return m, nil
}

// Rows reads what is known of the topic: the value of a key, nil if there is none.
type Rows func(key string) ([]byte, error)

// Apply returns what is to be kept of a record of the topic, given the rows so far and
// what the steps of the program need. A version that does not parse, is not what its
// hash says or does not fit the events of a step is an error, and not kept. A label is
// kept with what it stood for before; if its version cannot be used, there is an error
// beside it, and [Chooser] uses what it stood for before.
func Apply(r Record, rows Rows, uses []Use) (keep *Record, err error) {
	if r.Value == nil {
		return &r, nil
	}
	m, err := decode(r)
	if err != nil {
		return nil, err
	}
	switch k := m.Kind.(type) {
	case *millracev1.PromptRecord_Version:
		p, err := fromVersion(k.Version)
		if err == nil {
			err = fits(p, uses)
		}
		if err != nil {
			return nil, err
		}
	case *millracev1.PromptRecord_Label:
		return applyLabel(k.Label, rows)
	}
	return &r, nil
}

// fits reports the steps that use the prompt and whose events it does not fit.
func fits(p *Prompt, uses []Use) error {
	var errs []error
	for _, u := range uses {
		if u.Prompt.Name() != p.Name() {
			continue
		}
		if err := p.Fits(u.Shape); err != nil {
			errs = append(errs, fmt.Errorf("step %q: %w", u.Step, err))
		}
	}
	return errors.Join(errs...)
}

// maxEarlier is how many earlier choices of a label are kept.
const maxEarlier = 16

func applyLabel(l *millracev1.PromptLabel, rows Rows) (*Record, error) {
	before, err := readLabel(rows, l.Name, l.Label)
	if err != nil {
		return nil, err
	}
	if before != nil {
		follow(l, before)
	}
	r := record(labelKey(l.Name, l.Label), &millracev1.PromptRecord{Kind: &millracev1.PromptRecord_Label{Label: l}})
	version, err := rows(versionKey(l.Name, l.GetChoice().GetVersion()))
	if err == nil && version == nil {
		err = fmt.Errorf("label %q of prompt %q stands for version %q, which is not in the topic or cannot be used: what it stood for before stays in use",
			l.Label, l.Name, l.GetChoice().GetVersion())
	}
	return &r, err
}

// follow adds to a label what it stood for before.
func follow(l, before *millracev1.PromptLabel) {
	for _, c := range append([]*millracev1.PromptChoice{before.GetChoice()}, before.GetEarlier()...) {
		same := func(e *millracev1.PromptChoice) bool { return proto.Equal(e, c) }
		if len(l.Earlier) < maxEarlier && !same(l.Choice) && !slices.ContainsFunc(l.Earlier, same) {
			l.Earlier = append(l.Earlier, c)
		}
	}
}

// readLabel returns the stored label, nil if there is none.
func readLabel(rows Rows, name, label string) (*millracev1.PromptLabel, error) {
	m, err := read(rows, labelKey(name, label))
	return m.GetLabel(), err
}

// read returns a stored record, nil if there is none.
func read(rows Rows, key string) (*millracev1.PromptRecord, error) {
	value, err := rows(key)
	if err != nil || value == nil {
		return nil, err
	}
	return decode(Record{key, value})
}
