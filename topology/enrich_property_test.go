package topology_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/proto"

	supportv1 "github.com/millrace/millrace/examples/support/proto/support/v1"
	"github.com/millrace/millrace/llm"
	"github.com/millrace/millrace/llm/prompt"
	"github.com/millrace/millrace/processors"
	millracev1 "github.com/millrace/millrace/proto/millrace/v1"
	"github.com/millrace/millrace/serde"
	"github.com/millrace/millrace/topology"
	"github.com/millrace/millrace/topologytest"
)

// Whatever models answer, whenever the process is killed: every event ends once, in
// order of its key; each conversation is what the enriched records say; no round is
// answered twice.
func TestEnrichEndsEveryEventOnce(t *testing.T) {
	t.Parallel()
	for seed := range uint64(40) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) { enrichRun(t, rand.New(rand.NewPCG(seed, 1))) })
		})
	}
}

func enrichRun(t *testing.T, rng *rand.Rand) {
	answered := map[string]bool{} // entry and round
	m := &fakeModel{id: llm.ID{Provider: "openai", Model: "m"}}
	m.answer = func(ctx context.Context, req *llm.Request) (string, error) {
		e, _ := processors.EntryFromContext(ctx)
		if h := llm.HeaderFrom(ctx); h.Get("X-Millrace-Entry") != e.ID || h.Get("X-Millrace-Round") != fmt.Sprint(e.Round) || e.ID == "" {
			t.Errorf("labels %v of %+v", h, e)
		}
		classes := []llm.Class{llm.Unavailable, llm.Refused, llm.Truncated, llm.Throttled, llm.TooLarge, llm.ContextTooLong}
		if n := rng.IntN(20); n < len(classes) {
			return "", &llm.Error{Class: classes[n], Model: m.id, RetryAfter: time.Minute, Raw: "cut", Err: errors.New("scripted")}
		}
		round := fmt.Sprint(e.ID, "#", e.Round)
		if answered[round] {
			t.Errorf("%s is answered twice", round)
		}
		answered[round] = true
		if rng.IntN(3) == 0 {
			return badAnswer, nil
		}
		return strings.Replace(goodAnswer, "fire", "of "+e.ID, 1), nil
	}
	b := topology.New("app")
	s := topology.Stream(b, "tickets", serde.String(), serde.Proto[ticket]())
	opts := []topology.LookupOption{topology.Retries(2, 0, 0)}
	if rng.IntN(2) == 0 {
		opts = append(opts, topology.OnFailure(topology.FallbackEvent))
	}
	res := topology.Enrich(s, "triage", enrich{Model: m, Prompt: triagePrompt, MaxReasks: 1, Conversation: &topology.Conversation{MaxTurns: 6, SessionGap: 5 * time.Second}}, opts...)
	res.Enriched().To("triaged")
	if len(opts) > 1 {
		res.Fallbacks().To("untriaged")
	}
	d := &desk{Driver: topologytest.New(t, b), t: t}
	d.in = topologytest.Input(d.Driver, "tickets", serde.String(), serde.Proto[ticket]())
	events := 30
	for n := 0; n < events || len(d.Calls()) > 0; {
		switch k := rng.IntN(8); {
		case k < 3 && n < events:
			d.pipeAny(rng)
			n++
		case k == 3:
			d.Restart()
			d.Advance(time.Second)
		case k == 4 && len(d.Calls()) > 0:
			d.Calls()[0].Release()
		case len(d.Calls()) > 0:
			d.Calls()[rng.IntN(len(d.Calls()))].Run()
		}
	}
	checkEnriched(t, d, events)
}

// pipeAny pipes an event of a random key, or of none, after a random time.
func (d *desk) pipeAny(rng *rand.Rand) {
	d.n += 1 + 10*int64(rng.IntN(10)/9)
	value := serde.Proto[ticket]()
	raw, err := value.Append(nil, &supportv1.Ticket{Subject: "s", Text: fmt.Sprint("text ", d.n), Email: emailCanary})
	if err != nil {
		d.t.Fatal(err)
	}
	rec := processors.Raw{Value: raw, Timestamp: 1000 * d.n}
	if k := rng.IntN(4); k > 0 {
		rec.Key = fmt.Append(nil, "k", k)
	}
	d.PipeRaw("tickets", -1, rec)
}

