package engine_test

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kgo"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/protobuf/proto"

	"github.com/millrace/millrace/alert"
	supportv1 "github.com/millrace/millrace/examples/support/proto/support/v1"
	"github.com/millrace/millrace/internal/engine"
	"github.com/millrace/millrace/llm"
	"github.com/millrace/millrace/llm/llmtest"
	"github.com/millrace/millrace/llm/openai"
	"github.com/millrace/millrace/llm/prompt"
	"github.com/millrace/millrace/processors"
	"github.com/millrace/millrace/serde"
	"github.com/millrace/millrace/topology"
)

const (
	goodTriage = `{"evidence":"e","urgency":"URGENCY_LOW","summary":"s"}`
	badTriage  = `I would rather not.`
	eventText  = "canary-of-the-event"
)

type enrichment = topology.Enrichment[string, *supportv1.Ticket, *supportv1.Triage]

// triageTopology asks about tickets, keyed anew before and after, so that there is a
// sub-topology on both sides of the step.
func triageTopology(e enrichment, opts ...topology.LookupOption) *topology.Builder {
	b := topology.New("app")
	s := topology.Stream(b, "tickets", serde.String(), serde.Proto[*supportv1.Ticket]())
	before := topology.SelectKey(s, func(k string, _ *supportv1.Ticket) string { return k + "!" }).WithKeySerde(serde.String()).Repartition("before")
	if e.Prompt == nil {
		e.Prompt = prompt.Must(prompt.Config{Name: "p", User: "{{.Event.Text}}"})
	}
	res := topology.Enrich(before, "triage", e, opts...)
	after := topology.SelectKey(res.Enriched(), func(k string, _ *supportv1.Triage) string { return k + "?" }).WithKeySerde(serde.String()).Repartition("after")
	after.To("triaged")
	if len(opts) == 1 { // OnFailure
		res.Fallbacks().To("untriaged")
	}
	return b
}

func (r *rig) tickets(n int, headers ...kgo.RecordHeader) {
	r.t.Helper()
	for i := range n {
		value, err := proto.Marshal(&supportv1.Ticket{Text: eventText})
		if err != nil {
			r.t.Fatal(err)
		}
		r.produce("tickets", &kgo.Record{Key: fmt.Append(nil, "k", i), Value: value, Headers: headers})
	}
}

// scripted is a model whose answers a function makes.
type scripted func(ctx context.Context, e processors.Entry) (string, error)

func (scripted) ID() llm.ID { return llm.ID{Provider: "openai", Model: "desk"} }

func (m scripted) Generate(ctx context.Context, _ *llm.Request) (*llm.Response, error) {
	e, _ := processors.EntryFromContext(ctx)
	text, err := m(ctx, e)
	if err != nil {
		return nil, err
	}
	return &llm.Response{Text: text, Model: "desk-1", Finish: llm.FinishStop, Usage: llm.Usage{Input: 10, Output: 5}}, nil
}

const (
	traceID  = "0af7651916cd43dd8448eb211c80319c"
	parentID = "b7ad6b7169203331"
)

var traced = []kgo.RecordHeader{
	{Key: "traceparent", Value: []byte("00-" + traceID + "-" + parentID + "-01")}, {Key: "tracestate", Value: []byte("v=1")},
}

// recorder keeps the spans that ended.
func recorder() (*tracetest.InMemoryExporter, trace.TracerProvider) {
	x := tracetest.NewInMemoryExporter()
	return x, sdktrace.NewTracerProvider(sdktrace.WithSyncer(x))
}

func attributes(s *tracetest.SpanStub) map[string]string {
	m := map[string]string{}
	for _, a := range s.Attributes {
		m[string(a.Key)] = a.Value.String()
	}
	return m
}

func count(s *tracetest.SpanStub, event string) int {
	n := 0
	for _, e := range s.Events {
		if e.Name == event {
			n++
		}
	}
	return n
}

