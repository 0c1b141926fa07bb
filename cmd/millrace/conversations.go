package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"maps"
	"slices"
	"unicode/utf8"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/millrace/millrace/internal/kafka"
	millracev1 "github.com/millrace/millrace/proto/millrace/v1"
	"github.com/millrace/millrace/topology"
)

// conversationsCommand exports the conversations of a step.
func conversationsCommand(ctx context.Context, args []string, std stdio) error {
	if len(args) == 0 || args[0] != "export" {
		return usagef("say what to do: export")
	}
	fs := flag.NewFlagSet("conversations export", flag.ContinueOnError)
	var conn connection
	conn.flags(fs)
	app := fs.String("app", "", "`name` of the application; required")
	step := fs.String("step", "", "`name` of the step with the conversations")
	store := fs.String("store", "", "`name` of their store (default: <step>-conversations)")
	key := fs.String("key", "", "only the conversation of the `key`, as text")
	if err := parse(fs, args[1:], std); err != nil {
		return err
	}
	if *store == "" && *step != "" {
		*store = *step + "-conversations"
	}
	var errs []error
	if *app == "" {
		errs = append(errs, errors.New("-app: name the application, as topology.New does"))
	}
	if *store == "" {
		errs = append(errs, errors.New("-step: name the step with the conversations"))
	}
	conf, err := conn.config()
	if err := errors.Join(append(errs, err)...); err != nil {
		return usageError{err}
	}
	cl, err := kgo.NewClient(conf.PlainOpts(nil)...)
	if err != nil {
		return err
	}
	defer cl.Close()
	if err := reach(ctx, cl, conf.Brokers); err != nil {
		return err
	}
	e := &export{conf: &conf, cl: cl, topic: topology.ChangelogTopic(*app, *store), out: json.NewEncoder(std.out)}
	if *key != "" {
		e.only = key
	}
	return e.run(ctx)
}

// An export reads the changelog of a store of conversations, read_committed, and
// writes what is in it when it begins.
type export struct {
	conf  *kafka.Config
	cl    *kgo.Client
	topic string
	only  *string
	out   *json.Encoder
}

// exported is a line: Key is null and KeyBytes set for a key that is no text.
type exported struct {
	Key          *string         `json:"key"`
	KeyBytes     []byte          `json:"key_bytes,omitempty"`
	Partition    int32           `json:"partition"`
	Conversation json.RawMessage `json:"conversation"`
}

func (e *export) run(ctx context.Context) error {
	found, err := kadm.NewClient(e.cl).ListTopics(ctx, e.topic)
	if err != nil {
		return fmt.Errorf("topic %s: %w", e.topic, err)
	}
	d := found[e.topic]
	if d.Err != nil {
		return fmt.Errorf("topic %s: %w; check -app and -step, and that the step has a Conversation", e.topic, d.Err)
	}
	partitions := map[string][]int32{e.topic: d.Partitions.Numbers()}
	starts, err := kafka.ListOffsets(ctx, e.cl, kafka.LogStart, partitions)
	if err != nil {
		return err
	}
	ends, err := kafka.ListOffsets(ctx, e.cl, kafka.LastStable, partitions)
	if err != nil {
		return err
	}
	for _, p := range partitions[e.topic] { // one after the other: the last rows of all keys are in memory
		if err := e.partition(ctx, kafka.ReadRange{Topic: e.topic, Partition: p, From: starts[e.topic][p], To: ends[e.topic][p]}); err != nil {
			return err
		}
	}
	return nil
}

func (e *export) partition(ctx context.Context, span kafka.ReadRange) error {
	last := map[string][]byte{}
	err := e.conf.Read(ctx, []kafka.ReadRange{span}, func(_ string, _ int32, records []*kgo.Record, _ int64) error {
		for _, r := range records {
			switch {
			case e.only != nil && string(r.Key) != *e.only:
			case r.Value == nil:
				delete(last, string(r.Key))
			default:
				last[string(r.Key)] = r.Value
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, key := range slices.Sorted(maps.Keys(last)) {
		talk := &millracev1.Conversation{}
		if err := proto.Unmarshal(last[key], talk); err != nil {
			return fmt.Errorf("%s/%d: the row of key %q is no conversation: %w; check -step or -store", span.Topic, span.Partition, key, err)
		}
		text, err := protojson.Marshal(talk)
		if err != nil {
			return err
		}
		line := exported{Partition: span.Partition, Conversation: text}
		if utf8.ValidString(key) {
			line.Key = &key
		} else {
			line.KeyBytes = []byte(key)
		}
		if err := e.out.Encode(line); err != nil {
			return err
		}
	}
	return nil
}
