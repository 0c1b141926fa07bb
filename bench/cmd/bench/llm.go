package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"
)

// The suites of model calls. Their arms are jobs of one program, llm, and the model is
// a process of its own, so that it costs neither.
const (
	askArm  = "bare" // reads, calls and drops the answer
	llmKeys = 10_000
	answer  = `{"label":"LABEL_NEUTRAL","score":0}`
)

var llmSuites = []string{"slots", "inflight", "callcpu", "added", "isolation", "storm", "budget"}

// A modelProcess is a model server under measurement.
type modelProcess struct {
	*process
	url string
}

// modelStats are what a model server tells of itself.
type modelStats struct {
	Answered, Failed, Refused, Running, Most, Tokens int
	Busy, At                                         float64
}

func (h *harness) startModel(ctx context.Context, args ...string) (*modelProcess, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	addr := l.Addr().String()
	if err := l.Close(); err != nil {
		return nil, err
	}
	p, err := startProcess(ctx, "model", append([]string{h.programs["model"], "-addr", addr, "-answer", answer}, args...))
	if err != nil {
		return nil, err
	}
	m := &modelProcess{p, "http://" + addr}
	for deadline := time.Now().Add(stalledAfter); ; {
		_, err := m.stats(ctx)
		if err == nil {
			return m, nil
		}
		if failed := p.failed(); failed != nil || time.Now().After(deadline) {
			p.kill()
			return nil, errors.Join(failed, err)
		}
		if err := pause(ctx, sampleEvery); err != nil {
			p.kill()
			return nil, err
		}
	}
}

func (m *modelProcess) stats(ctx context.Context) (s modelStats, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, m.url+"/stats", nil)
	if err != nil {
		return s, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return s, err
	}
	defer resp.Body.Close()
	return s, json.NewDecoder(resp.Body).Decode(&s)
}

// An asking is a run of the llm program beside a model.
type asking struct {
	h     *harness
	model *modelProcess
	app   *process
	j     job
	out   *follower
}

