package kafka

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
)

// TopicKind is the role of an internal topic; it decides its configuration.
type TopicKind uint8

// The kinds of internal topic.
const (
	// Changelog logs a key-value store: compacted, nothing expires by time.
	Changelog TopicKind = iota
	// WindowChangelog logs a window store: compacted, and deleted by the time of
	// the commit, since event times may be old.
	WindowChangelog
	// GroupTable logs the rows of tasks: compacted.
	GroupTable
	// Loop carries outcomes of asynchronous calls: purged by the application only.
	Loop
	// Repartition carries records to another sub-topology: purged by the
	// application only.
	Repartition
	// DeadLetter keeps what could not be processed, until somebody looks.
	DeadLetter
)

// String returns the kind's name.
func (k TopicKind) String() string {
	return [...]string{"changelog", "window changelog", "group table", "loop", "repartition", "dead-letter"}[min(k, DeadLetter)]
}

// DeleteRetention is how long tombstones stay in compacted internal topics: a
// checkpoint may be as old as that, less a margin (state.MaxCheckpointAge).
const DeleteRetention = 24 * time.Hour

// A TopicSpec states how an internal topic is to be.
type TopicSpec struct {
	Name       string
	Kind       TopicKind
	Partitions int32
	// Replication is the replication factor; -1 leaves it to the broker.
	Replication int16
	// Retention of a WindowChangelog.
	Retention time.Duration
	// MaxMessageBytes is max.message.bytes; 0 leaves it to the broker.
	MaxMessageBytes int
}

// configs are the topic's settings, by Kafka's names.
func (s *TopicSpec) configs() map[string]string {
	c := map[string]string{
		"message.timestamp.type": "CreateTime",
		"retention.ms":           "-1",
		"retention.bytes":        "-1",
	}
	switch s.Kind {
	case Changelog, GroupTable:
		c["cleanup.policy"] = "compact"
		c["delete.retention.ms"] = strconv.FormatInt(DeleteRetention.Milliseconds(), 10)
	case WindowChangelog:
		c["cleanup.policy"] = "compact,delete"
		c["delete.retention.ms"] = strconv.FormatInt(DeleteRetention.Milliseconds(), 10)
		c["retention.ms"] = strconv.FormatInt(s.Retention.Milliseconds(), 10)
	default:
		c["cleanup.policy"] = "delete"
	}
	if s.MaxMessageBytes > 0 {
		c["max.message.bytes"] = strconv.Itoa(s.MaxMessageBytes)
	}
	return c
}

