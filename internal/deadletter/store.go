package deadletter

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/millrace/millrace/internal/kafka"
)

// ErrNoLetter says that there is no dead letter at a position.
var ErrNoLetter = errors.New("there is no dead letter")

// A Store is the dead letters of an application: its topics <app>.dlq and
// <app>.<step>.dlq, and <app>.replays, which remembers what was replayed. It is safe
// for concurrent use.
type Store struct {
	app  string
	conf *kafka.Config
	// Replication is the replication factor of the topic of replays, if it has to be
	// created.
	Replication int16
}

// New returns the dead letters of an application. It opens nothing.
func New(app string, conf *kafka.Config) *Store {
	c := *conf
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return &Store{app: app, conf: &c, Replication: -1}
}

// letterTopics returns the application's topics of dead letters, with their ids.
func (s *Store) letterTopics(ctx context.Context, cl *kgo.Client) (kadm.TopicDetails, error) {
	all, err := kadm.NewClient(cl).ListTopics(ctx)
	if err != nil {
		return nil, fmt.Errorf("topics of application %q: %w", s.app, err)
	}
	found := kadm.TopicDetails{}
	for name, d := range all {
		rest, ours := strings.CutPrefix(name, s.app+".")
		step, letters := strings.CutSuffix("."+rest, ".dlq")
		if ours && letters && strings.Count(step, ".") <= 1 && d.Err == nil {
			found[name] = d
		}
	}
	if len(found) == 0 {
		return nil, fmt.Errorf("application %q has no topic of dead letters, %s.dlq or %s.<step>.dlq, that we may describe; check the name and the permissions", s.app, s.app, s.app)
	}
	return found, nil
}

// scan reads the letters that a filter takes, those of a partition in order, up to the
// ends of the topics when it begins. What cannot be parsed goes to fn too, if nothing
// is asked of its class or step. An error of fn ends it.
func (s *Store) scan(ctx context.Context, cl *kgo.Client, f Filter, marks *marks, fn func(*Letter, error) error) error {
	topics, err := s.letterTopics(ctx, cl)
	if err != nil {
		return err
	}
	partitions := map[string][]int32{}
	for name, d := range topics {
		partitions[name] = d.Partitions.Numbers()
	}
	starts, err := kafka.ListOffsets(ctx, cl, kafka.LogStart, partitions)
	if err != nil {
		return err
	}
	ends, err := kafka.ListOffsets(ctx, cl, kafka.LastStable, partitions)
	if err != nil {
		return err
	}
	var ranges []kafka.ReadRange
	for topic, list := range partitions {
		for _, p := range list {
			from, to := starts[topic][p], ends[topic][p]
			if len(f.At) > 0 {
				from, to = between(f.At, topic, p, from, to)
			}
			ranges = append(ranges, kafka.ReadRange{Topic: topic, Partition: p, From: from, To: to})
		}
	}
	return s.conf.Read(ctx, ranges, func(topic string, _ int32, records []*kgo.Record, _ int64) error {
		for _, r := range records {
			l, err := parse(r)
			l.Replayed = marks.at(topics[topic], r.Partition, r.Offset)
			if !f.takes(l) {
				continue
			}
			if err := fn(l, err); err != nil {
				return err
			}
		}
		return nil
	})
}

// between narrows a range to the positions in it.
func between(at []Position, topic string, partition int32, from, to int64) (int64, int64) {
	first, end := to, from
	for _, p := range at {
		if p.Topic == topic && p.Partition == partition && p.Offset >= from && p.Offset < to {
			first, end = min(first, p.Offset), max(end, p.Offset+1)
		}
	}
	return first, end
}

// List returns the letters that a filter takes, in the order in which they were
// given up. With a Limit they are the last ones.
func (s *Store) List(ctx context.Context, f Filter) ([]*Letter, error) {
	var list []*Letter
	order := func(a, b *Letter) int {
		if c := a.FailedAt.Compare(b.FailedAt); c != 0 {
			return c
		}
		return strings.Compare(a.Position.String(), b.Position.String())
	}
	err := s.with(func(cl *kgo.Client) error {
		marks, err := s.readMarks(ctx, cl)
		if err != nil {
			return err
		}
		return s.scan(ctx, cl, f, marks, func(l *Letter, err error) error {
			if err != nil {
				l.Message = strings.TrimSpace(l.Message + " (" + err.Error() + ")")
			}
			list = append(list, l)
			if f.Limit > 0 && len(list) >= 2*f.Limit+1000 { // what is kept is bounded
				slices.SortStableFunc(list, order)
				list = slices.Clone(list[len(list)-f.Limit:])
			}
			return nil
		})
	})
	if err != nil {
		return nil, err
	}
	slices.SortStableFunc(list, order)
	if f.Limit > 0 && len(list) > f.Limit {
		list = list[len(list)-f.Limit:]
	}
	return list, nil
}

// Show returns the letter at a position. The error is ErrNoLetter if there is none.
func (s *Store) Show(ctx context.Context, at Position) (*Letter, error) {
	list, err := s.List(ctx, Filter{At: []Position{at}})
	if err == nil && len(list) == 0 {
		err = fmt.Errorf("%s: %w of application %q", at, ErrNoLetter, s.app)
	}
	if err != nil {
		return nil, err
	}
	return list[0], nil
}

func (s *Store) with(fn func(*kgo.Client) error, more ...kgo.Opt) error {
	cl, err := kgo.NewClient(append(s.conf.PlainOpts(nil), more...)...)
	if err != nil {
		return fmt.Errorf("kafka client: %w", err)
	}
	defer cl.Close()
	return fn(cl)
}
