package main

import (
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestRatioIsTakenWithinARound(t *testing.T) {
	t.Parallel()
	r := newReport()
	// The machine halves its speed every round; ours stays twice as fast. In the
	// second round only one arm has a value.
	for round, v := range []float64{400, 200, 100} {
		if round != 1 {
			r.add("pass", ours, "warm rate", "k records/s", round, 2*v)
		}
		r.add("pass", "kafka-streams", "warm rate", "k records/s", round, v)
	}
	if got := r.ratio("pass", "warm rate", "kafka-streams"); got != 2 {
		t.Errorf("ratio %v, want 2", got)
	}
	if got := r.value("pass", ours, "warm rate"); got != 500 {
		t.Errorf("median %v, want 500", got)
	}
	if got := r.ratio("pass", "warm rate", "goka"); !math.IsNaN(got) {
		t.Errorf("ratio to an arm that did not run: %v, want NaN", got)
	}
	text := r.markdown("")
	for _, want := range []string{
		"| pass-through: at least 2 x the rate of Kafka Streams | 2.00 x | yes |",
		"| warm rate, k records/s | 500 (200-800) | 200 (100-400); 2.00 x |",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("report lacks %q:\n%s", want, text)
		}
	}
	if strings.Contains(text, "bare") || strings.Contains(text, "NaN") {
		t.Errorf("report names what was not measured:\n%s", text)
	}
}

func TestTargetMissed(t *testing.T) {
	t.Parallel()
	r := newReport()
	r.add("latency", ours, "p99", "ms", 0, 50)
	if text := r.markdown(""); !strings.Contains(text, "p99 below 50 ms | 50.0 ms | **no**") {
		t.Errorf("a missed target is not shown:\n%s", text)
	}
}

// One round that overspends misses the target, whatever the median is.
func TestWorstRoundCounts(t *testing.T) {
	t.Parallel()
	r := newReport()
	for round, v := range []float64{0, 0.02, 0} {
		r.add("budget", ours, "overspent", "$", round, v)
	}
	if text := r.markdown(""); !strings.Contains(text, "overspend 0 | 0.02 $ | **no**") {
		t.Errorf("a round that overspent is not shown:\n%s", text)
	}
}

func TestWorstScale(t *testing.T) {
	t.Parallel()
	r := newReport()
	r.add("scale: 4", ours, "warm CPU", "", 0, 2)
	r.add("scale: 16", ours, "warm CPU", "", 0, 1)
	r.add("scale: 64", ours, "warm CPU", "", 0, 3)
	if got := r.worstScale(); got != 1.5 {
		t.Errorf("worst scale %v, want 1.5", got)
	}
}

func TestSummarizeHalves(t *testing.T) {
	t.Parallel()
	start := time.Unix(1000, 0)
	at := func(s float64) time.Time { return start.Add(time.Duration(s * float64(time.Second))) }
	cpu := func(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }
	// Nothing for 2 s; then 500 offsets in 5 s, the other 500 in 1 s. The 1000
	// offsets are 500,000 records.
	samples := []sample{
		{at: at(1), offsets: 0, arm: cpu(0.5), broker: cpu(10)},
		{at: at(2), offsets: 100, arm: cpu(1), broker: cpu(11)},
		{at: at(6), offsets: 400, arm: cpu(2), broker: cpu(12)},
		{at: at(8), offsets: 600, arm: cpu(3), broker: cpu(13)},
		{at: at(9), offsets: 1000, arm: cpu(4), broker: cpu(14)},
	}
	got, err := summarize(samples, start, cpu(9), 500_000)
	if err != nil {
		t.Fatal(err)
	}
	for name, v := range map[string][2]float64{
		"startup":   {got.startup.Seconds(), 2},
		"cold":      {got.cold, 400 * 500 / 5.0},
		"warm":      {got.warm, 500 * 500 / 2.0},
		"warm CPU":  {got.warmCPU, 1.5 / 0.25},
		"whole CPU": {got.wholeCPU, 4 / 0.5},
		"broker":    {got.wholeBrk, 5 / 0.5},
	} {
		if math.Abs(v[0]-v[1]) > 1e-6*v[1] {
			t.Errorf("%s: %v, want %v", name, v[0], v[1])
		}
	}
	if _, err := summarize(samples[:3], start, 0, 500_000); err == nil {
		t.Error("a run of two samples gives rates")
	}
}

func TestReplaceSection(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "README.md")
	const page = "above\n<!-- a: begin -->\nold\n<!-- a: end -->\nbetween\n<!-- b: begin -->\n<!-- b: end -->\nbelow\n"
	if err := os.WriteFile(file, []byte(page), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, section := range []string{"a", "b"} {
		if err := replaceSection(file, section, "new\n"); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	want := strings.ReplaceAll(strings.ReplaceAll(page, "old\n", ""), "begin -->\n", "begin -->\nnew\n")
	if string(got) != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if err := replaceSection(file, "c", "new\n"); err == nil {
		t.Error("a section that is not there was replaced")
	}
}

func TestCPUTimeOfThisProcess(t *testing.T) {
	t.Parallel()
	before, deadline := cpuTime(os.Getpid()), time.Now().Add(30*time.Second)
	for x := uint64(0); cpuTime(os.Getpid()) == before; x = mix(x) { // work until the clock moves
		if time.Now().After(deadline) {
			t.Fatal("no CPU time counted for a busy process")
		}
	}
	if got := cpuTime(1 << 30); got != 0 {
		t.Errorf("CPU time of no process: %v", got)
	}
}