// Ensure creates the topics that are missing and checks those that exist:
// partitions, cleanup policy, retention and timestamp type. It alters nothing;
// every difference is reported with what to do.
func Ensure(ctx context.Context, adm *kadm.Client, specs []TopicSpec) error {
	var errs []error
	for _, s := range specs {
		configs := map[string]*string{}
		for k, v := range s.configs() {
			configs[k] = &v
		}
		if _, err := adm.CreateTopic(ctx, s.Partitions, s.Replication, configs, s.Name); err != nil && !errors.Is(err, kerr.TopicAlreadyExists) {
			errs = append(errs, fmt.Errorf("create %s topic %q: %w%s", s.Kind, s.Name, err, hint(err)))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	return check(ctx, adm, specs)
}

func hint(err error) string {
	switch {
	case errors.Is(err, kerr.TopicAuthorizationFailed), errors.Is(err, kerr.ClusterAuthorizationFailed):
		return ": grant Create and Describe on topics with the application's prefix, or create it by hand"
	case errors.Is(err, kerr.InvalidReplicationFactor):
		return ": set millrace.Replication to at most the number of brokers"
	}
	return ""
}

func check(ctx context.Context, adm *kadm.Client, specs []TopicSpec) error {
	names := make([]string, len(specs))
	for i, s := range specs {
		names[i] = s.Name
	}
	infos, err := waitForTopics(ctx, adm, names)
	if err != nil {
		return err
	}
	configs, err := adm.DescribeTopicConfigs(ctx, names...)
	if err != nil {
		return fmt.Errorf("read the configuration of internal topics: %w: grant DescribeConfigs", err)
	}
	var errs []error
	for _, s := range specs {
		if info := infos[s.Name]; info.Err != nil {
			errs = append(errs, fmt.Errorf("%s topic %q: %w", s.Kind, s.Name, info.Err))
			continue
		} else if info.Partitions != s.Partitions {
			errs = append(errs, fmt.Errorf("%s topic %q has %d partitions, the application needs %d: the partition count of its sources has changed, or the topic belongs to another application; restore the count, or reset the application",
				s.Kind, s.Name, info.Partitions, s.Partitions))
		}
		have := map[string]string{}
		if rc, err := configs.On(s.Name, nil); err == nil {
			for _, c := range rc.Configs {
				have[c.Key] = c.MaybeValue()
			}
		}
		errs = append(errs, s.differences(have)...)
	}
	return errors.Join(errs...)
}

// differences compares the settings that correctness rests on.
func (s *TopicSpec) differences(have map[string]string) []error {
	var errs []error
	want := s.configs()
	for _, key := range []string{"cleanup.policy", "retention.ms", "retention.bytes", "message.timestamp.type"} {
		h, ok := have[key]
		if !ok || samePolicy(h, want[key]) || key == "retention.ms" && longer(h, want[key]) || key == "retention.bytes" && s.Kind == DeadLetter || key == "retention.ms" && s.Kind == DeadLetter {
			continue
		}
		if key == "retention.ms" && (s.Kind == Changelog || s.Kind == GroupTable) {
			continue // it has no effect on a topic that is only compacted
		}
		errs = append(errs, fmt.Errorf("%s topic %q has %s=%s, the application needs %s: set it with kafka-configs --alter --add-config %s=%s", s.Kind, s.Name, key, h, want[key], key, want[key]))
	}
	return errs
}

func samePolicy(a, b string) bool {
	as, bs := strings.Split(a, ","), strings.Split(b, ",")
	slices.Sort(as)
	slices.Sort(bs)
	return slices.Equal(as, bs)
}

// longer reports whether retention a keeps records at least as long as b.
func longer(a, b string) bool {
	x, errX := strconv.ParseInt(a, 10, 64)
	y, errY := strconv.ParseInt(b, 10, 64)
	if errX != nil || errY != nil {
		return false
	}
	return x < 0 || y >= 0 && x >= y
}

// TopicInfo is what the brokers say of a topic.
type TopicInfo struct {
	ID         [16]byte
	Partitions int32
	Err        error // why it cannot be used
}

// waitForTopics describes topics and gives new ones time to appear everywhere.
func waitForTopics(ctx context.Context, adm *kadm.Client, names []string) (infos map[string]TopicInfo, err error) {
	err = retry(ctx, retryFor, func(ctx context.Context) error {
		if infos, err = Describe(ctx, adm, names...); err != nil {
			return err
		}
		for _, name := range names {
			if errors.Is(infos[name].Err, kerr.UnknownTopicOrPartition) {
				return infos[name].Err
			}
		}
		return nil
	})
	if infos != nil {
		err = nil // what is missing is in the infos
	}
	return infos, err
}

// Describe asks for the ids and partition counts of topics. A topic that does not
// exist or may not be seen has an Err that says what to do.
func Describe(ctx context.Context, adm *kadm.Client, names ...string) (map[string]TopicInfo, error) {
	infos := make(map[string]TopicInfo, len(names))
	if len(names) == 0 {
		return infos, nil
	}
	details, err := adm.ListTopics(ctx, names...)
	if err != nil {
		return nil, fmt.Errorf("describe topics: %w", err)
	}
	for _, name := range names {
		d, ok := details[name]
		switch {
		case !ok || errors.Is(d.Err, kerr.UnknownTopicOrPartition):
			infos[name] = TopicInfo{Err: fmt.Errorf("it does not exist, create it first: %w", kerr.UnknownTopicOrPartition)}
		case errors.Is(d.Err, kerr.TopicAuthorizationFailed):
			infos[name] = TopicInfo{Err: fmt.Errorf("not allowed to see it, grant Describe and Read or Write: %w", d.Err)}
		case d.Err != nil:
			infos[name] = TopicInfo{Err: d.Err}
		default:
			infos[name] = TopicInfo{ID: d.ID, Partitions: int32(len(d.Partitions))}
		}
	}
	return infos, nil
}

// A TopicChange says what happened to a topic that the application uses.
type TopicChange struct {
	Topic string
	What  string
}

// Error explains the change and what to do.
func (c *TopicChange) Error() string { return fmt.Sprintf("topic %q %s", c.Topic, c.What) }

// Changes compares topics with what they were. A topic that cannot be looked at
// just now counts as unchanged.
func Changes(before, now map[string]TopicInfo) []*TopicChange {
	var out []*TopicChange
	for name, was := range before {
		is, ok := now[name]
		switch {
		case !ok:
		case errors.Is(is.Err, kerr.UnknownTopicOrPartition):
			out = append(out, &TopicChange{name, "was deleted: its offsets and state no longer fit; restore it, or reset the application"})
		case is.Err != nil:
		case is.ID != was.ID:
			out = append(out, &TopicChange{name, "was recreated: its offsets and state no longer fit; reset the application"})
		case is.Partitions != was.Partitions:
			out = append(out, &TopicChange{name, fmt.Sprintf("has %d partitions, it had %d: keys have moved; use a new application name, or drain it and reset the application", is.Partitions, was.Partitions)})
		}
	}
	slices.SortFunc(out, func(a, b *TopicChange) int { return strings.Compare(a.Topic, b.Topic) })
	return out
}
