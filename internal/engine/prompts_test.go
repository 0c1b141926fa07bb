package engine_test

import (
	"context"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/twmb/franz-go/pkg/kgo"
	"google.golang.org/protobuf/proto"

	supportv1 "github.com/millrace/millrace/examples/support/proto/support/v1"
	"github.com/millrace/millrace/internal/kafka"
	"github.com/millrace/millrace/internal/registry"
	"github.com/millrace/millrace/llm"
	"github.com/millrace/millrace/llm/prompt"
	"github.com/millrace/millrace/processors"
	millracev1 "github.com/millrace/millrace/proto/millrace/v1"
	"github.com/millrace/millrace/serde"
	"github.com/millrace/millrace/state"
	"github.com/millrace/millrace/topology"
)

// slowModel answers after a second.
type slowModel struct{}

func (slowModel) ID() llm.ID { return llm.ID{Provider: "openai", Model: "slow"} }

func (slowModel) Generate(ctx context.Context, req *llm.Request) (*llm.Response, error) {
	select {
	case <-time.After(time.Second):
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	text := `{"evidence":"e","urgency":"URGENCY_LOW","summary":"s"}`
	if strings.HasSuffix(req.SchemaName, "ModelID") {
		text = `{"provider":"p","model":"m"}`
	}
	return &llm.Response{Text: text, Finish: llm.FinishStop, Usage: llm.Usage{Input: 10, Output: 5}}, nil
}

func desk[Out proto.Message](p *prompt.Prompt, generation int, sink string) *topology.Builder {
	b := topology.New("app")
	s := topology.Stream(b, "tickets", serde.String(), serde.Proto[*supportv1.Ticket]())
	topology.Enrich(s, "triage", topology.Enrichment[string, *supportv1.Ticket, Out]{Model: slowModel{}, Prompt: p, Generation: generation}).Enriched().To(sink)
	return b
}

func (r *rig) ticket(key string) {
	r.t.Helper()
	value, err := proto.Marshal(&supportv1.Ticket{Text: "help"})
	if err != nil {
		r.t.Fatal(err)
	}
	r.produce("tickets", &kgo.Record{Key: []byte(key), Value: value})
}

func (r *rig) prompts() *registry.Registry {
	return registry.New("app", &kafka.Config{Brokers: r.ListenAddrs(), Dialer: r.net.DialContext})
}

// A label that changes while the instance runs is followed within a second, and stays
// over a restart without local state. Two programs that write at once both succeed.
func TestPromptsChangeWhileRunning(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, "tickets", "triaged")
		defer r.close()
		builtIn := prompt.Must(prompt.Config{Name: "triage", User: "{{.Event.Text}}"})
		a := r.start(desk[*supportv1.Triage](builtIn, 0, "triaged"), vfs.NewMem())
		a.running(1)
		r.ticket("a")
		r.await("triaged", 1)

		two := prompt.Must(prompt.Config{Name: "triage", User: "2 {{.Event.Text}}"})
		var wg sync.WaitGroup
		for range 3 {
			wg.Go(func() {
				if err := r.prompts().Publish(t.Context(), two, "shorter"); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		misfit := prompt.Must(prompt.Config{Name: "triage", User: "{{.Event.Nope}}"})
		if err := r.prompts().Publish(t.Context(), misfit, ""); err == nil || !strings.Contains(err.Error(), "there is no Nope") {
			t.Errorf("published what does not fit: %v", err)
		}
		err := r.prompts().Update(t.Context(), func(reg *prompt.Registry) ([]prompt.Record, error) {
			return reg.SetLabel("triage", prompt.Prod, two.Version(), 0, time.Now(), "")
		})
		if err != nil {
			t.Fatal(err)
		}
		r.pass(time.Second)
		r.ticket("a")
		r.await("triaged", 2)
		// Past the checks.
		r.produce("app.prompts", &kgo.Record{Key: []byte("version/triage/" + misfit.Version()), Value: misfit.Record(time.Now(), "").Value})
		r.pass(5 * time.Second)
		if n := a.metric("millrace_record_errors_total", map[string]string{"step": processors.PromptStore}); n != 1 {
			t.Errorf("%v bad records are counted, want 1", n)
		}
		a.stop()

		a = r.start(desk[*supportv1.Triage](builtIn, 0, "triaged"), vfs.NewMem())
		r.ticket("a")
		out := r.await("triaged", 3)
		a.stop()
		for i, want := range []*prompt.Prompt{builtIn, two, two} {
			if got := out[i].Headers[processors.PromptVersionHeader]; got != want.Version() {
				t.Errorf("record %d has version %s, want %s", i, got, want.Version())
			}
		}
		reg, err := r.prompts().Read(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if n := len(reg.Versions("")); n != 3 { // the misfit is there and not used
			t.Errorf("%d versions", n)
		}
		if n := len(r.read("app.prompts")); n != 5 { // two versions, contract, label, misfit
			t.Errorf("%d records in the topic, want 5: nothing is written twice", n)
		}
	})
}

// Answers of another message are refused at start, unless they are a new generation
// with a topic of its own. What was being asked for the old one is dead-lettered.
func TestIncompatibleAnswers(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, "tickets", "triaged", "triaged-2")
		defer r.close()
		p := prompt.Must(prompt.Config{Name: "triage", User: "{{.Event.Text}}"})
		fs := vfs.NewMem()
		a := r.start(desk[*supportv1.Triage](p, 0, "triaged"), fs)
		a.running(1)
		r.ticket("a")
		r.await("triaged", 1)
		r.ticket("a")
		r.pass(500 * time.Millisecond)
		a.stop() // the call ends and its outcome waits in the loop topic
		for generation, want := range map[int]string{0: "set Enrichment.Generation to 1", 1: "both are written to triaged"} {
			a = r.start(desk[*millracev1.ModelID](p, generation, "triaged"), fs)
			var err error
			select {
			case err = <-a.done:
			case <-time.After(time.Minute):
				a.stop()
			}
			if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), `step "triage"`) {
				t.Errorf("generation %d: %v, want %q", generation, err, want)
			}
			a.cancel()
		}
		a = r.start(desk[*millracev1.ModelID](p, 1, "triaged-2"), fs)
		r.ticket("b")
		r.await("triaged-2", 1)
		letters := r.await("app.triage.dlq", 1)
		if got := letters[0].Headers["millrace.message"]; !strings.Contains(got, "generation 0") {
			t.Errorf("dead letter says %q: %v", got, letters[0].Headers)
		}
		a.stop()
		if n := len(r.read("triaged")); n != 1 {
			t.Errorf("%d records of the old generation, want 1", n)
		}
	})
}

