package prompt

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"

	millracev1 "github.com/millrace/millrace/proto/millrace/v1"
)

// A Chooser chooses the version of a prompt for the events of a step. It is not safe
// for concurrent use.
type Chooser struct {
	// BuiltIn is the program's own version, and names the prompt.
	BuiltIn *Prompt
	// Shape is what the step's templates may use.
	Shape *millracev1.DataShape
	// Unusable is told, once, of a version that is there and does not fit.
	Unusable func(error)

	known map[string]*Prompt // by version; nil for one that cannot be used
}

// Choose returns the version for a key and the label it has: [Canary] for the share
// of keys that the canary gets, else [Prod], else [BuiltIn]. A key stays with the
// canary while the share does not fall, whatever its version.
func (c *Chooser) Choose(rows Rows, key []byte) (*Prompt, string, error) {
	name := c.BuiltIn.Name()
	for _, label := range []string{Canary, Prod} {
		l, err := readLabel(rows, name, label)
		if err != nil {
			return nil, "", fmt.Errorf("label %q of prompt %q: %w", label, name, err)
		}
		if l == nil {
			continue
		}
		p, choice, err := c.usable(rows, l)
		if err != nil {
			return nil, "", err
		}
		if p != nil && (label == Prod || Share(name, key) < choice.Percent) {
			return p, label, nil
		}
	}
	return c.BuiltIn, BuiltIn, nil
}

// Version returns a version that an event asks for, all of its digits.
func (c *Chooser) Version(rows Rows, version string) (*Prompt, error) {
	p, err := c.version(rows, version)
	if err == nil && p == nil {
		err = fmt.Errorf("prompt %q has no version %q that fits: publish it, and write all its digits", c.BuiltIn.Name(), version)
	}
	return p, err
}

// Share returns where a key stands among the keys of a prompt, in [0, 100): a canary
// of p percent gets the keys below p.
func Share(prompt string, key []byte) float64 {
	sum := sha256.Sum256(append([]byte(prompt+"\x00"), key...))
	return float64(binary.BigEndian.Uint64(sum[:])>>11) / (1 << 53) * 100
}

// usable returns what a label stands for, or stood for before, that can be used.
func (c *Chooser) usable(rows Rows, l *millracev1.PromptLabel) (*Prompt, *millracev1.PromptChoice, error) {
	for _, choice := range append([]*millracev1.PromptChoice{l.GetChoice()}, l.GetEarlier()...) {
		p, err := c.version(rows, choice.GetVersion())
		if err != nil {
			return nil, nil, err
		}
		if p != nil {
			return p, choice, nil
		}
	}
	return nil, nil, nil
}

// version returns a version; nil if it is not there or cannot be used.
func (c *Chooser) version(rows Rows, version string) (*Prompt, error) {
	if version == c.BuiltIn.Version() {
		return c.BuiltIn, nil
	}
	if p, ok := c.known[version]; ok {
		return p, nil
	}
	m, err := read(rows, versionKey(c.BuiltIn.Name(), version))
	if err != nil || m == nil {
		return nil, err
	}
	p, err := fromVersion(m.GetVersion())
	if err == nil {
		err = p.Fits(c.Shape)
	}
	if err != nil {
		p = nil
		c.Unusable(err)
	}
	if c.known == nil {
		c.known = map[string]*Prompt{}
	}
	c.known[version] = p
	return p, nil
}
