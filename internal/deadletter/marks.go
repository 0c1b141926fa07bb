package deadletter

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/millrace/millrace/internal/kafka"
)

// A mark says that a letter was replayed: the value of a record of <app>.replays,
// written in the transaction of the replayed event. Its key names the letter by the id
// of its topic, so that the letters of a topic that was created anew have none.
type mark struct {
	Letter        string `json:"letter"`
	To            string `json:"to"`
	Prompt        string `json:"prompt,omitempty"`
	PromptVersion string `json:"prompt_version,omitempty"`
	At            int64  `json:"at"` // ms since the epoch
}

// marks are those of an application, by key.
type marks struct {
	replayed map[string]time.Time
}

// markKey names a letter. A cluster without topic ids has names only.
func markKey(topic kadm.TopicDetail, partition int32, offset int64) string {
	id := hex.EncodeToString(topic.ID[:])
	if topic.ID == (kadm.TopicID{}) {
		id = topic.Topic
	}
	return fmt.Sprintf("%s/%d/%d", id, partition, offset)
}

// at returns when a letter was replayed, zero if it was not.
func (m *marks) at(topic kadm.TopicDetail, partition int32, offset int64) time.Time {
	return m.replayed[markKey(topic, partition, offset)]
}

func (s *Store) marksTopic() string { return s.app + ".replays" }

// createMarks creates the topic of marks, or checks it.
func (s *Store) createMarks(ctx context.Context, cl *kgo.Client) error {
	return kafka.Ensure(ctx, kadm.NewClient(cl), []kafka.TopicSpec{{Name: s.marksTopic(), Kind: kafka.Changelog, Partitions: 1, Replication: s.Replication}})
}

// readMarks reads the committed marks. Without the topic there are none.
func (s *Store) readMarks(ctx context.Context, cl *kgo.Client) (*marks, error) {
	m := &marks{replayed: map[string]time.Time{}}
	topic := s.marksTopic()
	found, err := kadm.NewClient(cl).ListTopics(ctx, topic)
	switch d := found[topic]; {
	case err != nil:
		return nil, fmt.Errorf("topic %s: %w", topic, err)
	case errors.Is(d.Err, kerr.UnknownTopicOrPartition):
		return m, nil
	case d.Err != nil:
		return nil, fmt.Errorf("topic %s: %w", topic, d.Err)
	}
	partitions := map[string][]int32{topic: {0}}
	starts, err := kafka.ListOffsets(ctx, cl, kafka.LogStart, partitions)
	if err != nil {
		return nil, err
	}
	ends, err := kafka.ListOffsets(ctx, cl, kafka.LastStable, partitions)
	if err != nil {
		return nil, err
	}
	span := []kafka.ReadRange{{Topic: topic, From: starts[topic][0], To: ends[topic][0]}}
	err = s.conf.Read(ctx, span, func(_ string, _ int32, records []*kgo.Record, _ int64) error {
		for _, r := range records {
			if r.Value == nil {
				delete(m.replayed, string(r.Key))
				continue
			}
			var one mark
			if err := json.Unmarshal(r.Value, &one); err != nil {
				return fmt.Errorf("topic %s offset %d: %w: it does not belong to us", topic, r.Offset, err)
			}
			m.replayed[string(r.Key)] = time.UnixMilli(one.At)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("what was replayed: %w", err)
	}
	return m, nil
}
