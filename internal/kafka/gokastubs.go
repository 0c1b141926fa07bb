package kafka

import (
	"context"
	"errors"
	"fmt"
	"hash"
	"log/slog"
	"strings"

	"github.com/IBM/sarama"
	"github.com/lovoo/goka"
)

// errNotGokas answers what goka must not do itself: the engine does it.
var errNotGokas = errors.New("goka's own Kafka access is replaced by the engine")

// noProducer builds a producer whose every promise has failed: a task's output
// goes through its transaction, never through goka.
func noProducer([]string, string, func() hash.Hash32) (goka.Producer, error) {
	_, finish := goka.NewPromiseWithFinisher()
	return failedProducer{finish(nil, errNotGokas)}, nil
}

type failedProducer struct{ p *goka.Promise }

func (f failedProducer) Emit(string, string, []byte) *goka.Promise { return f.p }
func (f failedProducer) EmitWithHeaders(string, string, []byte, goka.Headers) *goka.Promise {
	return f.p
}
func (failedProducer) Close() error { return nil }

// emptyTopics is the topic manager of a feed: every topic exists and is empty, so
// that goka has nothing to create and nothing to recover.
type emptyTopics struct{}

var _ goka.TopicManager = emptyTopics{}

func (emptyTopics) EnsureTableExists(string, int) error                         { return nil }
func (emptyTopics) EnsureStreamExists(string, int) error                        { return nil }
func (emptyTopics) EnsureTopicExists(string, int, int, map[string]string) error { return nil }
func (emptyTopics) Partitions(string) ([]int32, error)                          { return []int32{0}, nil }
func (emptyTopics) GetOffset(string, int32, int64) (int64, error)               { return 0, nil }
func (emptyTopics) Close() error                                                { return nil }

// noConsumer is the sarama consumer of a feed; goka asks it only for statistics.
type noConsumer struct{}

var _ sarama.Consumer = noConsumer{}

func (noConsumer) Topics() ([]string, error)                  { return nil, errNotGokas }
func (noConsumer) Partitions(string) ([]int32, error)         { return nil, errNotGokas }
func (noConsumer) HighWaterMarks() map[string]map[int32]int64 { return nil }
func (noConsumer) Close() error                               { return nil }
func (noConsumer) Pause(map[string][]int32)                   {}
func (noConsumer) Resume(map[string][]int32)                  {}
func (noConsumer) PauseAll()                                  {}
func (noConsumer) ResumeAll()                                 {}
func (noConsumer) ConsumePartition(string, int32, int64) (sarama.PartitionConsumer, error) {
	return nil, errNotGokas
}

// gokaLogger passes goka's messages on at debug level.
type gokaLogger struct{ l *slog.Logger }

var _ goka.Logger = gokaLogger{}

func (g gokaLogger) enabled() bool {
	return g.l != nil && g.l.Enabled(context.Background(), slog.LevelDebug)
}

func (g gokaLogger) Print(args ...any) {
	if g.enabled() {
		g.l.Debug("goka: " + strings.TrimSpace(fmt.Sprint(args...)))
	}
}

func (g gokaLogger) Println(args ...any) { g.Print(args...) }

func (g gokaLogger) Printf(format string, args ...any) {
	if g.enabled() {
		g.l.Debug("goka: " + strings.TrimSpace(fmt.Sprintf(format, args...)))
	}
}