func checkEnriched(t *testing.T, d *desk, events int) {
	t.Helper()
	triaged, rest := d.RawOutput("triaged"), append(d.RawOutput("untriaged"), d.DeadLetters()...)
	if len(triaged)+len(rest) != events {
		t.Errorf("%d enriched and %d others of %d events", len(triaged), len(rest), events)
	}
	type exchange struct {
		at   int64
		text string
	}
	talks := map[string][]exchange{}
	refused := 0
	for _, r := range triaged {
		out := &supportv1.Triage{}
		if err := proto.Unmarshal(r.Value, out); err != nil {
			t.Fatal(err)
		}
		if r.Key == nil {
			continue
		}
		talk := talks[string(r.Key)]
		if n := len(talk); n > 0 && talk[n-1].at >= r.Timestamp {
			t.Errorf("key %s: %d comes after %d", r.Key, r.Timestamp, talk[n-1].at)
		} else if n > 0 && r.Timestamp-talk[n-1].at > 5000 {
			talk = nil
		}
		talks[string(r.Key)] = append(talk, exchange{r.Timestamp, out.GetSummary()})
	}
	store := topologytest.KeyValue(d.Driver, "triage-conversations", serde.String(), serde.Proto[*millracev1.Conversation]())
	if n := len(store.Rows()); n != len(talks) {
		t.Errorf("%d conversations, want %d", n, len(talks))
	}
	for key, want := range talks {
		talk, _ := store.Get(key)
		want = want[max(0, len(want)-3):]
		if len(talk.GetTurns()) != 2*len(want) {
			t.Errorf("key %s: %d turns, want %d", key, len(talk.GetTurns()), 2*len(want))
			continue
		}
		for i, x := range want {
			said, answer := talk.Turns[2*i], talk.Turns[2*i+1]
			if !strings.Contains(said.Text, fmt.Sprint("text ", x.at/1000)) || !strings.Contains(answer.Text, x.text) || said.Event != strings.TrimPrefix(x.text, "of ") {
				t.Errorf("key %s: turns %v, %v; want those of %v", key, said, answer, x)
			}
		}
	}
	for _, r := range d.RawOutput("app.triage.raw") {
		refused++
		if h := headersOf(r); h[processors.StatusHeader] != "refused" || h[processors.ViolationsHeader] == "" {
			t.Errorf("raw %v", h)
		}
	}
	if n := len(d.Failures()); n > 0 {
		t.Errorf("%d failures", n)
	}
	if refused == 0 {
		t.Log("no answer was refused")
	}
}

// While no model may be asked an event waits, without attempts, and ends when one may
// be asked again; a throttled one makes no dead letter however long it takes.
func TestEnrichWaits(t *testing.T) {
	t.Parallel()
	for _, class := range []llm.Class{llm.Throttled, llm.Unavailable} {
		synctest.Test(t, func(t *testing.T) {
			began := time.Now()
			m := &fakeModel{id: llm.ID{Provider: "openai", Model: "m"}}
			m.answer = func(context.Context, *llm.Request) (string, error) {
				if time.Since(began) < time.Hour {
					return "", &llm.Error{Class: class, Model: m.id, RetryAfter: 20 * time.Second, Err: errors.New("scripted")}
				}
				return goodAnswer, nil
			}
			breakers, err := llm.NewBreakers(llm.BreakerConfig{MinAttempts: 1, OpenFor: time.Minute})
			if err != nil {
				t.Fatal(err)
			}
			d := newDesk(t, enrich{Model: m, Breakers: breakers})
			d.pipe("a", "help")
			d.run()
			wantHeaders(t, one(t, d.RawOutput("triaged")), headers{processors.StatusHeader: "ok"})
			if class == llm.Unavailable && len(m.asked) > 61 {
				t.Errorf("%d attempts at a model whose breaker is open", len(m.asked))
			}
		})
	}
}

// MaxWait bounds how long an event waits for a model that may be asked.
func TestEnrichMaxWait(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		d := newDesk(t, enrich{Model: failing("m", llm.NoMoney)}, topology.MaxWait(time.Minute), topology.OnFailure(topology.FallbackEvent))
		d.pipe("a", "help")
		d.Calls()[0].Run() // opens the breaker, and waits for it
		wantHeaders(t, one(t, d.RawOutput("untriaged")), headers{processors.FallbackHeader: "max-wait"})
	})
}