// One span covers all attempts and rounds of an enrichment. It is part of the event's
// trace, through the sub-topologies before and after the step, and holds no text.
func TestSpanOfAnEnrichment(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, "tickets", "triaged")
		defer r.close()
		x, tp := recorder()
		failed := false
		m := scripted(func(ctx context.Context, e processors.Entry) (string, error) {
			if got := trace.SpanContextFromContext(ctx).TraceID().String(); got != traceID {
				t.Errorf("the model is called in trace %s", got)
			}
			switch {
			case !failed:
				failed = true
				return "", &llm.Error{Class: llm.Unavailable, Status: 503, Err: errors.New("down")}
			case e.Round == 0:
				return badTriage, nil
			}
			return goodTriage, nil
		})
		a := r.start(triageTopology(enrichment{Model: m, Conversation: &topology.Conversation{}, MaxTokens: 99}), vfs.NewMem(), func(c *engine.Config) { c.TracerProvider = tp })
		a.running(3)
		r.tickets(1, traced...)
		out := r.await("triaged", 1)
		a.stop()
		spans := x.GetSpans()
		if len(spans) != 1 {
			t.Fatalf("%d spans, want 1: %+v", len(spans), spans)
		}
		s := &spans[0]
		if s.Name != "chat desk" || s.SpanKind != trace.SpanKindClient || s.SpanContext.TraceID().String() != traceID || s.Parent.SpanID().String() != parentID || len(s.Links) != 0 {
			t.Errorf("span %s %s of trace %s under %s", s.Name, s.SpanKind, s.SpanContext.TraceID(), s.Parent.SpanID())
		}
		for k, want := range map[string]string{
			"gen_ai.operation.name": "chat", "gen_ai.provider.name": "openai", "gen_ai.request.model": "desk", "gen_ai.response.model": "desk-1",
			"gen_ai.output.type": "json", "gen_ai.prompt.name": "p", "gen_ai.usage.input_tokens": "20", "gen_ai.usage.output_tokens": "10",
			"gen_ai.request.max_tokens": "99", "millrace.step": "triage", "millrace.status": "reasked", "millrace.attempts": "3",
		} {
			if got := attributes(s)[k]; got != want {
				t.Errorf("%s is %q, want %q", k, got, want)
			}
		}
		if got := attributes(s)["gen_ai.conversation.id"]; !strings.HasPrefix(got, "triage/") || strings.Contains(got, hex.EncodeToString([]byte("k0"))) {
			t.Errorf("conversation %q", got)
		}
		if n, m := count(s, "millrace.attempt"), count(s, "millrace.refused"); n != 3 || m != 1 {
			t.Errorf("%d attempts and %d refused answers in the span, want 3 and 1", n, m)
		}
		want := "00-" + traceID + "-" + s.SpanContext.SpanID().String() + "-01"
		for _, rec := range append(out, r.read("app.triage.raw")...) {
			if got := rec.Headers["traceparent"]; got != want {
				t.Errorf("traceparent %q, want %q", got, want)
			}
			if got := rec.Headers["tracestate"]; got != "v=1" {
				t.Errorf("tracestate %q", got)
			}
		}
		if text := fmt.Sprintf("%+v", spans); strings.Contains(text, eventText) || strings.Contains(text, badTriage) || strings.Contains(text, "evidence") {
			t.Errorf("text is in the span: %s", text)
		}
	})
}

