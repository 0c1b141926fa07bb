// Command oracle compares random cases with the real Kafka Streams: it prints the
// differences it finds, made small, and writes each to a file. The exit status is 1
// if there is one.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/millrace/millrace/internal/oracle"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:])
	stop()
	if err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "oracle:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	cfg := oracle.Config{Out: os.Stdout}
	flags := flag.NewFlagSet("oracle", flag.ContinueOnError)
	flags.IntVar(&cfg.Count, "n", 20_000, "random cases to run")
	flags.Uint64Var(&cfg.Seed, "seed", 1, "seed of the first case; those that follow have the next ones")
	flags.IntVar(&cfg.Stop, "stop", 10, "differences after which to stop")
	flags.BoolVar(&cfg.RocksDB, "rocksdb", false, "Kafka Streams' stores on disk, not in memory (slow)")
	flags.StringVar(&cfg.Dir, "dir", "internal/oracle/testdata/found", "where to write the cases that differ")
	if err := flags.Parse(args); err != nil {
		return err
	}
	cfg.Suites = flags.Args()
	if err := oracle.Available(); err != nil {
		return err
	}
	return oracle.Run(ctx, cfg)
}
