package enrich

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"google.golang.org/protobuf/proto"

	chaosv1 "github.com/millrace/millrace/internal/chaos/enrich/proto/chaos/v1"
	"github.com/millrace/millrace/internal/checker"
	millracev1 "github.com/millrace/millrace/proto/millrace/v1"
)

// An outcome is what became of an event.
type outcome struct {
	topic  string
	place  string // topic/partition/offset
	record checker.Record
	entry  []call // what the model remembers of it
	id     string // of the entry
}

// An event is a record of the input.
type event struct {
	id, key, text     string
	null              bool // it has no key
	partition         int32
	number, timestamp int64 // its offset, and its time
	outcomes          []outcome
}

// An audit recomputes what must have become of the events. It shares no code with
// what it checks: it knows the topics, the messages, and the documented rules.
type audit struct {
	strict bool
	logs   map[string]checker.Log
	calls  map[string][]call // by entry

	events   map[string]*event
	order    []*event // of the input, partition by partition
	entries  map[string]string
	refused  map[string]checker.Record // entry/round of the raw topic
	problems []string
	sum      *Summary
}

func (a *audit) fail(format string, args ...any) {
	if len(a.problems) < 30 {
		a.problems = append(a.problems, fmt.Sprintf(format, args...))
	}
}

// outputs are the topics that the events end in.
var outputs = []string{enrichedTopic, fallbackTopic, deadTopic}

// check runs all checks.
func (a *audit) check() {
	a.read()
	a.complete()
	a.ordered()
	a.verdicts()
	a.raw()
	a.context()
	a.pending()
}

// read takes in the input and assigns to each event its outcomes and its calls.
func (a *audit) read() {
	a.events, a.entries = map[string]*event{}, map[string]string{}
	for p, records := range a.logs[inputTopic] {
		for _, r := range records {
			id, _, _ := strings.Cut(string(r.Value), " ")
			e := &event{id: id, key: r.Key, text: string(r.Value), null: r.NoKey, partition: p, number: r.Offset, timestamp: r.Timestamp}
			if a.events[id] != nil {
				a.fail("%s: the feed wrote event %s twice", inputTopic, id)
			}
			a.events[id] = e
			a.order = append(a.order, e)
		}
	}
	slices.SortFunc(a.order, func(x, y *event) int {
		return cmp.Or(cmp.Compare(x.partition, y.partition), cmp.Compare(x.number, y.number))
	})
	a.sum.Events = len(a.order)
	for entry, calls := range a.calls {
		for _, c := range calls {
			if c.event != calls[0].event {
				a.fail("entry %s asked about %s and about %s", entry, calls[0].event, c.event)
			}
		}
		if other, ok := a.entries[calls[0].event]; ok {
			a.fail("event %s has two entries, %s and %s", calls[0].event, other, entry)
		}
		a.entries[calls[0].event] = entry
	}
	for _, topic := range outputs {
		for p, records := range a.logs[topic] {
			for _, r := range records {
				a.assign(topic, p, r)
			}
		}
	}
}

func (a *audit) assign(topic string, p int32, r checker.Record) {
	o := outcome{topic: topic, place: fmt.Sprintf("%s/%d/%d", topic, p, r.Offset), record: r}
	id, _, _ := strings.Cut(string(r.Value), " ")
	if topic == enrichedTopic {
		n := &chaosv1.Note{}
		if err := proto.Unmarshal(r.Value, n); err != nil {
			a.fail("%s: %v", o.place, err)
		}
		id = n.GetEvent()
	}
	e := a.events[id]
	if e == nil {
		a.fail("%s: there is no event %q", o.place, id)
		return
	}
	if topic != enrichedTopic && string(r.Value) != e.text || r.Key != e.key || r.NoKey != e.null {
		a.fail("%s: key %q and value %q are not those of event %s", o.place, r.Key, r.Value, id)
	}
	o.id = a.entries[id]
	o.entry = a.calls[o.id]
	e.outcomes = append(e.outcomes, o)
}

