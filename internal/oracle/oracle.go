// Package oracle compares topologies with the real Kafka Streams: it makes random
// cases, runs each here and there, and compares every record that comes out. Where
// Kafka Streams decides by accident, the accident is written down; see Accidents.
package oracle

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/millrace/millrace/internal/cases"
)

// A Difference is a case that runs differently.
type Difference struct {
	Case  cases.Case
	Kafka []cases.Output
	Ours  []cases.Output
	// Errors are nil where the case ran to its end.
	KafkaErr, OursErr error
}

// Compare runs the case here and there and returns nil if nothing differs. The
// error means that no more cases can be compared.
func Compare(k *Kafka, c cases.Case) (*Difference, error) {
	d := &Difference{Case: c}
	done := make(chan struct{})
	go func() {
		defer close(done)
		d.Ours, d.OursErr = c.Run()
	}()
	d.Kafka, d.KafkaErr = k.Run(&c)
	<-done
	if _, thrown := errors.AsType[Thrown](d.KafkaErr); d.KafkaErr != nil && !thrown {
		return nil, d.KafkaErr
	}
	if d.KafkaErr == nil && d.OursErr == nil && cases.Same(d.Ours, d.Kafka) {
		return nil, nil
	}
	// A full buffer ends both; Kafka Streams then stops, and ours goes on behind
	// the record that failed.
	full := d.KafkaErr != nil && d.OursErr != nil && slices.ContainsFunc(c.Setup.Topology, func(s cases.Step) bool { return s.WhenFull == "shut_down" })
	if full && len(d.Ours) >= len(d.Kafka) && cases.Same(d.Ours[:len(d.Kafka)], d.Kafka) {
		return nil, nil
	}
	return d, nil
}

// String prints the case and both results.
func (d *Difference) String() string {
	c := d.Case
	c.Expected = nil
	text, err := json.Marshal(c)
	if err != nil {
		return err.Error()
	}
	var s strings.Builder
	fmt.Fprintf(&s, "%s\n", text)
	for i := range max(len(d.Kafka), len(d.Ours)) {
		mark := "  "
		k, o := row(d.Kafka, i), row(d.Ours, i)
		if k != o {
			mark = "! "
		}
		fmt.Fprintf(&s, "%s%-60s %s\n", mark, k, o)
	}
	if d.KafkaErr != nil || d.OursErr != nil {
		fmt.Fprintf(&s, "Kafka Streams: %v\nhere: %v\n", d.KafkaErr, d.OursErr)
	}
	return s.String()
}

func row(rows []cases.Output, i int) string {
	if i >= len(rows) {
		return "-"
	}
	r := rows[i]
	key, _ := json.Marshal(r.Key) // they came from JSON
	value, _ := json.Marshal(r.Value)
	return fmt.Sprintf("#%d %s %s=%s @%d", *r.After, r.Topic, key, value, r.Timestamp)
}