// What ends without an answer carries the trace on too, and says in the span how it
// ended; with TraceContent the texts are there.
func TestSpanOfAFailure(t *testing.T) {
	t.Parallel()
	for _, fallback := range []bool{false, true} {
		t.Run(fmt.Sprintf("fallback=%t", fallback), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t, "tickets", "triaged", "untriaged")
				defer r.close()
				x, tp := recorder()
				m := scripted(func(context.Context, processors.Entry) (string, error) { return badTriage, nil })
				topic, status := "app.triage.dlq", "dead-letter"
				var opts []topology.LookupOption
				if fallback {
					topic, status, opts = "untriaged", "fallback", []topology.LookupOption{topology.OnFailure(topology.FallbackEvent)}
				}
				a := r.start(triageTopology(enrichment{Model: m, MaxReasks: -1, TraceContent: true}, opts...), vfs.NewMem(), func(c *engine.Config) { c.TracerProvider = tp })
				a.running(3)
				r.tickets(1, traced...)
				rec := r.await(topic, 1)[0]
				a.stop()
				s := &x.GetSpans()[0]
				got := attributes(s)
				if got["millrace.status"] != status || got["error.type"] != "violation" || s.Status.Description != "violation" {
					t.Errorf("span %v, %v", got, s.Status)
				}
				if !strings.Contains(got["gen_ai.input.messages"], eventText) || !strings.Contains(got["gen_ai.output.messages"], badTriage) {
					t.Errorf("content %q, %q", got["gen_ai.input.messages"], got["gen_ai.output.messages"])
				}
				if want := "00-" + traceID + "-" + s.SpanContext.SpanID().String() + "-01"; rec.Headers["traceparent"] != want {
					t.Errorf("traceparent %q, want %q", rec.Headers["traceparent"], want)
				}
			})
		})
	}
}

// The rounds after a restart have a span of their own, in the same trace, with a link
// to that of the rounds before.
func TestSpanOverARestart(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, "tickets", "triaged")
		defer r.close()
		x, tp := recorder()
		asked := make(chan struct{}, 10)
		m := scripted(func(ctx context.Context, e processors.Entry) (string, error) {
			if e.Round == 0 {
				return badTriage, nil
			}
			asked <- struct{}{}
			select {
			case <-time.After(time.Minute):
				return goodTriage, nil
			case <-ctx.Done():
				return "", ctx.Err()
			}
		})
		e := enrichment{Model: m}
		b := triageTopology(e, topology.AttemptTimeout(2*time.Minute), topology.Deadline(3*time.Minute), topology.HandoverWait(time.Second))
		fs := vfs.NewMem()
		tweak := func(c *engine.Config) { c.TracerProvider = tp }
		a := r.start(b, fs, tweak)
		a.running(3)
		r.tickets(1, traced...)
		<-asked
		a.stop()
		a = r.start(b, fs, tweak)
		r.await("triaged", 1)
		a.stop()
		spans := x.GetSpans()
		if len(spans) != 2 {
			t.Fatalf("%d spans, want 2", len(spans))
		}
		if got := attributes(&spans[0])["millrace.status"]; got != "interrupted" {
			t.Errorf("the first span ended as %s", got)
		}
		second := spans[1]
		if len(second.Links) != 1 || second.Links[0].SpanContext.SpanID() != spans[0].SpanContext.SpanID() || second.SpanContext.TraceID().String() != traceID {
			t.Errorf("the second span of trace %s links %+v, want span %s", second.SpanContext.TraceID(), second.Links, spans[0].SpanContext.SpanID())
		}
		if got := attributes(&second)["millrace.status"]; got != "reasked" {
			t.Errorf("the second span ended as %s", got)
		}
	})
}

// A function of AsyncLookup is called in the trace of its event.
func TestTraceOfALookup(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, "in", "out")
		defer r.close()
		b := topology.New("app")
		s := topology.Stream(b, "in", serde.String(), serde.String())
		got := make(chan string, 1)
		res := topology.AsyncLookup(s, "ask", func(ctx context.Context, rec processors.Record[string, string]) (string, error) {
			sc := trace.SpanContextFromContext(ctx)
			got <- sc.TraceID().String() + "/" + sc.SpanID().String()
			return rec.Value, nil
		}, serde.String())
		topology.MapValues(res.Results(), func(a processors.Answer[string, string]) string { return a.Result }).WithValueSerde(serde.String()).To("out")
		a := r.start(b, vfs.NewMem())
		a.running(1)
		r.produce("in", &kgo.Record{Key: []byte("k"), Value: []byte("v"), Headers: traced})
		if ctx := <-got; ctx != traceID+"/"+parentID {
			t.Errorf("called in %s", ctx)
		}
		if rec := r.await("out", 1)[0]; rec.Headers["traceparent"] != string(traced[0].Value) {
			t.Errorf("headers %v", rec.Headers)
		}
		a.stop()
	})
}

