// Command kafka starts a single-node Apache Kafka on a free port of 127.0.0.1,
// prints its address, and runs until Ctrl-C. Its data are removed at the end.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/millrace/millrace/internal/broker"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:])
	stop()
	if err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "kafka:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	cfg := broker.KafkaConfig{Properties: map[string]string{}}
	flags := flag.NewFlagSet("kafka", flag.ContinueOnError)
	flags.IntVar(&cfg.TransactionVersion, "transaction-version", 2, "1 or 2")
	flags.IntVar(&cfg.HeapMB, "heap", 512, "heap of the Java process in MB")
	flags.Func("set", "broker property `name=value`; may be repeated", func(s string) error {
		name, value, ok := strings.Cut(s, "=")
		if !ok {
			return fmt.Errorf("%q is not name=value", s)
		}
		cfg.Properties[name] = value
		return nil
	})
	fetch := flags.Bool("fetch", false, "only fetch the jars into the cache")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if flags.NArg() > 0 {
		return fmt.Errorf("unexpected argument %q", flags.Arg(0))
	}
	if *fetch {
		if err := broker.Available(); err != nil {
			return err
		}
		dir, err := broker.FetchJars(ctx)
		if err == nil {
			fmt.Println(dir)
		}
		return err
	}
	k, err := broker.StartKafka(ctx, cfg)
	if err != nil {
		return err
	}
	fmt.Println(k.Addr())
	<-ctx.Done()
	return k.Close()
}
