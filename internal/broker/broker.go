// Package broker starts Kafka brokers for development and tests: an embedded one
// in this process (kfake), and a real single-node Apache Kafka (Java) on loopback.
package broker

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
)

// A Topic describes a topic to create.
type Topic struct {
	Name       string
	Partitions int32 // at least 1
	// Configs are topic settings such as "retention.ms"; nil for the broker's
	// defaults.
	Configs map[string]string
}

// CreateTopics creates the topics with replication factor 1 on the broker at
// addr and returns when every partition has a leader. A topic that exists is
// left as it is, but it is an error if its partition count differs.
func CreateTopics(ctx context.Context, addr string, topics ...Topic) error {
	client, err := kgo.NewClient(kgo.SeedBrokers(addr))
	if err != nil {
		return fmt.Errorf("create topics on %s: %w", addr, err)
	}
	defer client.Close()
	admin := kadm.NewClient(client)
	names := make([]string, len(topics))
	for i, t := range topics {
		names[i] = t.Name
		configs := make(map[string]*string, len(t.Configs))
		for k, v := range t.Configs {
			configs[k] = &v
		}
		_, err := admin.CreateTopic(ctx, t.Partitions, 1, configs, t.Name)
		if err != nil && !errors.Is(err, kerr.TopicAlreadyExists) {
			return fmt.Errorf("create topic %q on %s: %w", t.Name, addr, err)
		}
	}
	return poll(ctx, 20*time.Millisecond, func() error {
		found, err := admin.ListTopics(ctx, names...)
		if err != nil {
			return fmt.Errorf("wait for topics on %s: %w", addr, err)
		}
		for _, t := range topics {
			if err := settled(t, found[t.Name]); err != nil {
				return err
			}
		}
		return nil
	})
}

// settled returns nil if the topic is there with a leader for every partition.
func settled(want Topic, got kadm.TopicDetail) error {
	if got.Err != nil || len(got.Partitions) == 0 {
		return fmt.Errorf("topic %q is not there yet: %w", want.Name, errors.Join(got.Err, kerr.UnknownTopicOrPartition))
	}
	if n := len(got.Partitions); n != int(want.Partitions) {
		return permanent{fmt.Errorf("topic %q exists with %d partitions, want %d: delete it or ask for as many", want.Name, n, want.Partitions)}
	}
	for p, d := range got.Partitions {
		if d.Err != nil || d.Leader < 0 {
			return fmt.Errorf("topic %q partition %d has no leader yet: %w", want.Name, p, errors.Join(d.Err, kerr.LeaderNotAvailable))
		}
	}
	return nil
}

// permanent marks an error after which polling ends.
type permanent struct{ error }

func (p permanent) Unwrap() error { return p.error }

// poll calls try every interval until it returns nil or a permanent error, or
// ctx ends; it then returns the last error together with ctx's cause.
func poll(ctx context.Context, interval time.Duration, try func() error) error {
	ticker := time.NewTicker(interval)
	defer ticker.Stop()
	for {
		err := try()
		if err == nil {
			return nil
		}
		if p, ok := errors.AsType[permanent](err); ok {
			return p.error
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w; last: %w", context.Cause(ctx), err)
		case <-ticker.C:
		}
	}
}
