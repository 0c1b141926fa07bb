package topology_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/millrace/millrace/processors"
	"github.com/millrace/millrace/serde"
	"github.com/millrace/millrace/topology"
	"github.com/millrace/millrace/topologytest"
)

func ExampleAsyncLookup() {
	// rate stands for any slow function: an HTTP service, a database, a model.
	rate := func(ctx context.Context, rec processors.Record[string, string]) (float64, error) {
		e, _ := processors.EntryFromContext(ctx) // an idempotency key for the service
		fmt.Println("calling for", e.ID, "attempt", e.Attempt)
		if strings.Contains(rec.Value, "spam") {
			return 0, processors.WithAction(processors.DeadLetter, errors.New("refused"))
		}
		return float64(len(rec.Value)), nil
	}
	b := topology.New("shop")
	reviews := topology.Stream(b, "reviews", serde.String(), serde.String())
	rated := topology.AsyncLookup(reviews, "rating", rate, serde.Float64(),
		topology.Concurrency(16), topology.AttemptTimeout(5*time.Second), topology.Retries(2, 100*time.Millisecond, time.Second))
	topology.MapValues(rated.Results(), func(a processors.Answer[string, float64]) string {
		return fmt.Sprintf("%s (%.0f)", a.Event, a.Result)
	}).To("out")

	d := topologytest.New(topologytest.NoTest(), b)
	defer d.Close()
	in := topologytest.Input(d, "reviews", serde.String(), serde.String())
	in.Pipe("tea", "good", 1)
	in.Pipe("tea", "very good", 2)
	in.Pipe("ink", "spam", 3)
	for len(d.Calls()) > 0 { // at most one per key is out
		fmt.Println(len(d.Calls()), "out")
		d.Calls()[0].Run()
	}
	printOut(d, serde.String(), serde.String())
	for _, dead := range d.DeadLetters() {
		fmt.Printf("%s: %s\n", dead.Topic, dead.Value)
	}
	// Output:
	// 2 out
	// calling for rating/reviews/0/0/0 attempt 1
	// 2 out
	// calling for rating/reviews/0/2/0 attempt 1
	// 1 out
	// calling for rating/reviews/0/1/0 attempt 1
	// tea:good (4)@1
	// tea:very good (9)@2
	// shop.rating.dlq: spam
}

func ExampleOnFailure() {
	b := topology.New("shop")
	reviews := topology.Stream(b, "reviews", serde.String(), serde.String())
	rated := topology.AsyncLookup(reviews, "rating", func(context.Context, processors.Record[string, string]) (float64, error) {
		return 0, processors.RetryAfter(time.Hour, errors.New("too many requests"))
	}, serde.Float64(), topology.OnFailure(topology.FallbackEvent))
	topology.MapValues(rated.Results(), func(a processors.Answer[string, float64]) string { return a.Event }).To("rated")
	rated.Fallbacks().To("out")

	d := topologytest.New(topologytest.NoTest(), b)
	defer d.Close()
	topologytest.Input(d, "reviews", serde.String(), serde.String()).Pipe("tea", "good", 1)
	d.Calls()[0].Run() // gives up: an hour is beyond its deadline
	for _, r := range d.RawOutput("out") {
		fmt.Printf("%s: %s, %s: %s\n", r.Key, r.Value, r.Headers[0].Key, r.Headers[0].Value)
	}
	// Output:
	// tea: good, millrace.fallback: deadline
}
