// Command bench measures Millrace beside its peers on one real broker: the same
// input, the same checks, arms interleaved in rounds, ratios taken within a
// round. See ../../README.md. It runs on Linux, in the directory of the bench
// module.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// config is what the flags say.
type config struct {
	arms, suites              string
	rounds                    int
	records, keys, partitions int
	restoreRecords            int
	restartKeys               int
	latencyRounds             int
	latencySeconds            int
	idleSeconds               int
	scaleRounds               int
	llmRounds                 int
	isolationRounds           int
	scalePartitions           []int
	scaleKeys                 []int
	threads                   int
	brokers                   string
	brokerPID                 int
	dir                       string
	readme, section           string
	quick                     bool
}

func flags() (config, error) {
	var c config
	var scalePartitions, scaleKeys string
	flag.StringVar(&c.arms, "arms", "millrace,bare", "arms to run: all, or a list of millrace, kafka-streams, goka, bare")
	flag.StringVar(&c.suites, "suites", "pass,count,restore,restart,latency,idle,scale", "what to measure")
	flag.IntVar(&c.rounds, "rounds", 3, "rounds of pass, count, restore and restart")
	flag.IntVar(&c.records, "records", 5_000_000, "input records of 100 bytes")
	flag.IntVar(&c.keys, "keys", 100_000, "distinct keys")
	flag.IntVar(&c.partitions, "partitions", 4, "partitions of every topic")
	flag.IntVar(&c.restoreRecords, "restore-records", 5_000_000, "records of the changelog to restore")
	flag.IntVar(&c.restartKeys, "restart-keys", 1_000_000, "keys of the state at the restart after kill -9")
	flag.IntVar(&c.latencyRounds, "latency-rounds", 3, "rounds of latency")
	flag.IntVar(&c.latencySeconds, "latency-seconds", 15, "length of a latency measurement, after as long a warm-up")
	flag.IntVar(&c.idleSeconds, "idle-seconds", 10, "length of an idle measurement")
	flag.IntVar(&c.llmRounds, "llm-rounds", 2, "rounds of slots, inflight, callcpu, added, storm and budget")
	flag.IntVar(&c.isolationRounds, "isolation-rounds", 5, "rounds of isolation")
	flag.IntVar(&c.scaleRounds, "scale-rounds", 1, "rounds of scale")
	flag.StringVar(&scalePartitions, "scale-partitions", "4,16,64,256", "partition counts of scale")
	flag.StringVar(&scaleKeys, "scale-keys", "1000000,10000000", "key counts of scale besides -keys")
	flag.IntVar(&c.threads, "threads", runtime.NumCPU(), "stream threads of Kafka Streams and workers of Millrace")
	flag.StringVar(&c.brokers, "brokers", "", "address of a running broker; empty starts one")
	flag.IntVar(&c.brokerPID, "broker-pid", 0, "process of the broker at -brokers, for its CPU")
	flag.StringVar(&c.dir, "dir", ".work", "directory for state, binaries and the broker")
	flag.StringVar(&c.readme, "readme", "", "markdown file in which to replace the results of -section")
	flag.StringVar(&c.section, "section", "", "section of -readme, between <!-- NAME: begin --> and <!-- NAME: end -->")
	flag.BoolVar(&c.quick, "quick", false, "small sizes and one round: shows that everything works, measures little")
	flag.Parse()
	if c.quick {
		for name, value := range quickFlags {
			if err := flag.Set(name, value); err != nil {
				return c, err
			}
		}
		flag.Parse() // what is given besides -quick wins
	}
	var errs [3]error
	c.scalePartitions, errs[0] = numbers("-scale-partitions", scalePartitions)
	c.scaleKeys, errs[1] = numbers("-scale-keys", scaleKeys)
	if _, err := os.Stat("kafka-streams/pom.xml"); err != nil {
		errs[2] = errors.New("bench runs in the directory of its module: cd bench && go run ./cmd/bench")
	}
	return c, errors.Join(errs[:]...)
}

// quickFlags are the sizes of -quick.
var quickFlags = map[string]string{
	"rounds": "1", "records": "600000", "restore-records": "600000", "restart-keys": "100000",
	"latency-seconds": "5", "idle-seconds": "5", "scale-partitions": "4,32", "scale-keys": "300000",
}

func numbers(name, list string) ([]int, error) {
	var ns []int
	for s := range strings.SplitSeq(list, ",") {
		if s == "" {
			continue
		}
		n, err := strconv.Atoi(s)
		if err != nil || n < 1 {
			return nil, fmt.Errorf("%s: %q is no positive number", name, s)
		}
		ns = append(ns, n)
	}
	return ns, nil
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

var began = time.Now()

func logf(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "%7.1fs "+format+"\n", append([]any{time.Since(began).Seconds()}, args...)...)
}

