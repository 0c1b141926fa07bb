package engine_test

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/twmb/franz-go/pkg/kgo"
	"google.golang.org/protobuf/proto"

	supportv1 "github.com/millrace/millrace/examples/support/proto/support/v1"
	"github.com/millrace/millrace/llm"
	"github.com/millrace/millrace/llm/prompt"
	"github.com/millrace/millrace/processors"
	"github.com/millrace/millrace/serde"
	"github.com/millrace/millrace/topology"
)

// deskModel refuses to follow the contract in its first answer to every event, and
// counts its answers by entry and round.
type deskModel struct {
	mu       sync.Mutex
	answered map[string]int
}

func (*deskModel) ID() llm.ID { return llm.ID{Provider: "openai", Model: "desk"} }

func (m *deskModel) Generate(ctx context.Context, _ *llm.Request) (*llm.Response, error) {
	e, _ := processors.EntryFromContext(ctx)
	select {
	case <-time.After(300 * time.Millisecond):
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.answered[fmt.Sprint(e.ID, "#", e.Round)]++
	text := `{"evidence":"e","urgency":"URGENCY_LOW","summary":"s"}`
	if e.Round == 0 {
		text = "I would rather not."
	}
	return &llm.Response{Text: text, Finish: llm.FinishStop, Usage: llm.Usage{Input: 10, Output: 5}}, nil
}

// A step with model calls on the engine: rounds go through the loop topic, a
// restart in the middle of them loses and repeats nothing, and refused answers are
// in their topic once.
func TestEnrichOnTheEngine(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, "tickets", "triaged")
		defer r.close()
		m := &deskModel{answered: map[string]int{}}
		b := topology.New("app")
		s := topology.Stream(b, "tickets", serde.String(), serde.Proto[*supportv1.Ticket]())
		topology.Enrich(s, "triage", topology.Enrichment[string, *supportv1.Ticket, *supportv1.Triage]{
			Model: m, Prompt: prompt.Must(prompt.Config{Name: "p", User: "{{.Event.Text}}"}), Conversation: &topology.Conversation{},
		}).Enriched().To("triaged")
		fs := vfs.NewMem()
		a := r.start(b, fs)
		a.running(1)
		const events, keys = 24, 4
		for i := range events {
			value, err := proto.Marshal(&supportv1.Ticket{Text: fmt.Sprint("text ", i)})
			if err != nil {
				t.Fatal(err)
			}
			r.produce("tickets", &kgo.Record{Key: fmt.Append(nil, "k", i%keys), Value: value})
		}
		r.pass(1500 * time.Millisecond) // some rounds are over, some are under way
		a.stop()
		if n := len(r.read("triaged")); n == 0 || n == events {
			t.Fatalf("%d results when the instance is stopped; the test wants some", n)
		}
		a = r.start(b, fs)
		out := r.await("triaged", events)
		refused := r.read("app.triage.raw")
		if len(refused) != events {
			t.Errorf("%d refused answers are kept, want %d", len(refused), events)
		}
		for _, rec := range refused {
			if string(rec.Value) != "I would rather not." {
				t.Errorf("kept %q", rec.Value)
			}
		}
		for _, rec := range out {
			if !strings.HasPrefix(rec.Key, "k") {
				t.Errorf("key %q", rec.Key)
			}
		}
		a.stop()
		m.mu.Lock()
		defer m.mu.Unlock()
		if len(m.answered) != 2*events {
			t.Errorf("%d rounds were answered, want %d", len(m.answered), 2*events)
		}
		for round, n := range m.answered {
			if n != 1 {
				t.Errorf("%s was answered %d times", round, n)
			}
		}
	})
}
