// Command support is an example application: a model triages the tickets of a support
// desk, knowing what the customer wrote before; urgent ones are escalated; a ticket
// without a valid answer is a dead letter, which is replayed in the end.
//
//	go run ./examples/support
//
// runs it with a broker and a scripted model of its own. Its flags put a Kafka cluster and
// any OpenAI-compatible server in their place.
package main

import (
	"bufio"
	"bytes"
	"context"
	_ "embed"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"net/http/httptest"
	"os"
	"os/signal"
	"slices"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/millrace/millrace"
	supportv1 "github.com/millrace/millrace/examples/support/proto/support/v1"
	"github.com/millrace/millrace/internal/broker"
	"github.com/millrace/millrace/llm"
	"github.com/millrace/millrace/llm/llmtest"
	"github.com/millrace/millrace/llm/openai"
	"github.com/millrace/millrace/processors"
)

//go:embed data/tickets.jsonl
var ourTickets []byte

// keyVariable is the environment variable with the key of the model's server.
const keyVariable = "OPENAI_API_KEY"

// config holds the flags.
type config struct {
	input, brokers            string
	modelURL, model, provider string
	timeout                   time.Duration
}

func main() {
	var c config
	fs := flag.NewFlagSet("support", flag.ExitOnError)
	fs.StringVar(&c.input, "input", "", "`file` of tickets, a JSON object in each line (default: eight of our own)")
	fs.StringVar(&c.brokers, "brokers", "", "`addresses` of a Kafka cluster without encryption, with commas between them, whose topics support-tickets, support-cases, support-escalations and support-untriaged exist (default: an embedded broker)")
	fs.StringVar(&c.modelURL, "model-url", "", "`URL` of an OpenAI-compatible server, up to /v1; the key is taken from "+keyVariable+" (default: a scripted model)")
	fs.StringVar(&c.model, "model", "script", "`name` of the model")
	fs.StringVar(&c.provider, "provider", "", "what serves it, which decides the form of the schema: openai, azure, vllm, llamacpp or ollama (default: what all of them understand)")
	fs.DurationVar(&c.timeout, "timeout", 30*time.Second, "how long one attempt of the model may take")
	_ = fs.Parse(os.Args[1:]) // exits
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	err := run(ctx, c, os.Stdout)
	stop()
	if err != nil {
		log.Fatal(err)
	}
}

// run triages all tickets, prints what became of them, and replays the dead letters.
func run(ctx context.Context, c config, out io.Writer) (err error) {
	tickets, err := readTickets(c.input)
	if err != nil {
		return err
	}
	if c.brokers == "" {
		b, err := broker.StartEmbedded(broker.EmbeddedConfig{})
		if err != nil {
			return err
		}
		defer b.Close()
		c.brokers = b.Addr()
		var topics []broker.Topic
		for _, name := range []string{ticketsTopic, casesTopic, escalationsTopic, untriagedTopic} {
			topics = append(topics, broker.Topic{Name: name, Partitions: 2})
		}
		if err := broker.CreateTopics(ctx, c.brokers, topics...); err != nil {
			return err
		}
	}
	scripted := &script{}
	if c.modelURL == "" {
		h := llmtest.NewHandler(llmtest.Config{Steps: []llmtest.Step{llmtest.AnswerWith(scripted.answer)}})
		defer h.Close()
		server := httptest.NewServer(h)
		defer server.Close()
		c.modelURL = server.URL + "/v1"
	}
	state, err := os.MkdirTemp("", "millrace-support-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(state)
	app, err := start(c, state)
	if err != nil {
		return err
	}
	running, stop := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() { ended <- app.Run(running) }()
	defer func() {
		stop()
		err = errors.Join(err, <-ended)
	}()

	desk, err := newClient(c.brokers)
	if err != nil {
		return err
	}
	defer desk.Close()
	if err := desk.send(ctx, tickets); err != nil {
		return err
	}
	outcomes, err := desk.await(ctx, len(tickets), ended)
	if err != nil {
		return err
	}
	report(out, outcomes)

	scripted.steady.Store(true) // as if the model, or the prompt, had been mended
	letters, err := millrace.NewDeadLetters(appName, millrace.Brokers(strings.Split(c.brokers, ",")...))
	if err != nil {
		return err
	}
	replayed, err := letters.Replay(ctx, millrace.Replay{Rate: 10, Filter: millrace.DeadLetterFilter{Step: "triage"}})
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "%d dead letters replayed\n", replayed.Replayed)
	if outcomes, err = desk.await(ctx, replayed.Replayed, ended); err != nil {
		return err
	}
	report(out, outcomes)
	return nil
}

// start returns the application, with a state directory.
func start(c config, state string, opts ...millrace.Option) (*millrace.App, error) {
	cfg := openai.Config{Provider: c.provider, Endpoint: llm.Endpoint{URL: strings.TrimSuffix(c.modelURL, "/")}}
	if os.Getenv(keyVariable) != "" {
		cfg.Key = llm.KeyFromEnv(keyVariable)
	}
	model, err := openai.New(c.model, cfg)
	if err != nil {
		return nil, err
	}
	opts = append([]millrace.Option{millrace.Brokers(strings.Split(c.brokers, ",")...), millrace.StateDir(state)}, opts...)
	return millrace.New(describe(model, c.timeout), opts...)
}