// The copy of a table that a prompt reads is the step's own: restored from its own
// changelog.
func TestPromptTableOnTheEngine(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, "tickets", "triaged", "customers", "changes")
		defer r.close()
		build := func() *topology.Builder {
			b := topology.New("app")
			customers := topology.Table(b, "customers", "customers", serde.String(), serde.String())
			customers.ToStream().To("changes")
			s := topology.Stream(b, "tickets", serde.String(), serde.Proto[*supportv1.Ticket]())
			topology.Enrich(s, "triage", topology.Enrichment[string, *supportv1.Ticket, *supportv1.Triage]{
				Model: echoModel{}, Prompt: prompt.Must(prompt.Config{Name: "p", User: "{{.Tables.plan}}"}),
				Tables: map[string]topology.PromptTable[string, *supportv1.Ticket]{
					"plan": topology.TableRow(customers, func(k string, _ *supportv1.Ticket) string { return k }),
				},
			}).Enriched().To("triaged")
			return b
		}
		r.produce("customers", &kgo.Record{Key: []byte("a"), Value: []byte("gold"), Timestamp: time.UnixMilli(1)})
		a := r.start(build(), vfs.NewMem())
		a.running(2)
		r.pass(time.Second)
		r.ticket("a")
		r.await("triaged", 1)
		a.stop()
		a = r.start(build(), vfs.NewMem())
		r.ticket("a")
		out := r.await("triaged", 2)
		a.stop()
		for i, rec := range out {
			m := &supportv1.Triage{}
			if err := proto.Unmarshal(rec.Value, m); err != nil || m.GetSummary() != "<data>gold</data>" {
				t.Errorf("record %d was asked for with %q, %v", i, m.GetSummary(), err)
			}
		}
		if local := a.Local("triage-plan", 0); local.Status == state.Ready {
			t.Error("a stopped instance serves views")
		}
	})
}

// echoModel answers with what it was asked.
type echoModel struct{}

func (echoModel) ID() llm.ID { return llm.ID{Provider: "openai", Model: "echo"} }

func (echoModel) Generate(_ context.Context, req *llm.Request) (*llm.Response, error) {
	said := req.Messages[len(req.Messages)-1].Text
	return &llm.Response{Text: `{"evidence":"e","urgency":"URGENCY_LOW","summary":"` + said + `"}`, Finish: llm.FinishStop}, nil
}
