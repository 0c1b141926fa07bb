package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"os"
	"strings"
	"time"

	"github.com/millrace/millrace/cmd/millrace/internal/audit"
	"github.com/millrace/millrace/examples/reviews"
	"github.com/millrace/millrace/internal/modelserver"
)

// demoOptions are the flags of the demo.
type demoOptions struct {
	json      bool
	input     string // a file, "-", or "" for the data of the example
	brokers   string
	modelURL  string
	model     string
	provider  string
	timeout   time.Duration
	faultRate float64
	kill      int
	dir       string
	seed      uint64
	rate      float64
	latency   time.Duration
}

func demoFlags(o *demoOptions) *flag.FlagSet {
	fs := flag.NewFlagSet("demo", flag.ContinueOnError)
	fs.BoolVar(&o.json, "json", false, "print one JSON object as the last line of standard output; all else goes to standard error")
	fs.StringVar(&o.input, "input", "", "`file` of events, - for standard input; each line a JSON object with id, text and, if known, review and rating, or id, rating and text with tabs between them (default: 3,708 review sentences)")
	fs.StringVar(&o.brokers, "brokers", "", "`addresses` of a Kafka cluster, host:port with commas between them (default: an embedded broker)")
	fs.StringVar(&o.modelURL, "model-url", "", "`URL` of an OpenAI-compatible server; the key is taken from OPENAI_API_KEY (default: a server in the demo around VADER, a classical sentiment model)")
	fs.StringVar(&o.model, "model", modelserver.ModelName, "`name` of the model")
	fs.StringVar(&o.provider, "provider", "", "what serves the model of -model-url, which decides the form of the schema: `name` openai, azure, vllm, llamacpp or ollama (default: what all of them understand)")
	fs.DurationVar(&o.timeout, "model-timeout", time.Minute, "how long one attempt of the model of -model-url may take; all attempts for an event together five times as `long`")
	fs.Float64Var(&o.faultRate, "fault-rate", 0, "share of the model's calls, 0 to 1, that meet a 429, a 500, a hang, a cut or a malformed answer")
	fs.IntVar(&o.kill, "kill", 0, "run the worker as a process of its own and kill it with SIGKILL `n` times while it works")
	fs.StringVar(&o.dir, "dir", "", "`directory` to keep everything in, and to continue in (default: a temporary one, removed at the end)")
	fs.Uint64Var(&o.seed, "seed", 0, "seed of faults, latencies and kills (default: a random one)")
	fs.Float64Var(&o.rate, "rate", 400, "`events` produced per second, 0 for as fast as possible")
	fs.DurationVar(&o.latency, "latency", 15*time.Millisecond, "median `time` a call of the demo's model takes")
	return fs
}

// check reports every mistake at once.
func (o *demoOptions) check() error {
	var errs []error
	fail := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if !(o.faultRate >= 0 && o.faultRate <= 1) {
		fail("-fault-rate %v: it must be from 0 to 1", o.faultRate)
	}
	if o.faultRate > 0 && o.modelURL != "" {
		fail("-fault-rate makes the demo's own model misbehave: leave it out with -model-url")
	}
	if o.kill < 0 || o.kill > 1000 {
		fail("-kill %d: it must be from 0 to 1000", o.kill)
	}
	if !(o.rate >= 0 && o.rate <= 1e6) {
		fail("-rate %v: it must be from 0 to 1000000", o.rate)
	}
	if o.latency < 0 || o.latency > time.Minute {
		fail("-latency %s: it must be from 0 to 1m", o.latency)
	}
	if o.timeout < time.Second || o.timeout > time.Hour {
		fail("-model-timeout %s: it must be from 1s to 1h", o.timeout)
	}
	if o.modelURL == "" && o.provider != "" {
		fail("-provider says what serves -model-url: leave it out without")
	}
	if o.model == "" {
		fail("-model: the name is empty")
	}
	for _, addr := range o.brokerList() {
		if !strings.Contains(addr, ":") {
			fail("-brokers %q: needs host:port", addr)
		}
	}
	if o.modelURL != "" {
		if _, err := modelserver.Proxy(o.modelURL, nil); err != nil {
			fail("-model-url: %w", err)
		}
	}
	if len(errs) > 0 {
		return usageError{errors.Join(errs...)}
	}
	return nil
}