func readTickets(name string) ([]*supportv1.Ticket, error) {
	data := ourTickets
	if name != "" {
		var err error
		if data, err = os.ReadFile(name); err != nil {
			return nil, err
		}
	}
	var tickets []*supportv1.Ticket
	lines := bufio.NewScanner(bytes.NewReader(data))
	lines.Buffer(nil, 1<<20)
	for n := 1; lines.Scan(); n++ {
		if len(bytes.TrimSpace(lines.Bytes())) == 0 {
			continue
		}
		t := &supportv1.Ticket{}
		if err := protojson.Unmarshal(lines.Bytes(), t); err != nil {
			return nil, fmt.Errorf("tickets, line %d: %w", n, err)
		}
		tickets = append(tickets, t)
	}
	return tickets, lines.Err()
}

// A client writes tickets and reads what becomes of them.
type client struct{ *kgo.Client }

func newClient(brokers string) (*client, error) {
	cl, err := kgo.NewClient(
		kgo.SeedBrokers(strings.Split(brokers, ",")...),
		kgo.FetchIsolationLevel(kgo.ReadCommitted()), // or it would see what is not decided
		kgo.ConsumeTopics(casesTopic, escalationsTopic, untriagedTopic, lettersTopic),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()),
		kgo.MetadataMinAge(100*time.Millisecond), kgo.UnknownTopicRetries(-1), // the application creates one of them
	)
	return &client{cl}, err
}

func (c *client) send(ctx context.Context, tickets []*supportv1.Ticket) error {
	var records []*kgo.Record
	for _, t := range tickets {
		value, err := proto.Marshal(t)
		if err != nil {
			return fmt.Errorf("ticket %s: %w", t.GetId(), err)
		}
		records = append(records, &kgo.Record{Topic: ticketsTopic, Key: []byte(t.GetCustomer()), Value: value})
	}
	return c.ProduceSync(ctx, records...).FirstErr()
}

// An outcome is what became of a ticket, or that it was escalated.
type outcome struct {
	ticket, text string
	escalates    bool // an escalation is to come
	escalated    bool
}

// await reads until n tickets have an outcome, and those that are urgent were
// escalated.
func (c *client) await(ctx context.Context, n int, ended chan error) ([]outcome, error) {
	var list []outcome
	escalations := 0 // those to come
	for left := n; left > 0 || escalations != 0; {
		select {
		case err := <-ended:
			ended <- err
			return nil, errors.New("the application has stopped")
		default:
		}
		poll, cancel := context.WithTimeout(ctx, time.Second)
		fetches := c.PollFetches(poll)
		cancel()
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		for r := range fetches.RecordsAll() {
			o, err := outcomeOf(r)
			if err != nil {
				return nil, fmt.Errorf("%s/%d/%d: %w", r.Topic, r.Partition, r.Offset, err)
			}
			list = append(list, o)
			switch {
			case o.escalated:
				escalations--
				continue
			case o.escalates:
				escalations++
			}
			left--
		}
	}
	return list, nil
}

func outcomeOf(r *kgo.Record) (outcome, error) {
	headers := map[string]string{}
	for _, h := range r.Headers {
		headers[h.Key] = string(h.Value)
	}
	switch r.Topic {
	case casesTopic:
		c := &supportv1.Case{}
		if err := proto.Unmarshal(r.Value, c); err != nil {
			return outcome{}, err
		}
		t := c.GetTriage()
		text := fmt.Sprintf("%s %s: %q; reply: %q", short(t.GetCategory()), short(t.GetUrgency()), t.GetEvidence(), t.GetReply())
		if of := headers[processors.ReplayOfHeader]; of != "" {
			text += " (replay of " + strings.SplitN(of, "/", 2)[0] + ")"
		}
		return outcome{ticket: c.GetTicket(), text: text, escalates: urgent("", c)}, nil
	case escalationsTopic:
		c := &supportv1.Case{}
		err := proto.Unmarshal(r.Value, c)
		return outcome{ticket: c.GetTicket(), text: "escalated", escalated: true}, err
	case untriagedTopic:
		t := &supportv1.Ticket{}
		err := proto.Unmarshal(r.Value, t)
		return outcome{ticket: t.GetId(), text: "not triaged: " + headers[processors.FallbackHeader]}, err
	}
	t := &supportv1.Ticket{}
	err := proto.Unmarshal(r.Value, t)
	text := fmt.Sprintf("dead letter: %s after %s attempts", headers["millrace.class"], headers[processors.AttemptsHeader])
	return outcome{ticket: t.GetId(), text: text}, err
}

// short is the name of an enum's value without that of the enum.
func short(v fmt.Stringer) string {
	_, name, _ := strings.Cut(v.String(), "_")
	return strings.ToLower(name)
}

func report(out io.Writer, outcomes []outcome) {
	slices.SortStableFunc(outcomes, func(a, b outcome) int {
		return strings.Compare(a.ticket+" "+a.text, b.ticket+" "+b.text)
	})
	for _, o := range outcomes {
		fmt.Fprintf(out, "%s %s\n", o.ticket, o.text)
	}
}
