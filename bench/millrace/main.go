// Command millrace is our arm of the benchmarks: the jobs written with the public
// API. It takes the arguments of every arm and prints their lines.
package main

import (
	"context"
	"flag"
	"fmt"
	"log"
	"log/slog"
	"os"
	"os/signal"
	"runtime/pprof"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/millrace/millrace"
	"github.com/millrace/millrace/serde"
	"github.com/millrace/millrace/state"
	"github.com/millrace/millrace/topology"
)

func main() {
	brokers := flag.String("brokers", "", "bootstrap `address`")
	job := flag.String("job", "", "pass or count")
	in := flag.String("in", "", "input `topic`")
	out := flag.String("out", "", "output `topic`")
	name := flag.String("app", "", "application")
	dir := flag.String("dir", "", "state `directory`")
	threads := flag.Int("threads", 1, "workers")
	flag.Parse()

	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	b := topology.New(*name)
	switch *job {
	case "pass":
		topology.Stream(b, *in, serde.Bytes(), serde.Bytes()).To(*out)
	case "count":
		topology.Stream(b, *in, serde.String(), serde.Bytes()).
			GroupByKey().Count("counts").ToStream().To(*out)
	default:
		log.Fatalf("millrace: unknown job %q", *job)
	}
	if path := os.Getenv("CPUPROFILE"); path != "" {
		f, err := os.Create(path)
		if err != nil {
			log.Fatal(err)
		}
		defer f.Close()
		if err := pprof.StartCPUProfile(f); err != nil {
			log.Fatal(err)
		}
		defer pprof.StopCPUProfile()
	}
	memory, err := stateMemory()
	if err != nil {
		log.Fatal(err)
	}
	var progress progress
	app, err := millrace.New(b,
		millrace.StateMemory(memory),
		millrace.Brokers(*brokers),
		millrace.StateDir(*dir),
		millrace.Workers(*threads),
		millrace.Logger(slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))),
		millrace.OnTaskState(progress.change),
	)
	if err != nil {
		log.Fatal(err)
	}
	if err := app.Run(ctx); err != nil {
		log.Fatal(err)
	}
}

// stateMemory returns STATE_MEMORY of the environment, in bytes; 0, the default of
// Millrace, if it is not set.
func stateMemory() (int64, error) {
	s := os.Getenv("STATE_MEMORY")
	if s == "" {
		return 0, nil
	}
	return strconv.ParseInt(s, 10, 64)
}

// progress prints when the first task runs, and the restores from the start of
// the first task's to the end of the last one's.
type progress struct {
	mu       sync.Mutex
	restores map[state.TaskID]bool // open ones
	records  int64
	ready    bool
}

func (p *progress) change(s millrace.TaskStatus) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch s.State {
	case millrace.Restoring:
		if len(p.restores) == 0 {
			fmt.Println("restore-start", time.Now().UnixMilli())
			p.restores = make(map[state.TaskID]bool)
		}
		p.restores[s.Task] = true
	case millrace.Running:
		if p.restores[s.Task] {
			delete(p.restores, s.Task)
			if p.records += s.RestoreTotal; len(p.restores) == 0 {
				fmt.Println("restored", p.records, time.Now().UnixMilli())
			}
		}
		if !p.ready {
			p.ready = true
			fmt.Println("ready")
		}
	}
}
