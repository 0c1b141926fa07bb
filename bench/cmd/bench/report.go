package main

import (
	"fmt"
	"math"
	"slices"
	"strings"
)

// A report collects measurements and prints them: medians over the rounds,
// ratios taken within a round.
type report struct {
	suites []string // in order of first use
	series map[string][]*series
	notes  []string
	failed int
}

// A series is one measure of one arm, a value a round; NaN where a round failed.
type series struct {
	arm, metric, unit string
	values            []float64
}

func newReport() *report { return &report{series: make(map[string][]*series)} }

func (r *report) add(suite, arm, metric, unit string, round int, value float64) {
	s := r.find(suite, arm, metric)
	if s == nil {
		if !slices.Contains(r.suites, suite) {
			r.suites = append(r.suites, suite)
		}
		s = &series{arm: arm, metric: metric, unit: unit}
		r.series[suite] = append(r.series[suite], s)
	}
	for len(s.values) <= round {
		s.values = append(s.values, math.NaN())
	}
	s.values[round] = value
}

func (r *report) note(suite, format string, args ...any) {
	note := suite + ": " + fmt.Sprintf(format, args...)
	r.notes = append(r.notes, note)
	logf("%s", note)
}

func (r *report) find(suite, arm, metric string) *series {
	for _, s := range r.series[suite] {
		if s.arm == arm && s.metric == metric {
			return s
		}
	}
	return nil
}

// median returns the median of the values that are numbers, NaN for none.
func median(values []float64) float64 {
	v := slices.DeleteFunc(slices.Clone(values), math.IsNaN)
	slices.Sort(v)
	switch n := len(v); {
	case n == 0:
		return math.NaN()
	case n%2 == 1:
		return v[n/2]
	default:
		return (v[n/2-1] + v[n/2]) / 2
	}
}

// value returns the median of a measure, NaN if it was not taken.
func (r *report) value(suite, arm, metric string) float64 {
	if s := r.find(suite, arm, metric); s != nil {
		return median(s.values)
	}
	return math.NaN()
}

// ratio returns the median of the ratios, taken within each round, of our
// measure to another arm's; NaN if no round has both.
func (r *report) ratio(suite, metric, other string) float64 {
	a, b := r.find(suite, ours, metric), r.find(suite, other, metric)
	if a == nil || b == nil {
		return math.NaN()
	}
	var ratios []float64
	for i := range min(len(a.values), len(b.values)) {
		ratios = append(ratios, a.values[i]/b.values[i])
	}
	return median(ratios)
}

// A target is a figure that the project has set itself.
type target struct {
	text     string
	measured func(r *report) float64
	unit     string
	met      func(v float64) bool
}

func atLeast(limit float64) func(float64) bool { return func(v float64) bool { return v >= limit } }
func atMost(limit float64) func(float64) bool  { return func(v float64) bool { return v <= limit } }
func below(limit float64) func(float64) bool   { return func(v float64) bool { return v < limit } }

func ratioOf(suite, metric, other string) func(*report) float64 {
	return func(r *report) float64 { return r.ratio(suite, metric, other) }
}

func valueOf(suite, metric string) func(*report) float64 {
	return func(r *report) float64 { return r.value(suite, ours, metric) }
}

// mostOf is for what must not happen in any round.
func mostOf(suite, metric string) func(*report) float64 {
	return func(r *report) float64 {
		most := math.NaN()
		if s := r.find(suite, ours, metric); s != nil {
			for _, v := range s.values {
				if math.IsNaN(most) || v > most {
					most = v
				}
			}
		}
		return most
	}
}

var targets = []target{
	{"pass-through: at least 2 x the rate of Kafka Streams", ratioOf("pass", "warm rate", "kafka-streams"), "x", atLeast(2)},
	{"pass-through: at least 0.8 x the rate of the bare loop", ratioOf("pass", "warm rate", "bare"), "x", atLeast(0.8)},
	{"count: at least 3 x the rate of Kafka Streams", ratioOf("count", "warm rate", "kafka-streams"), "x", atLeast(3)},
	{"count: at most 0.35 x the CPU per record of Kafka Streams", ratioOf("count", "warm CPU", "kafka-streams"), "x", atMost(0.35)},
	{"restore: at least 2 x the rate of Kafka Streams", ratioOf("restore", "restore rate", "kafka-streams"), "x", atLeast(2)},
	{"restore: at least 1,000 k records/s", valueOf("restore", "restore rate"), "k records/s", atLeast(1000)},
	{"restart after kill -9: first output in under 2 s", valueOf("restart", "kill -9 to first output, from process start"), "s", below(2)},
	{"1,000 records/s: p50 below 15 ms", valueOf("latency", "p50"), "ms", below(15)},
	{"1,000 records/s: p99 below 50 ms", valueOf("latency", "p99"), "ms", below(50)},
	{"idle instance: below 1 % of a core", valueOf("idle", "CPU"), "% of a core", below(1)},
	{"64 slots, calls of 500 ms: busy at least 0.99", valueOf("slots: 500ms", "slots busy"), "", atLeast(0.99)},
	{"64 slots, lognormal calls (p50 0.5 s, p99 8 s): busy at least 0.97", valueOf("slots: lognormal:500ms,8s", "slots busy"), "", atLeast(0.97)},
	{"5,000 calls at once, GOMEMLIMIT 440 MiB: below 512 MiB", valueOf("inflight", "peak memory"), "MiB", below(512)},
	{"CPU per enriched event, 5,000 calls at once: at most 2 x the bare loop", ratioOf("callcpu", "CPU", askArm), "x", atMost(2)},
	{"added around a call at 50 events/s: p50 below 60 ms", valueOf("added", "p50"), "ms", below(60)},
	{"added around a call at 50 events/s: p99 below 250 ms", valueOf("added", "p99"), "ms", below(250)},
	{"sibling beside failing and hanging calls: p99 below 2 x undisturbed", ratioOf("isolation", "p99", "undisturbed"), "x", below(2)},
	{"429 storm: goodput at least 0.95 of the limit", valueOf("storm", "goodput"), "", atLeast(0.95)},
	{"429 storm: no dead letter", valueOf("storm", "dead letters"), "", atMost(0)},
	{"budget of one tenant, 2 instances, 2 partitions, 64 calls at once: overspend 0", mostOf("budget", "overspent"), "$", atMost(0)},
	{"CPU per record, dearest shape to the default one: at most 1.2 x", (*report).worstScale, "x", atMost(1.2)},
}

