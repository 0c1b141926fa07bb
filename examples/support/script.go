package main

import (
	"encoding/json"
	"strings"
	"sync/atomic"

	"github.com/millrace/millrace/llm"
	"github.com/millrace/millrace/llm/llmtest"
)

// A script stands for a model, so that the example runs offline: it knows a few words,
// and does what a ticket tells it to until it is steady.
type script struct {
	steady atomic.Bool
}

// rules say what a word of a ticket means.
var rules = []struct{ word, category, urgency, summary, reply string }{
	{"down", "CATEGORY_OUTAGE", "URGENCY_CRITICAL", "an outage", "We are looking into it."},
	{"charged twice", "CATEGORY_BILLING", "URGENCY_HIGH", "charged twice", "We are checking your invoice."},
	{"invoice", "CATEGORY_BILLING", "URGENCY_LOW", "a wrong invoice", "We are checking your invoice."},
	{"log in", "CATEGORY_ACCOUNT", "URGENCY_LOW", "a new device", "You can set up a new device with your recovery code."},
	{"password", "CATEGORY_ACCOUNT", "URGENCY_LOW", "a new password", "You find that in your settings."},
	{"", "CATEGORY_OTHER", "URGENCY_LOW", "nothing to do", "Thank you for writing."},
}

// answer is what the model says to a call.
func (s *script) answer(c *llmtest.Call) string {
	asked, before := "", 0
	for _, m := range c.Messages {
		if m.Role == llm.RoleUser && strings.HasPrefix(m.Text, "Subject: ") {
			asked = m.Text
			before++
		}
	}
	_, ticket, _ := strings.Cut(asked, "Ticket: <data>")
	ticket, _, _ = strings.Cut(ticket, "</data>")
	if !s.steady.Load() && strings.Contains(ticket, "poem") {
		return "The sea, the sea, so blue and wide,\nit carries tickets with the tide."
	}
	for _, r := range rules {
		if !strings.Contains(ticket, r.word) {
			continue
		}
		evidence := ticket
		for sentence := range strings.SplitAfterSeq(ticket, ".") {
			if strings.Contains(sentence, r.word) {
				evidence = strings.TrimSpace(sentence)
				break
			}
		}
		reply, urgency := r.reply, r.urgency
		if before > 1 {
			reply, urgency = "Thank you for your patience. "+reply, strings.Replace(urgency, "LOW", "HIGH", 1)
		}
		text, err := json.Marshal(map[string]string{
			"evidence": evidence, "urgency": urgency, "summary": r.summary, "category": r.category, "reply": reply,
		})
		if err != nil { // strings only
			panic(err)
		}
		return string(text)
	}
	return ""
}