// Metrics count each thing once, though transactions abort.
func TestStepMetrics(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, "tickets", "triaged")
		defer r.close()
		reader := sdkmetric.NewManualReader()
		prices, err := llm.LoadPrices(strings.NewReader(`{"models": {"openai/*": [{"from": "1999-01-01", "input": 1, "output": 10}]}}`))
		if err != nil {
			t.Fatal(err)
		}
		m := scripted(func(_ context.Context, e processors.Entry) (string, error) {
			switch {
			case strings.HasSuffix(e.ID, "/0/0"): // of the first event
				return badTriage, nil
			case e.Round == 0:
				return badTriage, nil
			}
			return goodTriage, nil
		})
		a := r.start(triageTopology(enrichment{Model: m, Prices: prices, MaxReasks: 1}), vfs.NewMem(), func(c *engine.Config) {
			c.MeterProvider = sdkmetric.NewMeterProvider(sdkmetric.WithReader(reader))
		})
		a.running(3)
		r.tickets(5)
		r.await("triaged", 4)
		r.await("app.triage.dlq", 1)
		step, model := map[string]string{"step": "triage"}, "openai/desk"
		version := prompt.Must(prompt.Config{Name: "p", User: "{{.Event.Text}}"}).Version()
		for _, row := range []struct {
			name   string
			labels map[string]string
			want   float64
		}{
			{"millrace_enrich_attempts_total", map[string]string{"step": "triage", "model": model, "class": "ok"}, 10},
			{"millrace_enrich_tokens_total", map[string]string{"model": model, "kind": "input"}, 100},
			{"millrace_enrich_tokens_total", map[string]string{"model": model, "kind": "output"}, 50},
			{"millrace_enrich_cost_dollars_total", step, 600e-6},
			{"millrace_enrich_cost_dollars_total", map[string]string{"step": "triage", "model": model, "prompt": "p", "version": version}, 600e-6},
			{"millrace_enrich_tokens_total", map[string]string{"prompt": "p", "version": version, "kind": "output"}, 50},
			{"millrace_enrich_refused_answers_total", map[string]string{"step": "triage", "class": "violation"}, 6},
			{"millrace_enrich_reasks_total", step, 5},
			{"millrace_enrich_violations_total", map[string]string{"rule": "json.none"}, 6},
			{"millrace_async_events_total", map[string]string{"status": "reasked"}, 4},
			{"millrace_async_events_total", map[string]string{"status": "dead-letter"}, 1},
			{"millrace_enrich_events_total", map[string]string{"prompt": "p", "status": "reasked"}, 4},
			{"millrace_dead_letters_total", map[string]string{"subtopology": "triage", "class": "violation"}, 1},
			{"millrace_async_slots", step, 64},
			{"millrace_async_running", step, 0},
			{"millrace_breaker_state", map[string]string{"step": "triage", "model": model}, 0},
			{"millrace_async_pending", map[string]string{"subtopology": "triage"}, 0},
		} {
			if got, ok := a.sample(row.name, row.labels); !ok || got < row.want-1e-9 || got > row.want+1e-9 {
				t.Errorf("%s %v is %v (%t), want %v", row.name, row.labels, got, ok, row.want)
			}
		}
		documented(t, a.reg)
		var rm metricdata.ResourceMetrics
		if err := reader.Collect(t.Context(), &rm); err != nil {
			t.Fatal(err)
		}
		sums := map[string]int64{}
		for _, m := range rm.ScopeMetrics[0].Metrics {
			switch d := m.Data.(type) {
			case metricdata.Sum[int64]:
				for _, p := range d.DataPoints {
					sums[m.Name] += p.Value
				}
			case metricdata.Histogram[float64]:
				for _, p := range d.DataPoints {
					sums[m.Name] += int64(p.Count)
				}
			}
		}
		for name, want := range map[string]int64{
			"gen_ai.client.inference.duration": 10, "gen_ai.client.inference.usage.input_tokens": 100, "gen_ai.client.inference.usage.output_tokens": 50,
		} {
			if sums[name] != want {
				t.Errorf("%s is %d, want %d", name, sums[name], want)
			}
		}
		a.stop()
	})
}

