//go:build integration

package enrich_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"google.golang.org/protobuf/proto"

	"github.com/millrace/millrace"
	"github.com/millrace/millrace/internal/broker"
	"github.com/millrace/millrace/internal/broker/brokertest"
	chaosv1 "github.com/millrace/millrace/internal/chaos/enrich/proto/chaos/v1"
	"github.com/millrace/millrace/internal/checker"
	"github.com/millrace/millrace/internal/modelserver"
	"github.com/millrace/millrace/llm"
	"github.com/millrace/millrace/llm/llmtest"
	"github.com/millrace/millrace/llm/openai"
	"github.com/millrace/millrace/llm/prompt"
	"github.com/millrace/millrace/processors"
	"github.com/millrace/millrace/serde"
	"github.com/millrace/millrace/topology"
)

// modes are the steps of the drill, one for each policy.
var modes = map[string]processors.OpenPolicy{"wait": processors.OpenWait, "fall": processors.OpenFallback, "dead": processors.OpenDeadLetter}

// The course of the drill, in events: the provider answers, refuses connections, says
// 503, and answers again.
const (
	every   = 5 * time.Millisecond // an event
	warm    = 200                  // from here on times count
	down    = 800
	failing = 1400
	back    = 1800
	events  = 2600
)

// TestOutage takes the provider away under load and brings it back: a sibling of the
// steps that ask it does not notice, each step does with its events as its policy
// says, and all recover by themselves.
func TestOutage(t *testing.T) {
	d := &drill{t: t, log: slog.New(slog.NewTextHandler(t.Output(), nil)), addrs: []string{brokertest.Kafka(t, broker.KafkaConfig{}).Addr()}}
	topics := []broker.Topic{{Name: "events", Partitions: 2}, {Name: "copies", Partitions: 2}, {Name: "fall.fallbacks", Partitions: 2}}
	for mode := range modes {
		topics = append(topics, broker.Topic{Name: mode + ".notes", Partitions: 2})
	}
	if err := broker.CreateTopics(t.Context(), d.addrs[0], topics...); err != nil {
		t.Fatal(err)
	}
	d.listen("127.0.0.1:0")
	d.serve(false)
	app, err := millrace.New(d.build(), millrace.Brokers(d.addrs...), millrace.StateDir(t.TempDir()), millrace.Workers(1), millrace.Logger(d.log))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- app.Run(ctx) }() // ends with ctx
	d.await("the application to run", app.Ready)
	watched := make(chan struct{})
	go func() { defer close(watched); d.watch(ctx) }() // ends with ctx
	d.feed(app)
	d.awaitEnds(events)
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	<-watched
	d.stop()
	d.checkSibling()
	d.checkOutcomes()
}

// drill is the provider, the load and what is seen of it.
type drill struct {
	t     *testing.T
	log   *slog.Logger
	addrs []string
	l     net.Listener
	url   string
	stop  func()

	mu     sync.Mutex
	sent   [events]time.Time
	took   [events]time.Duration // until its copy could be read
	copies int
	ends   map[string]int                   // by mode
	gone   map[string]map[int]time.Duration // until an event ended without an answer
	lag    int64                            // the largest of the sibling
	opened map[string]int                   // how often the breakers of a mode opened
}

func (d *drill) listen(addr string) {
	var err error
	if d.l, err = (&net.ListenConfig{}).Listen(d.t.Context(), "tcp", addr); err != nil {
		d.t.Fatal(err)
	}
	d.url = "http://" + d.l.Addr().String()
}

// serve lets the provider answer on its listener, with 503 if it fails.
func (d *drill) serve(fails bool) {
	answer := func(c *llmtest.Call) llmtest.Reply {
		_, rest, _ := strings.Cut(c.Last(), "<data>")
		id, _, _ := strings.Cut(rest, "<")
		return llmtest.Reply{Delay: 20 * time.Millisecond, Text: fmt.Sprintf(`{"event":%q,"context":"0123456789abcdef","shown":0}`, id)}
	}
	if fails {
		answer = llmtest.Status(http.StatusServiceUnavailable)
	}
	h := llmtest.NewHandler(llmtest.Config{Steps: []llmtest.Step{answer}, Keep: -1})
	srv, done := modelserver.HTTPServer(h), make(chan error, 1)
	go func(l net.Listener) { done <- srv.Serve(l) }(d.l) // ends with Close
	d.stop = sync.OnceFunc(func() {
		h.Close()
		_ = srv.Close()
		if err := <-done; !errors.Is(err, http.ErrServerClosed) {
			d.t.Error(err)
		}
	})
	d.t.Cleanup(d.stop)
}

