package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
)

// A follower reads what is committed to a topic from its end of then on.
type follower struct {
	cl      *kgo.Client
	done    chan struct{}
	records atomic.Int64
	latest  atomic.Int64 // arrival of the latest record, ns since the epoch
	grew    chan struct{}

	mu      sync.Mutex
	latency []time.Duration // of stamped records, from the stamp
	since   []time.Duration // of all records, from their timestamp
}

func (h *harness) followTail(ctx context.Context, topic string) (*follower, error) {
	ends, err := h.admin.ListEndOffsets(ctx, topic)
	if err := errors.Join(err, ends.Error()); err != nil {
		return nil, fmt.Errorf("end of %s: %w", topic, err)
	}
	from := make(map[int32]kgo.Offset)
	for p, o := range ends[topic] {
		from[p] = kgo.NewOffset().At(o.Offset)
	}
	cl, err := kgo.NewClient(
		kgo.SeedBrokers(h.brokers),
		kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{topic: from}),
		kgo.FetchIsolationLevel(kgo.ReadCommitted()),
	)
	if err != nil {
		return nil, err
	}
	f := &follower{cl: cl, done: make(chan struct{}), grew: make(chan struct{}, 1)}
	go func() {
		defer close(f.done)
		f.read()
	}()
	return f, nil
}

// read runs until the client is closed.
func (f *follower) read() {
	for {
		fetches := f.cl.PollFetches(context.Background())
		now := time.Now().UnixNano()
		if fetches.IsClientClosed() {
			return
		}
		if fetches.NumRecords() == 0 {
			continue
		}
		f.mu.Lock()
		fetches.EachRecord(func(r *kgo.Record) {
			f.since = append(f.since, time.Duration(now-r.Timestamp.UnixNano()))
			if len(r.Value) == valueSize {
				sent := int64(binary.BigEndian.Uint64(r.Value[stampAt:]))
				f.latency = append(f.latency, time.Duration(now-sent))
			}
		})
		f.mu.Unlock()
		f.latest.Store(now)
		f.records.Add(int64(fetches.NumRecords()))
		select {
		case f.grew <- struct{}{}:
		default:
		}
	}
}

// await waits until so many records have arrived in all.
func (f *follower) await(ctx context.Context, records int64, p *process) error {
	deadline := time.NewTimer(stalledAfter)
	defer deadline.Stop()
	for f.records.Load() < records {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-p.exited:
			return p.failed()
		case <-deadline.C:
			return fmt.Errorf("%s: %d of %d records within %v\n%s", p.name, f.records.Load(), records, stalledAfter, p.stderr.String())
		case <-f.grew:
		}
	}
	return nil
}

func (f *follower) close() {
	f.cl.Close()
	<-f.done
}

// latencySuite feeds 1,000 records/s through the pass job and measures the time
// from the producer's send to the arrival at a read_committed consumer.
func (h *harness) latencySuite(ctx context.Context) error {
	return h.rounds(ctx, "latency", h.cfg.latencyRounds, func(a arm) bool { return a.does("pass") }, func(a arm, round int) error {
		return h.runLatency(ctx, a, round)
	})
}

