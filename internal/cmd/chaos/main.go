// Command chaos kills workers and brokers and checks every record that was
// written meanwhile. `make chaos` runs it.
//
//	chaos [-kills N] [-freezes N] [-restarts N] [-seed S] ...
//	chaos enrich [-events N] [-kills N] [-strict] [-seed S] ...   the same with model calls
//	chaos worker -brokers ADDR -state DIR      (started by the first)
//	chaos enrich-worker                        (started by the second)
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/millrace/millrace"
	"github.com/millrace/millrace/internal/broker"
	"github.com/millrace/millrace/internal/chaos"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	run := chaosMain
	if len(os.Args) > 1 {
		if sub := map[string]func(context.Context) error{"worker": worker, "enrich": enrichMain, "enrich-worker": enrichWorker}[os.Args[1]]; sub != nil {
			run = sub
			os.Args = append(os.Args[:1], os.Args[2:]...)
		}
	}
	if err := run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "chaos:", err)
		os.Exit(1)
	}
}

// worker runs the application until SIGTERM.
func worker(ctx context.Context) error {
	brokers := flag.String("brokers", "", "bootstrap addresses, separated by commas")
	dir := flag.String("state", "", "state directory")
	flag.Parse()
	app, err := millrace.New(chaos.Topology(),
		millrace.Brokers(strings.Split(*brokers, ",")...),
		millrace.StateDir(*dir),
		millrace.Logger(slog.New(slog.NewTextHandler(os.Stderr, nil))),
	)
	if err != nil {
		return err
	}
	return app.Run(ctx)
}

func chaosMain(ctx context.Context) error {
	cfg := chaos.Config{Log: os.Stdout}
	flag.IntVar(&cfg.Records, "records", 200_000, "input records")
	flag.IntVar(&cfg.Keys, "keys", 1000, "keys")
	flag.IntVar(&cfg.Workers, "workers", 2, "worker processes")
	flag.IntVar(&cfg.Kills, "kills", 200, "SIGKILLs of workers")
	flag.IntVar(&cfg.Freezes, "freezes", 3, "SIGSTOPs of workers, longer than the session timeout")
	flag.IntVar(&cfg.Restarts, "restarts", 3, "SIGKILLs and restarts of the broker")
	flag.DurationVar(&cfg.Pause, "pause", time.Second, "mean time between two faults")
	flag.DurationVar(&cfg.FreezeFor, "freeze-for", 50*time.Second, "duration of a freeze")
	keep := flag.Bool("keep", false, "keep state and logs")
	seed := flag.String("seed", strconv.FormatInt(time.Now().UnixNano()%1_000_000, 10), "seed")
	version := flag.Int("transaction-version", 2, "the broker's transaction.version, 1 or 2")
	flag.Parse()
	var err error
	if cfg.Seed, err = strconv.ParseUint(*seed, 10, 64); err != nil {
		return err
	}
	cfg.Partitions = 4
	if cfg.Dir, err = os.MkdirTemp("", "millrace-chaos-"); err != nil {
		return err
	}
	kafka, err := broker.StartKafka(ctx, broker.KafkaConfig{TransactionVersion: *version})
	if err != nil {
		return err
	}
	defer func() {
		if err := kafka.Close(); err != nil {
			fmt.Fprintln(os.Stderr, "chaos:", err)
		}
	}()
	cfg.Brokers = []string{kafka.Addr()}
	cfg.Restart = func(ctx context.Context) error {
		if err := kafka.Kill(); err != nil {
			return err
		}
		return kafka.Restart(ctx)
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	cfg.Command = func(_ int, dir string) *exec.Cmd {
		return exec.Command(self, "worker", "-brokers", kafka.Addr(), "-state", dir)
	}
	report, err := chaos.Run(ctx, cfg)
	if report != nil {
		fmt.Println("chaos:", report)
		if !report.OK() {
			err = errors.Join(errors.New("the output is wrong"), err)
		}
	}
	if err != nil {
		err = errors.Join(err, os.CopyFS(filepath.Join(cfg.Dir, "kafka"), os.DirFS(filepath.Dir(kafka.LogFile()))))
		return fmt.Errorf("%w\nstate, logs and the broker's files are kept in %s", err, filepath.Clean(cfg.Dir))
	}
	if *keep {
		fmt.Println("chaos: state and logs are in", cfg.Dir)
		return nil
	}
	return os.RemoveAll(cfg.Dir)
}
