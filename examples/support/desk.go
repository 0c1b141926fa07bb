package main

import (
	"errors"
	"strings"
	"time"
	"unicode"

	supportv1 "github.com/millrace/millrace/examples/support/proto/support/v1"
	"github.com/millrace/millrace/llm"
	"github.com/millrace/millrace/llm/prompt"
	"github.com/millrace/millrace/processors"
	"github.com/millrace/millrace/serde"
	"github.com/millrace/millrace/topology"
)

// appName names the application, and with it its topics and groups.
const appName = "support"

// The topics: those of dead letters and refused answers the application creates itself.
const (
	ticketsTopic     = "support-tickets"     // input: tickets by customer
	casesTopic       = "support-cases"       // output: triaged tickets by customer
	escalationsTopic = "support-escalations" // output: those that are urgent
	untriagedTopic   = "support-untriaged"   // output: tickets that no model could be asked about
	lettersTopic     = "support.triage.dlq"  // tickets without a valid answer
)

var triagePrompt = prompt.Must(prompt.Config{
	Name: "triage",
	System: "You triage the tickets of a support desk. You see what the customer wrote before, and how it was triaged. " +
		"The evidence has to be words of the ticket, as they stand there.",
	User: "Subject: {{.Event.Subject}}\nTicket: {{.Event.Text}}",
})

// describe returns the topology: every ticket becomes a case, an untriaged ticket or a
// dead letter, and urgent cases are escalated.
func describe(model llm.Model, timeout time.Duration) *topology.Builder {
	b := topology.New(appName)
	tickets := topology.Stream(b, ticketsTopic, serde.String(), serde.Proto[*supportv1.Ticket]())
	triage := topology.Enrich(tickets, "triage", topology.Enrichment[string, *supportv1.Ticket, *supportv1.Triage]{
		Model:         model,
		Prompt:        triagePrompt,
		Check:         check,
		MaxTokens:     400,
		OnOpenBreaker: processors.OpenFallback,
		Conversation:  &topology.Conversation{MaxTurns: 10, MaxTokens: 2000, SessionGap: 7 * 24 * time.Hour},
		Budgets: []topology.Budget[string, *supportv1.Ticket]{{
			Name: "customer", Scope: processors.BudgetKey, Tokens: 200_000, Window: 24 * time.Hour, AtLimit: processors.BudgetFallback,
		}},
	}, topology.AttemptTimeout(timeout), topology.Deadline(5*timeout))

	cases := topology.MapValues(triage.Answers(), caseOf).WithValueSerde(serde.Proto[*supportv1.Case]())
	cases.To(casesTopic)
	cases.Filter(urgent).To(escalationsTopic)
	triage.Fallbacks().To(untriagedTopic)
	return b
}

// check holds an answer to what its rules cannot say.
func check(in *supportv1.Ticket, out *supportv1.Triage) error {
	var errs []error
	if !strings.Contains(in.GetText(), out.GetEvidence()) {
		errs = append(errs, errors.New("evidence has to be words of the ticket"))
	}
	if out.Category == nil || out.Reply == nil {
		errs = append(errs, errors.New("category and reply are needed"))
	}
	if strings.Contains(out.GetReply(), "://") {
		errs = append(errs, errors.New("reply must hold no link"))
	}
	for _, text := range []string{out.GetEvidence(), out.GetSummary(), out.GetReply()} {
		if strings.ContainsFunc(text, func(r rune) bool { return unicode.IsControl(r) && r != '\n' }) {
			errs = append(errs, errors.New("no text may hold control characters"))
			break
		}
	}
	return errors.Join(errs...)
}

func caseOf(a processors.Answer[*supportv1.Ticket, *supportv1.Triage]) *supportv1.Case {
	return &supportv1.Case{Ticket: a.Event.GetId(), Customer: a.Event.GetCustomer(), Triage: a.Result}
}

func urgent(_ string, c *supportv1.Case) bool {
	return c.GetTriage().GetUrgency() >= supportv1.Urgency_URGENCY_HIGH
}