func (h *harness) runLatency(ctx context.Context, a arm, round int) error {
	half := time.Duration(h.cfg.latencySeconds) * time.Second // as elsewhere the second half counts
	seconds := 2 * h.cfg.latencySeconds
	data := newDataset((seconds+60)*tricklePerSecond, h.cfg.keys, h.cfg.partitions)
	data.stamped = true
	p, j, out, err := h.startLive(ctx, a)
	defer h.drop(j)
	if err != nil {
		return err
	}
	defer h.deleteTopics(context.WithoutCancel(ctx), j.in)
	defer out.close()
	defer p.kill()
	feed := h.startTrickle(ctx, data, j.in, 0, tricklePerSecond)
	defer feed.stop()
	if err := out.await(ctx, 1, p); err != nil {
		return err
	}
	if err := pause(ctx, half); err != nil {
		return err
	}
	out.mu.Lock()
	skip := len(out.latency)
	out.mu.Unlock()
	cpu := h.measureCPU(p)
	if err := pause(ctx, half); err != nil {
		return err
	}
	armCPU, brokerCPU := cpu()
	fed, err := feed.stop()
	if err != nil {
		return err
	}
	if err := out.await(ctx, int64(fed), p); err != nil {
		return err
	}
	if err := p.stop(); err != nil {
		return err
	}
	out.mu.Lock()
	times := slices.Sorted(slices.Values(out.latency[skip:]))
	out.mu.Unlock()
	ms := func(q float64) float64 { return times[int(q*float64(len(times)-1))].Seconds() * 1e3 }
	h.report.add("latency", a.name, "p50", "ms", round, ms(0.5))
	h.report.add("latency", a.name, "p99", "ms", round, ms(0.99))
	h.report.add("latency", a.name, "CPU", "% of a core", round, armCPU)
	h.report.add("latency", a.name, "broker CPU", "% of a core", round, brokerCPU)
	return newChecker("pass", data, fed).check(ctx, h.brokers, j.out)
}

// startLive starts the pass job on an empty input and waits until it is ready
// and its output is followed. The caller drops the job even on an error.
func (h *harness) startLive(ctx context.Context, a arm) (*process, job, *follower, error) {
	in := fmt.Sprintf("in-live-%d", h.runs)
	if err := h.createTopic(ctx, in, h.cfg.partitions); err != nil {
		return nil, job{}, nil, err
	}
	j, err := h.newJob(ctx, a, "pass", in, h.cfg.partitions)
	if err != nil {
		return nil, j, nil, err
	}
	out, err := h.followTail(ctx, j.out)
	if err != nil {
		return nil, j, nil, err
	}
	p, err := h.start(ctx, a, j)
	if err == nil {
		select {
		case <-p.ready:
			return p, j, out, nil
		case <-p.exited:
			err = p.failed()
		case <-ctx.Done():
			err = ctx.Err()
		case <-time.After(stalledAfter):
			err = fmt.Errorf("%s is not ready after %v", a.name, stalledAfter)
		}
		p.kill()
	}
	out.close()
	return nil, j, nil, err
}

// measureCPU starts a measurement; the function returned ends it and gives the
// CPU use of arm and broker in percent of a core.
func (h *harness) measureCPU(p *process) func() (arm, broker float64) {
	start, arm0, broker0 := time.Now(), p.cpu(), cpuTime(h.brokerPID)
	return func() (arm, broker float64) {
		wall := time.Since(start).Seconds()
		return (p.cpu() - arm0).Seconds() / wall * 100, (cpuTime(h.brokerPID) - broker0).Seconds() / wall * 100
	}
}

// idleSuite measures what an instance costs that has nothing to do.
func (h *harness) idleSuite(ctx context.Context) error {
	return h.rounds(ctx, "idle", 1, func(a arm) bool { return a.does("pass") }, func(a arm, round int) error {
		p, j, out, err := h.startLive(ctx, a)
		defer h.drop(j)
		if err != nil {
			return err
		}
		defer h.deleteTopics(context.WithoutCancel(ctx), j.in)
		defer out.close()
		defer p.kill()
		// A few records first: an instance that has worked and come to rest.
		data := newDataset(1000, h.cfg.keys, h.cfg.partitions)
		if err := data.load(ctx, h.client, j.in, 0, data.records()); err != nil {
			return err
		}
		if err := out.await(ctx, int64(data.records()), p); err != nil {
			return err
		}
		if err := pause(ctx, 3*time.Second); err != nil {
			return err
		}
		cpu := h.measureCPU(p)
		if err := pause(ctx, time.Duration(h.cfg.idleSeconds)*time.Second); err != nil {
			return err
		}
		armCPU, brokerCPU := cpu()
		h.report.add("idle", a.name, "CPU", "% of a core", round, armCPU)
		h.report.add("idle", a.name, "broker CPU", "% of a core", round, brokerCPU)
		h.report.add("idle", a.name, "peak memory", "MiB", round, p.peakRSS())
		return p.stop()
	})
}

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}
