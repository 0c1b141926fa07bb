//go:build integration

package deadletter_test

import (
	"testing"

	"github.com/twmb/franz-go/pkg/kadm"

	"github.com/millrace/millrace/internal/broker"
	"github.com/millrace/millrace/internal/broker/brokertest"
)

// Replays on Apache Kafka: once, after one that died in a transaction, and two at once.
func TestReplayOnKafka(t *testing.T) {
	addr := brokertest.Kafka(t, broker.KafkaConfig{}).Addr()
	for _, tt := range []struct {
		name string
		test func(*testing.T, *rig)
	}{{"once", testReplay}, {"after death", testReplayAfterDeath}, {"taken over", testReplayTakenOver}} {
		t.Run(tt.name, func(t *testing.T) {
			r := rigOn(t, addr)
			defer r.drop()
			tt.test(t, r)
		})
	}
}

// drop deletes all topics of the rig.
func (r *rig) drop() {
	adm := kadm.NewClient(r.client())
	topics, err := adm.ListTopics(r.t.Context())
	if err != nil {
		r.t.Fatal(err)
	}
	if _, err := adm.DeleteTopics(r.t.Context(), topics.Names()...); err != nil {
		r.t.Fatal(err)
	}
	for len(topics) > 0 { // the brokers learn of it one after the other
		if topics, err = adm.ListTopics(r.t.Context()); err != nil {
			r.t.Fatal(err)
		}
	}
}
