package enrich

import (
	"encoding/json"
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"strings"
	"sync"
	"time"

	"github.com/millrace/millrace/internal/modelserver"
	"github.com/millrace/millrace/llm"
	"github.com/millrace/millrace/llm/llmtest"
)

// A fate is how a call ended at the model.
type fate string

const (
	good        fate = "good"
	throttled   fate = "throttled"
	unavailable fate = "unavailable" // 500, 503 and connections that end in the middle
	hangs       fate = "timeout"
	huge        fate = "too_large"
	refused     fate = "refused"
	truncated   fate = "truncated"
	violation   fate = "violation" // no JSON, another schema, another event
)

// asks reports whether an answer of the fate makes another round, or ends the event
// when there have been enough.
func (f fate) asks() bool { return f == violation || f == truncated }

// A call is what the model remembers of one.
type call struct {
	round, attempt int
	event, model   string
	fate           fate
	text           string // of the answer, if one was sent
	tokens         int64  // of the answer
}

// A script is the model: what it answers follows from the event and the exchanges that
// it is shown, and how it fails from the seed, the event, and the numbers of round and
// attempt, whoever asks and however often.
type script struct {
	seed uint64
	mix  llmtest.Step

	mu       sync.Mutex
	calls    map[string][]call // by entry
	problems []string
}

func newScript(seed uint64, rate float64) *script {
	s := &script{seed: seed, calls: map[string][]call{}}
	faults := append(llmtest.Faults(0.95*rate), llmtest.Fault{P: 0.05 * rate, Step: llmtest.Answer(wrongEvent)})
	s.mix = llmtest.Delay(seed, llmtest.Lognormal(30*time.Millisecond, 120*time.Millisecond), llmtest.Mix(seed, llmtest.Answer(""), faults...))
	return s
}

const wrongEvent = "the note of another event"

// step answers a call.
func (s *script) step(c *llmtest.Call) llmtest.Reply {
	id := modelserver.IDFromHeader(c.Header)
	shown, event, bad := s.read(c, id)
	key := fmt.Sprintf("%s/%d/%d", event, id.Round, id.Attempt)
	fixed := *c
	fixed.Key, fixed.Times = key, 0
	reply := s.mix(&fixed)
	note := map[string]any{"event": event, "context": digest(shown), "shown": 2 * len(shown)}
	rng := rand.New(rand.NewPCG(s.seed, hash(key)))
	reply.Usage = llm.Usage{Input: int64(10 * len(c.Messages)), Output: 20 + rng.Int64N(45)} // a token has a byte at least
	f := fateOf(&reply)
	switch {
	case reply.Text == wrongEvent:
		note["event"], reply.Unusable, f = "no-"+event, true, violation
		reply.Text = dress(note, rng)
	case f == good:
		reply.Text = dress(note, rng)
	case reply.Unusable && reply.Pad == 0: // one for each call, so that they can be told apart
		if json.Valid([]byte(reply.Text)) {
			reply.Text = fmt.Sprintf(`{"no_schema_has_this": %q}`, key)
		} else {
			reply.Text += key
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if bad != "" && len(s.problems) < 20 {
		s.problems = append(s.problems, fmt.Sprintf("call %s of entry %s: %s", key, id.Entry, bad))
	}
	s.calls[id.Entry] = append(s.calls[id.Entry], call{
		round: id.Round, attempt: id.Attempt, event: event, model: c.Model, fate: f, text: reply.Text, tokens: reply.Usage.Output,
	})
	return reply
}

func fateOf(r *llmtest.Reply) fate {
	switch {
	case r.Hang:
		return hangs
	case r.Pad > 0:
		return huge
	case r.Fault == llm.Throttled:
		return throttled
	case r.Fault != "", r.Cut:
		return unavailable
	case r.Finish == llm.FinishRefusal:
		return refused
	case r.Finish == llm.FinishLength:
		return truncated
	case r.Unusable:
		return violation
	}
	return good
}

// dress writes a note as models do.
func dress(note map[string]any, rng *rand.Rand) string {
	data, err := json.Marshal(note)
	if err != nil {
		panic(err) // strings and numbers
	}
	text := string(data)
	switch rng.IntN(4) {
	case 0:
		return "Here it is:\n```json\n" + text + "\n```"
	case 1:
		return strings.TrimSuffix(text, "}") + ",}"
	}
	return text
}

// An exchange is an event and the answer to it, as they are shown.
type exchange struct{ event, context string }

// digest stands for the exchanges that are shown: each holds the digest of what was
// shown before it.
func digest(shown []exchange) string {
	h := fnv.New64a()
	for _, x := range shown {
		fmt.Fprintf(h, "%s %s\n", x.event, x.context)
	}
	return fmt.Sprintf("%016x", h.Sum64())
}

func hash(s string) uint64 {
	h := fnv.New64a()
	_, _ = h.Write([]byte(s)) // never fails
	return h.Sum64()
}

// read takes a request apart: the exchanges that are shown, and the event's id. bad
// says what is wrong with it.
func (s *script) read(c *llmtest.Call, id modelserver.CallID) (shown []exchange, event, bad string) {
	msgs := c.Messages
	if len(msgs) < 2 || msgs[0].Role != llm.RoleSystem || id.Entry == "" || id.Owner == "" {
		return nil, "", "it has no system text, no event or no labels"
	}
	msgs = msgs[1:]
	if id.Round > 0 {
		if len(msgs) < 3 {
			return nil, "", "a further round without the refused answer"
		}
		if text := msgs[len(msgs)-2].Text; !s.sent(id.Entry, id.Round-1, text) {
			bad = fmt.Sprintf("it shows %q as the refused answer, which is none of the round before", text)
		}
		msgs = msgs[:len(msgs)-2]
	}
	event, ok := eventOf(msgs[len(msgs)-1].Text)
	if !ok || msgs[len(msgs)-1].Role != llm.RoleUser {
		return nil, "", "its last message is not the event"
	}
	msgs = msgs[:len(msgs)-1]
	if len(msgs)%2 != 0 {
		return nil, event, "what is shown is no list of exchanges"
	}
	for i := 0; i < len(msgs); i += 2 {
		asked, ok := eventOf(msgs[i].Text)
		x, err := readNote(msgs[i+1].Text)
		if !ok || err != nil || x.event != asked || msgs[i].Role != llm.RoleUser || msgs[i+1].Role != llm.RoleAssistant {
			return nil, event, fmt.Sprintf("it shows %q and %q, which is no exchange", msgs[i].Text, msgs[i+1].Text)
		}
		shown = append(shown, x)
	}
	return shown, event, bad
}

// eventOf returns the id of the event that a message is about.
func eventOf(text string) (string, bool) {
	_, rest, ok := strings.Cut(text, "<data>")
	id, _, found := strings.Cut(rest, " ")
	return id, ok && found
}

// readNote reads a note in JSON.
func readNote(text string) (exchange, error) {
	var n struct {
		Event, Context string
		Shown          int
	}
	err := json.Unmarshal([]byte(text), &n)
	return exchange{n.Event, n.Context}, err
}

// sent reports whether the model answered a round of an entry with a text.
func (s *script) sent(entry string, round int, text string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range s.calls[entry] {
		if c.round == round && c.fate.asks() && c.text == text {
			return true
		}
	}
	return false
}