// sample returns the sum over the series of a metric that have the label values, of a
// histogram that of its counts, and whether there is one.
func (a *app) sample(name string, labels map[string]string) (float64, bool) {
	a.r.t.Helper()
	families, err := a.reg.Gather()
	if err != nil {
		a.r.t.Fatal(err)
	}
	sum, found := 0.0, false
	for _, f := range families {
		for _, m := range f.GetMetric() {
			match := 0
			for _, l := range m.GetLabel() {
				if want, ok := labels[l.GetName()]; ok && want == l.GetValue() {
					match++
				}
			}
			if f.GetName() == name && match == len(labels) {
				found = true
				sum += m.GetCounter().GetValue() + m.GetGauge().GetValue() + float64(m.GetHistogram().GetSampleCount())
			}
		}
	}
	return sum, found
}

// documented checks that the operator's guide has every metric that there is.
func documented(t *testing.T, reg *prometheus.Registry) {
	t.Helper()
	doc, err := os.ReadFile("../../docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	if len(families) < 15 {
		t.Errorf("only %d metrics", len(families))
	}
	for _, f := range families {
		if !strings.Contains(string(doc), "`"+f.GetName()+"`") {
			t.Errorf("docs/operations.md lacks %s", f.GetName())
		}
	}
}

// told is a sink that keeps what it is told.
type told struct {
	mu   sync.Mutex
	list []alert.Alert
}

func (s *told) sink(_ context.Context, a alert.Alert) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.list = append(s.list, a)
	return nil
}

// of returns what was told of a kind, as "state step subject".
func (s *told) of(k alert.Kind) []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var lines []string
	for _, a := range s.list {
		if a.Kind == k {
			lines = append(lines, fmt.Sprintf("%s %s %s", a.State, a.Step, a.Subject))
		}
	}
	return lines
}

func (s *told) want(t *testing.T, k alert.Kind, lines ...string) {
	t.Helper()
	if got := s.of(k); fmt.Sprint(got) != fmt.Sprint(lines) {
		t.Errorf("told of %s: %q, want %q", k, got, lines)
	}
}

// deskServer is a model server in the bubble.
func deskServer(t *testing.T, steps ...llmtest.Step) llm.Model {
	t.Helper()
	s := llmtest.StartInMemory(t, llmtest.Config{Steps: steps})
	m, err := openai.New("desk", openai.Config{Provider: "openai", Endpoint: s.Endpoint()})
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func times(n int, s llmtest.Step) []llmtest.Step {
	list := make([]llmtest.Step, n)
	for i := range list {
		list[i] = s
	}
	return list
}

// The provider goes down: the breaker opens, which is told once; it recovers, which is
// told once too. A sink that hangs holds up neither the pipeline, nor the other sink,
// nor the end of the instance.
func TestAlertOfABreaker(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, "tickets", "triaged")
		defer r.close()
		const events = 30
		m := deskServer(t, append(times(36, llmtest.Fail(llm.Unavailable)), llmtest.Answer(goodTriage))...)
		s := &told{}
		hung := make(chan struct{})
		a := r.start(triageTopology(enrichment{Model: m}), vfs.NewMem(), func(c *engine.Config) {
			c.Alerts = []alert.Sink{
				func(context.Context, alert.Alert) error { <-hung; return nil }, s.sink,
				func(context.Context, alert.Alert) error { panic("a bug of the user's") },
			}
		})
		a.running(3)
		r.tickets(events)
		r.pass(20 * time.Second)
		s.want(t, alert.BreakerOpen, "raised triage openai/desk")
		if got := a.Alerts(); len(got) != 1 || got[0].Kind != alert.BreakerOpen || got[0].Severity != alert.Critical || got[0].Action == "" || !strings.Contains(got[0].Message, "openai/desk") {
			t.Errorf("raised: %+v", got)
		}
		if got, _ := a.sample("millrace_alert_active", map[string]string{"kind": "breaker_open"}); got != 1 {
			t.Errorf("metric of the alert: %v", got)
		}
		if got, _ := a.sample("millrace_breaker_state", nil); got == 0 {
			t.Error("metric of the breaker: closed")
		}
		r.await("triaged", events)
		r.pass(2 * time.Minute)
		s.want(t, alert.BreakerOpen, "raised triage openai/desk", "resolved triage openai/desk")
		if got, _ := a.sample("millrace_alert_failures_total", nil); got != 2 {
			t.Errorf("%v failures of sinks, want 2: of the one that panics", got)
		}
		a.stop()
		close(hung)
	})
}

