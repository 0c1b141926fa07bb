package rates

import (
	"math"
	"time"
)

// A Measure is a rate whose drift is watched.
type Measure int

// The measures: events with an answer that broke its contract, that were asked again,
// that a model declined to answer, and that ended as fallbacks; each of all events that
// ended, but SchemaFailure, which is of all answers.
const (
	SchemaFailure Measure = iota
	Reask
	Refusal
	Fallback
	Measures // their number
)

var names = [Measures]string{"schema_failure", "reask", "refusal", "fallback"}

// String returns the measure's name.
func (m Measure) String() string { return names[m] }

// The counts of a version: one per measure, then what they are parts of.
const (
	ended   = int(Measures) + iota
	answers // accepted and refused
	counts
)

// whole is the count that a measure is a part of.
func (m Measure) whole() int {
	if m == SchemaFailure {
		return answers
	}
	return ended
}

// DriftConfig says when a version drifts. All fields are required.
type DriftConfig struct {
	Window, Baseline time.Duration
	MinEvents        int
	Factor, Rise     float64
}

// maxVersions bounds the versions of a step that are watched: of more, those that
// were used least recently are forgotten.
const maxVersions = 16

// A Drift watches the prompt versions of a step.
type Drift struct {
	cfg      DriftConfig
	versions map[Version]*version
}

// A Version is a prompt and its version.
type Version struct{ Prompt, Version string }

type version struct {
	window   *Window
	baseline [counts]float64 // of what has left the window, with its weight
	weighed  time.Time       // when the weights were right
	used     time.Time
	drifts   [Measures]bool
}

// NewDrift returns a Drift that has seen nothing.
func NewDrift(cfg DriftConfig) *Drift {
	return &Drift{cfg: cfg, versions: map[Version]*version{}}
}

// An Event is what became of one event.
type Event struct {
	Reasked, Declined, Fallback, Answered bool
}

// Ended counts an event of a version that ended.
func (d *Drift) Ended(id Version, e Event, now time.Time) {
	v := d.of(id, now)
	v.window.Add(ended, 1, now)
	for i, yes := range map[int]bool{int(Reask): e.Reasked, int(Refusal): e.Declined, int(Fallback): e.Fallback, answers: e.Answered} {
		if yes {
			v.window.Add(i, 1, now)
		}
	}
}

// Refused counts a refused answer; violation says that it broke its contract.
func (d *Drift) Refused(id Version, violation bool, now time.Time) {
	v := d.of(id, now)
	v.window.Add(answers, 1, now)
	if violation {
		v.window.Add(int(SchemaFailure), 1, now)
	}
}

func (d *Drift) of(id Version, now time.Time) *version {
	v := d.versions[id]
	if v == nil {
		if len(d.versions) >= maxVersions {
			d.forget()
		}
		v = &version{window: NewWindow(d.cfg.Window, counts), weighed: now}
		v.window.old = func(part []int64, at time.Time) { d.age(v, part, at) }
		d.versions[id] = v
	}
	v.used = now
	return v
}

func (d *Drift) forget() {
	var oldest Version
	var used time.Time
	for id, v := range d.versions {
		if used.IsZero() || v.used.Before(used) {
			oldest, used = id, v.used
		}
	}
	delete(d.versions, oldest)
}

// age moves a part of the window into the baseline. While a measure drifts the
// baseline stays as it is, so that what is wrong does not become what is usual.
func (d *Drift) age(v *version, part []int64, at time.Time) {
	passed := max(at.Sub(v.weighed), 0)
	v.weighed = at
	for _, drifts := range v.drifts {
		if drifts {
			return
		}
	}
	weight := math.Exp2(-float64(passed) / float64(d.cfg.Baseline))
	for i := range v.baseline {
		v.baseline[i] *= weight
	}
	for i, n := range part {
		v.baseline[i] += float64(n)
	}
}

// A Finding is the rate of a measure of a version, and what it is compared with.
type Finding struct {
	Version
	Measure  Measure
	Rate     float64
	Events   int64   // that the rate is taken over
	Baseline float64 // negative if there is nothing to compare with
	Limit    float64 // the rate drifts above it
	Drifts   bool
}

// Findings returns the measures of all versions that had events within the window.
func (d *Drift) Findings(now time.Time) []Finding {
	var found []Finding
	for id, v := range d.versions {
		sums := v.window.Sums(now)
		if sums[ended] == 0 && sums[answers] == 0 {
			v.drifts = [Measures]bool{}
			continue
		}
		for m := range Measures {
			whole := sums[m.whole()]
			f := Finding{Version: id, Measure: m, Rate: Rate(float64(sums[m]), float64(whole)), Events: whole, Baseline: d.baseline(id, v, m)}
			if f.Baseline >= 0 {
				f.Limit = max(f.Baseline*d.cfg.Factor, f.Baseline+d.cfg.Rise)
				f.Drifts = whole >= int64(d.cfg.MinEvents) && f.Rate > f.Limit
			}
			v.drifts[m] = f.Drifts
			found = append(found, f)
		}
	}
	return found
}

// baseline returns the rate of a measure before the window: that of the version or, as
// long as too few of its events are that old, of all others.
func (d *Drift) baseline(id Version, v *version, m Measure) float64 {
	if whole := v.baseline[m.whole()]; whole >= float64(d.cfg.MinEvents) {
		return Rate(v.baseline[m], whole)
	}
	part, whole := 0.0, 0.0
	for other, o := range d.versions {
		if other == id {
			continue
		}
		part += o.baseline[m]
		whole += o.baseline[m.whole()]
	}
	if whole < float64(d.cfg.MinEvents) {
		return -1
	}
	return Rate(part, whole)
}