// ask starts a model and a job on an input topic of so many events.
func (h *harness) ask(ctx context.Context, kind string, events int, modelArgs, args []string) (_ *asking, err error) {
	h.runs++
	name := fmt.Sprintf("bench%d-llm", h.runs)
	r := &asking{h: h, j: job{kind: kind, in: name + "-in", out: name + "-out", app: name, dir: filepath.Join(h.cfg.dir, "state", name)}}
	defer func() {
		if err != nil {
			r.close()
		}
	}()
	if err := errors.Join(h.createTopic(ctx, r.j.in, h.cfg.partitions), h.createTopic(ctx, r.j.out, h.cfg.partitions), os.MkdirAll(r.j.dir, 0o700)); err != nil {
		return nil, err
	}
	if events > 0 {
		if err := newDataset(events, llmKeys, h.cfg.partitions).load(ctx, h.client, r.j.in, 0, events); err != nil {
			return nil, err
		}
	}
	if r.out, err = h.followTail(ctx, r.j.out); err != nil {
		return nil, err
	}
	if r.model, err = h.startModel(ctx, modelArgs...); err != nil {
		return nil, err
	}
	argv := append([]string{
		h.programs["llm"], "-brokers", h.brokers, "-job", kind, "-in", r.j.in, "-out", r.j.out, "-app", name,
		"-dir", r.j.dir, "-threads", strconv.Itoa(h.cfg.threads), "-model-url", r.model.url + "/v1",
	}, args...)
	if r.app, err = startProcess(ctx, "llm", argv); err != nil {
		return nil, err
	}
	select {
	case <-r.app.ready:
		return r, nil
	case <-r.app.exited:
		return nil, r.app.failed()
	case <-time.After(stalledAfter):
		return nil, fmt.Errorf("llm is not ready after %v\n%s", stalledAfter, r.app.stderr.String())
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// close ends what runs and removes what it left.
func (r *asking) close() {
	for _, p := range []*process{r.app, r.modelProcess()} {
		if p == nil {
			continue
		}
		if err := p.stop(); err != nil {
			logf("%v", err)
		}
	}
	if r.out != nil {
		r.out.close()
	}
	r.h.deleteTopics(context.Background(), r.j.in)
	r.h.drop(r.j)
}

func (r *asking) modelProcess() *process {
	if r.model == nil {
		return nil
	}
	return r.model.process
}

// between returns what the model served in a time that begins after a ramp, and the
// CPU of the program meanwhile.
func (r *asking) between(ctx context.Context, ramp, length time.Duration) (from, to modelStats, cpu time.Duration, err error) {
	if err = pause(ctx, ramp); err != nil {
		return
	}
	if from, err = r.model.stats(ctx); err != nil {
		return
	}
	cpu = -r.app.cpu()
	if err = pause(ctx, length); err != nil {
		return
	}
	to, err = r.model.stats(ctx)
	return from, to, cpu + r.app.cpu(), errors.Join(err, r.app.failed())
}

// slotsSuite measures how busy 64 slots are while there is enough to do: the times of
// all calls, as the model sees them, over slots and wall time.
func (h *harness) slotsSuite(ctx context.Context) error {
	const slots = 64
	for _, latency := range []string{"500ms", "lognormal:500ms,8s"} {
		name := "slots: " + latency
		for round := range h.cfg.llmRounds {
			err := h.measureAsking(ctx, "enrich", 8_000, []string{"-latency", latency}, []string{"-slots", strconv.Itoa(slots), "-timeout", "5m"}, func(r *asking) error {
				from, to, _, err := r.between(ctx, 8*time.Second, 30*time.Second)
				if err != nil {
					return err
				}
				h.report.add(name, ours, "slots busy", "of 1", round, (to.Busy-from.Busy)/slots/(to.At-from.At))
				h.report.add(name, ours, "calls", "/s", round, float64(to.Answered-from.Answered)/(to.At-from.At))
				return nil
			})
			if err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
			logf("%s, round %d: %s", name, round+1, h.report.line(name, ours, round))
		}
	}
	return nil
}

func (h *harness) measureAsking(ctx context.Context, kind string, events int, modelArgs, args []string, measure func(*asking) error) error {
	r, err := h.ask(ctx, kind, events, modelArgs, args)
	if err != nil {
		return err
	}
	defer r.close()
	return measure(r)
}

// inflightSuite measures memory with 5,000 calls of 10 s at once. Both arms run with a
// limit of 440 MiB for the Go runtime, as a container of 512 MiB would have it: without
// one its heap grows to twice what lives.
func (h *harness) inflightSuite(ctx context.Context) error {
	return h.besideBare(ctx, "inflight", 5_000, 10*time.Second, 25_000, "-memory-limit", "440")
}

// callcpuSuite is inflightSuite without that limit, under which the collector takes its
// part of the CPU.
func (h *harness) callcpuSuite(ctx context.Context) error {
	return h.besideBare(ctx, "callcpu", 5_000, 10*time.Second, 25_000)
}

// besideBare measures memory and CPU per event of the step and of the bare loop.
func (h *harness) besideBare(ctx context.Context, suite string, slots int, latency time.Duration, events int, args ...string) error {
	args = append(args, "-slots", strconv.Itoa(slots))
	for round := range h.cfg.llmRounds {
		for _, arm := range []string{ours, askArm} {
			kind := map[string]string{ours: "enrich", askArm: "bare"}[arm]
			err := h.measureAsking(ctx, kind, events, []string{"-latency", latency.String()}, args, func(r *asking) error {
				from, to, cpu, err := r.between(ctx, 15*time.Second, 20*time.Second)
				if err != nil {
					return err
				}
				h.report.add(suite, arm, "calls at once", "", round, (to.Busy-from.Busy)/(to.At-from.At))
				h.report.add(suite, arm, "CPU", "ms/event", round, cpu.Seconds()*1e3/float64(to.Answered-from.Answered))
				h.report.add(suite, arm, "peak memory", "MiB", round, r.app.peakRSS())
				return nil
			})
			if err != nil {
				return fmt.Errorf("%s: %s: %w", suite, arm, err)
			}
			logf("%s: %s, round %d: %s", suite, arm, round+1, h.report.line(suite, arm, round))
		}
	}
	return nil
}

// addedSuite measures the latency around calls of 200 ms at 50 events a second: from
// the event's send to its arrival at a read_committed consumer, without the call.
func (h *harness) addedSuite(ctx context.Context) error {
	const call, rate, seconds = 200 * time.Millisecond, 50, 30
	for round := range h.cfg.llmRounds {
		err := h.measureAsking(ctx, "enrich", 0, []string{"-latency", call.String()}, nil, func(r *asking) error {
			data := newDataset(rate*(2*seconds+60), llmKeys, h.cfg.partitions)
			feed := h.startTrickle(ctx, data, r.j.in, 0, rate)
			defer feed.stop()
			if err := pause(ctx, seconds*time.Second/3); err != nil {
				return err
			}
			skip := len(r.out.sinceEvent())
			if err := pause(ctx, seconds*time.Second); err != nil {
				return err
			}
			fed, err := feed.stop()
			if err != nil {
				return err
			}
			if err := r.out.await(ctx, int64(fed), r.app); err != nil {
				return err
			}
			times := slices.Sorted(slices.Values(r.out.sinceEvent()[skip:]))
			h.report.add("added", ours, "p50", "ms", round, quantile(times, 0.5)-call.Seconds()*1e3)
			h.report.add("added", ours, "p99", "ms", round, quantile(times, 0.99)-call.Seconds()*1e3)
			return nil
		})
		if err != nil {
			return fmt.Errorf("added: %w", err)
		}
		logf("added: round %d: %s", round+1, h.report.line("added", ours, round))
	}
	return nil
}

// quantile returns a quantile of sorted times in ms.
func quantile(times []time.Duration, q float64) float64 {
	return times[int(q*float64(len(times)-1))].Seconds() * 1e3
}

// isolationSuite feeds a pass-through of the same instance 5,000 records a second,
// alone and while the step beside it has failing and hanging calls.
func (h *harness) isolationSuite(ctx context.Context) error {
	const rate, warm, length = 5_000, 5 * time.Second, 15 * time.Second
	troubled := []string{"-latency", "200ms", "-fail", "0.3", "-hang", "0.01"}
	for round := range h.cfg.isolationRounds {
		for _, arm := range []string{ours, "undisturbed"} {
			events := map[string]int{ours: 20_000, "undisturbed": 0}[arm]
			if err := h.isolated(ctx, arm, round, rate, warm, length, events, troubled); err != nil {
				return fmt.Errorf("isolation: %s: %w", arm, err)
			}
			logf("isolation: %s, round %d: %s", arm, round+1, h.report.line("isolation", arm, round))
		}
	}
	return nil
}

func (h *harness) isolated(ctx context.Context, arm string, round, rate int, warm, length time.Duration, events int, model []string) error {
	side := fmt.Sprintf("side-%d", h.runs)
	sideIn, sideOut := side+"-in", side+"-out"
	if err := errors.Join(h.createTopic(ctx, sideIn, h.cfg.partitions), h.createTopic(ctx, sideOut, h.cfg.partitions)); err != nil {
		return err
	}
	defer h.deleteTopics(context.WithoutCancel(ctx), sideIn, sideOut)
	out, err := h.followTail(ctx, sideOut)
	if err != nil {
		return err
	}
	defer out.close()
	args := []string{"-side-in", sideIn, "-side-out", sideOut, "-timeout", "2s"}
	return h.measureAsking(ctx, "enrich", events, model, args, func(r *asking) error {
		data := newDataset(rate*int((warm+length).Seconds()+60), h.cfg.keys, h.cfg.partitions)
		data.stamped = true
		feed := h.startTrickle(ctx, data, sideIn, 0, rate)
		defer feed.stop()
		if err := out.await(ctx, 1, r.app); err != nil {
			return err
		}
		if err := pause(ctx, warm); err != nil {
			return err
		}
		out.mu.Lock()
		skip := len(out.latency)
		out.mu.Unlock()
		var most int64
		for end := time.Now().Add(length); time.Now().Before(end); {
			lag, err := h.lag(ctx, job{in: sideIn, app: r.j.app})
			if err != nil {
				return err
			}
			most = max(most, lag)
			if err := pause(ctx, 500*time.Millisecond); err != nil {
				return err
			}
		}
		fed, err := feed.stop()
		if err != nil {
			return err
		}
		if err := out.await(ctx, int64(fed), r.app); err != nil {
			return err
		}
		out.mu.Lock()
		times := slices.Sorted(slices.Values(out.latency[skip:]))
		out.mu.Unlock()
		h.report.add("isolation", arm, "p50", "ms", round, quantile(times, 0.5))
		h.report.add("isolation", arm, "p99", "ms", round, quantile(times, 0.99))
		h.report.add("isolation", arm, "largest lag", "ms of input", round, float64(most)/float64(rate)*1e3)
		return newChecker("pass", data, fed).check(ctx, h.brokers, sideOut)
	})
}

// stormSuite lets a provider allow a tenth of what the step asks for.
func (h *harness) stormSuite(ctx context.Context) error {
	const limit, events = 60.0, 6_000 // 64 slots of 100 ms could make 640 calls a second
	for round := range h.cfg.llmRounds {
		err := h.measureAsking(ctx, "enrich", events, []string{"-latency", "100ms", "-limit", fmt.Sprint(limit)}, nil, func(r *asking) error {
			from, to, _, err := r.between(ctx, 5*time.Second, 40*time.Second)
			if err != nil {
				return err
			}
			dead := int64(0)
			if ends, err := h.admin.ListEndOffsets(ctx, r.j.app+".tone.dlq"); err == nil {
				for _, p := range ends[r.j.app+".tone.dlq"] {
					dead += p.Offset
				}
			}
			h.report.add("storm", ours, "goodput", "of the limit", round, float64(to.Answered-from.Answered)/(to.At-from.At)/limit)
			h.report.add("storm", ours, "refused with 429", "/s", round, float64(to.Refused-from.Refused)/(to.At-from.At))
			h.report.add("storm", ours, "dead letters", "", round, float64(dead))
			return nil
		})
		if err != nil {
			return fmt.Errorf("storm: %w", err)
		}
		logf("storm: round %d: %s", round+1, h.report.line("storm", ours, round))
	}
	return nil
}

// buildPrograms makes the programs of the suites of model calls, once.
func (h *harness) buildPrograms(ctx context.Context) error {
	if len(h.programs) > 0 {
		return nil
	}
	bin := filepath.Join(h.cfg.dir, "bin")
	h.programs = map[string]string{}
	for _, name := range []string{"model", "llm"} {
		argv, err := buildGo(name)(ctx, bin)
		if err != nil {
			return err
		}
		h.programs[name] = argv[0]
	}
	return nil
}

// sinceEvent returns, of each record read so far, the time from its event's timestamp
// to its arrival. Resolution: 1 ms.
func (f *follower) sinceEvent() []time.Duration {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.since)
}
