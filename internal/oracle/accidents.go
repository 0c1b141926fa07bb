package oracle

import (
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/millrace/millrace/internal/cases"
)

//go:embed accidents.json
var accidents []byte

// An Accident is something that Kafka Streams does by accident and that is done in
// another way here, with the reason and a case that shows it.
type Accident struct {
	Name   string `json:"name"`
	Reason string `json:"reason"`
	// Avoided says how random cases are compared in spite of it.
	Avoided string `json:"avoided"`
	// Aligned is true if Kafka Streams does as here when it is built as Avoided
	// says; else random cases do not contain it.
	Aligned bool `json:"aligned"`
	// Case expects what Kafka Streams emits.
	Case cases.Case `json:"case"`
	// Throws is part of the message if Kafka Streams fails.
	Throws string         `json:"throws,omitempty"`
	Ours   []cases.Output `json:"ours"`
}

// Accidents returns the list.
func Accidents() ([]Accident, error) {
	var list struct {
		Accidents []Accident `json:"accidents"`
	}
	if err := json.Unmarshal(accidents, &list); err != nil {
		return nil, fmt.Errorf("list of accidents: %w", err)
	}
	return list.Accidents, nil
}

// Check runs the accident's case here.
func (a Accident) Check() error {
	got, err := a.Case.Run()
	switch {
	case err != nil:
		return err
	case !cases.Same(got, a.Ours):
		return fmt.Errorf("got %s", rows(got))
	case a.Throws == "" && cases.Same(got, a.Case.Expected):
		return errors.New("nothing differs; take it from the list")
	}
	return nil
}

// checkKafka runs the accident's case on Kafka Streams, as it is and aligned.
func (a Accident) checkKafka(k *Kafka) error {
	c := a.Case
	c.Setup.AsIs = true
	got, err := k.Run(&c)
	switch {
	case a.Throws != "" && (err == nil || !strings.Contains(err.Error(), a.Throws)):
		return fmt.Errorf("Kafka Streams does not throw %q: %w", a.Throws, err)
	case a.Throws == "" && err != nil:
		return fmt.Errorf("Kafka Streams: %w", err)
	case !cases.Same(got, c.Expected):
		return fmt.Errorf("Kafka Streams emits %s", rows(got))
	}
	if !a.Aligned {
		return nil
	}
	c.Setup.AsIs = false
	got, err = k.Run(&c)
	if err == nil && !cases.Same(got, a.Ours) {
		err = fmt.Errorf("aligned, Kafka Streams emits %s", rows(got))
	}
	return err
}

func checkAccidents(k *Kafka) (int, error) {
	list, err := Accidents()
	for _, a := range list {
		if err := errors.Join(a.Check(), a.checkKafka(k)); err != nil {
			return 0, fmt.Errorf("accident %q: %w", a.Name, err)
		}
	}
	return len(list), err
}

func rows(all []cases.Output) string {
	text, err := json.Marshal(all)
	if err != nil {
		return err.Error()
	}
	return string(text)
}
