package main

import (
	"context"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/millrace/millrace/internal/broker"
	"github.com/millrace/millrace/internal/broker/brokertest"
	"github.com/millrace/millrace/serde"
	"github.com/millrace/millrace/topologytest"
)

// A topology is tested without a broker.
func Example() {
	d := topologytest.New(topologytest.NoTest(), describe())
	defer d.Close()
	messages := topologytest.Input(d, "messages", serde.String(), serde.String())
	messages.Pipe("ann", "It works!", 1)
	messages.Pipe("bob", "I see.", 2)
	messages.Pipe("cid", "Wonderful!", 3)
	for _, call := range d.Calls() {
		call.Run()
	}
	for _, rec := range d.RawOutput("mood-counts") {
		n, err := serde.Int64().Decode(rec.Value)
		fmt.Println(string(rec.Key), n, err)
	}
	// Output:
	// excited 1 <nil>
	// calm 1 <nil>
	// excited 2 <nil>
}

// The README shows this program and no other.
func TestReadmeShowsThisProgram(t *testing.T) {
	t.Parallel()
	readme, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	program, err := os.ReadFile("main.go")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(readme), "```go\n"+string(program)+"```\n") {
		t.Error("README.md does not contain examples/quickstart/main.go as it is: copy it there")
	}
}

// The program runs on a broker.
func TestRun(t *testing.T) {
	t.Parallel()
	e := brokertest.Embedded(t,
		broker.Topic{Name: "messages", Partitions: 2}, broker.Topic{Name: "moods", Partitions: 2}, broker.Topic{Name: "mood-counts", Partitions: 2})
	client, err := kgo.NewClient(kgo.SeedBrokers(e.Addr()), kgo.ConsumeTopics("mood-counts"),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()), kgo.FetchIsolationLevel(kgo.ReadCommitted()))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	for _, text := range []string{"It works!", "I see.", "Wonderful!"} {
		if err := client.ProduceSync(t.Context(), &kgo.Record{Topic: "messages", Value: []byte(text)}).FirstErr(); err != nil {
			t.Fatal(err)
		}
	}

	ctx, stop := context.WithTimeout(t.Context(), time.Minute)
	defer stop()
	ended := make(chan error, 1)
	go func() { ended <- run(ctx, e.Addr(), t.TempDir()) }()
	counts := map[string]int64{}
	for counts["excited"] < 2 || counts["calm"] < 1 {
		select {
		case err := <-ended:
			t.Fatalf("the program ended after %v: %v", counts, err)
		default:
		}
		fetches := client.PollFetches(ctx)
		if err := fetches.Err(); err != nil {
			t.Fatalf("after %v: %v", counts, err)
		}
		fetches.EachRecord(func(r *kgo.Record) {
			n, err := serde.Int64().Decode(r.Value)
			if err != nil {
				t.Error(err)
			}
			counts[string(r.Key)] = n
		})
	}
	stop()
	if err := <-ended; err != nil {
		t.Errorf("the program ended with: %v", err)
	}
	if counts["excited"] != 2 || counts["calm"] != 1 {
		t.Errorf("counts %v, want 2 excited and 1 calm", counts)
	}
}
