package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
)

// A harness runs arms on jobs on one broker and collects what it measures.
type harness struct {
	cfg       config
	brokers   string
	brokerPID int // 0 if unknown: then the broker's CPU is not measured
	client    *kgo.Client
	admin     *kadm.Client
	arms      []arm // those chosen
	commands  map[string][]string
	programs  map[string]string // of the suites of model calls
	report    *report

	inputs map[string]*input // loaded inputs by topic
	runs   int
}

// An input is a loaded input topic, shared by every run that reads it.
type input struct {
	topic  string
	data   *dataset
	loaded int // records of data that are in the topic
}

func newHarness(cfg config, brokers string, brokerPID int) (*harness, error) {
	cl, err := kgo.NewClient(
		kgo.SeedBrokers(brokers),
		kgo.ProducerBatchCompression(kgo.NoCompression()),
		kgo.MaxBufferedRecords(100_000),
	)
	if err != nil {
		return nil, err
	}
	return &harness{
		cfg: cfg, brokers: brokers, brokerPID: brokerPID,
		client: cl, admin: kadm.NewClient(cl),
		commands: make(map[string][]string), report: newReport(),
		inputs: make(map[string]*input),
	}, nil
}

// input returns the topic that holds n records of so many keys over so many
// partitions, and loads it at first use.
func (h *harness) input(ctx context.Context, n, keys, partitions int) (*input, error) {
	topic := fmt.Sprintf("in-%d-%d-%d", n, keys, partitions)
	if in := h.inputs[topic]; in != nil {
		return in, nil
	}
	in := &input{topic: topic, data: newDataset(n, keys, partitions), loaded: n}
	if err := h.createTopic(ctx, topic, partitions); err != nil {
		return nil, err
	}
	start := time.Now()
	if err := in.data.load(ctx, h.client, topic, 0, n); err != nil {
		return nil, err
	}
	logf("loaded %s in %.1f s", topic, time.Since(start).Seconds())
	h.inputs[topic] = in
	return in, nil
}

// dropInput deletes an input topic that no later run reads.
func (h *harness) dropInput(ctx context.Context, in *input) {
	delete(h.inputs, in.topic)
	h.deleteTopics(ctx, in.topic)
}

// createTopic creates a topic and waits until its partitions have leaders.
func (h *harness) createTopic(ctx context.Context, topic string, partitions int) error {
	if _, err := h.admin.CreateTopic(ctx, int32(partitions), 1, nil, topic); err != nil {
		return fmt.Errorf("create topic %s: %w", topic, err)
	}
	deadline := time.Now().Add(30 * time.Second)
	for {
		_, err := h.committed(ctx, topic)
		if err == nil {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("create topic: %w", err)
		}
		if err := pause(ctx, sampleEvery); err != nil {
			return err
		}
	}
}

// newJob names a fresh application with its own output topic and directory.
func (h *harness) newJob(ctx context.Context, a arm, kind string, in string, partitions int) (job, error) {
	h.runs++
	app := fmt.Sprintf("bench%d-%s-%s", h.runs, a.name, kind)
	j := job{kind: kind, in: in, out: app + "-out", app: app, dir: filepath.Join(h.cfg.dir, "state", app)}
	return j, h.createTopic(ctx, j.out, partitions)
}

// drop removes what a job left: topics and state directory.
func (h *harness) drop(j job) {
	// The context of the run may have ended: removal has one of its own.
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	if topics, err := h.admin.ListTopics(ctx); err == nil {
		var names []string
		for _, name := range topics.Names() {
			if strings.HasPrefix(name, j.app+"-") || strings.HasPrefix(name, j.app+".") {
				names = append(names, name)
			}
		}
		h.deleteTopics(ctx, names...)
	}
	_ = os.RemoveAll(j.dir)
}

func (h *harness) deleteTopics(ctx context.Context, topics ...string) {
	if len(topics) == 0 {
		return
	}
	if resp, err := h.admin.DeleteTopics(ctx, topics...); err != nil || resp.Error() != nil {
		logf("delete topics %v: %v", topics, errors.Join(err, resp.Error()))
	}
}

// committed returns the sum of the last stable offsets of a topic: committed
// records and the markers of transactions.
func (h *harness) committed(ctx context.Context, topic string) (int64, error) {
	ends, err := h.admin.ListCommittedOffsets(ctx, topic)
	if err := errors.Join(err, ends.Error()); err != nil {
		return 0, fmt.Errorf("end of %s: %w", topic, err)
	}
	var sum int64
	ends.Each(func(o kadm.ListedOffset) { sum += o.Offset })
	return sum, nil
}

// lag returns how many input records the group of a job has not committed. Every
// arm names its Kafka group for its app.
func (h *harness) lag(ctx context.Context, j job) (int64, error) {
	ends, err := h.admin.ListEndOffsets(ctx, j.in)
	if err := errors.Join(err, ends.Error()); err != nil {
		return 0, fmt.Errorf("end of %s: %w", j.in, err)
	}
	offsets, err := h.admin.FetchOffsets(ctx, j.app)
	if err != nil {
		return 0, fmt.Errorf("offsets of group %s: %w", j.app, err)
	}
	var lag int64
	ends.Each(func(end kadm.ListedOffset) {
		lag += end.Offset
		if o, ok := offsets.Lookup(end.Topic, end.Partition); ok && o.At > 0 {
			lag -= o.At
		}
	})
	return lag, nil
}

// A sample is what was true at a moment of a run. CPU times are totals.
type sample struct {
	at          time.Time
	offsets     int64 // committed offsets of the output
	arm, broker time.Duration
}

const (
	sampleEvery  = 50 * time.Millisecond
	quiet        = 500 * time.Millisecond // no output for so long after all input was committed: the end
	stalledAfter = 90 * time.Second
)

// watch samples a run until the arm has committed all of its input, its output
// holds want records and has come to rest. The last sample is the one in which
// the output last grew.
func (h *harness) watch(ctx context.Context, p *process, j job, want int) ([]sample, error) {
	tick := time.NewTicker(sampleEvery)
	defer tick.Stop()
	var samples []sample
	last := -1 // the sample in which the output last grew
	for {
		sum, err := h.committed(ctx, j.out)
		if err != nil {
			return nil, err
		}
		s := sample{at: time.Now(), offsets: sum, arm: p.cpu(), broker: cpuTime(h.brokerPID)}
		samples = append(samples, s)
		if len(samples) == 1 || sum > samples[last].offsets {
			last = len(samples) - 1
		}
		idle := s.at.Sub(samples[last].at)
		if sum >= int64(want) && idle > quiet {
			// The sum counts markers of transactions too, so that it may be reached
			// early: what the group has committed decides.
			lag, err := h.lag(ctx, j)
			if err != nil {
				return nil, err
			}
			if lag == 0 {
				return samples[:last+1], nil
			}
		}
		if idle > stalledAfter {
			return nil, fmt.Errorf("%s: no output for %v after %d of %d records\n%s", p.name, stalledAfter, sum, want, p.stderr.String())
		}
		if err := p.failed(); err != nil {
			return nil, err
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-tick.C:
		}
	}
}
