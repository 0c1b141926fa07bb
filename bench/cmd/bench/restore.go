package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
)

// seedRecords is how many records a job counts before its changelog is filled
// up: enough that it creates its topics and commits offsets.
const seedRecords = 4000

// restoreSuite times the restore of a count's state from a changelog of
// cfg.restoreRecords records, the same for every arm: the arm counts a few
// records, stops, the harness appends to its changelog, the state directory is
// removed, and the arm starts again. Probe records prove that the state is the
// changelog's.
func (h *harness) restoreSuite(ctx context.Context) error {
	return h.rounds(ctx, "restore", h.cfg.rounds, func(a arm) bool { return a.does("count") }, func(a arm, round int) error {
		return h.runRestore(ctx, a, round)
	})
}

func (h *harness) runRestore(ctx context.Context, a arm, round int) error {
	// An input of its own: the probes are appended to it.
	data := newDataset(h.cfg.restoreRecords, h.cfg.keys, h.cfg.partitions)
	topic := fmt.Sprintf("in-restore-%d", h.runs)
	if err := h.createTopic(ctx, topic, h.cfg.partitions); err != nil {
		return err
	}
	defer h.deleteTopics(context.WithoutCancel(ctx), topic)
	if err := data.load(ctx, h.client, topic, 0, seedRecords); err != nil {
		return err
	}
	j, err := h.newJob(ctx, a, "count", topic, h.cfg.partitions)
	defer h.drop(j)
	if err != nil {
		return err
	}
	seed, err := h.start(ctx, a, j)
	if err != nil {
		return err
	}
	defer seed.kill()
	if _, err := h.watch(ctx, seed, j, seedRecords); err != nil {
		return err
	}
	if err := seed.stop(); err != nil {
		return err
	}
	if err := h.appendCounts(ctx, a.changelog(j.app), data); err != nil {
		return err
	}
	if err := os.RemoveAll(j.dir); err != nil {
		return err
	}
	return h.timeRestore(ctx, a, j, data, round)
}

// appendCounts writes the counts of the data set's records as changelog records:
// plain key, count as 8 bytes.
func (h *harness) appendCounts(ctx context.Context, topic string, data *dataset) error {
	var first kgo.FirstErrPromise
	for i := range data.key {
		h.client.Produce(ctx, &kgo.Record{
			Topic: topic,
			Key:   appendKey(nil, data.key[i]),
			Value: binary.BigEndian.AppendUint64(nil, uint64(data.nth[i])),
		}, first.Promise())
	}
	if err := errors.Join(h.client.Flush(ctx), first.Err()); err != nil {
		return fmt.Errorf("fill changelog %s: %w", topic, err)
	}
	return nil
}

// timeRestore starts the arm without its state and sends one probe record for
// each of some keys: the count that comes out must continue the changelog's.
func (h *harness) timeRestore(ctx context.Context, a arm, j job, data *dataset, round int) error {
	before, err := h.committed(ctx, j.out)
	if err != nil {
		return err
	}
	last := make(map[string]uint64, data.keys)
	for i := range data.key {
		last[string(appendKey(nil, data.key[i]))] = uint64(data.nth[i])
	}
	probes := min(1000, data.keys)
	if err := data.load(ctx, h.client, j.in, 0, probes); err != nil { // record i < keys has the i-th key
		return err
	}
	p, err := h.start(ctx, a, j)
	if err != nil {
		return err
	}
	defer p.kill()
	var firstOutput time.Time
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(stalledAfter); firstOutput.IsZero(); {
		sum, err := h.committed(ctx, j.out)
		switch {
		case err != nil:
			return err
		case sum > before:
			firstOutput = time.Now()
		case time.Now().After(deadline):
			return fmt.Errorf("%s: no output within %v of a start with empty state\n%s", p.name, stalledAfter, p.stderr.String())
		case p.failed() != nil:
			return p.failed()
		}
		<-tick.C
	}
	if _, err := h.watch(ctx, p, j, seedRecords+probes); err != nil {
		return err
	}
	cpu, rss := p.cpu(), p.peakRSS()
	if err := p.stop(); err != nil {
		return err
	}
	if err := checkProbes(ctx, h.brokers, j.out, last, probes); err != nil {
		return err
	}
	r := p.restored()
	if r.end == 0 || r.records < int64(data.records()) {
		return fmt.Errorf("%s reports a restore of %d records, the changelog has over %d", a.name, r.records, data.records())
	}
	h.report.add("restore", a.name, "restore rate", "k records/s", round, float64(r.records)/float64(max(1, r.end-r.start)))
	h.report.add("restore", a.name, "start to first output", "s", round, firstOutput.Sub(p.started).Seconds())
	h.report.add("restore", a.name, "CPU", "CPU-s/M records", round, cpu.Seconds()/float64(r.records)*1e6)
	h.report.add("restore", a.name, "peak memory", "MiB", round, rss)
	return nil
}

// checkProbes reads the output: behind the seed's counts it must hold one record
// per probe, with the changelog's last count of the key plus one.
func checkProbes(ctx context.Context, brokers, topic string, last map[string]uint64, probes int) error {
	total, right := 0, 0
	err := readCommitted(ctx, brokers, topic, func(r *kgo.Record) {
		total++
		if n, ok := last[string(r.Key)]; ok && len(r.Value) == 8 && binary.BigEndian.Uint64(r.Value) == n+1 {
			right++
		}
	})
	if err != nil {
		return err
	}
	if total != seedRecords+probes || right != probes {
		return fmt.Errorf("restored state is wrong: %d of %d probes continue the changelog's count, %d records instead of %d",
			right, probes, total, seedRecords+probes)
	}
	return nil
}