// complete checks that every event ended once.
func (a *audit) complete() {
	for _, e := range a.order {
		switch {
		case len(e.outcomes) == 0:
			a.sum.Lost++
			a.fail("event %s of %s/%d/%d is lost: it has no outcome", e.id, inputTopic, e.partition, e.number)
		case len(e.outcomes) > 1:
			a.sum.Duplicated++
			var places []string
			for _, o := range e.outcomes {
				places = append(places, o.place)
			}
			a.fail("event %s ended %d times: %v", e.id, len(places), places)
		}
		for _, o := range e.outcomes {
			switch o.topic {
			case enrichedTopic:
				a.sum.Enriched++
			case fallbackTopic:
				a.sum.Fallbacks++
			default:
				a.sum.DeadLetters++
				a.sum.DeadLettersBy[o.record.Headers["millrace.class"]]++
			}
		}
	}
}

// ordered checks that no output overtakes another of the same lane: of the key, or
// in strict order of the partition. Within a topic offsets tell, and between topics
// the broker's clock: an event of a key is asked about only after the transaction that
// ended the one before.
func (a *audit) ordered() {
	type lane struct {
		topic, key string
	}
	type mark struct {
		e  *event
		at int64 // the offset, or the time in ms
	}
	last, latest := map[lane]mark{}, map[string]mark{}
	for _, e := range a.order {
		if e.null {
			continue // no order, and in strict order a partition that is not the source's
		}
		for _, o := range e.outcomes {
			in := lane{o.topic, e.key}
			if a.strict {
				in.key = strconv.Itoa(int(e.partition))
			}
			if m, ok := last[in]; ok && o.record.Offset <= m.at {
				a.fail("%s: event %s comes before event %s", o.place, e.id, m.e.id)
			}
			last[in] = mark{e, o.record.Offset}
			if a.strict {
				continue
			}
			at := o.record.Timestamp
			if o.topic == deadTopic { // its worker's clock, which is the broker's
				at, _ = strconv.ParseInt(o.record.Headers["millrace.failed-at"], 10, 64)
			}
			if m, ok := latest[e.key]; ok && at < m.at {
				a.fail("%s: event %s of key %s was written %d ms before event %s", o.place, e.id, e.key, m.at-at, m.e.id)
			}
			latest[e.key] = mark{e, at}
		}
	}
}

// verdicts checks that the outcome of every event is what its last answer says.
func (a *audit) verdicts() {
	for _, e := range a.order {
		for _, o := range e.outcomes {
			if len(o.entry) == 0 {
				a.fail("%s: event %s ended without a call", o.place, e.id)
				continue
			}
			last := o.entry[len(o.entry)-1]
			class, h := o.record.Headers["millrace.class"], o.record.Headers
			want := enrichedTopic
			switch last.fate {
			case good:
			case refused, huge:
				want = fallbackTopic
			default:
				want = deadTopic
			}
			late := class == string(hangs) // an attempt may be too slow for us, whatever its answer was
			if want != o.topic && !late {
				a.fail("%s: event %s ended here, but its last call (%+v) leads to %s", o.place, e.id, last, want)
			}
			if o.topic == deadTopic && class != string(last.fate) && !late {
				a.fail("%s: a dead letter of class %s after a call that ended %s", o.place, class, last.fate)
			}
			if o.topic == deadTopic && last.fate.asks() && h["millrace.answer"] != last.text && !late {
				a.fail("%s: the dead letter holds the answer %q, which was %q", o.place, h["millrace.answer"], last.text)
			}
			status := map[string]string{fallbackTopic: "fallback", deadTopic: "dead-letter", enrichedTopic: "ok"}[o.topic]
			if o.topic == enrichedTopic && last.round > 0 {
				status = "reasked"
			}
			if h["millrace.status"] != status || h["millrace.prompt"] != "note" || h["millrace.model"] != "openai/"+last.model {
				a.fail("%s: headers %v after the call %+v: want status %s", o.place, h, last, status)
			}
			if n, err := strconv.Atoi(h["millrace.attempts"]); err != nil || n < last.attempt || n > last.attempt && !late && o.topic != deadTopic {
				a.fail("%s: header millrace.attempts is %q, but the last attempt was number %d", o.place, h["millrace.attempts"], last.attempt)
			}
		}
	}
}

