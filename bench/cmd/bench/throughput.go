package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"
)

// throughput is what a run over a loaded input yields.
type throughput struct {
	startup            time.Duration // process start to first committed output
	cold, warm         float64       // records/s of the first and second half of the output
	warmCPU, wholeCPU  float64       // CPU seconds of the arm per million records
	warmBrok, wholeBrk float64       // the same of the broker
	rss                float64       // MiB
}

// runThroughput runs one arm over the input, checks its output and drops what
// it made.
func (h *harness) runThroughput(ctx context.Context, a arm, kind string, in *input) (throughput, error) {
	j, err := h.newJob(ctx, a, kind, in.topic, len(in.data.order))
	defer h.drop(j)
	if err != nil {
		return throughput{}, err
	}
	brokerStart := cpuTime(h.brokerPID)
	p, err := h.start(ctx, a, j)
	if err != nil {
		return throughput{}, err
	}
	defer p.kill()
	samples, err := h.watch(ctx, p, j, in.loaded)
	if err != nil {
		return throughput{}, err
	}
	rss := p.peakRSS()
	stopped := p.stop()
	t, err := summarize(samples, p.started, brokerStart, in.loaded)
	if err != nil {
		return throughput{}, err
	}
	t.rss = rss
	return t, errors.Join(stopped, newChecker(kind, in.data, in.loaded).check(ctx, h.brokers, j.out))
}

// summarize divides a run into its halves.
func summarize(samples []sample, start time.Time, brokerStart time.Duration, records int) (throughput, error) {
	first := 0
	for first < len(samples) && samples[first].offsets == 0 {
		first++
	}
	if len(samples)-first < 4 {
		return throughput{}, fmt.Errorf("the run ended within %d samples of %v: use more records", len(samples)-first, sampleEvery)
	}
	begin, end := samples[first], samples[len(samples)-1]
	mid := interpolate(samples[first:], end.offsets/2)
	// Offsets count markers too, so that they are scaled to records.
	perOffset := float64(records) / float64(end.offsets)
	rate := func(a, b sample) float64 {
		return float64(b.offsets-a.offsets) * perOffset / b.at.Sub(a.at).Seconds()
	}
	half := float64(end.offsets-mid.offsets) * perOffset / 1e6
	all := float64(records) / 1e6
	return throughput{
		startup:  begin.at.Sub(start),
		cold:     rate(begin, mid),
		warm:     rate(mid, end),
		warmCPU:  (end.arm - mid.arm).Seconds() / half,
		wholeCPU: end.arm.Seconds() / all,
		warmBrok: (end.broker - mid.broker).Seconds() / half,
		wholeBrk: (end.broker - brokerStart).Seconds() / all,
	}, nil
}

// interpolate returns the sample at which the output reached so many offsets.
func interpolate(samples []sample, offsets int64) sample {
	for i := 1; i < len(samples); i++ {
		a, b := samples[i-1], samples[i]
		if b.offsets < offsets {
			continue
		}
		if b.offsets == a.offsets || a.offsets >= offsets {
			return a
		}
		f := float64(offsets-a.offsets) / float64(b.offsets-a.offsets)
		part := func(a, b time.Duration) time.Duration { return a + time.Duration(f*float64(b-a)) }
		return sample{
			at:      a.at.Add(part(0, b.at.Sub(a.at))),
			offsets: offsets,
			arm:     part(a.arm, b.arm),
			broker:  part(a.broker, b.broker),
		}
	}
	return samples[len(samples)-1]
}

// warmUp runs the bare loop once and discards what it measures, so that the
// first arm does not meet a broker whose code is not compiled yet.
func (h *harness) warmUp(ctx context.Context) error {
	bare := arms[slices.IndexFunc(arms, func(a arm) bool { return a.name == "bare" })]
	if err := h.build(ctx, bare); err != nil {
		return err
	}
	in, err := h.input(ctx, h.cfg.records, h.cfg.keys, h.cfg.partitions)
	if err != nil {
		return err
	}
	_, err = h.runThroughput(ctx, bare, "pass", in)
	return err
}

// throughputSuite runs every arm that does the job once a round.
func (h *harness) throughputSuite(ctx context.Context, kind string) error {
	in, err := h.input(ctx, h.cfg.records, h.cfg.keys, h.cfg.partitions)
	if err != nil {
		return err
	}
	return h.rounds(ctx, kind, h.cfg.rounds, func(a arm) bool { return a.does(kind) }, func(a arm, round int) error {
		t, err := h.runThroughput(ctx, a, kind, in)
		if err != nil {
			return err
		}
		h.report.throughput(kind, a.name, round, t)
		return nil
	})
}

func (r *report) throughput(suite, arm string, round int, t throughput) {
	r.add(suite, arm, "warm rate", "k records/s", round, t.warm/1e3)
	r.add(suite, arm, "cold rate", "k records/s", round, t.cold/1e3)
	r.add(suite, arm, "warm CPU", "CPU-s/M records", round, t.warmCPU)
	r.add(suite, arm, "whole-run CPU", "CPU-s/M records", round, t.wholeCPU)
	r.add(suite, arm, "broker CPU, warm", "CPU-s/M records", round, t.warmBrok)
	r.add(suite, arm, "broker CPU, whole run", "CPU-s/M records", round, t.wholeBrk)
	r.add(suite, arm, "start to first output", "s", round, t.startup.Seconds())
	r.add(suite, arm, "peak memory", "MiB", round, t.rss)
}

// scaleSuite measures how the cost of a record grows with partitions and keys.
func (h *harness) scaleSuite(ctx context.Context) error {
	type shape struct{ keys, partitions int }
	var shapes []shape
	for _, p := range h.cfg.scalePartitions {
		shapes = append(shapes, shape{h.cfg.keys, p})
	}
	for _, k := range h.cfg.scaleKeys {
		if s := (shape{k, h.cfg.partitions}); k != h.cfg.keys || len(h.cfg.scalePartitions) == 0 {
			shapes = append(shapes, s)
		}
	}
	for _, s := range shapes {
		// All keys exist before the second half begins.
		in, err := h.input(ctx, max(h.cfg.records, 2*s.keys), s.keys, s.partitions)
		if err != nil {
			return err
		}
		name := fmt.Sprintf("scale: count, %d partitions, %d keys", s.partitions, s.keys)
		err = h.rounds(ctx, name, h.cfg.scaleRounds, func(a arm) bool { return a.name == ours }, func(a arm, round int) error {
			t, err := h.runThroughput(ctx, a, "count", in)
			if err != nil {
				return err
			}
			h.report.throughput(name, a.name, round, t)
			return nil
		})
		if s.keys != h.cfg.keys || s.partitions != h.cfg.partitions {
			h.dropInput(ctx, in)
		}
		if err != nil {
			return err
		}
	}
	return nil
}
