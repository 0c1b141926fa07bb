// Command bare is the lower bound of the benchmarks: a franz-go loop that polls,
// produces every record unchanged, and commits offsets and output in one
// transaction every 100 ms. It knows neither state nor operators.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log"
	"os/signal"
	"syscall"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
)

func main() {
	brokers := flag.String("brokers", "", "bootstrap `address`")
	job := flag.String("job", "pass", "pass is the only job")
	in := flag.String("in", "", "input `topic`")
	out := flag.String("out", "", "output `topic`")
	app := flag.String("app", "", "consumer group and transactional id")
	flag.String("dir", "", "unused")
	flag.Int("threads", 1, "unused")
	flag.Parse()
	if *job != "pass" {
		log.Fatalf("bare: job %q: only pass exists", *job)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	if err := run(ctx, *brokers, *in, *out, *app); err != nil {
		log.Fatal(err)
	}
}

func run(ctx context.Context, brokers, in, out, app string) error {
	s, err := kgo.NewGroupTransactSession(
		kgo.SeedBrokers(brokers),
		kgo.TransactionalID(app),
		kgo.ConsumerGroup(app),
		kgo.InstanceID(app+"-1"),
		kgo.ConsumeTopics(in),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()),
		kgo.FetchIsolationLevel(kgo.ReadCommitted()),
		kgo.DefaultProduceTopic(out),
		kgo.ProducerBatchCompression(kgo.NoCompression()),
		kgo.MaxBufferedRecords(200_000),
	)
	if err != nil {
		return err
	}
	defer s.Close()
	fmt.Println("ready")
	for ctx.Err() == nil {
		if err := transaction(ctx, s); err != nil {
			return err
		}
	}
	return nil
}

// transaction waits for records, then forwards what arrives within 100 ms of
// the first of them.
func transaction(ctx context.Context, s *kgo.GroupTransactSession) error {
	fetches := s.PollFetches(ctx)
	if fetches.NumRecords() == 0 {
		return fetchError(fetches)
	}
	if err := s.Begin(); err != nil {
		return err
	}
	var produce kgo.FirstErrPromise
	window, cancel := context.WithTimeout(ctx, 100*time.Millisecond)
	defer cancel()
	for fetches.NumRecords() > 0 || window.Err() == nil {
		if err := fetchError(fetches); err != nil {
			return err
		}
		fetches.EachRecord(func(r *kgo.Record) {
			s.Produce(context.Background(), &kgo.Record{
				Key: r.Key, Value: r.Value, Headers: r.Headers, Timestamp: r.Timestamp,
			}, produce.Promise())
		})
		if window.Err() != nil {
			break
		}
		fetches = s.PollFetches(window)
	}
	if err := s.Client().Flush(context.Background()); err != nil {
		return err
	}
	try := kgo.TransactionEndTry(produce.Err() == nil)
	committed, err := s.End(context.Background(), try)
	if err == nil && !committed {
		err = fmt.Errorf("bare: transaction aborted: %w", produce.Err())
	}
	return err
}

func fetchError(fetches kgo.Fetches) error {
	for _, e := range fetches.Errors() {
		if !errors.Is(e.Err, context.Canceled) && !errors.Is(e.Err, context.DeadlineExceeded) {
			return fmt.Errorf("bare: fetch %s/%d: %w", e.Topic, e.Partition, e.Err)
		}
	}
	return nil
}
