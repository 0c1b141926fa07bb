// Package enrich is the run that kills workers while they ask a model about every
// event, over HTTP and at 30 % faults of all kinds, and recomputes what has become of
// every event, answer and conversation.
package enrich

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"time"

	"github.com/millrace/millrace"
	chaosv1 "github.com/millrace/millrace/internal/chaos/enrich/proto/chaos/v1"
	"github.com/millrace/millrace/internal/modelserver"
	"github.com/millrace/millrace/llm"
	"github.com/millrace/millrace/llm/openai"
	"github.com/millrace/millrace/llm/prompt"
	"github.com/millrace/millrace/processors"
	"github.com/millrace/millrace/serde"
	"github.com/millrace/millrace/topology"
)

// The topics of the application.
const (
	app  = "enrich-chaos"
	step = "note"

	inputTopic    = "enrich.in"
	enrichedTopic = "enrich.notes"
	fallbackTopic = "enrich.fallbacks"
	deadTopic     = app + "." + step + ".dlq"
	rawTopic      = app + "." + step + ".raw"
	loopTopic     = app + "." + step + "-loop"
	entriesTopic  = app + "." + step + "-table"
	talksTopic    = app + "." + step + "-conversations-table"
)

// The bounds of the step, which the recomputation knows too.
const (
	slots      = 64
	maxTurns   = 8
	maxTokens  = 300
	sessionGap = 30 * time.Second
	maxReasks  = 1
)

// fallbackClasses are the failures whose events become fallbacks; all others become
// dead letters.
var fallbackClasses = []llm.Class{llm.Refused, llm.TooLarge}

// A WorkerConfig is what a worker process needs to know.
type WorkerConfig struct {
	Brokers  []string
	StateDir string
	ModelURL string
	Owner    string // the name of this incarnation
	Strict   bool   // PARTITION strict order, and no conversations
}

// readyLine is what a worker prints when its tasks run.
const readyLine = "ready"

// Env is the environment variable with the configuration of a worker, in JSON.
const Env = "MILLRACE_CHAOS_ENRICH"

// Worker runs the application with the configuration in JSON until ctx ends.
func Worker(ctx context.Context, config string, out io.Writer) error {
	var cfg WorkerConfig
	if err := json.Unmarshal([]byte(config), &cfg); err != nil {
		return fmt.Errorf("configuration in %s: %w", Env, err)
	}
	b, err := build(cfg)
	if err != nil {
		return err
	}
	a, err := millrace.New(b, millrace.Brokers(cfg.Brokers...), millrace.StateDir(cfg.StateDir),
		millrace.Logger(slog.New(slog.NewTextHandler(out, nil))))
	if err != nil {
		return err
	}
	done, watched := make(chan struct{}), make(chan struct{})
	go func() { // ends with done
		defer close(watched)
		tick := time.NewTicker(20 * time.Millisecond)
		defer tick.Stop()
		for !a.Ready() {
			select {
			case <-tick.C:
			case <-done:
				return
			}
		}
		fmt.Fprintln(out, readyLine)
	}()
	err = a.Run(ctx)
	close(done)
	<-watched
	return err
}

// build is the application: one model is asked about every event, another where the
// first does not answer.
func build(cfg WorkerConfig) (*topology.Builder, error) {
	models := map[string]llm.Model{}
	for _, name := range []string{"main", "backup"} {
		m, err := openai.New(name, openai.Config{Provider: "openai", Endpoint: llm.Endpoint{URL: cfg.ModelURL + "/v1", MaxAnswer: 1 << 20}})
		if err != nil {
			return nil, err
		}
		models[name] = modelserver.Owned(m, cfg.Owner)
	}
	e := topology.Enrichment[string, string, *chaosv1.Note]{
		Model:     models["main"],
		Fallbacks: []llm.Link{{Model: models["backup"], For: []llm.Class{llm.Unavailable, llm.Timeout}}},
		Prompt: prompt.Must(prompt.Config{
			Name: "note", System: "Say which event it is, and what you were shown before it.", User: "Event: {{.Event}}",
		}),
		Check: func(event string, n *chaosv1.Note) error {
			if id, _, _ := strings.Cut(event, " "); n.GetEvent() != id {
				return errors.New("event: it is not the id of the event that was asked about")
			}
			return nil
		},
		MaxTokens: 300, MaxReasks: maxReasks, FallbackOn: fallbackClasses,
	}
	opts := []topology.LookupOption{
		topology.Concurrency(slots), topology.AttemptTimeout(3 * time.Second), topology.Deadline(30 * time.Second),
		topology.Retries(1, 10*time.Millisecond, 100*time.Millisecond),
	}
	if cfg.Strict {
		opts = append(opts, topology.Order(processors.OrderStrict))
	} else {
		e.Conversation = &topology.Conversation{MaxTurns: maxTurns, MaxTokens: maxTokens, SessionGap: sessionGap}
	}
	b := topology.New(app)
	in := topology.Stream(b, inputTopic, serde.String(), serde.String())
	notes := topology.Enrich(in, step, e, opts...)
	notes.Enriched().To(enrichedTopic)
	notes.Fallbacks().To(fallbackTopic)
	return b, nil
}
