package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"google.golang.org/protobuf/proto"

	"github.com/millrace/millrace/cmd/millrace/internal/audit"
	"github.com/millrace/millrace/examples/reviews"
	"github.com/millrace/millrace/internal/modelserver"
	millracev1 "github.com/millrace/millrace/proto/millrace/v1"
)

// partitions is the partition count of the demo's topics.
const partitions = 4

// connect returns a client of a cluster that answers.
func connect(ctx context.Context, addrs []string) (*kgo.Client, error) {
	client, err := kgo.NewClient(kgo.SeedBrokers(addrs...), kgo.ClientID("millrace-demo"), kgo.ProducerLinger(0))
	if err != nil {
		return nil, usagef("-brokers: %w", err)
	}
	ping, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	if err := client.Ping(ping); err != nil {
		client.Close()
		return nil, fmt.Errorf("no broker answers at %v: %w; check the address, and that the broker runs and takes plaintext connections", addrs, err)
	}
	return client, nil
}

// createTopics creates the demo's topics, those that are there already excepted.
// The events are years old: retention by time would delete them at once.
func createTopics(ctx context.Context, client *kgo.Client, t reviews.Topics) error {
	forever, compact := "-1", "compact"
	adm := kadm.NewClient(client)
	for _, name := range []string{t.Sentences, t.Products, t.Enriched, t.Fallbacks, t.PerProduct, t.PerMinute} {
		configs := map[string]*string{"retention.ms": &forever}
		if name == t.Products {
			configs = map[string]*string{"cleanup.policy": &compact}
		}
		_, err := adm.CreateTopic(ctx, partitions, -1, configs, name)
		if err != nil && !errors.Is(err, kerr.TopicAlreadyExists) {
			return fmt.Errorf("create topic %s: %w", name, err)
		}
	}
	return nil
}

// sendProducts writes the product of every review: a table, so that writing it
// again changes nothing.
func sendProducts(ctx context.Context, client *kgo.Client, topic string) error {
	products, err := reviews.Products()
	if err != nil {
		return err
	}
	var records []*kgo.Record
	for review, p := range products {
		value, err := proto.Marshal(p)
		if err != nil {
			return fmt.Errorf("product of review %s: %w", review, err)
		}
		records = append(records, &kgo.Record{Topic: topic, Key: []byte(review), Value: value, Timestamp: reviews.Start})
	}
	if err := client.ProduceSync(ctx, records...).FirstErr(); err != nil {
		return fmt.Errorf("write the products: %w", err)
	}
	return nil
}

// sourceRecord is the record of a line: its event as JSON under its review, or
// the raw line without a key if it is no event, which the application is to
// dead-letter.
func sourceRecord(topic string, l reviews.Line) (*kgo.Record, error) {
	r := &kgo.Record{
		Topic: topic, Value: l.Raw, Timestamp: l.Time(),
		Headers: []kgo.RecordHeader{{Key: audit.HeaderLine, Value: fmt.Append(nil, l.Number)}},
	}
	if l.Err == nil {
		value, err := json.Marshal(l.Event)
		if err != nil {
			return nil, fmt.Errorf("line %d: %w", l.Number, err)
		}
		r.Key, r.Value = []byte(l.Event.Review), value
	}
	return r, nil
}

// watchOutcomes tells the ledger which calls have an outcome in the loop topic,
// also one that makes a further round: from there no death of a worker can lose it. It returns when ctx ends.
func watchOutcomes(ctx context.Context, addrs []string, topic string, ledger *modelserver.Ledger) error {
	client, err := kgo.NewClient(
		kgo.SeedBrokers(addrs...), kgo.ClientID("millrace-demo-loop"),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()), kgo.FetchMaxWait(time.Second),
		kgo.MetadataMinAge(50*time.Millisecond), // the topic that is added waits for it
	)
	if err != nil {
		return fmt.Errorf("watch topic %s: %w", topic, err)
	}
	defer client.Close()
	adm := kadm.NewClient(client)
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for { // the worker creates the topic
		found, err := adm.ListTopics(ctx, topic)
		if err == nil && found[topic].Err == nil && len(found[topic].Partitions) > 0 {
			break
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
	client.AddConsumeTopics(topic)
	for ctx.Err() == nil {
		fetches := client.PollFetches(ctx)
		fetches.EachRecord(func(r *kgo.Record) {
			var o millracev1.Outcome
			if proto.Unmarshal(r.Value, &o) == nil && o.GetReleased() == nil {
				ledger.Durable(o.GetId(), int(o.GetRound()))
			}
		})
	}
	return nil
}
