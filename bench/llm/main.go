// Command llm asks a model about every record of a topic: as an Enrich step of
// Millrace, or in a bare loop that calls and drops the answer. It takes the arguments
// of every arm and some of its own, and prints "ready" when it runs.
package main

import (
	"context"
	"flag"
	"fmt"
	"log"
	"log/slog"
	"os"
	"os/signal"
	"runtime/debug"
	"runtime/pprof"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/millrace/millrace"
	reviewsv1 "github.com/millrace/millrace/examples/reviews/proto/reviews/v1"
	"github.com/millrace/millrace/llm"
	"github.com/millrace/millrace/llm/openai"
	"github.com/millrace/millrace/llm/prompt"
	"github.com/millrace/millrace/llm/schema"
	"github.com/millrace/millrace/processors"
	"github.com/millrace/millrace/serde"
	"github.com/millrace/millrace/topology"
)

type config struct {
	brokers, job, in, out, app, dir string
	threads, slots                  int
	model                           string
	timeout                         time.Duration
	sideIn, sideOut                 string
	budget                          int64
}

func main() {
	var c config
	flag.StringVar(&c.brokers, "brokers", "", "bootstrap `address`")
	flag.StringVar(&c.job, "job", "", "enrich or bare")
	flag.StringVar(&c.in, "in", "", "input `topic`")
	flag.StringVar(&c.out, "out", "", "output `topic`")
	flag.StringVar(&c.app, "app", "", "application")
	flag.StringVar(&c.dir, "dir", "", "state `directory`")
	flag.IntVar(&c.threads, "threads", 1, "workers")
	flag.IntVar(&c.slots, "slots", 64, "calls at once")
	flag.StringVar(&c.model, "model-url", "", "`URL` of the model server")
	flag.DurationVar(&c.timeout, "timeout", time.Minute, "of an attempt; the deadline is three times as long")
	flag.StringVar(&c.sideIn, "side-in", "", "input `topic` of a pass-through beside the step")
	flag.StringVar(&c.sideOut, "side-out", "", "its output `topic`")
	flag.Int64Var(&c.budget, "budget", 0, "of the only tenant, in `millionths` of a dollar, at one for each token; 0 for none")
	limit := flag.Int64("memory-limit", 0, "of the Go runtime in `MiB`, as GOMEMLIMIT; 0 for none")
	flag.Parse()
	if *limit > 0 {
		debug.SetMemoryLimit(*limit << 20)
	}
	if path := os.Getenv("CPUPROFILE"); path != "" {
		f, err := os.Create(path)
		if err != nil {
			log.Fatal(err)
		}
		if err := pprof.StartCPUProfile(f); err != nil {
			log.Fatal(err)
		}
		defer f.Close()
		defer pprof.StopCPUProfile()
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	model, err := openai.New("bench", openai.Config{Endpoint: llm.Endpoint{URL: c.model, AllowPrivate: true}})
	if err != nil {
		log.Fatal(err)
	}
	run := map[string]func(context.Context, config, *openai.Model) error{"enrich": enrich, "bare": bare}[c.job]
	if run == nil {
		log.Fatalf("llm: unknown job %q", c.job)
	}
	if err := run(ctx, c, model); err != nil {
		log.Fatal(err)
	}
}

func newPrompt() *prompt.Prompt {
	return prompt.Must(prompt.Config{Name: "bench", System: "You tell the tone of a text.", User: "A text of {{len .Event}} bytes, from {{.Key}}."})
}

func enrich(ctx context.Context, c config, model *openai.Model) error {
	b := topology.New(c.app)
	if c.sideIn != "" {
		topology.Stream(b, c.sideIn, serde.Bytes(), serde.Bytes()).To(c.sideOut)
	}
	events := topology.Stream(b, c.in, serde.String(), serde.Bytes())
	tone := topology.Enrichment[string, []byte, *reviewsv1.Sentiment]{Model: model, Prompt: newPrompt()}
	if c.budget > 0 {
		prices, err := llm.LoadPrices(strings.NewReader(`{"models": {"*": [{"from": "2020-01-01", "input": 1, "output": 1}]}}`))
		if err != nil {
			return err
		}
		tone.Prices, tone.MaxTokens = prices, 100
		tone.Budgets = []topology.Budget[string, []byte]{{
			Name: "tenant", Scope: processors.BudgetTenant, Money: llm.Micros(c.budget), Tenant: func(string, []byte) string { return "tenant" },
		}}
	}
	topology.Enrich(events, "tone", tone,
		topology.Concurrency(c.slots), topology.AttemptTimeout(c.timeout), topology.Deadline(3*c.timeout),
	).Enriched().To(c.out)
	var once sync.Once
	app, err := millrace.New(b, millrace.Brokers(c.brokers), millrace.StateDir(c.dir), millrace.Workers(c.threads),
		millrace.Logger(slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelError}))),
		millrace.OnTaskState(func(s millrace.TaskStatus) {
			if s.State == millrace.Running {
				once.Do(func() { fmt.Println("ready") })
			}
		}))
	if err != nil {
		return err
	}
	return app.Run(ctx)
}

// bare reads records and asks the same of the same client.
func bare(ctx context.Context, c config, model *openai.Model) error {
	var zero reviewsv1.Sentiment
	sch, err := schema.For(zero.ProtoReflect().Descriptor(), schema.DialectOf(model.ID().Provider))
	if err != nil {
		return err
	}
	cl, err := kgo.NewClient(kgo.SeedBrokers(c.brokers), kgo.ConsumeTopics(c.in), kgo.ConsumerGroup(c.app), kgo.DisableAutoCommit(),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
	if err != nil {
		return err
	}
	defer cl.Close()
	p, records := newPrompt(), make(chan *kgo.Record)
	var slots sync.WaitGroup
	for range c.slots {
		slots.Go(func() {
			for r := range records {
				text, err := p.User(prompt.Data{Event: r.Value, Key: string(r.Key)})
				if err != nil {
					log.Fatal(err)
				}
				_, err = model.Generate(ctx, &llm.Request{
					Schema: sch.JSON(), SchemaName: sch.Name(),
					Messages: []llm.Message{{Role: llm.RoleSystem, Text: p.System()}, {Role: llm.RoleUser, Text: text}},
				})
				if err != nil && ctx.Err() == nil {
					log.Fatal(err)
				}
			}
		})
	}
	fmt.Println("ready")
	for {
		fetches := cl.PollFetches(ctx)
		if ctx.Err() != nil {
			close(records)
			slots.Wait()
			return nil
		}
		for r := range fetches.RecordsAll() {
			select {
			case records <- r:
			case <-ctx.Done():
			}
		}
	}
}
