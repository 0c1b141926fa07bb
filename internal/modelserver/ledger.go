package modelserver

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"sync"
	"time"
)

// The headers by which a caller labels its requests. Calls without an entry are
// counted, but nothing more can be said about them.
const (
	HeaderEntry   = "X-Millrace-Entry"   // the in-flight entry that asks
	HeaderRound   = "X-Millrace-Round"   // which request of the entry this is, from 0
	HeaderAttempt = "X-Millrace-Attempt" // which try of the round, from 1; 0 or absent when unknown
	HeaderOwner   = "X-Millrace-Owner"   // the process that asks, one name per incarnation
)

// CallID is how a caller labels a request.
type CallID struct {
	Entry   string `json:"entry,omitempty"`
	Round   int    `json:"round,omitempty"`
	Attempt int    `json:"attempt,omitempty"` // 0 when unknown
	Owner   string `json:"owner,omitempty"`
}

// IDFromHeader reads the labels of a request. Numbers that cannot be read are 0.
func IDFromHeader(h http.Header) CallID {
	round, _ := strconv.Atoi(h.Get(HeaderRound))
	attempt, _ := strconv.Atoi(h.Get(HeaderAttempt))
	return CallID{Entry: h.Get(HeaderEntry), Round: round, Attempt: attempt, Owner: h.Get(HeaderOwner)}
}

// Outcome is how a call ended, as the server sees it.
type Outcome string

// The outcomes of a call.
const (
	Running  Outcome = ""         // it has not ended
	Answered Outcome = "answered" // a whole, usable answer was sent: this is what costs money
	Sent     Outcome = "sent"     // a whole answer was sent; whether it is usable is for the caller to say
	Unusable Outcome = "unusable" // a whole answer was sent that the caller has to reject
	Refused  Outcome = "refused"  // an error was sent: 4xx, 429, 500
	Broken   Outcome = "broken"   // the server cut its answer off
	Gone     Outcome = "gone"     // the caller's connection vanished before an answer was sent
)

// Stats are the figures of a [Ledger].
type Stats struct {
	Calls     int `json:"model_calls"` // requests received
	Running   int `json:"running"`
	Answered  int `json:"answered"`
	Unusable  int `json:"unusable"`
	Refused   int `json:"refused"`
	Broken    int `json:"broken"`
	Gone      int `json:"gone"`
	Unlabeled int `json:"unlabeled"` // calls without an entry

	// PaidTwice counts calls for an entry and round that was asked before, where
	// the earlier call was answered, or still ran, under an owner that lived on,
	// or had an outcome known to be durable: nobody needed to ask again.
	PaidTwice int `json:"paid_twice"`
	// Interrupted counts calls for an entry and round that was asked before,
	// where the owner of the earlier call died, or had to cancel it, before its
	// outcome was durable.
	Interrupted int `json:"interrupted"`
	// Retried counts further attempts of the same owner after an attempt that
	// brought no usable answer.
	Retried int `json:"retried"`
}

// A Ledger remembers every call and tells whether one was made twice, and why.
// It keeps about 300 bytes per labelled call for as long as it lives. It is safe
// for concurrent use.
//
// An answer that was sent is not yet safe: its owner may die before it has
// written it down. The ledger therefore also takes two facts from outside: that
// an owner died ([Ledger.OwnerDied]) and that an answer is durable
// ([Ledger.Durable]). Without the second, an answer whose owner died counts as
// not written down.
type Ledger struct {
	now func() time.Time

	mu      sync.Mutex
	stats   Stats // without the three that classify derives
	next    int   // number of the next call
	asks    map[ask]*history
	died    map[string]time.Time
	journal *json.Encoder
	err     error // of the journal
}

type ask struct {
	entry string
	round int
}

type history struct {
	calls   []*Call
	durable time.Time // zero: not known to be
}

// A Call is one request in a ledger.
type Call struct {
	ledger  *Ledger
	number  int
	id      CallID
	start   time.Time
	end     time.Time
	outcome Outcome
	hungUp  time.Time // when the caller closed the connection after the answer was sent
}

