package rates_test

import (
	"math"
	"testing"
	"time"

	"github.com/millrace/millrace/internal/rates"
)

var start = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

func TestWindowSlides(t *testing.T) {
	t.Parallel()
	w := rates.NewWindow(10*time.Minute, 2)
	for i := range 30 { // one a minute, and the second count every other
		now := start.Add(time.Duration(i) * time.Minute)
		w.Add(0, 1, now)
		w.Add(1, int64(i%2), now)
	}
	if got := w.Sums(start.Add(29 * time.Minute)); got[0] != 10 || got[1] != 5 {
		t.Errorf("the last ten minutes have %v, want [10 5]", got)
	}
	if got := w.Sums(start.Add(33 * time.Minute)); got[0] != 6 {
		t.Errorf("four minutes later %v, want 6", got)
	}
	if got := w.Sums(start.Add(5 * time.Hour)); got[0] != 0 {
		t.Errorf("hours later %v, want 0", got)
	}
}

var cfg = rates.DriftConfig{Window: 10 * time.Minute, Baseline: 24 * time.Hour, MinEvents: 50, Factor: 2, Rise: 0.05}

// traffic ends 20 events a minute, of which a part of 20 were asked again.
func traffic(d *rates.Drift, id rates.Version, from time.Time, length time.Duration, reasked int) time.Time {
	end := from.Add(length)
	for now := from; now.Before(end); now = now.Add(time.Minute) {
		for i := range 20 {
			d.Ended(id, rates.Event{Reasked: i < reasked, Answered: true}, now)
		}
		d.Findings(now)
	}
	return end
}

func finding(t *testing.T, d *rates.Drift, id rates.Version, m rates.Measure, now time.Time) rates.Finding {
	t.Helper()
	for _, f := range d.Findings(now.Add(-time.Second)) {
		if f.Version == id && f.Measure == m {
			return f
		}
	}
	t.Fatalf("nothing is found about %v of %v", m, id)
	return rates.Finding{}
}

// A rate that rises drifts as long as it stays high, however long that is, and not
// after it fell.
func TestDriftOfAVersion(t *testing.T) {
	t.Parallel()
	d, v := rates.NewDrift(cfg), rates.Version{Prompt: "p", Version: "1"}
	now := traffic(d, v, start, time.Hour, 2)
	if f := finding(t, d, v, rates.Reask, now); f.Drifts || f.Rate != 0.1 || math.Abs(f.Baseline-0.1) > 1e-9 {
		t.Errorf("steady: %+v", f)
	}
	now = traffic(d, v, now, 20*time.Minute, 3) // not twice as much
	if f := finding(t, d, v, rates.Reask, now); f.Drifts {
		t.Errorf("a little more: %+v", f)
	}
	now = traffic(d, v, now, 15*time.Minute, 12)
	f := finding(t, d, v, rates.Reask, now)
	if !f.Drifts || f.Rate != 0.6 || f.Limit > 0.4 {
		t.Errorf("much more: %+v", f)
	}
	if f := finding(t, d, v, rates.Fallback, now); f.Drifts {
		t.Errorf("another measure drifts with it: %+v", f)
	}
	now = traffic(d, v, now, 14*24*time.Hour, 12)
	if g := finding(t, d, v, rates.Reask, now); !g.Drifts || g.Baseline > 0.2 {
		t.Errorf("what is wrong has become what is usual: %+v", g)
	}
	now = traffic(d, v, now, 15*time.Minute, 2)
	if f := finding(t, d, v, rates.Reask, now); f.Drifts {
		t.Errorf("after it fell: %+v", f)
	}
}

// A new version is held to what the versions before it did.
func TestDriftOfANewVersion(t *testing.T) {
	t.Parallel()
	d := rates.NewDrift(cfg)
	old, bad, good := rates.Version{Prompt: "p", Version: "1"}, rates.Version{Prompt: "p", Version: "2"}, rates.Version{Prompt: "p", Version: "3"}
	now := traffic(d, old, start, time.Hour, 1)
	for range 60 {
		d.Ended(bad, rates.Event{Reasked: true, Answered: true}, now)
		d.Refused(bad, true, now)
		d.Ended(good, rates.Event{Answered: true}, now)
	}
	now = now.Add(time.Second)
	if f := finding(t, d, bad, rates.Reask, now); !f.Drifts {
		t.Errorf("a bad version: %+v", f)
	}
	if f := finding(t, d, bad, rates.SchemaFailure, now); !f.Drifts || f.Rate != 0.5 {
		t.Errorf("half of the answers of a bad version break the contract: %+v", f)
	}
	if f := finding(t, d, good, rates.Reask, now); f.Drifts {
		t.Errorf("a good version: %+v", f)
	}
}

// Without something to compare with, and with few events, nothing drifts.
func TestDriftNeedsEvents(t *testing.T) {
	t.Parallel()
	d, v := rates.NewDrift(cfg), rates.Version{Prompt: "p", Version: "1"}
	now := traffic(d, v, start, 5*time.Minute, 20)
	if f := finding(t, d, v, rates.Reask, now); f.Drifts || f.Baseline >= 0 {
		t.Errorf("without a baseline: %+v", f)
	}
	d = rates.NewDrift(cfg)
	now = traffic(d, v, start, time.Hour, 0)
	now = now.Add(time.Hour)
	for range 20 {
		d.Ended(v, rates.Event{Fallback: true}, now)
	}
	if f := finding(t, d, v, rates.Fallback, now.Add(time.Second)); f.Drifts || f.Rate != 1 {
		t.Errorf("twenty events: %+v", f)
	}
}

// The number of versions is bounded.
func TestDriftForgetsVersions(t *testing.T) {
	t.Parallel()
	d := rates.NewDrift(cfg)
	seen := map[rates.Version]bool{}
	for i := range 100 {
		d.Ended(rates.Version{Version: string(rune('0' + i))}, rates.Event{}, start.Add(time.Duration(i)*time.Millisecond))
	}
	for _, f := range d.Findings(start.Add(time.Second)) {
		seen[f.Version] = true
	}
	if len(seen) != 16 || !seen[rates.Version{Version: string(rune('0' + 99))}] {
		t.Errorf("%d versions are kept, want the last 16", len(seen))
	}
}
