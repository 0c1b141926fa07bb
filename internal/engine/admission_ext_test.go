package engine_test

import (
	"context"
	"errors"
	"fmt"
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

// sickModel answers while it is up, each request after some time, and counts.
type sickModel struct {
	mu       sync.Mutex
	up       bool
	attempts int
	answered map[string]int // by entry and round
}

func (*sickModel) ID() llm.ID { return llm.ID{Provider: "openai", Model: "sick"} }

func (m *sickModel) Generate(ctx context.Context, req *llm.Request) (*llm.Response, error) {
	select {
	case <-time.After(200 * time.Millisecond):
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.attempts++
	if !m.up {
		return nil, &llm.Error{Class: llm.Unavailable, Model: m.ID(), Err: errors.New("down")}
	}
	e, _ := processors.EntryFromContext(ctx)
	m.answered[fmt.Sprint(e.ID, "#", e.Round)]++
	text := `{"evidence":"e","urgency":"URGENCY_LOW","summary":"s"}`
	if req.Schema == nil {
		text = "in short"
	}
	return &llm.Response{Text: text, Finish: llm.FinishStop, Usage: llm.Usage{Input: 10, Output: 5}}, nil
}

func (m *sickModel) set(up bool) (attempts int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.up = up
	return m.attempts
}

func (r *rig) askAbout(n int, text func(i int) string) {
	for i := range n {
		value, err := proto.Marshal(&supportv1.Ticket{Text: text(i)})
		if err != nil {
			r.t.Fatal(err)
		}
		r.produce("tickets", &kgo.Record{Key: fmt.Append(nil, "k", i), Value: value})
	}
}

// An outage stops admission: no slot is held, a drain is quick, few attempts are made,
// and all goes on by itself when the model is back.
func TestOutageStopsAdmission(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, "tickets", "triaged")
		defer r.close()
		m := &sickModel{answered: map[string]int{}}
		b := topology.New("app")
		s := topology.Stream(b, "tickets", serde.String(), serde.Proto[*supportv1.Ticket]())
		topology.Enrich(s, "triage", topology.Enrichment[string, *supportv1.Ticket, *supportv1.Triage]{
			Model: m, Prompt: prompt.Must(prompt.Config{Name: "p", User: "{{.Event.Text}}"}),
		}, topology.Concurrency(8)).Enriched().To("triaged")
		fs := vfs.NewMem()
		a := r.start(b, fs)
		a.running(1)
		const events = 40
		r.askAbout(events, func(i int) string { return fmt.Sprint("text ", i) })
		r.pass(30 * time.Second)
		held := a.metric("millrace_async_held", map[string]string{"step": "triage"})
		running := a.metric("millrace_async_running", map[string]string{"step": "triage"})
		if held < 8 || running > 2 {
			t.Errorf("in the outage %v calls are held and %v hold a slot", held, running)
		}
		before := m.set(false)
		r.pass(time.Minute)
		if n := m.set(false) - before; n > 14 || n < 4 {
			t.Errorf("%d attempts in a minute of the outage; two probes every 10 s are due", n)
		}
		began := time.Now()
		a.stop()
		if d := time.Since(began); d > 3*time.Second {
			t.Errorf("stopping in the outage took %s", d)
		}
		a = r.start(b, fs)
		r.pass(20 * time.Second)
		m.set(true)
		r.await("triaged", events)
		if dead := len(r.read("app.triage.dlq")); dead != 0 {
			t.Errorf("%d dead letters", dead)
		}
		if held := a.metric("millrace_async_held", map[string]string{"step": "triage"}); held != 0 {
			t.Errorf("%v calls are held still", held)
		}
		a.stop()
		if len(m.answered) != events {
			t.Errorf("%d rounds answered", len(m.answered))
		}
	})
}

// Equal requests of many keys make one call each, also over a restart, and while
// conversations are summarized nothing is paid for twice.
func TestEqualRequestsOnTheEngine(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, "tickets", "triaged")
		defer r.close()
		m := &sickModel{up: true, answered: map[string]int{}}
		b := topology.New("app")
		s := topology.Stream(b, "tickets", serde.String(), serde.Proto[*supportv1.Ticket]())
		topology.Enrich(s, "triage", topology.Enrichment[string, *supportv1.Ticket, *supportv1.Triage]{
			Model: m, Prompt: prompt.Must(prompt.Config{Name: "p", User: "{{.Event.Text}}"}),
			Cache: &topology.Cache{MaxEntries: 100}, Conversation: &topology.Conversation{MaxTurns: 2, Summary: &topology.Summary{}},
		}, topology.Concurrency(16)).Enriched().To("triaged")
		fs := vfs.NewMem()
		a := r.start(b, fs)
		a.running(1)
		text := func(i int) string { return fmt.Sprint("text ", i%3) }
		r.askAbout(30, text)
		r.await("triaged", 30)
		if len(m.answered) != 3 {
			t.Errorf("%d calls for three requests", len(m.answered))
		}
		if hits := a.metric("millrace_enrich_cache_hits_total", map[string]string{"step": "triage"}); hits != 27 {
			t.Errorf("%v hits counted, want 27", hits)
		}
		rows := a.metric("millrace_expiring_store_rows", map[string]string{"store": "triage-cache", "partition": "0"})
		if talks := a.metric("millrace_expiring_store_rows", map[string]string{"store": "triage-conversations", "partition": "0"}); talks == 0 || rows == 0 {
			t.Errorf("%v conversations and %v cached answers in partition 0", talks, rows)
		}
		r.askAbout(30, text) // the second of each key: equal again, and each makes a summary
		r.pass(500 * time.Millisecond)
		a.stop()
		a = r.start(b, fs)
		r.await("triaged", 60)
		r.pass(10 * time.Second)
		a.stop()
		m.mu.Lock()
		defer m.mu.Unlock()
		if n := len(m.answered); n != 3+3+30 {
			t.Errorf("%d calls, want 3 and 3 for events, 30 for summaries", n)
		}
		for round, n := range m.answered {
			if n != 1 {
				t.Errorf("%s was answered %d times", round, n)
			}
		}
	})
}
