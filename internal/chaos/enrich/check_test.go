package enrich

import (
	"fmt"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	chaosv1 "github.com/millrace/millrace/internal/chaos/enrich/proto/chaos/v1"
	"github.com/millrace/millrace/internal/checker"
	millracev1 "github.com/millrace/millrace/proto/millrace/v1"
)

// A world is a run in which all is right: of key a, e1 was answered, e2 after a refused
// answer, and e3 not at all; e4 has no key and was refused.
type world struct {
	logs  map[string]checker.Log
	calls map[string][]call
}

func newWorld() *world {
	w := &world{logs: map[string]checker.Log{}, calls: map[string][]call{}}
	for i := int64(1); i <= 4; i++ {
		r := checker.Record{Offset: i, Key: "a", Value: fmt.Appendf(nil, "e%d of 4", i), Timestamp: 1000 * i}
		if i == 4 {
			r.Key, r.NoKey = "", true
		}
		w.add(inputTopic, r)
	}
	w.call("n1", call{event: "e1", attempt: 1, model: "main", fate: good, tokens: 30})
	w.call("n2", call{event: "e2", attempt: 1, model: "main", fate: violation, text: "bad 2"})
	w.call("n2", call{event: "e2", attempt: 2, round: 1, model: "backup", fate: good, tokens: 40})
	w.call("n3", call{event: "e3", attempt: 1, model: "main", fate: violation, text: "bad 3"})
	w.call("n3", call{event: "e3", attempt: 2, round: 1, model: "main", fate: truncated, text: "cut 3"})
	w.call("n4", call{event: "e4", attempt: 1, model: "main", fate: refused, text: "no"})
	head := func(status, model, attempts string, more ...string) map[string]string {
		h := map[string]string{"millrace.status": status, "millrace.prompt": "note", "millrace.model": "openai/" + model, "millrace.attempts": attempts}
		for i := 0; i < len(more); i += 2 {
			h[more[i]] = more[i+1]
		}
		return h
	}
	none := digest(nil)
	w.add(enrichedTopic, checker.Record{Offset: 1, Key: "a", Timestamp: 5000, Value: note("e1", none, 0), Headers: head("ok", "main", "1")})
	shown := digest([]exchange{{"e1", none}})
	w.add(enrichedTopic, checker.Record{Offset: 2, Key: "a", Timestamp: 6000, Value: note("e2", shown, 2), Headers: head("reasked", "backup", "2")})
	w.add(deadTopic, checker.Record{Offset: 1, Key: "a", Value: []byte("e3 of 4"), Headers: head("dead-letter", "main", "2",
		"millrace.class", "truncated", "millrace.answer", "cut 3", "millrace.failed-at", "7000")})
	w.add(fallbackTopic, checker.Record{Offset: 1, NoKey: true, Value: []byte("e4 of 4"), Timestamp: 5000, Headers: head("fallback", "main", "1")})
	for _, r := range []struct{ entry, round, text string }{{"n2", "0", "bad 2"}, {"n3", "0", "bad 3"}, {"n3", "1", "cut 3"}} {
		w.add(rawTopic, checker.Record{Value: []byte(r.text), Headers: map[string]string{"millrace.status": "refused", "millrace.entry": r.entry, "millrace.round": r.round}})
	}
	w.talk(func(*millracev1.Conversation) {})
	return w
}

func (w *world) add(topic string, r checker.Record) {
	if w.logs[topic] == nil {
		w.logs[topic] = checker.Log{}
	}
	w.logs[topic][0] = append(w.logs[topic][0], r)
}

func (w *world) call(entry string, c call) { w.calls[entry] = append(w.calls[entry], c) }

func note(event, context string, shown int32) []byte {
	data, err := proto.Marshal(&chaosv1.Note{Event: event, Context: context, Shown: shown})
	if err != nil {
		panic(err)
	}
	return data
}

// talk writes the conversation of key a, changed by f.
func (w *world) talk(f func(*millracev1.Conversation)) {
	c := &millracev1.Conversation{Updated: 2000}
	for i, x := range []struct {
		id, entry, model, context string
		tokens                    int64
	}{{"e1", "n1", "main", digest(nil), 30}, {"e2", "n2", "backup", digest([]exchange{{"e1", digest(nil)}}), 40}} {
		text := fmt.Sprintf("Event: <data>%s of 4</data>", x.id)
		c.Turns = append(c.Turns,
			&millracev1.Turn{Role: millracev1.Role_ROLE_USER, Text: text, Tokens: int64(len(text)*2)/7 + 1, Event: x.entry, Timestamp: 1000 * int64(i+1), Prompt: "note"},
			&millracev1.Turn{
				Role: millracev1.Role_ROLE_ASSISTANT, Text: fmt.Sprintf(`{"event":%q,"context":%q,"shown":%d}`, x.id, x.context, 2*i), Tokens: x.tokens,
				Event: x.entry, Timestamp: 1000 * int64(i+1), Prompt: "note", Model: &millracev1.ModelID{Provider: "openai", Model: x.model},
			})
	}
	f(c)
	data, err := proto.Marshal(c)
	if err != nil {
		panic(err)
	}
	w.add(talksTopic, checker.Record{Key: "a", Value: data})
}

