//go:build integration

package broker_test

import (
	"cmp"
	"context"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/millrace/millrace/internal/broker"
	"github.com/millrace/millrace/internal/broker/brokertest"
)

// TestKafka sees that the broker has the transaction version of the environment,
// and that records and the address survive a kill and an orderly stop.
func TestKafka(t *testing.T) {
	k := brokertest.Kafka(t, broker.KafkaConfig{
		Properties: map[string]string{"group.min.session.timeout.ms": "1234"},
	})
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	if err := broker.CreateTopics(ctx, k.Addr(), broker.Topic{Name: "numbers", Partitions: 2}); err != nil {
		t.Fatal(err)
	}
	checkFeatures(ctx, t, k.Addr(), cmp.Or(os.Getenv(broker.TransactionVersionEnv), "2"))
	addr, want := k.Addr(), 0
	for _, end := range []struct {
		name string
		do   func() error
	}{{"kill", k.Kill}, {"stop", k.Stop}, {"restart of a running broker", func() error { return nil }}} {
		produceOne(ctx, t, addr)
		want++
		if err := end.do(); err != nil {
			t.Fatalf("%s: %v", end.name, err)
		}
		start := time.Now()
		if err := k.Restart(ctx); err != nil {
			t.Fatalf("restart after %s: %v", end.name, err)
		}
		t.Logf("restart after %s: %v", end.name, time.Since(start).Round(time.Millisecond))
		if got := count(ctx, t, addr); got != want || k.Addr() != addr {
			t.Fatalf("%d records at %s after %s, want %d at %s", got, k.Addr(), end.name, want, addr)
		}
	}
	log := k.LogFile()
	if err := k.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Dir(log)); !os.IsNotExist(err) {
		t.Errorf("Close left %s: %v", filepath.Dir(log), err)
	}
	if k.PID() != 0 {
		t.Errorf("PID = %d after Close, want 0", k.PID())
	}
}

func newClient(t *testing.T, addr string) *kgo.Client {
	t.Helper()
	client, err := kgo.NewClient(kgo.SeedBrokers(addr))
	if err != nil {
		t.Fatal(err)
	}
	return client
}

func checkFeatures(ctx context.Context, t *testing.T, addr, version string) {
	t.Helper()
	client := newClient(t, addr)
	defer client.Close()
	features, err := kmsg.NewPtrApiVersionsRequest().RequestWith(ctx, client)
	if err != nil {
		t.Fatal(err)
	}
	found := false
	for _, f := range features.FinalizedFeatures {
		if f.Name == "transaction.version" {
			found = true
			if got := strconv.Itoa(int(f.MaxVersionLevel)); got != version {
				t.Errorf("transaction.version is %s, want %s", got, version)
			}
		}
	}
	if !found {
		t.Error("the broker names no transaction.version")
	}
	configs, err := kadm.NewClient(client).DescribeBrokerConfigs(ctx, 1)
	if err != nil {
		t.Fatal(err)
	}
	value := ""
	for _, c := range configs[0].Configs {
		if c.Key == "group.min.session.timeout.ms" {
			value = c.MaybeValue()
		}
	}
	if value != "1234" {
		t.Errorf("group.min.session.timeout.ms is %q, want 1234", value)
	}
}

func produceOne(ctx context.Context, t *testing.T, addr string) {
	t.Helper()
	client := newClient(t, addr)
	defer client.Close()
	if err := client.ProduceSync(ctx, &kgo.Record{Topic: "numbers", Value: []byte("x")}).FirstErr(); err != nil {
		t.Fatal(err)
	}
}

// count returns the number of records by the end offsets of the topic.
func count(ctx context.Context, t *testing.T, addr string) int {
	t.Helper()
	client := newClient(t, addr)
	defer client.Close()
	ends, err := kadm.NewClient(client).ListEndOffsets(ctx, "numbers")
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	ends.Each(func(o kadm.ListedOffset) {
		if o.Err != nil {
			t.Fatal(o.Err)
		}
		n += int(o.Offset)
	})
	return n
}