// Without money or rights no call is made until somebody did something: the alert says
// which, and is over when the breaker was reset.
func TestAlertOfMoneyAndRights(t *testing.T) {
	t.Parallel()
	for class, kind := range map[llm.Class]alert.Kind{llm.NoMoney: alert.NoMoney, llm.Auth: alert.Auth} {
		t.Run(string(class), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t, "tickets", "triaged")
				defer r.close()
				breakers, err := llm.NewBreakers(llm.BreakerConfig{})
				if err != nil {
					t.Fatal(err)
				}
				s := &told{}
				m := deskServer(t, llmtest.Fail(class), llmtest.Answer(goodTriage))
				a := r.start(triageTopology(enrichment{Model: m, Breakers: breakers}), vfs.NewMem(), func(c *engine.Config) { c.Alerts = []alert.Sink{s.sink} })
				a.running(3)
				r.tickets(1)
				r.pass(time.Hour)
				s.want(t, kind, "raised triage openai/desk")
				s.want(t, alert.OldestPending, "raised triage 0")
				breakers.Reset(m.ID())
				r.await("triaged", 1)
				r.pass(time.Minute)
				s.want(t, kind, "raised triage openai/desk", "resolved triage openai/desk")
				s.want(t, alert.OldestPending, "raised triage 0", "resolved triage 0")
				a.stop()
			})
		})
	}
}

// dear is a model whose answers cost 510 millionths of a dollar.
type dear struct{ scripted }

func (m dear) Generate(ctx context.Context, req *llm.Request) (*llm.Response, error) {
	resp, err := m.scripted.Generate(ctx, req)
	if err == nil {
		resp.Usage.Output = 50
	}
	return resp, err
}

// A budget that covers one call an hour stops the events behind it, which is told until
// its next window.
func TestAlertOfABudget(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, "tickets", "triaged")
		defer r.close()
		prices, err := llm.LoadPrices(strings.NewReader(`{"models": {"openai/*": [{"from": "1999-01-01", "input": 1, "output": 10}]}}`))
		if err != nil {
			t.Fatal(err)
		}
		m := dear{func(context.Context, processors.Entry) (string, error) { return goodTriage, nil }}
		s := &told{}
		a := r.start(triageTopology(enrichment{Model: m, Prices: prices, MaxTokens: 50, Budgets: []topology.Budget[string, *supportv1.Ticket]{
			{Name: "hourly", Money: 1_500, Window: time.Hour},
		}}), vfs.NewMem(), func(c *engine.Config) { c.Alerts = []alert.Sink{s.sink} })
		a.running(3)
		r.tickets(3)
		r.pass(time.Minute)
		n := len(r.read("triaged"))
		if n == 0 || n == 3 {
			t.Fatalf("%d of 3 events are through", n)
		}
		s.want(t, alert.BudgetExhausted, "raised triage hourly/app")
		labels := map[string]string{"budget": "hourly", "of": "app", "unit": "dollars"}
		if got, _ := a.sample("millrace_budget_limit", labels); got != 0.0015 {
			t.Errorf("limit %v", got)
		}
		if got, _ := a.sample("millrace_budget_used", labels); got < float64(n)*510e-6-1e-12 || got > 0.0015 {
			t.Errorf("%v are used by %d calls", got, n)
		}
		if got, _ := a.sample("millrace_budget_refusals_total", map[string]string{"budget": "hourly"}); got == 0 {
			t.Error("no refusals")
		}
		documented(t, a.reg)
		r.pass(4 * time.Hour)
		r.await("triaged", 3)
		lines := s.of(alert.BudgetExhausted)
		if len(lines)%2 != 0 || lines[len(lines)-1] != "resolved triage hourly/app" {
			t.Errorf("told %q", lines)
		}
		a.stop()
	})
}