func (w *world) check() []string {
	a := &audit{logs: w.logs, calls: w.calls, sum: &Summary{DeadLettersBy: map[string]int{}}}
	a.check()
	return a.problems
}

func (w *world) at(topic string, i int) *checker.Record { return &w.logs[topic][0][i] }

func (w *world) drop(topic string, i int) {
	w.logs[topic][0] = append(w.logs[topic][0][:i:i], w.logs[topic][0][i+1:]...)
}

// What is wrong is found.
func TestCheck(t *testing.T) {
	t.Parallel()
	if problems := newWorld().check(); len(problems) > 0 {
		t.Fatalf("a run in which all is right: %v", problems)
	}
	for want, spoil := range map[string]func(*world){
		"event e1 of enrich.in/0/1 is lost":   func(w *world) { w.drop(enrichedTopic, 0) },
		"event e4 ended 2 times":              func(w *world) { w.add(deadTopic, *w.at(fallbackTopic, 0)) },
		`there is no event "e9"`:              func(w *world) { w.at(fallbackTopic, 0).Value = []byte("e9 of 4") },
		"are not those of event e3":           func(w *world) { w.at(deadTopic, 0).Key = "b" },
		"event e2 comes before event e1":      func(w *world) { w.at(enrichedTopic, 1).Offset = 0 },
		"e3 of key a was written 1 ms before": func(w *world) { w.at(deadTopic, 0).Headers["millrace.failed-at"] = "5999" },
		"leads to enrich.fallbacks": func(w *world) {
			w.logs[deadTopic][0] = append(w.logs[deadTopic][0], *w.at(fallbackTopic, 0))
			w.drop(fallbackTopic, 0)
		},
		"a dead letter of class unavailable": func(w *world) { w.at(deadTopic, 0).Headers["millrace.class"] = "unavailable" },
		`holds the answer "other"`:           func(w *world) { w.at(deadTopic, 0).Headers["millrace.answer"] = "other" },
		"want status reasked":                func(w *world) { w.at(enrichedTopic, 1).Headers["millrace.status"] = "ok" },
		"millrace.attempts is":               func(w *world) { w.at(enrichedTopic, 1).Headers["millrace.attempts"] = "1" },
		"answer to n3#1 is missing":          func(w *world) { w.drop(rawTopic, 2) },
		"answer to n2#0 is there twice":      func(w *world) { w.add(rawTopic, *w.at(rawTopic, 0)) },
		"which the model never gave":         func(w *world) { w.at(rawTopic, 0).Value = []byte("bad") },
		"4 answers, must be 3": func(w *world) {
			w.add(rawTopic, *w.at(rawTopic, 0))
			w.at(rawTopic, 3).Headers = map[string]string{"millrace.status": "refused", "millrace.entry": "n1"}
		},
		"was answered with context":             func(w *world) { w.at(enrichedTopic, 1).Value = note("e2", digest(nil), 0) },
		"has two entries":                       func(w *world) { w.call("n5", call{event: "e1"}) },
		"asked about e1 and about e2":           func(w *world) { w.call("n1", call{event: "e2"}) },
		"ended without a call":                  func(w *world) { delete(w.calls, "n4") },
		"1 events are still in flight":          func(w *world) { w.add(entriesTopic, checker.Record{Key: "enote\x00\x01row", Value: []byte("x")}) },
		"2 turns until 2000":                    func(w *world) { w.talk(func(c *millracev1.Conversation) { c.Turns = c.Turns[2:] }) },
		"turn 3 is":                             func(w *world) { w.talk(func(c *millracev1.Conversation) { c.Turns[3].Tokens++ }) },
		`turn 2 is "`:                           func(w *world) { w.talk(func(c *millracev1.Conversation) { c.Turns[2].Text = "x" }) },
		"the conversation of key a is not what": func(w *world) { delete(w.logs, talksTopic) },
		"key b has a conversation":              func(w *world) { w.add(talksTopic, checker.Record{Key: "b", Value: []byte{}}) },
	} {
		t.Run(want, func(t *testing.T) {
			t.Parallel()
			w := newWorld()
			spoil(w)
			if problems := strings.Join(w.check(), "\n"); !strings.Contains(problems, want) {
				t.Errorf("found %q", problems)
			}
		})
	}
}