// A model that ignores the end of its context, and one that panics, end their attempt.
func TestEnrichBadModels(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		stuck := answers("m", "")
		stuck.answer = func(context.Context, *llm.Request) (string, error) { <-ctx.Done(); return "", ctx.Err() }
		rude := answers("n", "")
		rude.answer = func(context.Context, *llm.Request) (string, error) { panic("rude") }
		d := newDesk(t, enrich{Model: stuck, Fallbacks: []llm.Link{{Model: rude}}}, topology.Deadline(time.Minute), topology.Retries(0, 0, 0), topology.OnFailure(topology.FallbackEvent))
		d.pipe("a", "help")
		d.run()
		wantHeaders(t, one(t, d.RawOutput("untriaged")), headers{processors.AttemptsHeader: "2", processors.ModelHeader: "openai/n"})
	})
}

// In the order of the partition results wait for those before them, over rounds too.
func TestEnrichOrderOfThePartition(t *testing.T) {
	t.Parallel()
	for _, order := range []processors.Order{processors.OrderPartition, processors.OrderStrict} {
		m := answers("m", goodAnswer, badAnswer, goodAnswer)
		d := newDesk(t, enrich{Model: m}, topology.Order(order), topology.OnFailure(topology.FallbackEvent))
		d.pipe("a", "first")
		d.pipe("b", "second")
		d.Calls()[1].Run()
		d.Calls()[0].Run() // refused
		if n := len(d.RawOutput("triaged")); n != 0 {
			t.Fatalf("%s: %d results before that of the first event", order, n)
		}
		d.run()
		out := d.RawOutput("triaged")
		if len(out) != 2 || string(out[0].Key) != "a" {
			t.Fatalf("%s: outputs %v", order, out)
		}
		wantHeaders(t, out[0], headers{processors.StatusHeader: "reasked", processors.AttemptsHeader: "2"})
		wantHeaders(t, out[1], headers{processors.StatusHeader: "ok", processors.AttemptsHeader: "1"})
	}
}

// What cannot be asked is a dead letter: a tombstone, an event too long for its
// prompt.
func TestEnrichUnaskable(t *testing.T) {
	t.Parallel()
	m := answers("m", goodAnswer)
	d := newDesk(t, enrich{Model: m, Prompt: prompt.Must(prompt.Config{Name: "p", User: "{{.Event.Text}}", MaxBytes: 50})})
	d.PipeRaw("tickets", -1, processors.Raw{Key: []byte("a")})
	d.pipe("b", strings.Repeat("x", 100))
	d.run()
	dead := d.DeadLetters()
	if len(dead) != 2 || dead[0].Value != nil || len(m.asked) > 0 {
		t.Fatalf("%d dead letters, asked %d times", len(dead), len(m.asked))
	}
	if got := headersOf(dead[0])["millrace.message"]; !strings.Contains(got, "no value") {
		t.Errorf("message %q", got)
	}
	if got := headersOf(dead[1])["millrace.message"]; !strings.Contains(got, "raise MaxBytes") {
		t.Errorf("message %q", got)
	}
}

func TestEnrichCapture(t *testing.T) {
	t.Parallel()
	long := `{"evidence":"` + strings.Repeat("x", 1000) + `"}`
	for capture, want := range map[processors.Capture]string{
		processors.CaptureFull: long, processors.CaptureShort: long[:256] + "... (1015 bytes, SHA-256 ", processors.CaptureHash: "... (1015 bytes, SHA-256 ", processors.CaptureOff: "",
	} {
		d := newDesk(t, enrich{Model: answers("m", long), MaxReasks: -1, Capture: capture})
		d.pipe("a", "help")
		d.run()
		got := headersOf(one(t, d.DeadLetters()))[processors.AnswerHeader]
		if !strings.HasPrefix(got, want) || want == "" && got != "" {
			t.Errorf("capture %d: %q", capture, got)
		}
		raw := d.RawOutput("app.triage.raw")
		if capture == processors.CaptureOff {
			if len(raw) != 0 {
				t.Errorf("%d refused answers are kept", len(raw))
			}
		} else if string(one(t, raw).Value) != got {
			t.Errorf("capture %d: %q in the topic", capture, raw[0].Value)
		}
	}
}
