package prompt

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	millracev1 "github.com/millrace/millrace/proto/millrace/v1"
)

// A Registry is what the topic <app>.prompts of an application holds: what records
// were applied in order. It is not safe for concurrent use.
type Registry struct {
	rows map[string][]byte
}

// Rows reads the registry.
func (r *Registry) Rows(key string) ([]byte, error) { return r.rows[key], nil }

// Apply adds a record. What is not a record of such a topic is left out, with an error.
func (r *Registry) Apply(rec Record) error {
	if r.rows == nil {
		r.rows = map[string][]byte{}
	}
	if rec.Value == nil {
		delete(r.rows, rec.Key)
		return nil
	}
	m, err := decode(rec)
	if err == nil && m.GetVersion() != nil {
		_, err = fromVersion(m.GetVersion())
	}
	if err != nil {
		return err
	}
	r.rows[rec.Key] = rec.Value
	return nil
}

// A Version is a stored version of a prompt.
type Version struct {
	*Prompt
	// Created is when it was published, and Note what was said then.
	Created time.Time
	Note    string
}

// A Label is what a label stands for.
type Label struct {
	Name, Label, Version string
	// Percent is the share of the keys that a canary gets, from 0 to 100.
	Percent float64
	Since   time.Time
	Note    string
	// Earlier is what it stood for before, latest first.
	Earlier []Label
}

// all returns the records below a prefix, in order of key.
func (r *Registry) all(prefix string) []*millracev1.PromptRecord {
	var keys []string
	for key := range r.rows {
		if strings.HasPrefix(key, prefix) {
			keys = append(keys, key)
		}
	}
	slices.Sort(keys)
	list := make([]*millracev1.PromptRecord, 0, len(keys))
	for _, key := range keys {
		m, err := read(r.Rows, key)
		if err != nil { // Apply has read it
			panic(err)
		}
		list = append(list, m)
	}
	return list
}

// Versions returns the versions of a prompt, or of all if name is empty: by name,
// latest first.
func (r *Registry) Versions(name string) []Version {
	var list []Version
	for _, m := range r.all("version/") {
		v := m.GetVersion()
		if name != "" && v.GetName() != name {
			continue
		}
		p, err := fromVersion(v)
		if err != nil { // Apply has read it
			panic(err)
		}
		list = append(list, Version{p, time.UnixMilli(v.Created).UTC(), v.Note})
	}
	slices.SortStableFunc(list, func(a, b Version) int {
		return cmp.Or(cmp.Compare(a.Name(), b.Name()), b.Created.Compare(a.Created))
	})
	return list
}

// Version returns the version of a prompt that ref names: its label, its version or
// the beginning of one.
func (r *Registry) Version(name, ref string) (Version, error) {
	for _, l := range r.Labels(name) {
		if l.Label == ref {
			ref = l.Version
		}
	}
	var found []Version
	for _, v := range r.Versions(name) {
		if ref != "" && strings.HasPrefix(v.Version(), ref) {
			found = append(found, v)
		}
	}
	switch len(found) {
	case 1:
		return found[0], nil
	case 0:
		return Version{}, fmt.Errorf("prompt %q has no version or label %q: list them, or publish it first", name, ref)
	}
	return Version{}, fmt.Errorf("prompt %q has %d versions that begin with %q: write more of it", name, len(found), ref)
}

// Labels returns the labels of a prompt, or of all if name is empty, by name.
func (r *Registry) Labels(name string) []Label {
	var list []Label
	for _, m := range r.all("label/") {
		l := m.GetLabel()
		if name != "" && l.GetName() != name {
			continue
		}
		of := func(c *millracev1.PromptChoice) Label {
			return Label{Name: l.GetName(), Label: l.GetLabel(), Version: c.GetVersion(), Percent: c.GetPercent(), Since: time.UnixMilli(c.GetSince()).UTC(), Note: c.GetNote()}
		}
		one := of(l.GetChoice())
		for _, c := range l.GetEarlier() {
			one.Earlier = append(one.Earlier, of(c))
		}
		list = append(list, one)
	}
	return list
}

// Publish returns the record of a new version, to be written to the topic; none if it
// is there. It refuses what does not fit the events of a step that uses the prompt:
// the steps that the application was last started with.
func (r *Registry) Publish(p *Prompt, at time.Time, note string) ([]Record, error) {
	var errs []error
	for _, m := range r.all("contract/") {
		if c := m.GetContract(); c.GetPrompt() == p.Name() {
			if err := p.Fits(c.GetData()); err != nil {
				errs = append(errs, fmt.Errorf("step %q: %w", c.GetStep(), err))
			}
		}
	}
	if len(errs) > 0 {
		return nil, errors.Join(errs...)
	}
	rec := p.Record(at, note)
	if r.rows[rec.Key] != nil {
		return nil, nil
	}
	return []Record{rec}, nil
}

// SetLabel returns the record that makes a label stand for a version, as [Version]
// finds it. percent is the share of a canary, above 0 and at most 100; 0 for [Prod].
func (r *Registry) SetLabel(name, label, ref string, percent float64, at time.Time, note string) ([]Record, error) {
	switch {
	case label != Prod && label != Canary:
		return nil, fmt.Errorf("label %q: the labels are %s and %s", label, Prod, Canary)
	case label == Prod && percent != 0:
		return nil, fmt.Errorf("label %s has no share: give one to %s", Prod, Canary)
	case label == Canary && !(percent > 0 && percent <= 100):
		return nil, fmt.Errorf("label %s: a share of %v percent: it is above 0 and at most 100; remove the label to end the canary", Canary, percent)
	}
	v, err := r.Version(name, ref)
	if err != nil {
		return nil, err
	}
	if _, err := r.Publish(v.Prompt, at, ""); err != nil { // the events may have changed since
		return nil, err
	}
	l := &millracev1.PromptLabel{Name: name, Label: label, Choice: &millracev1.PromptChoice{
		Version: v.Version(), Percent: percent, Since: at.UnixMilli(), Note: strings.ToValidUTF8(note, ""),
	}}
	before, err := readLabel(r.Rows, name, label)
	if err != nil {
		return nil, err
	}
	if c := before.GetChoice(); c.GetVersion() == v.Version() && c.GetPercent() == percent {
		return nil, nil
	}
	if before != nil {
		follow(l, before)
	}
	return []Record{record(labelKey(name, label), &millracev1.PromptRecord{Kind: &millracev1.PromptRecord_Label{Label: l}})}, nil
}

// RemoveLabel returns the record that takes a label away.
func (r *Registry) RemoveLabel(name, label string) ([]Record, error) {
	key := labelKey(name, label)
	if r.rows[key] == nil {
		return nil, fmt.Errorf("prompt %q has no label %q", name, label)
	}
	return []Record{{Key: key}}, nil
}