// raw checks that every refused answer, and nothing else, is in the raw topic: that of
// every round but the last, and of the last if it refused the event.
func (a *audit) raw() {
	a.refused = map[string]checker.Record{}
	for p, records := range a.logs[rawTopic] {
		for _, r := range records {
			where := fmt.Sprintf("%s/%d/%d", rawTopic, p, r.Offset)
			if r.Headers["millrace.status"] != "refused" {
				a.fail("%s: headers %v are not those of a refused answer", where, r.Headers)
			}
			at := r.Headers["millrace.entry"] + "#" + r.Headers["millrace.round"]
			if _, twice := a.refused[at]; twice {
				a.fail("%s: the answer to %s is there twice", where, at)
			}
			a.refused[at] = r
		}
	}
	a.sum.Violations = len(a.refused)
	want := 0
	for _, e := range a.order {
		for _, o := range e.outcomes {
			if len(o.entry) == 0 {
				continue
			}
			last := o.entry[len(o.entry)-1]
			rounds := last.round // each of these was refused
			if class := o.record.Headers["millrace.class"]; o.topic == deadTopic && fate(class).asks() {
				rounds++
			}
			want += rounds
			for n := range rounds {
				a.answered(o, n)
			}
		}
	}
	if want != len(a.refused) {
		a.fail("%s: %d answers, must be %d", rawTopic, len(a.refused), want)
	}
}

// answered checks that the raw topic holds the answer to a round.
func (a *audit) answered(o outcome, round int) {
	at := fmt.Sprintf("%s#%d", o.id, round)
	r, ok := a.refused[at]
	if !ok {
		a.fail("%s: the refused answer to %s is missing", rawTopic, at)
		return
	}
	for _, c := range o.entry {
		if c.round == round && c.fate.asks() && c.text == string(r.Value) {
			return
		}
	}
	a.fail("%s: the answer to %s is %q, which the model never gave", rawTopic, at, r.Value)
}

// pending checks that no event is left in the rows of the step's tasks.
func (a *audit) pending() {
	rows := map[string]bool{}
	for _, records := range a.logs[entriesTopic] {
		for _, r := range records {
			rows[r.Key] = !r.Null
		}
	}
	n := 0
	for _, key := range slices.Sorted(maps.Keys(rows)) {
		if strings.HasPrefix(key, "e"+step+"\x00") && rows[key] {
			n++
		}
	}
	if n > 0 {
		a.fail("%s: %d events are still in flight", entriesTopic, n)
	}
}

// A talk is the conversation of a key, recomputed.
type talk struct {
	turns   []*millracev1.Turn
	shown   []exchange // one for two turns
	updated int64
	dropped int64
}

// context recomputes, in the order of each key, what every answer was shown, and the
// conversation that the accepted answers make.
func (a *audit) context() {
	talks := map[string]*talk{}
	for _, e := range a.order {
		for _, o := range e.outcomes {
			if o.topic != enrichedTopic || len(o.entry) == 0 {
				continue
			}
			n := &chaosv1.Note{}
			if proto.Unmarshal(o.record.Value, n) != nil {
				continue // it has been reported
			}
			t := &talk{}
			if !a.strict && !e.null {
				if t = talks[e.key]; t == nil || e.timestamp-t.updated > sessionGap.Milliseconds() {
					t = &talk{}
					talks[e.key] = t
				}
			}
			if want := digest(t.shown); n.GetContext() != want || int(n.GetShown()) != 2*len(t.shown) {
				a.fail("%s: event %s was answered with context %s of %d turns, must be %s of %v", o.place, e.id, n.GetContext(), n.GetShown(), want, t.shown)
			}
			t.add(e, o, n)
		}
	}
	a.sum.Conversations = len(talks)
	if !a.strict {
		a.conversations(talks)
	}
}