// build is a copy of the events, and a step for each policy, with breakers of its own.
func (d *drill) build() *topology.Builder {
	d.ends, d.opened = map[string]int{}, map[string]int{}
	d.gone = map[string]map[int]time.Duration{"wait": {}, "fall": {}, "dead": {}}
	b := topology.New("drill")
	in := topology.Stream(b, "events", serde.String(), serde.String())
	in.To("copies")
	for mode, policy := range modes {
		m, err := openai.New(mode, openai.Config{Provider: "openai", Endpoint: llm.Endpoint{URL: d.url + "/v1"}})
		if err != nil {
			d.t.Fatal(err)
		}
		breakers, err := llm.NewBreakers(llm.BreakerConfig{MinAttempts: 4, OpenFor: 500 * time.Millisecond, OnChange: func(c llm.BreakerChange) {
			d.log.Info("breaker", "model", c.Model, "to", c.To, "cause", c.Cause)
			if c.To == llm.BreakerOpen {
				d.mu.Lock()
				defer d.mu.Unlock()
				d.opened[mode]++
			}
		}})
		if err != nil {
			d.t.Fatal(err)
		}
		res := topology.Enrich(in, mode, topology.Enrichment[string, string, *chaosv1.Note]{
			Model: m, Breakers: breakers, OnOpenBreaker: policy, Prompt: prompt.Must(prompt.Config{Name: "note", User: "{{.Event}}"}),
		}, topology.AttemptTimeout(5*time.Second), topology.Retries(3, 50*time.Millisecond, time.Second))
		res.Enriched().To(mode + ".notes")
		if policy == processors.OpenFallback {
			res.Fallbacks().To("fall.fallbacks")
		}
	}
	return b
}

// feed writes the events, and takes the provider away and brings it back meanwhile.
func (d *drill) feed(app *millrace.App) {
	cl, err := kgo.NewClient(kgo.SeedBrokers(d.addrs...), kgo.ProducerLinger(0))
	if err != nil {
		d.t.Fatal(err)
	}
	defer cl.Close()
	tick := time.NewTicker(every)
	defer tick.Stop()
	for i := range events {
		<-tick.C
		switch i {
		case down, failing, back:
			d.log.Info("the provider changes", "event", i)
		}
		switch i {
		case down:
			d.awaitEnds(down)
			d.stop()
		case failing:
			d.listen(d.l.Addr().String())
			d.serve(true)
		case back:
			d.stop()
			d.listen(d.l.Addr().String())
			d.serve(false)
		}
		d.mu.Lock()
		d.sent[i] = time.Now()
		if i%20 == 0 {
			for _, task := range app.Tasks() {
				if task.Group == "drill" {
					d.lag = max(d.lag, task.Lag)
				}
			}
		}
		d.mu.Unlock()
		cl.Produce(d.t.Context(), &kgo.Record{Topic: "events", Key: fmt.Appendf(nil, "key-%d", i%97), Value: fmt.Append(nil, i)}, func(_ *kgo.Record, err error) {
			if err != nil {
				d.t.Errorf("feed: %v", err)
			}
		})
	}
	if err := cl.Flush(d.t.Context()); err != nil {
		d.t.Error(err)
	}
}

// watch reads what comes out, until ctx ends.
func (d *drill) watch(ctx context.Context) {
	mode := map[string]string{"copies": "", "fall.fallbacks": "fall"}
	for name := range modes {
		mode[name+".notes"], mode["drill."+name+".dlq"] = name, name
	}
	var topics []string
	for topic := range mode {
		topics = append(topics, topic)
	}
	cl, err := kgo.NewClient(kgo.SeedBrokers(d.addrs...), kgo.ConsumeTopics(topics...),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()), kgo.FetchIsolationLevel(kgo.ReadCommitted()))
	if err != nil {
		d.t.Error(err)
		return
	}
	defer cl.Close()
	for ctx.Err() == nil {
		cl.PollFetches(ctx).EachRecord(func(r *kgo.Record) {
			d.mu.Lock()
			defer d.mu.Unlock()
			if r.Topic != "copies" {
				d.ends[mode[r.Topic]]++
			}
			n := number(string(r.Value)) // an answer has none
			switch {
			case n < 0 || n >= events:
			case r.Topic == "copies":
				d.copies++
				d.took[n] = time.Since(d.sent[n])
			default:
				d.gone[mode[r.Topic]][n] = time.Since(d.sent[n])
			}
		})
	}
}

