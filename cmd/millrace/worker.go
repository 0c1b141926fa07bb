package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"time"

	"github.com/millrace/millrace"
	"github.com/millrace/millrace/examples/reviews"
	"github.com/millrace/millrace/internal/modelserver"
	"github.com/millrace/millrace/llm"
	"github.com/millrace/millrace/llm/openai"
	"github.com/millrace/millrace/topology"
)

// workerCommandName is the command by which the demo runs a worker as a process
// of its own.
const workerCommandName = "demo-worker"

// readyLine is what it prints when it is ready.
const readyLine = "ready"

// workerConfig is what a worker needs to know.
type workerConfig struct {
	App      string   `json:"app"`
	Brokers  []string `json:"brokers"`
	StateDir string   `json:"state_dir"`
	Log      string   `json:"log"` // file that the log is appended to
	ModelURL string   `json:"model_url"`
	Model    string   `json:"model"`
	Provider string   `json:"provider"`
	Owner    string   `json:"owner"`   // name of this incarnation
	Patient  bool     `json:"patient"` // the model is not the demo's own: give it time
	// Timeout is how long an attempt of a model that is not the demo's own may take.
	Timeout time.Duration `json:"timeout"`
}

// lookup are the bounds of the model calls. The demo's own model answers in
// milliseconds, or misbehaves.
func (c workerConfig) lookup() []topology.LookupOption {
	if c.Patient {
		return []topology.LookupOption{
			topology.Concurrency(32), topology.AttemptTimeout(time.Minute), topology.Deadline(5 * time.Minute),
			topology.Retries(6, 500*time.Millisecond, 20*time.Second),
		}
	}
	return []topology.LookupOption{
		topology.Concurrency(64), topology.AttemptTimeout(2 * time.Second), topology.Deadline(20 * time.Second),
		topology.Retries(6, 20*time.Millisecond, 500*time.Millisecond),
	}
}

// keyVariable is the environment variable with the key of the model's server.
const keyVariable = "OPENAI_API_KEY"

// openAIModel returns a model of an OpenAI-compatible server, whose URL has no path
// /v1. The key is read from the environment, so that it is on no command line.
func openAIModel(url, provider, name string) (llm.Model, error) {
	cfg := openai.Config{Provider: provider, Endpoint: llm.Endpoint{URL: url + "/v1", MaxAnswer: 1 << 20}}
	if os.Getenv(keyVariable) != "" {
		cfg.Key = llm.KeyFromEnv(keyVariable)
	}
	return openai.New(name, cfg)
}

// runWorker runs the application until ctx ends. It calls ready once the
// application has joined its groups and restored its tasks.
func runWorker(ctx context.Context, cfg workerConfig, ready func()) (err error) {
	log, err := os.OpenFile(cfg.Log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("worker log: %w", err)
	}
	defer func() { err = errors.Join(err, log.Close()) }()
	logger := slog.New(slog.NewTextHandler(log, nil)).With("worker", cfg.Owner)
	model, err := openAIModel(cfg.ModelURL, cfg.Provider, cfg.Model)
	if err != nil {
		return err
	}
	app, err := millrace.New(
		reviews.Build(cfg.App, modelserver.Owned(model, cfg.Owner), cfg.lookup()...),
		millrace.Brokers(cfg.Brokers...),
		millrace.StateDir(cfg.StateDir),
		millrace.Logger(logger),
	)
	if err != nil {
		return err
	}
	done := make(chan struct{})
	watched := make(chan struct{})
	go func() { // ends with done
		defer close(watched)
		tick := time.NewTicker(20 * time.Millisecond)
		defer tick.Stop()
		for !app.Ready() {
			select {
			case <-tick.C:
			case <-done:
				return
			}
		}
		ready()
	}()
	err = app.Run(ctx)
	close(done)
	<-watched
	if err != nil {
		logger.Error("stopped", "error", err)
		return err
	}
	return nil
}

// workerCommand runs a worker as a process: its standard input holds a line with
// its configuration, and its end tells it to stop, also when the demo dies.
func workerCommand(ctx context.Context, args []string, std stdio) error {
	if err := parse(flag.NewFlagSet(workerCommandName, flag.ContinueOnError), args, std); err != nil {
		return err
	}
	signal.Ignore(os.Interrupt) // a terminal sends it to the demo too, which then ends the input
	in := bufio.NewReader(std.in)
	line, err := in.ReadBytes('\n')
	if err != nil {
		return usagef("it is started by \"millrace demo -kill\", which writes its configuration to standard input")
	}
	var cfg workerConfig
	if err := json.Unmarshal(line, &cfg); err != nil {
		return usagef("configuration: %w", err)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() { // ends with the input
		_, _ = io.Copy(io.Discard, in)
		cancel()
	}()
	return runWorker(ctx, cfg, func() { fmt.Fprintln(std.out, readyLine) })
}