// add adds an exchange and drops the oldest ones that do not fit.
func (t *talk) add(e *event, o outcome, n *chaosv1.Note) {
	last := o.entry[len(o.entry)-1]
	asked := fmt.Sprintf("Event: <data>%s</data>", e.text)
	t.turns = append(t.turns,
		&millracev1.Turn{Role: millracev1.Role_ROLE_USER, Text: asked, Tokens: int64(len(asked)*2)/7 + 1, Event: o.id, Timestamp: e.timestamp},
		&millracev1.Turn{
			Role: millracev1.Role_ROLE_ASSISTANT, Tokens: last.tokens, Event: o.id, Timestamp: e.timestamp,
			Model: &millracev1.ModelID{Provider: "openai", Model: last.model},
		})
	t.shown = append(t.shown, exchange{n.GetEvent(), n.GetContext()})
	t.updated = max(t.updated, e.timestamp)
	for tokens := int64(0); ; tokens = 0 {
		for _, turn := range t.turns {
			tokens += turn.Tokens
		}
		if len(t.turns) <= maxTurns && tokens <= maxTokens || len(t.turns) == 0 {
			return
		}
		t.turns, t.shown, t.dropped = t.turns[2:], t.shown[1:], t.dropped+2
	}
}

// conversations compares the changelog of the conversations with the recomputation.
func (a *audit) conversations(want map[string]*talk) {
	have := map[string]*millracev1.Conversation{}
	for _, records := range a.logs[talksTopic] {
		for _, r := range records {
			c := &millracev1.Conversation{}
			if err := proto.Unmarshal(r.Value, c); err != nil || r.Null {
				a.fail("%s: key %s: null, or %v", talksTopic, r.Key, err)
			}
			have[r.Key] = c
		}
	}
	for _, key := range slices.Sorted(maps.Keys(have)) {
		if want[key] == nil {
			a.fail("%s: key %s has a conversation, and no answer", talksTopic, key)
		}
	}
	for _, key := range slices.Sorted(maps.Keys(want)) {
		if why := want[key].differs(have[key]); why != "" {
			a.fail("%s: the conversation of key %s is not what was answered: %s", talksTopic, key, why)
		}
	}
}

// differs says what is wrong with a conversation.
func (t *talk) differs(c *millracev1.Conversation) string {
	if len(c.GetTurns()) != len(t.turns) || c.GetUpdated() != t.updated || c.GetDropped() != t.dropped {
		return fmt.Sprintf("%d turns until %d, %d dropped; must be %d until %d, %d dropped", len(c.GetTurns()), c.GetUpdated(), c.GetDropped(), len(t.turns), t.updated, t.dropped)
	}
	for i, got := range c.GetTurns() {
		want := t.turns[i]
		if got.Role != want.Role || got.Tokens != want.Tokens || got.Event != want.Event || got.Timestamp != want.Timestamp ||
			!proto.Equal(got.Model, want.Model) || got.Prompt != "note" {
			return fmt.Sprintf("turn %d is %v, must be %v", i, got, want)
		}
		if i%2 == 0 {
			if got.Text != want.Text {
				return fmt.Sprintf("turn %d is %q, must be %q", i, got.Text, want.Text)
			}
		} else if x, err := readNote(got.Text); err != nil || x != t.shown[i/2] {
			return fmt.Sprintf("turn %d is %q, must be %v", i, got.Text, t.shown[i/2])
		}
	}
	return ""
}
