// Command goka is the goka peer of the benchmarks: goka 1.1.16 as it ships, on
// sarama and LevelDB, at least once. Settings that differ from its defaults are
// those that keep the jobs comparable: first offset, key hash, compression,
// replication and static membership.
package main

import (
	"context"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"hash"
	"log"
	"os/signal"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/IBM/sarama"
	"github.com/lovoo/goka"
	"github.com/lovoo/goka/codec"
	"github.com/lovoo/goka/storage"
)

func main() {
	brokers := flag.String("brokers", "", "bootstrap `address`")
	job := flag.String("job", "", "pass or count")
	in := flag.String("in", "", "input `topic`")
	out := flag.String("out", "", "output `topic`")
	app := flag.String("app", "", "group")
	dir := flag.String("dir", "", "state `directory`")
	flag.Int("threads", 1, "unused: goka runs a goroutine per partition")
	flag.Parse()

	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	if err := run(ctx, *brokers, *job, *in, *out, *app, *dir); err != nil && !errors.Is(err, context.Canceled) {
		log.Fatal(err)
	}
}

func run(ctx context.Context, brokers, job, in, out, app, dir string) error {
	graph, err := graph(job, goka.Group(app), goka.Stream(in), goka.Stream(out))
	if err != nil {
		return err
	}
	config := goka.DefaultConfig()
	config.Version = sarama.V2_8_0_0 // static membership needs 2.3
	config.Consumer.Offsets.Initial = sarama.OffsetOldest
	config.Consumer.Group.InstanceId = app + "-1"
	config.Producer.Compression = sarama.CompressionNone
	goka.ReplaceGlobalConfig(config)

	topics := goka.NewTopicManagerConfig()
	topics.Table.Replication = 1
	topics.Stream.Replication = 1
	var restored restore
	p, err := goka.NewProcessor([]string{brokers}, graph,
		goka.WithStorageBuilder(storage.DefaultBuilder(filepath.Join(dir, "leveldb"))),
		goka.WithTopicManagerBuilder(goka.TopicManagerBuilderWithConfig(config, topics)),
		goka.WithHasher(func() hash.Hash32 { return new(murmur2) }),
		goka.WithUpdateCallback(restored.update),
	)
	if err != nil {
		return err
	}
	go func() {
		if p.WaitForReadyContext(ctx) == nil {
			restored.report()
			fmt.Println("ready")
		}
	}()
	return p.Run(ctx)
}

func graph(job string, group goka.Group, in, out goka.Stream) (*goka.GroupGraph, error) {
	switch job {
	case "pass":
		return goka.DefineGroup(group,
			goka.Input(in, new(codec.Bytes), func(ctx goka.Context, msg any) { ctx.Emit(out, ctx.Key(), msg) }),
			goka.Output(out, new(codec.Bytes))), nil
	case "count":
		return goka.DefineGroup(group,
			goka.Input(in, new(codec.Bytes), func(ctx goka.Context, _ any) {
				n, _ := ctx.Value().(int64)
				ctx.SetValue(n + 1)
				ctx.Emit(out, ctx.Key(), n+1)
			}),
			goka.Persist(bigEndian{}),
			goka.Output(out, bigEndian{})), nil
	}
	return nil, fmt.Errorf("goka: unknown job %q", job)
}

// restore sees every record that a recovery reads.
type restore struct{ first, last, records atomic.Int64 }

func (r *restore) update(ctx goka.UpdateContext, s storage.Storage, key string, value []byte) error {
	r.first.CompareAndSwap(0, time.Now().UnixMilli())
	err := goka.DefaultUpdate(ctx, s, key, value)
	r.records.Add(1)
	r.last.Store(time.Now().UnixMilli())
	return err
}

func (r *restore) report() {
	if n := r.records.Load(); n > 0 {
		fmt.Println("restore-start", r.first.Load())
		fmt.Println("restored", n, r.last.Load())
	}
}

// bigEndian codes int64 as Kafka's LongSerializer does.
type bigEndian struct{}

func (bigEndian) Encode(v any) ([]byte, error) {
	return binary.BigEndian.AppendUint64(nil, uint64(v.(int64))), nil
}

func (bigEndian) Decode(b []byte) (any, error) {
	if len(b) != 8 {
		return nil, fmt.Errorf("int64: %d bytes instead of 8", len(b))
	}
	return int64(binary.BigEndian.Uint64(b)), nil
}