// NewLedger returns an empty ledger. A nil now means [time.Now].
func NewLedger(now func() time.Time) *Ledger {
	if now == nil {
		now = time.Now
	}
	return &Ledger{now: now, asks: map[ask]*history{}, died: map[string]time.Time{}}
}

// Begin records that a request arrived.
func (l *Ledger) Begin(id CallID) *Call {
	l.mu.Lock()
	defer l.mu.Unlock()
	c := l.begin(l.next, id, l.now())
	l.write(line{At: c.start, Event: "begin", Call: c.number, ID: &id})
	return c
}

func (l *Ledger) begin(number int, id CallID, at time.Time) *Call {
	c := &Call{ledger: l, number: number, id: id, start: at}
	l.next = max(l.next, number+1)
	l.stats.Calls++
	l.stats.Running++
	if id.Entry == "" {
		l.stats.Unlabeled++
		return c
	}
	h := l.history(ask{id.Entry, id.Round})
	h.calls = append(h.calls, c)
	return c
}

func (l *Ledger) history(a ask) *history {
	h := l.asks[a]
	if h == nil {
		h = &history{}
		l.asks[a] = h
	}
	return h
}

// End records how the call ended. Only the first End counts.
func (c *Call) End(outcome Outcome) {
	l := c.ledger
	l.mu.Lock()
	defer l.mu.Unlock()
	if c.outcome != Running {
		return
	}
	l.end(c, outcome, l.now())
	l.write(line{At: c.end, Event: "end", Call: c.number, Outcome: outcome})
}

func (l *Ledger) end(c *Call, outcome Outcome, at time.Time) {
	c.end, c.outcome = at, outcome
	l.stats.Running--
	switch outcome {
	case Answered, Sent:
		l.stats.Answered++
	case Unusable:
		l.stats.Unusable++
	case Refused:
		l.stats.Refused++
	case Broken:
		l.stats.Broken++
	case Gone:
		l.stats.Gone++
	}
}

// HungUp records that the caller closed the connection after the answer to the
// call had been sent on it. Only the first counts.
func (c *Call) HungUp() {
	l := c.ledger
	l.mu.Lock()
	defer l.mu.Unlock()
	if c.hungUp.IsZero() {
		c.hungUp = l.now()
		l.write(line{At: c.hungUp, Event: "hungup", Call: c.number})
	}
}

// OwnerDied records that the process of that name is dead from now on.
func (l *Ledger) OwnerDied(owner string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if _, ok := l.died[owner]; ok {
		return
	}
	l.died[owner] = l.now()
	l.write(line{At: l.died[owner], Event: "died", ID: &CallID{Owner: owner}})
}

// Durable records that the outcome of the round of the entry is known to be
// written down where no death of its owner can lose it.
func (l *Ledger) Durable(entry string, round int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	h := l.history(ask{entry, round})
	if h.durable.IsZero() {
		h.durable = l.now()
		l.write(line{At: h.durable, Event: "durable", ID: &CallID{Entry: entry, Round: round}})
	}
}

// InFlight counts the rounds of entries that the owner asked for and of which no
// outcome is known to be durable: what its death now may interrupt.
func (l *Ledger) InFlight(owner string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := 0
	for _, h := range l.asks {
		if h.durable.IsZero() && len(h.calls) > 0 && h.calls[len(h.calls)-1].id.Owner == owner {
			n++
		}
	}
	return n
}

// Stats returns the figures so far.
func (l *Ledger) Stats() Stats {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := l.stats
	for _, h := range l.asks {
		for i := 1; i < len(h.calls); i++ {
			switch l.judge(h, i) {
			case paidTwice:
				s.PaidTwice++
			case interrupted:
				s.Interrupted++
			case retried:
				s.Retried++
			}
		}
	}
	return s
}

// hangUp is how soon after an answer a closed connection means that its caller
// no longer waited for it. Callers keep idle connections far longer.
const hangUp = time.Second

// verdict says why a request was made again, worst last.
type verdict uint8

const (
	retried verdict = iota
	interrupted
	paidTwice
)