func run(ctx context.Context) error {
	cfg, err := flags()
	if err != nil {
		return err
	}
	chosen, err := chooseArms(cfg.arms)
	if err != nil {
		return err
	}
	suites := map[string]func(*harness, context.Context) error{
		"pass":    func(h *harness, ctx context.Context) error { return h.throughputSuite(ctx, "pass") },
		"count":   func(h *harness, ctx context.Context) error { return h.throughputSuite(ctx, "count") },
		"restore": (*harness).restoreSuite,
		"restart": (*harness).restartSuite,
		"latency": (*harness).latencySuite,
		"idle":    (*harness).idleSuite,
		"scale":   (*harness).scaleSuite,

		"slots":     (*harness).slotsSuite,
		"inflight":  (*harness).inflightSuite,
		"callcpu":   (*harness).callcpuSuite,
		"added":     (*harness).addedSuite,
		"isolation": (*harness).isolationSuite,
		"storm":     (*harness).stormSuite,
		"budget":    (*harness).budgetSuite,
	}
	names := strings.Split(cfg.suites, ",")
	for _, name := range names {
		if suites[name] == nil {
			return fmt.Errorf("-suites: %q is none of pass, count, restore, restart, latency, idle, scale, slots, inflight, callcpu, added, isolation, storm, budget", name)
		}
	}
	if err := os.MkdirAll(cfg.dir, 0o755); err != nil {
		return err
	}
	if cfg.dir, err = filepath.Abs(cfg.dir); err != nil {
		return err
	}

	brokers, pid, stopBroker, err := broker(ctx, cfg)
	if err != nil {
		return err
	}
	defer stopBroker()
	h, err := newHarness(cfg, brokers, pid)
	if err != nil {
		return err
	}
	defer h.client.Close()
	h.arms = chosen
	for _, a := range chosen {
		if err := h.build(ctx, a); err != nil {
			return err
		}
	}
	if err := h.warmUp(ctx); err != nil {
		return fmt.Errorf("warm up the broker: %w", err)
	}
	for _, name := range names {
		if slices.Contains(llmSuites, name) {
			if err := h.buildPrograms(ctx); err != nil {
				return err
			}
		}
		if err := suites[name](h, ctx); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return h.publish(ctx)
}

// publish prints the report and writes it where the flags say.
func (h *harness) publish(ctx context.Context) error {
	text := h.report.markdown(preamble(ctx, h.cfg))
	fmt.Print(text)
	if h.report.failed > 0 {
		return fmt.Errorf("%d runs failed, see the notes: nothing is published", h.report.failed)
	}
	if h.cfg.readme == "" {
		return nil
	}
	return replaceSection(h.cfg.readme, h.cfg.section, text)
}

// replaceSection replaces what is between the markers of a section of a file.
func replaceSection(file, section, text string) error {
	begin, end := "<!-- "+section+": begin -->\n", "<!-- "+section+": end -->"
	old, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	before, rest, ok1 := strings.Cut(string(old), begin)
	_, after, ok2 := strings.Cut(rest, end)
	if !ok1 || !ok2 {
		return fmt.Errorf("%s has no lines %q and %q", file, strings.TrimSpace(begin), end)
	}
	return os.WriteFile(file, []byte(before+begin+text+end+after), 0o644)
}

// rounds runs every chosen arm that qualifies once a round, in an order that
// rotates with the round. A failed run is noted, and the rest goes on.
func (h *harness) rounds(ctx context.Context, suite string, n int, qualifies func(arm) bool, run func(a arm, round int) error) error {
	list := slices.DeleteFunc(slices.Clone(h.arms), func(a arm) bool { return !qualifies(a) })
	for round := range n {
		for i := range list {
			a := list[(i+round)%len(list)]
			start := time.Now()
			err := run(a, round)
			if ctx.Err() != nil {
				return ctx.Err()
			}
			if err != nil {
				h.report.failed++
				h.report.note(suite, "%s, round %d failed: %v", a.name, round+1, err)
				continue
			}
			logf("%s: %s, round %d: %s(%.0f s in all)", suite, a.name, round+1, h.report.line(suite, a.name, round), time.Since(start).Seconds())
		}
	}
	return nil
}

// line is a round's measures of an arm in short.
func (r *report) line(suite, arm string, round int) string {
	var b strings.Builder
	for _, s := range r.series[suite] {
		if s.arm == arm && round < len(s.values) {
			fmt.Fprintf(&b, "%s %s %s, ", s.metric, number(s.values[round]), s.unit)
		}
	}
	return b.String()
}

// preamble states what was measured where.
func preamble(ctx context.Context, c config) string {
	command := func(name string, args ...string) string {
		out, err := exec.CommandContext(ctx, name, args...).CombinedOutput()
		if err != nil {
			return "unknown"
		}
		first, _, _ := strings.Cut(string(out), "\n")
		return strings.TrimSpace(first)
	}
	cpu := "unknown CPU"
	if info, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		if _, after, ok := strings.Cut(string(info), "model name"); ok {
			line, _, _ := strings.Cut(after, "\n")
			cpu = strings.TrimLeft(line, "\t: ")
		}
	}
	return fmt.Sprintf(`Measured %s at commit %s on %d cores (%s), shared by broker, arm and harness; %s %s/%s, %s.
%d records of %d bytes, %d keys, %d partitions; %d rounds; medians, in parentheses the range;
"0.50 x" beside a peer: Millrace's value is half of the peer's, as median of the ratios within each round.
`,
		time.Now().UTC().Format(time.DateOnly), command("git", "rev-parse", "--short", "HEAD"), runtime.NumCPU(), cpu,
		runtime.Version(), runtime.GOOS, runtime.GOARCH, command("java", "-version"),
		c.records, valueSize, c.keys, c.partitions, c.rounds)
}
