package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"time"

	"github.com/millrace/millrace/internal/broker"
	"github.com/millrace/millrace/internal/chaos/enrich"
)

// enrichWorker runs the application that asks models until SIGTERM.
func enrichWorker(ctx context.Context) error {
	return enrich.Worker(ctx, os.Getenv(enrich.Env), os.Stdout)
}

// enrichMain kills workers that ask models, and prints a summary in JSON.
func enrichMain(ctx context.Context) (err error) {
	cfg := enrich.Config{Log: os.Stderr}
	flag.IntVar(&cfg.Events, "events", 50_000, "events, of which each makes one model call or more")
	flag.IntVar(&cfg.Keys, "keys", 1000, "keys")
	flag.Float64Var(&cfg.FaultRate, "faults", 0.3, "part of the calls that fail")
	flag.IntVar(&cfg.Kills, "kills", 50, "SIGKILLs of workers")
	flag.DurationVar(&cfg.Pause, "pause", 4*time.Second, "mean time between two kills")
	flag.DurationVar(&cfg.Patience, "patience", 10*time.Minute, "longest time for what is left after the last kill")
	flag.BoolVar(&cfg.Strict, "strict", false, "PARTITION strict order, without conversations")
	keep := flag.Bool("keep", false, "keep state and logs")
	seed := flag.String("seed", strconv.FormatInt(time.Now().UnixNano()%1_000_000, 10), "seed")
	version := flag.Int("transaction-version", 2, "the broker's transaction.version, 1 or 2")
	flag.Parse()
	if cfg.Seed, err = strconv.ParseUint(*seed, 10, 64); err != nil {
		return err
	}
	if cfg.Dir, err = os.MkdirTemp("", "millrace-chaos-"); err != nil {
		return err
	}
	kafka, err := broker.StartKafka(ctx, broker.KafkaConfig{TransactionVersion: *version})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, kafka.Close()) }()
	self, err := os.Executable()
	if err != nil {
		return err
	}
	cfg.Brokers = []string{kafka.Addr()}
	cfg.Command = func() *exec.Cmd { return exec.Command(self, "enrich-worker") }
	sum, err := enrich.Run(ctx, cfg)
	if sum != nil {
		fmt.Println(sum)
		if !sum.OK {
			err = errors.Join(errors.New("the output is wrong"), err)
		}
	}
	if err != nil {
		err = errors.Join(err, os.CopyFS(filepath.Join(cfg.Dir, "kafka"), os.DirFS(filepath.Dir(kafka.LogFile()))))
		return fmt.Errorf("%w\nstate, logs and the broker's files are kept in %s", err, filepath.Clean(cfg.Dir))
	}
	if *keep {
		fmt.Fprintln(os.Stderr, "chaos: state and logs are in", cfg.Dir)
		return nil
	}
	return os.RemoveAll(cfg.Dir)
}