func number(s string) int {
	n := -1
	_, _ = fmt.Sscan(s, &n) // it stays -1
	return n
}

// await waits for a condition.
func (d *drill) await(what string, ok func() bool) {
	d.t.Helper()
	deadline := time.After(time.Minute)
	for !ok() {
		select {
		case <-time.After(50 * time.Millisecond):
		case <-deadline:
			d.mu.Lock()
			defer d.mu.Unlock()
			d.t.Fatalf("waited a minute for %s: %d copies, ends %v, breakers opened %v", what, d.copies, d.ends, d.opened)
		}
	}
}

// awaitEnds waits until n events have ended in every mode.
func (d *drill) awaitEnds(n int) {
	d.t.Helper()
	d.await(fmt.Sprintf("%d events to end", n), func() bool {
		d.mu.Lock()
		defer d.mu.Unlock()
		return d.copies == n && d.ends["wait"] == n && d.ends["fall"] == n && d.ends["dead"] == n
	})
}

// checkSibling checks that the copies did not notice the outage.
func (d *drill) checkSibling() {
	p99 := func(took []time.Duration) time.Duration {
		sorted := slices.Sorted(slices.Values(took))
		return sorted[len(sorted)*99/100]
	}
	before, during := p99(d.took[warm:down]), p99(d.took[down:back])
	d.t.Logf("copies: p99 %s before the outage and %s during it, largest lag %d; breakers opened %v", before, during, d.lag, d.opened)
	if limit := max(3*before, time.Second); during > limit {
		d.t.Errorf("the p99 of copies is %s during the outage, must be at most %s", during, limit)
	}
	if limit := int64(time.Second / every); d.lag > limit {
		d.t.Errorf("the lag of the copies reached %d, more than %d: a second of input", d.lag, limit)
	}
}

// slack is in how many events before and after the provider came back either outcome
// will do: two seconds.
const slack = int(2 * time.Second / every)

// checkOutcomes checks that each event ended once in each mode, as its policy says.
func (d *drill) checkOutcomes() {
	topics := []string{"fall.fallbacks"}
	for mode := range modes {
		topics = append(topics, mode+".notes", "drill."+mode+".dlq")
	}
	logs, err := checker.Read(d.t.Context(), []kgo.Opt{kgo.SeedBrokers(d.addrs...)}, topics...)
	if err != nil {
		d.t.Fatal(err)
	}
	for mode, topic := range map[string]string{"wait": "", "fall": "fall.fallbacks", "dead": "drill.dead.dlq"} {
		answered, others := map[int]int{}, map[int]int{}
		for _, records := range logs[mode+".notes"] {
			for _, r := range records {
				n := &chaosv1.Note{}
				if err := proto.Unmarshal(r.Value, n); err != nil {
					d.t.Error(err)
				}
				answered[number(n.GetEvent())]++
			}
		}
		for _, records := range logs[topic] {
			for _, r := range records {
				others[number(string(r.Value))]++
				if why := r.Headers["millrace.fallback"] + r.Headers["millrace.class"]; why != "breaker-open" && why != "unavailable" {
					d.t.Errorf("%s: event %s ended without an answer, for %q", mode, r.Value, why)
				}
			}
		}
		if d.opened[mode] == 0 {
			d.t.Errorf("%s: its breaker never opened", mode)
		}
		d.checkMode(mode, answered, others)
	}
	for _, mode := range []string{"wait", "fall"} {
		if n := logs["drill."+mode+".dlq"].Len(); n > 0 {
			d.t.Errorf("%s: %d dead letters", mode, n)
		}
	}
}

func (d *drill) checkMode(mode string, answered, others map[int]int) {
	wrong := 0
	for i := range events {
		a, o := answered[i], others[i]
		ok := a+o == 1
		switch {
		case mode == "wait", i < down, i >= back+slack:
			ok = ok && a == 1
		case i < back-slack:
			ok = ok && o == 1
		}
		if !ok && wrong < 10 {
			wrong++
			d.t.Errorf("%s: event %d has %d answers and ended %d times without one", mode, i, a, o)
		}
	}
	if mode == "wait" {
		return
	}
	for i := down; i < back-slack; i++ {
		if took := d.gone[mode][i]; took > 3*time.Second {
			d.t.Errorf("%s: event %d ended only after %s: an open breaker is no reason to wait", mode, i, took)
			return
		}
	}
}
