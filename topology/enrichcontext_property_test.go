package topology_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/millrace/millrace/llm"
	"github.com/millrace/millrace/processors"
	millracev1 "github.com/millrace/millrace/proto/millrace/v1"
	"github.com/millrace/millrace/serde"
	"github.com/millrace/millrace/topology"
	"github.com/millrace/millrace/topologytest"
)

// Whatever is asked, reset and cut out, whenever the process is killed: what is kept of
// every key is what its inputs, in order, and the answers come to; no request is paid
// for twice.
func TestConversationsAreWhatTheInputsSay(t *testing.T) {
	t.Parallel()
	for seed := range uint64(60) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) { talkRun(t, rand.New(rand.NewPCG(seed, 2))) })
		})
	}
}

// A said is an input of a key: an event, or a control record.
type said struct {
	offset int
	reset  bool
	cut    int // the offset of the event, -1 for none
}

const talkWindow = 6

func talkRun(t *testing.T, rng *rand.Rand) {
	refuses, failed := rng.IntN(3) == 0, map[string]bool{} // by entry, the summary after it
	asked := map[string]bool{}
	m := &fakeModel{id: llm.ID{Provider: "openai", Model: "m"}}
	m.answer = func(ctx context.Context, req *llm.Request) (string, error) {
		e, _ := processors.EntryFromContext(ctx)
		h := llm.HeaderFrom(ctx)
		round := h.Get("X-Millrace-Entry") + "#" + h.Get("X-Millrace-Round")
		if asked[round] || e.ID == "" {
			t.Errorf("%s is asked twice", round)
		}
		asked[round] = true
		if req.Schema != nil {
			return goodAnswer, nil
		}
		if refuses && rng.IntN(2) == 0 {
			failed[h.Get("X-Millrace-Entry")] = true
			return "", &llm.Error{Class: llm.Refused, Model: m.id, Err: errors.New("scripted")}
		}
		return "in short", nil
	}
	e := enrich{Model: m, Conversation: &topology.Conversation{MaxTurns: talkWindow}}
	summarizes := rng.IntN(3) > 0
	if summarizes {
		e.Conversation.Summary = &topology.Summary{}
	}
	d := newDesk(t, e)
	inputs := map[string][]said{}
	for n := 0; n < 60 || len(d.Calls()) > 0; {
		key := fmt.Sprint("k", rng.IntN(3))
		s := said{offset: n, cut: -1}
		switch k := rng.IntN(24); {
		case n >= 60 || k >= 12:
			if calls := d.Calls(); len(calls) > 0 {
				calls[rng.IntN(len(calls))].Run()
			}
			continue
		case k == 0:
			d.Restart()
			d.Advance(time.Second)
			continue
		case k == 1 && len(d.Calls()) > 0:
			d.Calls()[0].Release()
			continue
		case k == 2:
			s.reset = true
			d.control(key, processors.ResetConversation())
		case k == 3 && n > 0:
			s.cut = rng.IntN(n)
			d.control(key, processors.CutConversation(fmt.Sprint("tickets/0/", s.cut)))
		default:
			d.pipe(key, fmt.Sprint("text ", n))
		}
		inputs[key] = append(inputs[key], s)
		n++
	}
	for key, list := range inputs {
		want, talk := recompute(list, summarizes, failed), d.talk(key)
		if talk == nil {
			talk = &millracev1.Conversation{}
		}
		var turns, sum []int
		for i := 0; i < len(talk.Turns); i += 2 {
			turns = append(turns, offsetOf(talk.Turns[i].Event))
		}
		for _, e := range talk.Summary.GetEvents() {
			sum = append(sum, offsetOf(e))
		}
		if !slices.Equal(turns, want.turns) || !slices.Equal(sum, want.summary) {
			t.Errorf("key %s: turns %v, summary of %v; want %v", key, turns, sum, want)
		}
	}
	rows := topologytest.KeyValue(d.Driver, "triage-conversations", serde.String(), serde.Proto[*millracev1.Conversation]()).Rows()
	if size := d.StoreSizes()["triage-conversations"]; size.Rows != int64(len(rows)) || (size.Bytes == 0) != (len(rows) == 0) {
		t.Errorf("%d conversations, counted %+v", len(rows), size)
	}
	if len(d.DeadLetters())+len(d.Failures()) > 0 {
		t.Errorf("%d dead letters, %d failures", len(d.DeadLetters()), len(d.Failures()))
	}
}

func offsetOf(event string) int {
	n, err := strconv.Atoi(strings.Split(event, "/")[3])
	if err != nil {
		panic(err)
	}
	return n
}

// kept is what the recomputation keeps: the offsets of events.
type kept struct{ turns, summary []int }

// recompute says what a conversation comes to: each event has two turns.
func recompute(list []said, summarizes bool, failed map[string]bool) (k kept) {
	for _, s := range list {
		switch {
		case s.reset:
			k = kept{}
			continue
		case s.cut >= 0:
			k.turns = slices.DeleteFunc(k.turns, func(n int) bool { return n == s.cut })
			if slices.Contains(k.summary, s.cut) {
				k.summary = nil
			}
			continue
		}
		k.turns = append(k.turns, s.offset)
		if 2*len(k.turns) <= talkWindow {
			continue
		}
		keep := talkWindow / 2
		if summarizes && !failed[fmt.Sprintf("triage/tickets/0/%d/0", s.offset)] {
			keep = talkWindow / 4
			k.summary = append(k.summary, k.turns[:len(k.turns)-keep]...)
		}
		k.turns = k.turns[len(k.turns)-keep:]
	}
	return k
}