func (o *demoOptions) brokerList() []string {
	if o.brokers == "" {
		return nil
	}
	return strings.Split(o.brokers, ",")
}

func demoCommand(ctx context.Context, args []string, std stdio) error {
	var o demoOptions
	if err := parse(demoFlags(&o), args, std); err != nil {
		return err
	}
	if err := o.check(); err != nil {
		return err
	}
	if o.seed == 0 {
		o.seed = rand.Uint64()>>32 + 1 // short enough to type again
	}
	lines, digest, err := readInput(o.input, std.in)
	if err != nil {
		return err
	}
	human := std.out
	if o.json {
		human = std.err
	}
	sum, err := runDemo(ctx, o, lines, digest, human)
	if sum == nil {
		return err
	}
	printSummary(human, sum)
	if o.json {
		if jerr := printJSON(std.out, sum); jerr != nil {
			return errors.Join(err, jerr)
		}
	}
	if err != nil {
		return err
	}
	return sum.verdict()
}

// readInput reads all events; digest tells inputs apart.
func readInput(name string, stdin io.Reader) (lines []reviews.Line, digest string, err error) {
	var r io.Reader
	switch name {
	case "":
		name, r = "the example's data", reviews.Sentences()
	case "-":
		name, r = "standard input", stdin
	default:
		f, err := os.Open(name)
		if err != nil {
			return nil, "", usagef("-input: %w", err)
		}
		defer f.Close()
		r = f
	}
	sum := newDigest()
	for l, err := range reviews.Lines(io.TeeReader(r, sum)) {
		if err != nil {
			return nil, "", fmt.Errorf("%s: %w", name, err)
		}
		lines = append(lines, l)
	}
	if len(lines) == 0 {
		return nil, "", usagef("-input: %s holds no events", name)
	}
	return lines, fmt.Sprintf("%x", sum.Sum(nil)), nil
}

// A summary is the outcome of a run. With a directory that was used before, the
// counts are those of all runs in it.
type summary struct {
	app      string
	broker   string
	model    string
	own      bool // the model is the demo's own
	dir      string
	seed     uint64
	input    int // lines
	tally    audit.Tally
	calls    modelserver.Stats
	callsNow int // calls of this run
	kills    int
	restarts bool // the worker ran as a process
	products []audit.ProductCount
	wrong    int    // counts per product or minute that do not add up
	example  string // one of them
	problems []string
	unsent   int // lines that never reached the source topic

	continued    bool
	lostSource   int // events that an earlier process had been promised and that are gone
	lostOutcomes int // outcomes that an earlier process had read and that are gone

	total     time.Duration
	streaming time.Duration // from the first event sent to the last outcome
	sentNow   int           // events sent in this run
}

// verdict is nil if the run kept every promise.
func (s *summary) verdict() error {
	var broken []string
	add := func(bad bool, format string, args ...any) {
		if bad {
			broken = append(broken, fmt.Sprintf(format, args...))
		}
	}
	t := s.tally
	add(t.Lost > 0, "%d events lost", t.Lost)
	add(t.Duplicates > 0, "%d duplicates", t.Duplicates)
	add(t.Done() != t.Events-t.Lost || t.Stray > 0, "%d outcomes for %d events, %d of no event", t.Done(), t.Events, t.Stray)
	add(s.unsent > 0, "%d events not sent", s.unsent)
	add(s.calls.PaidTwice > 0, "%d calls paid twice", s.calls.PaidTwice)
	add(s.wrong > 0, "%d counts do not add up", s.wrong)
	add(t.Problems > 0, "%d records that must not be", t.Problems)
	if broken == nil {
		return nil
	}
	return fmt.Errorf("the run broke its promise: %s", strings.Join(broken, ", "))
}

