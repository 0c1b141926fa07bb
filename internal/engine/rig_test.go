package engine_test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/sasl"

	"github.com/millrace/millrace/internal/checker"
	"github.com/millrace/millrace/internal/engine"
	"github.com/millrace/millrace/internal/kafka"
	"github.com/millrace/millrace/topology"
)

// A rig is a broker in memory, for instances in a synctest bubble. Its methods
// that wait do so in fake time.
type rig struct {
	*kfake.Cluster
	t    *testing.T
	net  *kfake.VirtualNetwork
	auth sasl.Mechanism // nil for none
	cl   *kgo.Client
	adm  *kadm.Client
}

// newRig starts a broker with topics of one partition. close it at the end.
func newRig(t *testing.T, topics ...string) *rig {
	t.Helper()
	return newRigWith(t, nil, nil, topics...)
}

// newRigWith is newRig with options of the broker and what the rig's own clients say
// of themselves.
func newRigWith(t *testing.T, auth sasl.Mechanism, opts []kfake.Opt, topics ...string) *rig {
	t.Helper()
	r := &rig{t: t, net: new(kfake.VirtualNetwork), auth: auth}
	opts = append(opts, kfake.NumBrokers(1), kfake.Ports(9092), kfake.ListenFn(r.net.Listen), kfake.SeedTopics(1, topics...))
	var err error
	r.Cluster, err = kfake.NewCluster(opts...)
	if err != nil {
		t.Fatal(err)
	}
	if r.cl, err = kgo.NewClient(append(r.opts(), kgo.RecordPartitioner(kgo.ManualPartitioner()), kgo.ProducerBatchMaxBytes(4<<20))...); err != nil {
		t.Fatal(err)
	}
	r.adm = kadm.NewClient(r.cl)
	return r
}

func (r *rig) opts() []kgo.Opt {
	opts := []kgo.Opt{kgo.SeedBrokers(r.ListenAddrs()...), kgo.Dialer(r.net.DialContext)}
	if r.auth != nil {
		opts = append(opts, kgo.SASL(r.auth))
	}
	return opts
}

func (r *rig) close() {
	r.cl.Close()
	r.Cluster.Close()
}

// produce writes records to partition 0 of a topic.
func (r *rig) produce(topic string, records ...*kgo.Record) {
	r.t.Helper()
	for _, rec := range records {
		rec.Topic = topic
		if rec.Timestamp.IsZero() {
			rec.Timestamp = time.Now()
		}
	}
	if err := r.cl.ProduceSync(r.t.Context(), records...).FirstErr(); err != nil {
		r.t.Fatal(err)
	}
}

// read returns the committed records of partition 0, none if there is no topic.
func (r *rig) read(topic string) []checker.Record {
	r.t.Helper()
	logs, err := checker.Read(r.t.Context(), r.opts(), topic)
	if errors.Is(err, kerr.UnknownTopicOrPartition) {
		return nil // the instance has not created it yet
	}
	if err != nil {
		r.t.Fatal(err)
	}
	return logs[topic][0]
}

// await waits until a topic has n committed records, and a little longer, to see
// whether there are more. It returns them.
func (r *rig) await(topic string, n int) []checker.Record {
	r.t.Helper()
	for deadline := time.Now().Add(5 * time.Minute); ; {
		got := r.read(topic)
		if len(got) >= n || time.Now().After(deadline) {
			r.pass(5 * time.Second)
			if got = r.read(topic); len(got) != n {
				r.t.Fatalf("%s has %d records, must have %d", topic, len(got), n)
			}
			return got
		}
		r.pass(time.Second)
	}
}

// pass lets fake time pass.
func (r *rig) pass(d time.Duration) {
	select {
	case <-time.After(d):
	case <-r.t.Context().Done():
	}
}

// An app is a running instance.
type app struct {
	*engine.Instance
	r      *rig
	reg    *prometheus.Registry
	cancel context.CancelFunc
	done   chan error
}

// start runs an instance of a topology with its state on fs.
func (r *rig) start(b *topology.Builder, fs vfs.FS, tweak ...func(*engine.Config)) *app {
	r.t.Helper()
	built, err := b.Build()
	if err != nil {
		r.t.Fatal(err)
	}
	a := &app{r: r, reg: prometheus.NewRegistry(), done: make(chan error, 1)}
	cfg := engine.Config{
		Topology: built, StateDir: "/state", FS: fs, Workers: 1, Registry: a.reg,
		Kafka:  kafka.Config{Brokers: r.ListenAddrs(), Dialer: r.net.DialContext},
		Logger: slog.New(slog.NewTextHandler(r.t.Output(), &slog.HandlerOptions{Level: slog.LevelError})),
	}
	for _, f := range tweak {
		f(&cfg)
	}
	if a.Instance, err = engine.New(cfg); err != nil {
		r.t.Fatal(err)
	}
	a.run()
	return a
}

func (a *app) run() {
	var ctx context.Context
	ctx, a.cancel = context.WithCancel(a.r.t.Context())
	go func() { a.done <- a.Run(ctx) }() // ends with ctx
}

// stop ends the instance; it must end without an error.
func (a *app) stop() {
	a.r.t.Helper()
	a.cancel()
	if err := <-a.done; err != nil {
		a.r.t.Error(err)
	}
}

// running waits until all tasks run, at least n of them.
func (a *app) running(n int) {
	a.r.t.Helper()
	for range 300 {
		on := 0
		for _, t := range a.Tasks() {
			if t.State == engine.Running {
				on++
			}
		}
		if on >= n {
			return
		}
		a.r.pass(100 * time.Millisecond)
	}
	a.r.t.Fatalf("tasks do not run: %+v", a.Tasks())
}

// metric returns the sum of a counter or gauge over those of its series that have the
// label values.
func (a *app) metric(name string, labels map[string]string) float64 {
	a.r.t.Helper()
	families, err := a.reg.Gather()
	if err != nil {
		a.r.t.Fatal(err)
	}
	sum := 0.0
	for _, f := range families {
		if f.GetName() != name {
			continue
		}
		for _, m := range f.GetMetric() {
			match := 0
			for _, l := range m.GetLabel() {
				if want, ok := labels[l.GetName()]; ok && want == l.GetValue() {
					match++
				}
			}
			if match == len(labels) {
				sum += m.GetCounter().GetValue() + m.GetGauge().GetValue()
			}
		}
	}
	return sum
}

func int64Value(n int64) []byte { return binary.BigEndian.AppendUint64(nil, uint64(n)) }

// mismatch returns an error if got and want differ.
func mismatch(what string, got, want any) error {
	if g, w := fmt.Sprint(got), fmt.Sprint(want); g != w {
		return errors.New(what + " is " + g + ", must be " + w)
	}
	return nil
}