// restartSuite kills a counting arm with SIGKILL while records trickle in, starts
// it again at once on the same state directory, and times the first output.
func (h *harness) restartSuite(ctx context.Context) error {
	return h.rounds(ctx, "restart", h.cfg.rounds, func(a arm) bool { return a.does("count") }, func(a arm, round int) error {
		return h.runRestart(ctx, a, round)
	})
}

// tricklePerSecond is the rate of input around a kill and in the latency suite, in
// records a second.
const tricklePerSecond = 1000

func (h *harness) runRestart(ctx context.Context, a arm, round int) error {
	keys := h.cfg.restartKeys
	loaded := keys // every key once; then random ones trickle in
	data := newDataset(loaded+120*tricklePerSecond, keys, h.cfg.partitions)
	topic := fmt.Sprintf("in-restart-%d", h.runs)
	if err := h.createTopic(ctx, topic, h.cfg.partitions); err != nil {
		return err
	}
	defer h.deleteTopics(context.WithoutCancel(ctx), topic)
	if err := data.load(ctx, h.client, topic, 0, loaded); err != nil {
		return err
	}
	j, err := h.newJob(ctx, a, "count", topic, h.cfg.partitions)
	defer h.drop(j)
	if err != nil {
		return err
	}
	victim, err := h.start(ctx, a, j)
	if err != nil {
		return err
	}
	defer victim.kill()
	if _, err := h.watch(ctx, victim, j, loaded); err != nil {
		return err
	}

	out, err := h.followTail(ctx, j.out)
	if err != nil {
		return err
	}
	defer out.close()
	feed := h.startTrickle(ctx, data, topic, loaded, tricklePerSecond)
	defer feed.stop()
	if err := out.await(ctx, 2*tricklePerSecond, victim); err != nil { // 2 s under way
		return err
	}
	victim.kill()
	// What the victim committed becomes visible now, not after the restart.
	if err := pause(ctx, 300*time.Millisecond); err != nil {
		return err
	}
	seen := out.records.Load()
	again, err := h.start(ctx, a, j)
	if err != nil {
		return err
	}
	defer again.kill()
	if err := out.await(ctx, seen+1, again); err != nil {
		return err
	}
	took := time.Duration(out.latest.Load() - again.started.UnixNano())
	if err := pause(ctx, time.Second); err != nil {
		return err
	}
	fed, err := feed.stop()
	if err != nil {
		return err
	}
	if _, err := h.watch(ctx, again, j, fed); err != nil {
		return err
	}
	rss := again.peakRSS()
	if err := again.stop(); err != nil {
		return err
	}
	h.report.add("restart", a.name, "kill -9 to first output, from process start", "s", round, took.Seconds())
	h.report.add("restart", a.name, "peak memory", "MiB", round, rss)
	c := newChecker("count", data, fed)
	if err := c.check(ctx, h.brokers, j.out); err != nil {
		if a.exactAfterKill {
			return err
		}
		h.report.note("restart", "%s, round %d: %v", a.name, round+1, err)
	}
	return nil
}

// A trickle feeds a data set at a rate until it is stopped.
type trickle struct {
	perSecond int
	cancel    context.CancelFunc
	done      chan struct{}
	next      atomic.Int64 // the first record not fed
	err       error
}

func (h *harness) startTrickle(ctx context.Context, data *dataset, topic string, from, perSecond int) *trickle {
	running, cancel := context.WithCancel(ctx)
	t := &trickle{perSecond: perSecond, cancel: cancel, done: make(chan struct{})}
	t.next.Store(int64(from))
	go func() {
		defer close(t.done)
		t.err = h.feed(running, data, topic, t)
	}()
	return t
}

func (h *harness) feed(ctx context.Context, data *dataset, topic string, t *trickle) error {
	cl, err := kgo.NewClient(kgo.SeedBrokers(h.brokers), kgo.ProducerLinger(0), kgo.ProducerBatchCompression(kgo.NoCompression()))
	if err != nil {
		return err
	}
	defer cl.Close()
	var first kgo.FirstErrPromise
	tick := time.NewTicker(time.Second / time.Duration(min(t.perSecond, 1000)))
	defer tick.Stop()
	start, from := time.Now(), t.next.Load()
	for ctx.Err() == nil {
		due := from + int64(time.Since(start).Seconds()*float64(t.perSecond))
		for i := t.next.Load(); i < min(due, int64(data.records())); i++ {
			v := make([]byte, valueSize)
			fillValue(v, int(i))
			if data.stamped {
				binary.BigEndian.PutUint64(v[stampAt:], uint64(time.Now().UnixNano()))
			}
			// Not ctx: what has been handed over is written.
			cl.Produce(context.WithoutCancel(ctx), &kgo.Record{Topic: topic, Key: appendKey(nil, data.key[i]), Value: v}, first.Promise())
			t.next.Store(i + 1)
		}
		select {
		case <-ctx.Done():
		case <-tick.C:
		}
	}
	return errors.Join(cl.Flush(context.WithoutCancel(ctx)), first.Err())
}

// stop ends the feeding and returns how many records of the data set are in the
// topic. It is idempotent.
func (t *trickle) stop() (int, error) {
	t.cancel()
	<-t.done
	return int(t.next.Load()), t.err
}
