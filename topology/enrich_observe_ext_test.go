package topology_test

import (
	"context"
	"fmt"
	"math"
	"strings"
	"testing"

	supportv1 "github.com/millrace/millrace/examples/support/proto/support/v1"
	"github.com/millrace/millrace/llm"
	"github.com/millrace/millrace/processors"
	"github.com/millrace/millrace/serde"
	"github.com/millrace/millrace/topology"
	"github.com/millrace/millrace/topologytest"
)

// A sample of the accepted answers is kept as the model gave them, marked; which ones
// depends on the events alone.
func TestEnrichSamples(t *testing.T) {
	t.Parallel()
	said := "Sure:\n" + goodAnswer
	var first string
	for run := range 2 {
		d := newDesk(t, enrich{Model: answers("m", said), SampleRate: 0.25})
		const events = 400
		for i := range events {
			d.pipe(fmt.Sprint("k", i), "help")
		}
		d.run()
		if n := len(d.RawOutput("triaged")); n != events {
			t.Fatalf("%d results", n)
		}
		var entries []string
		for _, r := range d.RawOutput("app.triage.raw") {
			wantHeaders(t, r, headers{processors.SampleHeader: "true", processors.StatusHeader: "ok", processors.ModelHeader: "openai/m", processors.RoundHeader: "0", "millrace.topic": "tickets"})
			if string(r.Value) != said {
				t.Errorf("kept %q", r.Value)
			}
			entries = append(entries, headersOf(r)[processors.EntryHeader])
		}
		if n := len(entries); math.Abs(float64(n)-events/4) > 40 {
			t.Errorf("%d of %d answers are in a sample of a quarter", n, events)
		}
		if list := fmt.Sprint(entries); run == 0 {
			first = list
		} else if list != first {
			t.Error("the sample differs from that of the run before")
		}
	}
}

// Capture holds for samples too, and refused answers are not among them.
func TestEnrichSampleCapture(t *testing.T) {
	t.Parallel()
	d := newDesk(t, enrich{Model: answers("m", badAnswer, goodAnswer), SampleRate: 1, Capture: processors.CaptureHash})
	d.pipe("a", "help")
	d.run()
	raw := d.RawOutput("app.triage.raw")
	if len(raw) != 2 {
		t.Fatalf("%d answers are kept, want the refused one and the sample", len(raw))
	}
	wantHeaders(t, raw[0], headers{processors.StatusHeader: "refused", processors.SampleHeader: ""})
	wantHeaders(t, raw[1], headers{processors.StatusHeader: "reasked", processors.SampleHeader: "true", processors.RoundHeader: "1"})
	for _, r := range raw {
		if v := string(r.Value); !strings.HasPrefix(v, "... (") || !strings.Contains(v, "SHA-256") {
			t.Errorf("kept %q", v)
		}
	}
	if n := len(newDeskRaw(t, enrich{Model: answers("m", goodAnswer)})); n != 0 {
		t.Errorf("%d samples without a rate", n)
	}
}

func newDeskRaw(t *testing.T, e enrich) []processors.Raw {
	t.Helper()
	d := newDesk(t, e)
	d.pipe("a", "help")
	d.run()
	return d.RawOutput("app.triage.raw")
}

func TestEnrichSampleMistakes(t *testing.T) {
	t.Parallel()
	for _, row := range []struct {
		e    enrich
		want string
	}{
		{enrich{SampleRate: 1.5}, "SampleRate is 1.5"},
		{enrich{SampleRate: -0.1}, "SampleRate is -0.1"},
		{enrich{SampleRate: math.NaN()}, "SampleRate is NaN"},
		{enrich{SampleRate: 0.1, Capture: processors.CaptureOff}, "Capture is CaptureOff"},
	} {
		b := topology.New("app")
		row.e.Model, row.e.Prompt = answers("m", goodAnswer), triagePrompt
		topology.Enrich(topology.Stream(b, "tickets", serde.String(), serde.Proto[ticket]()), "triage", row.e)
		if _, err := b.Build(); err == nil || !strings.Contains(err.Error(), row.want) {
			t.Errorf("got %v, want %q", err, row.want)
		}
	}
}

