// Command quickstart asks a slow function for the mood of every message and
// counts the messages of each mood, exactly once.
package main

import (
	"context"
	"log"
	"os"
	"os/signal"
	"strings"
	"time"

	"github.com/millrace/millrace"
	"github.com/millrace/millrace/processors"
	"github.com/millrace/millrace/serde"
	"github.com/millrace/millrace/topology"
)

// describe returns the topology: what is to run.
func describe() *topology.Builder {
	b := topology.New("quickstart")
	messages := topology.Stream(b, "messages", serde.String(), serde.String())

	lookup := topology.AsyncLookup(messages, "mood", askMood, serde.String(),
		topology.AttemptTimeout(5*time.Second))
	moods := topology.MapValues(lookup.Results(), result).WithValueSerde(serde.String())
	moods.To("moods")

	topology.GroupBy(moods, "by-mood", func(_, mood string) string { return mood }).
		Count("per-mood").
		ToStream().To("mood-counts")
	return b
}

// askMood stands for a model or any other service: it may be slow, and may fail.
func askMood(_ context.Context, message processors.Record[string, string]) (string, error) {
	if strings.Contains(message.Value, "!") {
		return "excited", nil
	}
	return "calm", nil
}

func result(a processors.Answer[string, string]) string { return a.Result }

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	err := run(ctx, "localhost:9092", "quickstart-state")
	stop()
	if err != nil {
		log.Fatal(err)
	}
}

// run runs one instance until ctx ends. Start more of them, each with a state
// directory of its own, to share the partitions.
func run(ctx context.Context, brokers, stateDir string) error {
	app, err := millrace.New(describe(), millrace.Brokers(brokers), millrace.StateDir(stateDir))
	if err != nil {
		return err
	}
	return app.Run(ctx)
}
