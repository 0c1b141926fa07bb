package kafka

import (
	"context"
	"errors"
	"fmt"
	"maps"
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
	// Replication is the replication factor; 0 and -1 leave it to the broker.
	Replication int16
	// MinInSync is min.insync.replicas; 0 leaves it to the broker.
	MinInSync int
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
	if s.Kind == Loop || s.Kind == Repartition {
		c["segment.bytes"] = strconv.Itoa(50 << 20) // purging frees whole segments
	}
	if s.MaxMessageBytes > 0 {
		c["max.message.bytes"] = strconv.Itoa(s.MaxMessageBytes)
	}
	if s.MinInSync > 0 {
		c["min.insync.replicas"] = strconv.Itoa(s.MinInSync)
	}
	return c
}

// Ensure creates the topics that are missing and checks those that exist:
// partitions, cleanup policy, retention, message size and timestamp type. It alters
// nothing; every difference is reported with what to do. Creating needs the Create
// permission, checking Describe and DescribeConfigs only.
func Ensure(ctx context.Context, adm *kadm.Client, specs []TopicSpec) error {
	names := make([]string, len(specs))
	for i, s := range specs {
		names[i] = s.Name
	}
	found, err := Describe(ctx, adm, names...)
	if err != nil {
		return err
	}
	var errs []error
	for _, s := range specs {
		if !errors.Is(found[s.Name].Err, kerr.UnknownTopicOrPartition) {
			continue
		}
		configs := map[string]*string{}
		for k, v := range s.configs() {
			configs[k] = &v
		}
		replication := s.Replication
		if replication == 0 {
			replication = -1
		}
		err := retry(ctx, retryFor, func(ctx context.Context) error {
			_, err := adm.CreateTopic(ctx, s.Partitions, replication, configs, s.Name)
			return err
		})
		if err != nil && !errors.Is(err, kerr.TopicAlreadyExists) { // another instance was faster
			errs = append(errs, fmt.Errorf("create %s topic %q with %d partitions and %s: %w%s", s.Kind, s.Name, s.Partitions, list(s.configs()), err, hint(err)))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	return check(ctx, adm, specs)
}

// list renders settings as kafka-configs.sh takes them.
func list(configs map[string]string) string {
	var out []string
	for _, k := range slices.Sorted(maps.Keys(configs)) {
		v := configs[k]
		if strings.Contains(v, ",") {
			v = "[" + v + "]"
		}
		out = append(out, k+"="+v)
	}
	return strings.Join(out, ",")
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

// differences compares the settings that correctness rests on. What keeps more
// than needed is fine.
func (s *TopicSpec) differences(have map[string]string) []error {
	want := s.configs()
	wrong := map[string]string{}
	var parts []string
	for _, key := range []string{"cleanup.policy", "retention.ms", "retention.bytes", "delete.retention.ms", "max.message.bytes", "message.timestamp.type", "min.insync.replicas"} {
		w, stated := want[key]
		h, known := have[key]
		if !stated || !known || s.satisfied(key, h, w) {
			continue
		}
		wrong[key] = w
		parts = append(parts, fmt.Sprintf("has %s=%s and needs %s", key, h, w))
	}
	if len(parts) == 0 {
		return nil
	}
	return []error{fmt.Errorf("%s topic %q %s: set it with kafka-configs.sh --alter --entity-type topics --entity-name %s --add-config %s",
		s.Kind, s.Name, strings.Join(parts, ", "), s.Name, list(wrong))}
}

func (s *TopicSpec) satisfied(key, have, want string) bool {
	switch key {
	case "cleanup.policy":
		return samePolicy(have, want)
	case "retention.ms", "retention.bytes":
		// Retention has no effect on what is only compacted, and how long dead
		// letters stay is the operator's choice.
		return s.Kind == Changelog || s.Kind == GroupTable || s.Kind == DeadLetter || atLeast(have, want)
	case "delete.retention.ms", "max.message.bytes", "min.insync.replicas":
		return atLeast(have, want)
	}
	return have == want
}

func samePolicy(a, b string) bool {
	as, bs := strings.Split(strings.ReplaceAll(a, " ", ""), ","), strings.Split(b, ",")
	slices.Sort(as)
	slices.Sort(bs)
	return slices.Equal(as, bs)
}

// atLeast reports whether a number a is at least b, where -1 is infinite.
func atLeast(a, b string) bool {
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
// exist or may not be seen has an Err that says what to do. The answer is never a
// cached one.
func Describe(ctx context.Context, adm *kadm.Client, names ...string) (map[string]TopicInfo, error) {
	infos := make(map[string]TopicInfo, len(names))
	if len(names) == 0 {
		return infos, nil
	}
	// Asking for operations is what makes kadm leave its cache alone.
	ctx = kadm.WithAuthorizedOps(ctx)
	var details kadm.TopicDetails
	err := retry(ctx, retryFor, func(ctx context.Context) (err error) {
		if details, err = adm.ListTopics(ctx, names...); err != nil {
			return err
		}
		for _, d := range details { // an election, for example
			if passing(d.Err) && !errors.Is(d.Err, kerr.UnknownTopicOrPartition) {
				return fmt.Errorf("topic %s: %w", d.Topic, d.Err)
			}
		}
		return nil
	})
	if errors.Is(err, kerr.TopicAuthorizationFailed) {
		return describeEach(ctx, adm, names)
	}
	if err != nil {
		return nil, fmt.Errorf("describe topics: %w", err)
	}
	for _, name := range names {
		d, ok := details[name]
		switch {
		case !ok || errors.Is(d.Err, kerr.UnknownTopicOrPartition):
			infos[name] = TopicInfo{Err: fmt.Errorf("it does not exist, create it first: %w", kerr.UnknownTopicOrPartition)}
		case d.Err != nil:
			infos[name] = TopicInfo{Err: d.Err}
		default:
			infos[name] = TopicInfo{ID: d.ID, Partitions: int32(len(d.Partitions))}
		}
	}
	return infos, nil
}

// describeEach finds out which topics may not be seen: one of them makes kadm fail
// for all.
func describeEach(ctx context.Context, adm *kadm.Client, names []string) (map[string]TopicInfo, error) {
	infos := make(map[string]TopicInfo, len(names))
	for _, name := range names {
		if len(names) == 1 {
			infos[name] = TopicInfo{Err: fmt.Errorf("not allowed to see it, grant Describe and Read or Write: %w", kerr.TopicAuthorizationFailed)}
			break
		}
		one, err := Describe(ctx, adm, name)
		if err != nil {
			return nil, err
		}
		infos[name] = one[name]
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
