package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net"
	"net/http"
	"time"

	"github.com/millrace/millrace/internal/modelserver"
)

func modelServerCommand(ctx context.Context, args []string, std stdio) error {
	fs := flag.NewFlagSet("model-server", flag.ContinueOnError)
	addr := fs.String("addr", "127.0.0.1:8089", "`address` to listen on")
	var cfg modelserver.Config
	fs.DurationVar(&cfg.Latency.Median, "latency", 0, "median `time` a call takes")
	fs.Float64Var(&cfg.Latency.Sigma, "latency-sigma", 0, "spread of the latency: `sigma` of a log-normal distribution, 0 for none")
	fs.DurationVar(&cfg.RetryAfter, "retry-after", 200*time.Millisecond, "what a rate-limited caller is told to wait")
	fs.Uint64Var(&cfg.Seed, "seed", 1, "seed of latencies and faults")
	rate := fs.Float64("fault-rate", 0, "share of calls, 0 to 1, that meet a fault of any kind")
	fs.Float64Var(&cfg.Faults.RateLimited, "rate-limited", 0, "share answered with 429")
	fs.Float64Var(&cfg.Faults.ServerError, "server-error", 0, "share answered with 500")
	fs.Float64Var(&cfg.Faults.Hang, "hang", 0, "share never answered")
	fs.Float64Var(&cfg.Faults.Cut, "cut", 0, "share cut off in the middle of the answer")
	fs.Float64Var(&cfg.Faults.Malformed, "malformed", 0, "share whose content is not JSON")
	fs.Float64Var(&cfg.Faults.WrongSchema, "wrong-schema", 0, "share whose content breaks the schema")
	if err := parse(fs, args, std); err != nil {
		return err
	}
	if *rate != 0 {
		if cfg.Faults != (modelserver.Faults{}) {
			return usagef("-fault-rate sets all kinds of fault: use it or the flags of single kinds")
		}
		cfg.Faults = modelserver.Mix(*rate)
	}
	server, err := modelserver.New(cfg)
	if err != nil {
		return usageError{err}
	}
	ln, err := net.Listen("tcp", *addr)
	if err != nil {
		return fmt.Errorf("listen: %w; choose another address with -addr", err)
	}
	fmt.Fprintf(std.out, "Serving model %q at http://%s/v1: VADER, a classical sentiment model, not a language model. Figures at /stats.\n", modelserver.ModelName, ln.Addr())
	stop := serve(ln, server)
	<-ctx.Done()
	return stop()
}

// serve serves h until the returned function is called, which cuts calls off that
// still run.
func serve(ln net.Listener, h http.Handler) (stop func() error) {
	srv := modelserver.HTTPServer(h)
	done := make(chan error, 1)
	go func() { done <- srv.Serve(ln) }()
	return func() error {
		cerr := srv.Close()
		if err := <-done; !errors.Is(err, http.ErrServerClosed) {
			return fmt.Errorf("model server: %w", err)
		}
		return cerr
	}
}
