package oracle

import (
	"slices"

	"github.com/millrace/millrace/internal/cases"
)

// Shrink returns a smaller case that still differs: without records and steps that
// do not matter.
func Shrink(k *Kafka, d *Difference) (*Difference, error) {
	failed := d.KafkaErr != nil || d.OursErr != nil
	for smaller := true; smaller; {
		smaller = false
		for _, c := range reductions(d.Case) {
			less, err := Compare(k, c)
			if err != nil {
				return nil, err
			}
			if less != nil && (failed || less.KafkaErr == nil && less.OursErr == nil) {
				d, smaller = less, true
				break
			}
		}
	}
	return d, nil
}

// reductions are cases a little smaller than c, the smallest ones first.
func reductions(c cases.Case) []cases.Case {
	var out []cases.Case
	for n := len(c.Input) / 2; n > 0; n /= 2 {
		for from := 0; from < len(c.Input); from += n {
			less := c
			less.Input = slices.Concat(c.Input[:from], c.Input[min(from+n, len(c.Input)):])
			out = append(out, less)
		}
	}
	for i := range c.Setup.Topology {
		steps, ok := without(c.Setup.Topology, i)
		if !ok {
			continue
		}
		topics := map[string]bool{}
		for _, s := range steps {
			topics[s.Topic] = true
		}
		less := c
		less.Setup.Topology = steps
		less.Input = slices.DeleteFunc(slices.Clone(c.Input), func(in cases.Input) bool { return !topics[in.Topic] })
		out = append(out, less)
	}
	return out
}

// without takes a step out: what reads it reads what it reads. Steps that nothing
// reads any more go with it.
func without(steps []cases.Step, i int) ([]cases.Step, bool) {
	gone := steps[i]
	var out []cases.Step
	for j, s := range steps {
		if j == i {
			continue
		}
		if slices.Contains(s.Reads(), gone.ID) {
			if gone.From == "" {
				return nil, false
			}
			s = s.Reading(gone.ID, gone.From)
		}
		out = append(out, s)
	}
	out = prune(out)
	return out, len(out) > 0
}

// prune takes out the steps that lead nowhere.
func prune(steps []cases.Step) []cases.Step {
	used := map[string]bool{}
	var out []cases.Step
	for _, s := range slices.Backward(steps) {
		if s.Op != "to" && !used[s.ID] {
			continue
		}
		for _, id := range s.Reads() {
			used[id] = true
		}
		out = append(out, s)
	}
	slices.Reverse(out)
	return out
}
