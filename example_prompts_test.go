package millrace_test

import (
	"context"
	"fmt"
	"log"

	"github.com/millrace/millrace"
	"github.com/millrace/millrace/internal/broker"
	"github.com/millrace/millrace/llm/prompt"
)

// A version is published and given to a share of the keys while the application runs.
func ExampleNewPrompts() {
	kafka, err := broker.StartEmbedded(broker.EmbeddedConfig{}) // for your cluster
	if err != nil {
		log.Fatal(err)
	}
	defer kafka.Close()
	ctx := context.Background()

	prompts, err := millrace.NewPrompts("support", millrace.Brokers(kafka.Addr()))
	if err != nil {
		log.Fatal(err)
	}
	shorter := prompt.Must(prompt.Config{Name: "triage", System: "Triage tickets.", User: "{{.Event.Text}}"})
	if err := prompts.Publish(ctx, shorter, "half the tokens"); err != nil {
		log.Fatal(err)
	}
	if err := prompts.Label(ctx, "triage", prompt.Canary, shorter.Version(), 5, "a try"); err != nil {
		log.Fatal(err)
	}
	registry, err := prompts.Read(ctx)
	if err != nil {
		log.Fatal(err)
	}
	for _, l := range registry.Labels("triage") {
		fmt.Println(l.Label, l.Version, l.Percent, l.Note)
	}
	// Output: canary b063e3bfcd69219bae73b3f9 5 a try
}