// worstScale returns the largest ratio of CPU per record of a scale shape to the
// first shape's.
func (r *report) worstScale() float64 {
	base, worst := math.NaN(), math.NaN()
	for _, suite := range r.suites {
		if !strings.HasPrefix(suite, "scale") {
			continue
		}
		v := r.value(suite, ours, "warm CPU")
		if math.IsNaN(base) {
			base = v
			continue
		}
		if ratio := v / base; math.IsNaN(worst) || ratio > worst {
			worst = ratio
		}
	}
	return worst
}

// markdown renders the whole report.
func (r *report) markdown(preamble string) string {
	var b strings.Builder
	b.WriteString(preamble)
	r.writeTargets(&b)
	for _, suite := range r.suites {
		if strings.HasPrefix(suite, "scale") {
			continue
		}
		r.writeSuite(&b, suite)
	}
	r.writeScale(&b)
	if len(r.notes) > 0 {
		b.WriteString("\nNotes:\n\n")
		for _, n := range r.notes {
			first, _, _ := strings.Cut(n, "\n") // the rest is in the log
			fmt.Fprintf(&b, "- %s\n", first)
		}
	}
	return b.String()
}

func (r *report) writeTargets(b *strings.Builder) {
	var rows strings.Builder
	for _, t := range targets {
		v := t.measured(r)
		if math.IsNaN(v) {
			continue
		}
		met := "**no**"
		if t.met(v) {
			met = "yes"
		}
		fmt.Fprintf(&rows, "| %s | %s %s | %s |\n", t.text, number(v), t.unit, met)
	}
	if rows.Len() > 0 {
		fmt.Fprintf(b, "\n| target | measured | met |\n|---|---|---|\n%s", rows.String())
	}
}

func (r *report) writeSuite(b *strings.Builder, suite string) {
	var names, metrics []string
	for _, s := range r.series[suite] {
		if !slices.Contains(metrics, s.metric) {
			metrics = append(metrics, s.metric)
		}
	}
	for _, a := range arms { // the same order in every table
		if slices.ContainsFunc(r.series[suite], func(s *series) bool { return s.arm == a.name }) {
			names = append(names, a.name)
		}
	}
	fmt.Fprintf(b, "\n### %s\n\n| | %s |\n|---%s|\n", suite, strings.Join(names, " | "), strings.Repeat("|---", len(names)))
	for _, m := range metrics {
		unit, cells := "", make([]string, len(names))
		for i, name := range names {
			s := r.find(suite, name, m)
			if s == nil {
				continue
			}
			unit, cells[i] = s.unit, s.cell()
			if ratio := r.ratio(suite, m, name); name != ours && !math.IsNaN(ratio) && !math.IsInf(ratio, 0) {
				cells[i] += fmt.Sprintf("; %.2f x", ratio)
			}
		}
		fmt.Fprintf(b, "| %s, %s | %s |\n", m, unit, strings.Join(cells, " | "))
	}
}

// writeScale prints one row per shape.
func (r *report) writeScale(b *strings.Builder) {
	metrics := []string{"warm CPU", "warm rate", "broker CPU, warm", "peak memory"}
	header := false
	for _, suite := range r.suites {
		shape, ok := strings.CutPrefix(suite, "scale: ")
		if !ok {
			continue
		}
		if !header {
			b.WriteString("\n### cost by partitions and keys (millrace)\n\n| shape | warm CPU, CPU-s/M records | warm rate, k records/s | broker CPU, warm, CPU-s/M records | peak memory, MiB |\n|---|---|---|---|---|\n")
			header = true
		}
		fmt.Fprintf(b, "| %s |", shape)
		for _, m := range metrics {
			cell := ""
			if s := r.find(suite, ours, m); s != nil {
				cell = s.cell()
			}
			fmt.Fprintf(b, " %s |", cell)
		}
		b.WriteString("\n")
	}
}

// cell is the median, with the range if there were several rounds.
func (s *series) cell() string {
	v := slices.DeleteFunc(slices.Clone(s.values), math.IsNaN)
	if len(v) < 2 {
		return number(median(v))
	}
	return fmt.Sprintf("%s (%s-%s)", number(median(v)), number(slices.Min(v)), number(slices.Max(v)))
}

// number prints three significant digits or a whole number.
func number(v float64) string {
	switch {
	case v >= 100:
		return fmt.Sprintf("%.0f", v)
	case v >= 10:
		return fmt.Sprintf("%.1f", v)
	default:
		return fmt.Sprintf("%.2f", v)
	}
}
