// Package registry reads and changes an application's topic of prompts.
package registry

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/millrace/millrace/internal/kafka"
	"github.com/millrace/millrace/llm/prompt"
)

// A Registry is the topic of prompts of an application on a cluster. It is safe for
// concurrent use.
type Registry struct {
	topic string
	conf  *kafka.Config
	log   *slog.Logger
	// Replication is the replication factor of a topic that [Registry.Create] makes.
	Replication int16
}

// New returns the registry of an application. It opens nothing.
func New(app string, conf *kafka.Config) *Registry {
	r := &Registry{topic: prompt.Topic(app), conf: conf, log: conf.Logger, Replication: -1}
	if r.log == nil {
		r.log = slog.New(slog.DiscardHandler)
	}
	return r
}

// Spec is how the topic is to be.
func (r *Registry) Spec() kafka.TopicSpec {
	return kafka.TopicSpec{Name: r.topic, Kind: kafka.Changelog, Partitions: 1, Replication: r.Replication}
}

// Create makes the topic, or checks the one that is there.
func (r *Registry) Create(ctx context.Context) error {
	return r.with(func(cl *kgo.Client) error {
		return kafka.Ensure(ctx, kadm.NewClient(cl), []kafka.TopicSpec{r.Spec()})
	})
}

func (r *Registry) with(fn func(*kgo.Client) error, more ...kgo.Opt) error {
	cl, err := kgo.NewClient(append(r.conf.PlainOpts(nil), more...)...)
	if err != nil {
		return fmt.Errorf("kafka client: %w", err)
	}
	defer cl.Close()
	return fn(cl)
}

// Read returns what the topic holds: committed records up to its present end.
func (r *Registry) Read(ctx context.Context) (reg *prompt.Registry, err error) {
	err = r.with(func(cl *kgo.Client) error {
		reg, err = r.read(ctx, cl)
		return err
	})
	return reg, err
}

func (r *Registry) read(ctx context.Context, cl *kgo.Client) (*prompt.Registry, error) {
	infos, err := kafka.Describe(ctx, kadm.NewClient(cl), r.topic)
	if err != nil {
		return nil, err
	}
	if err := infos[r.topic].Err; err != nil {
		return nil, fmt.Errorf("topic %q: %w", r.topic, err)
	}
	parts := map[string][]int32{r.topic: {0}}
	starts, err := kafka.ListOffsets(ctx, cl, kafka.LogStart, parts)
	if err != nil {
		return nil, err
	}
	ends, err := kafka.ListOffsets(ctx, cl, kafka.HighWatermark, parts)
	if err != nil {
		return nil, err
	}
	reg := &prompt.Registry{}
	rng := kafka.ReadRange{Topic: r.topic, From: starts[r.topic][0], To: ends[r.topic][0]}
	err = r.conf.Read(ctx, []kafka.ReadRange{rng}, func(_ string, _ int32, records []*kgo.Record, _ int64) error {
		for _, rec := range records {
			if err := reg.Apply(prompt.Record{Key: string(rec.Key), Value: rec.Value}); err != nil {
				r.log.Error("a record of the prompts cannot be used", "topic", r.topic, "offset", rec.Offset, "error", err)
			}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("topic %q: %w", r.topic, err)
	}
	return reg, nil
}

// patience is how long [Registry.Update] lets others go first.
const patience = time.Minute

// Update writes the records that change returns for what the topic holds, in one
// transaction; it writes nothing if there are none. Changes by several programs at the
// same time come one after the other: change may be called again, for what the topic
// holds then.
func (r *Registry) Update(ctx context.Context, change func(*prompt.Registry) ([]prompt.Record, error)) error {
	reg, err := r.Read(ctx)
	if err != nil {
		return err
	}
	list, err := change(reg)
	if err != nil || len(list) == 0 {
		return err
	}
	patient, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for {
		err := r.with(func(cl *kgo.Client) error { return r.update(patient, cl, change) },
			kgo.TransactionalID(r.topic), kgo.TransactionTimeout(kafka.TransactionTimeout), kgo.RecordPartitioner(kgo.ManualPartitioner()))
		if err == nil || !isOthers(err) {
			return err
		}
		select {
		case <-time.After(100 * time.Millisecond):
		case <-patient.Done():
			return fmt.Errorf("topic %q: others have been writing for %s: %w", r.topic, patience, err)
		}
	}
}

// isOthers reports whether another program has taken over the transactional id.
func isOthers(err error) bool {
	for _, other := range []error{kerr.ProducerFenced, kerr.InvalidProducerEpoch, kerr.ConcurrentTransactions, kerr.InvalidProducerIDMapping, kerr.InvalidTxnState} {
		if errors.Is(err, other) {
			return true
		}
	}
	return false
}

// update makes a change with a client that has the transactional id of the topic: who
// had it before can commit no more, so that what is read now stays true.
func (r *Registry) update(ctx context.Context, cl *kgo.Client, change func(*prompt.Registry) ([]prompt.Record, error)) error {
	if _, _, err := cl.ProducerID(ctx); err != nil {
		return fmt.Errorf("transactional id %q: %w", r.topic, advised(err))
	}
	reg, err := r.read(ctx, cl)
	if err != nil {
		return err
	}
	list, err := change(reg)
	if err != nil || len(list) == 0 {
		return err
	}
	if err := cl.BeginTransaction(); err != nil {
		return fmt.Errorf("topic %q: %w", r.topic, err)
	}
	records := make([]*kgo.Record, len(list))
	for i, rec := range list {
		records[i] = &kgo.Record{Topic: r.topic, Key: []byte(rec.Key), Value: rec.Value, Timestamp: time.Now()}
	}
	end, failed := kgo.TryCommit, cl.ProduceSync(ctx, records...).FirstErr()
	if failed != nil {
		end = kgo.TryAbort
	}
	if err := errors.Join(failed, cl.EndTransaction(ctx, end)); err != nil {
		return fmt.Errorf("write to topic %q: %w", r.topic, advised(err))
	}
	return nil
}

// advised adds what to do to an error of rights.
func advised(err error) error {
	if errors.Is(err, kerr.TransactionalIDAuthorizationFailed) || errors.Is(err, kerr.TopicAuthorizationFailed) {
		return fmt.Errorf("%w: grant Write on it", err)
	}
	return err
}

// Publish writes a version, if it is not there. It creates the topic if need be.
func (r *Registry) Publish(ctx context.Context, version *prompt.Prompt, note string) error {
	if err := r.Create(ctx); err != nil {
		return err
	}
	return r.Update(ctx, func(reg *prompt.Registry) ([]prompt.Record, error) {
		return reg.Publish(version, time.Now(), note)
	})
}
