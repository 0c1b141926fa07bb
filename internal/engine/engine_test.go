package engine_test

import (
	"context"
	"encoding/binary"
	"fmt"
	"log/slog"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/millrace/millrace"
	"github.com/millrace/millrace/internal/broker"
	"github.com/millrace/millrace/internal/chaos"
	"github.com/millrace/millrace/internal/checker"
)

// produceInput writes n records of keys to the chaos application's input.
func produceInput(t *testing.T, addr string, from, n, keys int) {
	t.Helper()
	cl, err := kgo.NewClient(kgo.SeedBrokers(addr))
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	for i := from; i < from+n; i++ {
		ts := time.UnixMilli(1_700_000_000_000).Add(time.Duration(i) * 20 * time.Millisecond)
		if i%7 == 0 {
			ts = ts.Add(-20 * time.Second)
		}
		cl.Produce(t.Context(), &kgo.Record{
			Topic: chaos.Input, Key: fmt.Appendf(nil, "key-%d", i%keys), Value: binary.BigEndian.AppendUint64(nil, uint64(i)), Timestamp: ts,
		}, func(_ *kgo.Record, err error) {
			if err != nil {
				t.Error(err)
			}
		})
	}
	if err := cl.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// await polls the outputs until they are as they must be.
func await(t *testing.T, addr string) {
	t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	for {
		logs, err := checker.Read(t.Context(), []kgo.Opt{kgo.SeedBrokers(addr)}, chaos.Topics...)
		if err != nil {
			t.Fatal(err)
		}
		report := chaos.Check(logs, false)
		if report.OK() {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal(report)
		}
	}
}

// start runs an instance of the chaos application; stop ends it and returns what
// Run returned.
func start(t *testing.T, addr, dir string) (stop func() error) {
	t.Helper()
	app, err := millrace.New(chaos.Topology(), millrace.Brokers(addr), millrace.StateDir(dir),
		millrace.Logger(slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelInfo}))))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- app.Run(ctx) }()
	return func() error {
		cancel()
		return <-done
	}
}

// An instance processes, stops, and another life of it goes on where it stopped,
// from its state directory and, when that is lost, from the changelogs.
func TestRestart(t *testing.T) {
	t.Parallel()
	b, err := broker.StartEmbedded(broker.EmbeddedConfig{})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	var topics []broker.Topic
	for _, name := range chaos.Topics {
		topics = append(topics, broker.Topic{Name: name, Partitions: 4})
	}
	if err := broker.CreateTopics(t.Context(), b.Addr(), topics...); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for life, state := range []string{dir, dir, t.TempDir()} {
		produceInput(t, b.Addr(), life*2000, 2000, 50)
		stop := start(t, b.Addr(), state)
		await(t, b.Addr())
		if err := stop(); err != nil {
			t.Fatal(err)
		}
	}
}