// What a task decides is reported once, with what metrics need.
func TestEnrichReports(t *testing.T) {
	t.Parallel()
	refusing := failing("m", llm.Refused)
	for _, row := range []struct {
		name string
		e    enrich
		opts []topology.LookupOption
		want string
	}{
		{"ok", enrich{Model: answers("m", goodAnswer)}, nil, "ok//openai/m/0/false"},
		{"reasked", enrich{Model: answers("m", badAnswer, goodAnswer)}, nil, "refused/violation/openai/m/0/false again, reasked//openai/m/1/false"},
		{"given up", enrich{Model: answers("m", badAnswer), MaxReasks: -1}, nil, "refused/violation/openai/m/0/false, dead-letter/violation/openai/m/0/false"},
		{"fallback", enrich{Model: refusing}, []topology.LookupOption{topology.OnFailure(topology.FallbackEvent)}, "fallback/refused/openai/m/0/true"},
		{"declined", enrich{Model: refusing}, nil, "dead-letter/refused/openai/m/0/true"},
		{"truncated", enrich{Model: failing("m", llm.Truncated), MaxReasks: -1}, nil, "refused/truncated/openai/m/0/false, dead-letter/truncated/openai/m/0/false"},
		{"no raw topic", enrich{Model: answers("m", badAnswer, goodAnswer), Capture: processors.CaptureOff}, nil, "refused/violation/openai/m/0/false again, reasked//openai/m/1/false"},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			d := newDesk(t, row.e, row.opts...)
			d.pipe("a", "help")
			d.run()
			var got []string
			for _, r := range d.Reports() {
				s := fmt.Sprintf("%s/%s/%s/%d/%t", r.Status, r.Class, r.Model, r.Round, r.Declined)
				if r.Again {
					s += " again"
				}
				if r.Step != "triage" || r.Prompt != "triage" || r.PromptVersion != triagePrompt.Version() || (r.Status == processors.StatusRefused) != (len(r.Rules) > 0) {
					t.Errorf("report %+v", r)
				}
				got = append(got, s)
			}
			if list := strings.Join(got, ", "); list != row.want {
				t.Errorf("reported %s, want %s", list, row.want)
			}
		})
	}
}

// The trace context of an event is that of all that the step writes, when no spans are
// made. There is one of it.
func TestEnrichPassesTheTrace(t *testing.T) {
	t.Parallel()
	const parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	for topic, e := range map[string]enrich{
		"triaged":        {Model: answers("m", goodAnswer)},
		"app.triage.raw": {Model: answers("m", badAnswer, goodAnswer)},
		"app.triage.dlq": {Model: answers("m", badAnswer), MaxReasks: -1},
	} {
		t.Run(topic, func(t *testing.T) {
			t.Parallel()
			d := newDesk(t, e)
			d.in.PipeRecord(processors.Record[string, ticket]{Key: "a", Value: &supportv1.Ticket{Text: "help"}, Headers: []processors.Header{
				{Key: "other", Value: []byte("x")}, {Key: "traceparent", Value: []byte(parent)}, {Key: "tracestate", Value: []byte("v=1")},
			}})
			d.run()
			want := headers{"traceparent": parent, "tracestate": "v=1"}
			if topic != "app.triage.raw" {
				want["other"] = "x"
			}
			wantHeaders(t, one(t, d.RawOutput(topic)), want)
		})
	}
}

// Garbage in the headers is no trace, and does no harm.
func TestEnrichBadTrace(t *testing.T) {
	t.Parallel()
	d := newDesk(t, enrich{Model: answers("m", goodAnswer)})
	d.in.PipeRecord(processors.Record[string, ticket]{Key: "a", Value: &supportv1.Ticket{Text: "help"}, Headers: []processors.Header{{Key: "traceparent", Value: []byte("\xff00-zz")}}})
	d.run()
	wantHeaders(t, one(t, d.RawOutput("triaged")), headers{"traceparent": "\xff00-zz"})
}

// Of an asynchronous step without models reports say how its events ended.
func TestAsyncLookupReports(t *testing.T) {
	t.Parallel()
	b := topology.New("app")
	s := topology.Stream(b, "in", serde.String(), serde.String())
	topology.AsyncLookup(s, "ask", func(_ context.Context, r processors.Record[string, string]) (string, error) {
		return "", processors.WithAction(processors.DeadLetter, fmt.Errorf("no %s", r.Value))
	}, serde.String())
	d := topologytest.New(t, b)
	topologytest.Input(d, "in", serde.String(), serde.String()).Pipe("k", "v", 0)
	d.Calls()[0].Run()
	if got := fmt.Sprint(d.Reports()); !strings.Contains(got, "ask dead-letter async error") {
		t.Errorf("reported %s", got)
	}
}