func printSummary(w io.Writer, s *summary) {
	t := s.tally
	row := func(name, format string, args ...any) {
		fmt.Fprintf(w, "  %-14s %s\n", name, fmt.Sprintf(format, args...))
	}
	fmt.Fprintln(w, "\nSummary")
	row("events", "%d", t.Events)
	row("enriched", "%d", t.Enriched)
	row("dead-lettered", "%d", t.DeadLettered)
	row("fallbacks", "%d", t.Fallbacks)
	row("duplicates", "%d", t.Duplicates)
	row("lost", "%d", t.Lost)
	if math.IsNaN(t.Correlation) {
		row("correlation", "not defined: %d events have a rating", t.Rated)
	} else {
		row("correlation", "%.3f with the human ratings of %d events (Pearson)", t.Correlation, t.Rated)
	}
	row("throughput", "%.0f events/s over %.1f s; the demo took %.1f s", s.throughput(), s.streaming.Seconds(), s.total.Seconds())
	row("latency", "p50 %s, p99 %s, from sending an event to reading its outcome", round(t.P50), round(t.P99))
	c := s.calls
	row("model calls", "%d: %d answered, %d unusable, %d refused, %d cut off, %d given up; %d retries", c.Calls, c.Answered, c.Unusable, c.Refused, c.Broken, c.Gone, c.Retried)
	row("paid twice", "%d", c.PaidTwice)
	row("interrupted", "%d calls made again because their worker died or gave them up", c.Interrupted)
	if s.restarts {
		row("kills", "%d times SIGKILL", s.kills)
	}
	for i, p := range s.products {
		name := ""
		if i == 0 {
			name = "per product"
		}
		row(name, "%5d  %s", p.Sentences, p.Product)
	}
	if s.wrong == 0 {
		row("counts", "per product and per minute all add up")
	} else {
		row("counts", "%d do not add up: %s", s.wrong, s.example)
	}
	row("model", "%s", s.model)
	row("broker", "%s", s.broker)
	row("topics", "%s-*, %s.*", s.app, s.app)
	if s.dir != "" {
		row("directory", "%s", s.dir)
	}
	row("seed", "%d", s.seed)
	if s.continued {
		row("continued", "the counts are those of all runs in this directory; %d events and %d calls are this run's", s.sentNow, s.callsNow)
		row("after a kill", "the broker had lost %d events it had acknowledged (sent again) and %d outcomes it had committed", s.lostSource, s.lostOutcomes)
	}
	for _, p := range s.problems {
		row("problem", "%s", p)
	}
}

func (s *summary) throughput() float64 {
	if s.streaming <= 0 {
		return 0
	}
	return float64(s.sentNow) / s.streaming.Seconds()
}

// round shortens a duration to about three digits.
func round(d time.Duration) time.Duration {
	for unit := time.Second; unit > 1; unit /= 10 {
		if d >= 100*unit {
			return d.Round(unit)
		}
	}
	return d
}

func printJSON(w io.Writer, s *summary) error {
	out := struct {
		Events       int      `json:"events"`
		Enriched     int      `json:"enriched"`
		DeadLettered int      `json:"dead_lettered"`
		Fallbacks    int      `json:"fallbacks"`
		Duplicates   int      `json:"duplicates"`
		Lost         int      `json:"lost"`
		ModelCalls   int      `json:"model_calls"`
		PaidTwice    int      `json:"paid_twice"`
		Interrupted  int      `json:"interrupted"`
		Correlation  *float64 `json:"correlation"` // null if it is not defined
		Seconds      float64  `json:"seconds"`
	}{
		Events: s.tally.Events, Enriched: s.tally.Enriched, DeadLettered: s.tally.DeadLettered, Fallbacks: s.tally.Fallbacks,
		Duplicates: s.tally.Duplicates, Lost: s.tally.Lost,
		ModelCalls: s.calls.Calls, PaidTwice: s.calls.PaidTwice, Interrupted: s.calls.Interrupted,
		Seconds: math.Round(s.total.Seconds()*1000) / 1000,
	}
	if !math.IsNaN(s.tally.Correlation) {
		c := math.Round(s.tally.Correlation*1e6) / 1e6
		out.Correlation = &c
	}
	return json.NewEncoder(w).Encode(out)
}