// judge compares call i of a history with those before it: with all, or, if it
// is a further attempt, with those since the attempt before it, which has been
// judged itself.
func (l *Ledger) judge(h *history, i int) verdict {
	again := h.calls[i]
	from := 0
	for j, c := range h.calls[:i] {
		if c.id.Owner == again.id.Owner && c.id.Attempt > 0 && c.id.Attempt < again.id.Attempt {
			from = j
		}
	}
	worst := retried
	for _, first := range h.calls[from:i] {
		worst = max(worst, l.compare(first, again, h.durable))
	}
	return worst
}

func (l *Ledger) compare(first, again *Call, durable time.Time) verdict {
	before := func(t time.Time) bool { return !t.IsZero() && !t.After(again.start) }
	ended := first.outcome != Running && !first.end.After(again.start)
	nextAttempt := first.id.Owner == again.id.Owner && (again.id.Attempt == 0 || again.id.Attempt > first.id.Attempt)
	switch {
	case ended && before(durable):
		return paidTwice
	case before(l.died[first.id.Owner]):
		return interrupted
	case !ended && first.outcome == Running:
		return retried // not known yet: it may still be cancelled
	case !ended && first.outcome != Gone: // two at once
		return paidTwice
	case ended && first.outcome == Answered:
		return resent(first, before)
	case nextAttempt: // it timed out, which the server may have seen later, or it failed
		return retried
	case ended && first.outcome == Sent:
		return resent(first, before)
	}
	return interrupted // cancelled, in an attempt or between two
}

// resent judges a request that was made again after a whole answer to it.
func resent(first *Call, before func(time.Time) bool) verdict {
	if before(first.hungUp) && first.hungUp.Sub(first.end) < hangUp {
		return interrupted // it was cancelled, or timed out, while its answer was on the way
	}
	return paidTwice
}

// A line is one event of a ledger's journal.
type line struct {
	At      time.Time `json:"at"`
	Event   string    `json:"event"`
	Call    int       `json:"call,omitempty"`
	ID      *CallID   `json:"id,omitempty"`
	Outcome Outcome   `json:"outcome,omitempty"`
}

func (l *Ledger) write(e line) {
	if l.journal != nil && l.err == nil {
		l.err = l.journal.Encode(e)
	}
}

// Journal makes the ledger write every later event to w, one JSON line each. The
// first error ends it and is returned by [Ledger.Err].
func (l *Ledger) Journal(w io.Writer) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.journal = json.NewEncoder(w)
}

// Err returns the error that ended the journal, if one did.
func (l *Ledger) Err() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.err
}

// Replay takes in a journal of earlier processes, into a ledger that is still
// empty. All their owners and connections are gone: calls that had not ended end
// as [Gone], and owners are dead as of the last event. A last line that was cut
// off by a crash is ignored.
func (l *Ledger) Replay(r io.Reader) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	calls := map[int]*Call{}
	owners := map[string]bool{}
	var last time.Time
	dec := json.NewDecoder(r)
	for n := 1; ; n++ {
		var e line
		err := dec.Decode(&e)
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			break
		}
		if err != nil {
			return fmt.Errorf("journal of calls, line %d: %w; remove the file to start counting anew", n, err)
		}
		if !l.replay(e, calls, owners) {
			return fmt.Errorf("journal of calls, line %d: event %q makes no sense here; remove the file to start counting anew", n, e.Event)
		}
		last = e.At
	}
	for _, c := range calls {
		if c.outcome == Running {
			l.end(c, Gone, last)
		}
	}
	for owner := range owners {
		if _, ok := l.died[owner]; !ok {
			l.died[owner] = last
		}
	}
	return nil
}

func (l *Ledger) replay(e line, calls map[int]*Call, owners map[string]bool) bool {
	call := calls[e.Call]
	switch {
	case e.Event == "begin" && e.ID != nil:
		calls[e.Call] = l.begin(e.Call, *e.ID, e.At)
		owners[e.ID.Owner] = true
	case e.Event == "end" && call != nil && call.outcome == Running && e.Outcome != Running:
		l.end(call, e.Outcome, e.At)
	case e.Event == "hungup" && call != nil:
		call.hungUp = e.At
	case e.Event == "died" && e.ID != nil:
		l.died[e.ID.Owner] = e.At
	case e.Event == "durable" && e.ID != nil:
		l.history(ask{e.ID.Entry, e.ID.Round}).durable = e.At
	default:
		return false
	}
	return true
}
