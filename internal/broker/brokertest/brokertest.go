// Package brokertest gives tests a running broker.
package brokertest

import (
	"os"
	"testing"

	"github.com/millrace/millrace/internal/broker"
)

// Kafka starts an Apache Kafka for the test and closes it at its end. Where Java
// or Maven is missing it skips the test, or fails it if CI=true. When the test
// fails, the end of the broker's log is logged.
func Kafka(t testing.TB, cfg broker.KafkaConfig) *broker.Kafka {
	t.Helper()
	if err := broker.Available(); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	k, err := broker.StartKafka(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			if log, err := os.ReadFile(k.LogFile()); err == nil {
				t.Logf("end of the broker's log:\n%s", log[max(0, len(log)-4000):])
			}
		}
		if err := k.Close(); err != nil {
			t.Errorf("close the broker: %v", err)
		}
	})
	return k
}

// Embedded starts an embedded broker in memory with the topics, and closes it at
// the end of the test.
func Embedded(t testing.TB, topics ...broker.Topic) *broker.Embedded {
	t.Helper()
	e, err := broker.StartEmbedded(broker.EmbeddedConfig{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := e.Close(); err != nil {
			t.Errorf("close the broker: %v", err)
		}
	})
	if err := broker.CreateTopics(t.Context(), e.Addr(), topics...); err != nil {
		t.Fatal(err)
	}
	return e
}