// Dead letters and drift are told when their rates rise, and when they fell again.
func TestAlertOfRates(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, "tickets", "triaged")
		defer r.close()
		var mu sync.Mutex
		bad := false
		set := func(b bool) { mu.Lock(); bad = b; mu.Unlock() }
		m := scripted(func(_ context.Context, e processors.Entry) (string, error) {
			mu.Lock()
			defer mu.Unlock()
			if bad {
				return badTriage, nil
			}
			return goodTriage, nil
		})
		s := &told{}
		p := prompt.Must(prompt.Config{Name: "p", User: "{{.Event.Text}}"})
		a := r.start(triageTopology(enrichment{Model: m, Prompt: p, MaxReasks: 1}), vfs.NewMem(), func(c *engine.Config) {
			c.Alerts = []alert.Sink{s.sink}
			c.AlertRules = alert.Rules{MinEvents: 20}
		})
		a.running(3)
		r.tickets(100)
		r.pass(15 * time.Minute)
		set(true)
		r.tickets(30)
		r.pass(time.Minute)
		s.want(t, alert.DeadLetterRate, "raised triage ")
		drifted := "triage p/" + p.Version() + "/"
		got := fmt.Sprint(s.of(alert.Drift))
		if !strings.Contains(got, "raised "+drifted+"schema_failure") || !strings.Contains(got, "raised "+drifted+"reask") || strings.Contains(got, "fallback") {
			t.Errorf("told of drift: %s", got)
		}
		if got, ok := a.sample("millrace_enrich_rate", map[string]string{"measure": "reask"}); !ok || got != 1 {
			t.Errorf("rate of re-asks %v", got)
		}
		set(false)
		r.pass(15 * time.Minute)
		r.tickets(100)
		r.pass(15 * time.Minute)
		s.want(t, alert.DeadLetterRate, "raised triage ", "resolved triage ")
		if n := strings.Count(fmt.Sprint(s.of(alert.Drift)), "resolved"); n != 2 {
			t.Errorf("told of drift: %s", s.of(alert.Drift))
		}
		a.stop()
	})
}

// An instance that has stopped, or lost a task, reports no entries of it.
func TestPendingLeavesWithTheTask(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, "tickets", "triaged")
		defer r.close()
		m := scripted(func(ctx context.Context, _ processors.Entry) (string, error) { <-ctx.Done(); return "", ctx.Err() })
		a := r.start(triageTopology(enrichment{Model: m}), vfs.NewMem())
		a.running(3)
		r.tickets(3)
		r.pass(5 * time.Second)
		if got, _ := a.sample("millrace_async_pending", nil); got != 3 {
			t.Errorf("%v entries are pending, want 3", got)
		}
		if got, _ := a.sample("millrace_async_oldest_seconds", nil); got < 4 || got > 6 {
			t.Errorf("the oldest entry has waited %v s, want 5", got)
		}
		if got, _ := a.sample("millrace_task_lag", map[string]string{"subtopology": "triage"}); got != 3 {
			t.Errorf("the lag is %v, want 3", got)
		}
		if got, _ := a.sample("millrace_async_running", nil); got != 3 {
			t.Errorf("%v calls run, want 3", got)
		}
		a.stop()
		for _, s := range a.Tasks() {
			if s.Pending != 0 || !s.Oldest.IsZero() || s.Lag != 0 {
				t.Errorf("after the end: %+v", s)
			}
		}
	})
}
