package prompt

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/millrace/millrace/llm/schema"
	millracev1 "github.com/millrace/millrace/proto/millrace/v1"
)

// A Use is how a step of the program uses a prompt, and what it makes of the answers.
type Use struct {
	Step string
	// Prompt is the program's own version, Shape what its templates may use.
	Prompt *Prompt
	Shape  *millracev1.DataShape
	// Message is that of the answers; Topics are where they are written.
	Message protoreflect.MessageDescriptor
	Topics  []string
	// Generation is raised when the message changes so that old and new answers cannot
	// lie in one topic.
	Generation int
}

func contractKey(step string, generation int32) string {
	return fmt.Sprintf("contract/%s/%d", step, generation)
}

// Register returns the records that make the registry know the steps of the program:
// versions of prompts that are not there, and what the steps make. It is an error if
// the answers of a step cannot lie in one topic with those it made before.
func (r *Registry) Register(uses []Use, at time.Time) ([]Record, error) {
	var list []Record
	var errs []error
	seen := map[string]bool{}
	for i := range uses {
		if rec := uses[i].Prompt.Record(at, "in the program"); r.rows[rec.Key] == nil && !seen[rec.Key] {
			seen[rec.Key] = true
			list = append(list, rec)
		}
		rec, err := r.contract(&uses[i])
		if err != nil {
			errs = append(errs, fmt.Errorf("step %q: %w", uses[i].Step, err))
		}
		if rec != nil {
			list = append(list, *rec)
		}
	}
	return list, errors.Join(errs...)
}

// Unusable returns what labels stand for and no step could use: versions that are
// missing, or do not fit the events of a step of the program.
func (r *Registry) Unusable(uses []Use) error {
	var errs []error
	for _, l := range r.Labels("") {
		if !slices.ContainsFunc(uses, func(u Use) bool { return u.Prompt.Name() == l.Name }) {
			continue
		}
		v, err := r.Version(l.Name, l.Version)
		if err == nil {
			err = fits(v.Prompt, uses)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("label %q of prompt %q is not used: %w", l.Label, l.Name, err))
		}
	}
	return errors.Join(errs...)
}

// contract returns the record of what a step makes; nil if that is there.
func (r *Registry) contract(u *Use) (*Record, error) {
	files, err := schema.MarshalDescriptor(u.Message)
	if err != nil {
		return nil, err
	}
	key := contractKey(u.Step, int32(u.Generation))
	m, err := read(r.Rows, key)
	if err != nil {
		return nil, err
	}
	old := m.GetContract()
	c := &millracev1.StepContract{
		Step: u.Step, Generation: int32(u.Generation), Message: string(u.Message.FullName()), Files: files,
		Topics: u.Topics, Prompt: u.Prompt.Name(), Data: u.Shape,
	}
	if old == nil {
		err = r.newGeneration(u)
	} else {
		err = succeed(c, old, u)
	}
	if err != nil || proto.Equal(c, old) {
		return nil, err
	}
	rec := record(key, &millracev1.PromptRecord{Kind: &millracev1.PromptRecord_Contract{Contract: c}})
	return &rec, nil
}

// succeed completes the contract c that follows old in the same generation.
func succeed(c, old *millracev1.StepContract, u *Use) error {
	c.Earlier = old.GetEarlier()
	now, before := messageSum(c), messageSum(old)
	if bytes.Equal(now, before) {
		return nil
	}
	if slices.ContainsFunc(old.GetEarlier(), func(b []byte) bool { return bytes.Equal(b, now) }) {
		// The program went back to what it was: the later message stays the measure.
		c.Message, c.Files = old.GetMessage(), old.GetFiles()
		return nil
	}
	if err := compatible(old, u.Message); err != nil {
		return fmt.Errorf("%w, and set Enrichment.Generation to %d", err, u.Generation+1)
	}
	c.Earlier = append([][]byte{before}, c.Earlier...)
	if len(c.Earlier) > maxEarlier {
		c.Earlier = c.Earlier[:maxEarlier]
	}
	return nil
}

// messageSum stands for the message of a contract: one of several in its files.
func messageSum(c *millracev1.StepContract) []byte {
	sum := sha256.Sum256(append([]byte(c.GetMessage()+"\x00"), c.GetFiles()...))
	return sum[:]
}

func compatible(old *millracev1.StepContract, message protoreflect.MessageDescriptor) error {
	was, err := schema.UnmarshalDescriptor(old.GetFiles(), protoreflect.FullName(old.GetMessage()))
	if err != nil {
		return err
	}
	return schema.Compatible(was, message)
}

// newGeneration checks the first start of a generation: it may share topics only with
// generations of compatible messages.
func (r *Registry) newGeneration(u *Use) error {
	var errs []error
	for _, m := range r.all("contract/" + u.Step + "/") {
		old := m.GetContract()
		if old.GetStep() != u.Step || compatible(old, u.Message) == nil {
			continue
		}
		var both []string
		for _, topic := range u.Topics {
			if slices.Contains(old.GetTopics(), topic) {
				both = append(both, topic)
			}
		}
		if len(both) > 0 {
			errs = append(errs, fmt.Errorf("generation %d of message %s cannot be read as generation %d, and both are written to %s: write the new one to other topics",
				u.Generation, u.Message.FullName(), old.GetGeneration(), strings.Join(both, ", ")))
		}
	}
	return errors.Join(errs...)
}
