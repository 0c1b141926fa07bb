package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"golang.org/x/sync/errgroup"

	"github.com/millrace/millrace/cmd/millrace/internal/audit"
	"github.com/millrace/millrace/examples/reviews"
	"github.com/millrace/millrace/internal/broker"
	"github.com/millrace/millrace/internal/modelserver"
)

// startTime is how long the feed waits for the first worker to start.
const startTime = 10 * time.Second

// stallTime is how long a run may make no progress, stallTimePatient with a
// model that is not the demo's own.
const (
	stallTime        = 60 * time.Second
	stallTimePatient = 10 * time.Minute
)

// A demo is one run.
type demo struct {
	opts     demoOptions
	lines    []reviews.Line
	total    int
	home     *home
	addrs    []string
	client   *kgo.Client
	topics   reviews.Topics
	ledger   *modelserver.Ledger
	modelURL string
	audit    *audit.Audit
	progress *progress
	plan     []int // of the kills
	started  time.Time
	first    time.Time // when the first event was sent
	last     time.Time // when the last outcome was read
	callsWas int       // calls of earlier runs
	sum      summary
}

// runDemo runs the demo. The summary is nil if the run did not get as far as
// having one.
func runDemo(ctx context.Context, opts demoOptions, lines []reviews.Line, digest string, out io.Writer) (_ *summary, err error) {
	d := &demo{opts: opts, lines: lines, total: len(lines), progress: newProgress(), started: time.Now()}
	if d.home, err = openHome(opts.dir, opts.brokers, digest); err != nil {
		return nil, err
	}
	keep := false // a failed run is worth looking at, once its worker has run
	defer func() {
		if keep && d.home.temporary && err != nil {
			err = fmt.Errorf("%w (everything is kept in %s, the worker's log in worker.log)", err, d.home.dir)
		}
		err = errors.Join(err, d.home.close(keep))
	}()
	stopBroker, err := d.openBroker(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, stopBroker()) }()
	stopModel, err := d.openModel(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, stopModel()) }()
	if err := d.prepare(ctx); err != nil {
		return nil, err
	}
	defer d.client.Close()
	err = d.run(ctx, out)
	d.finish()
	keep = !errors.Is(err, errInterrupted) && (err != nil || d.sum.verdict() != nil)
	if keep {
		d.sum.dir = d.home.dir
	}
	return &d.sum, err
}

func (d *demo) openBroker(ctx context.Context) (stop func() error, err error) {
	if d.opts.brokers != "" {
		d.addrs = d.opts.brokerList()
		d.sum.broker = "Kafka at " + d.opts.brokers + "; the topics stay there"
		return func() error { return nil }, nil
	}
	b, err := broker.StartEmbedded(broker.EmbeddedConfig{Dir: d.home.path("broker")})
	if err != nil {
		return nil, err
	}
	d.addrs = []string{b.Addr()}
	d.sum.broker = "embedded (kfake, for development: it survives the kill of a worker, not its own)"
	return b.Close, nil
}

// openModel starts the demo's model server, or a proxy in front of another, which
// counts its calls.
func (d *demo) openModel(ctx context.Context) (stop func() error, err error) {
	d.ledger = modelserver.NewLedger(nil)
	journal, err := os.OpenFile(d.home.path("calls.jsonl"), os.O_CREATE|os.O_APPEND|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("journal of calls: %w", err)
	}
	if err := d.ledger.Replay(journal); err != nil {
		return nil, errors.Join(err, journal.Close())
	}
	d.ledger.Journal(journal)
	d.callsWas = d.ledger.Stats().Calls
	var h http.Handler
	if d.opts.modelURL != "" {
		h, err = modelserver.Proxy(d.opts.modelURL, d.ledger)
		d.sum.model = fmt.Sprintf("%s at %s", d.opts.model, d.opts.modelURL)
	} else {
		h, err = modelserver.New(modelserver.Config{
			Latency: modelserver.Latency{Median: d.opts.latency, Sigma: 0.5},
			Faults:  modelserver.Mix(d.opts.faultRate), Seed: d.opts.seed, Ledger: d.ledger,
		})
		d.sum.model = fmt.Sprintf("VADER over HTTP: a real, classical sentiment model (github.com/jonreiter/govader), not a language model; fault rate %v", d.opts.faultRate)
		d.sum.own = true
	}
	if err != nil {
		return nil, errors.Join(err, journal.Close())
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, errors.Join(fmt.Errorf("model server: %w", err), journal.Close())
	}
	d.modelURL = "http://" + ln.Addr().String()
	stopServer := serve(ln, h)
	stop = func() error { return errors.Join(stopServer(), d.ledger.Err(), journal.Close()) }
	if err := checkModel(ctx, d.modelURL, d.opts.model); err != nil {
		return nil, errors.Join(err, stop())
	}
	return stop, nil
}

// prepare creates what the run needs on the broker and reads what is there.
func (d *demo) prepare(ctx context.Context) (err error) {
	d.topics = reviews.TopicsOf(d.home.App)
	if d.client, err = connect(ctx, d.addrs); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			d.client.Close()
		}
	}()
	if err := createTopics(ctx, d.client, d.topics); err != nil {
		return err
	}
	if err := sendProducts(ctx, d.client, d.topics.Products); err != nil {
		return err
	}
	d.plan = killPlan(d.opts.kill, d.total, rand.New(rand.NewPCG(d.opts.seed, 1)))
	d.audit, err = audit.New(audit.Config{
		Brokers: d.addrs,
		Topics: audit.Topics{
			Source: d.topics.Sentences, Enriched: d.topics.Enriched, Fallbacks: d.topics.Fallbacks,
			PerProduct: d.topics.PerProduct, PerMinute: d.topics.PerMinute, DeadLetters: d.topics.DeadLetters,
		},
		OnOutcome: d.outcome,
	})
	return err
}

// outcome is called for every outcome that the audit reads.
func (d *demo) outcome(line int64, first bool) {
	if !first {
		return
	}
	if !d.home.doneBefore[line] {
		d.home.note(note{Done: line})
	}
	d.progress.update(func(s *state) {
		s.outcomes++
		d.last = time.Now()
	})
}

// worker returns the configuration of the n-th worker of this run.
func (d *demo) worker(n int) workerConfig {
	return workerConfig{
		App: d.home.App, Brokers: d.addrs, StateDir: d.home.path("state"), Log: d.home.path("worker.log"),
		ModelURL: d.modelURL, Model: d.opts.model, Provider: d.opts.provider, Timeout: d.opts.timeout, Owner: fmt.Sprintf("w%d-%d", d.started.UnixMilli(), n), Patient: !d.sum.own,
	}
}

// run runs everything until all events have an outcome, or ctx ends, or
// something fails.
func (d *demo) run(ctx context.Context, out io.Writer) (err error) {
	// The audit outlives the rest: it reads what the worker leaves behind.
	reading, stopReading := context.WithCancel(context.WithoutCancel(ctx))
	var readErr error
	readDone := make(chan struct{})
	go func() { // ends with reading
		defer close(readDone)
		readErr = d.audit.Run(reading)
	}()
	defer func() {
		stopReading()
		<-readDone
		if !errors.Is(err, readErr) {
			err = errors.Join(err, readErr)
		}
	}()

	g, gctx := errgroup.WithContext(ctx)
	if d.home.continued {
		catch, cancel := context.WithTimeout(gctx, time.Minute) // a killed worker's transaction may be open
		err := d.audit.CatchUp(catch)
		cancel()
		if err != nil {
			return err
		}
		d.compare()
	}
	stop, stopped := context.WithCancel(gctx)
	g.Go(func() error { // the audit's failure ends the run
		select {
		case <-readDone:
			return readErr
		case <-stop.Done():
			return nil
		}
	})
	g.Go(func() error { return watchOutcomes(stop, d.addrs, d.topics.Loop, d.ledger) })
	g.Go(func() error { return d.work(stop) })
	g.Go(func() error { return d.feed(stop) })
	g.Go(func() error {
		defer stopped()
		return d.await(gctx, out)
	})
	err = g.Wait()
	if ctx.Err() != nil && (err == nil || errors.Is(err, context.Canceled)) {
		err = fmt.Errorf("%w before all events had an outcome", errInterrupted)
		if d.opts.dir != "" {
			err = fmt.Errorf("%w; the same -dir continues", err)
		}
	}
	// What the worker committed last, and transactions it left open, show here.
	catch, cancel := context.WithTimeout(reading, drainTime)
	defer cancel()
	return errors.Join(err, d.audit.CatchUp(catch))
}

// compare finds what an earlier process was promised and is gone.
func (d *demo) compare() {
	d.sum.continued = true
	for _, l := range d.lines {
		there, done := d.audit.InSource(l.Number)
		if d.home.sentBefore[l.Number] && !there {
			d.sum.lostSource++
		}
		if d.home.doneBefore[l.Number] && !done {
			d.sum.lostOutcomes++
		}
	}
}

// feed sends the events that the source topic does not hold yet, at the rate
// asked for.
func (d *demo) feed(ctx context.Context) error {
	// Latency is that of the application, not of its start.
	warm, cancel := context.WithTimeout(ctx, startTime)
	defer cancel()
	_ = d.progress.wait(warm, func(s state) bool { return s.ready }) // late is no error
	start, failed := time.Now(), make(chan error, 1)
	n := 0
	defer func() { d.sum.sentNow = n }()
	for i, l := range d.lines {
		if there, _ := d.audit.InSource(l.Number); there {
			d.progress.update(func(s *state) { s.sent++ })
			continue
		}
		if d.progress.wait(ctx, func(s state) bool { return i < d.maySend(s.kills) }) != nil {
			return nil
		}
		if d.opts.rate > 0 && !sleepUntil(ctx, start.Add(time.Duration(float64(n)/d.opts.rate*float64(time.Second)))) {
			return nil
		}
		record, err := sourceRecord(d.topics.Sentences, l)
		if err != nil {
			return err
		}
		if n == 0 {
			d.first = time.Now()
		}
		n++
		d.audit.Sent(l.Number, time.Now())
		d.client.Produce(ctx, record, func(_ *kgo.Record, err error) {
			if err != nil {
				select {
				case failed <- fmt.Errorf("send line %d: %w", l.Number, err):
				default:
				}
				return
			}
			d.home.note(note{Sent: l.Number})
			d.progress.update(func(s *state) { s.sent++ })
		})
	}
	if err := d.client.Flush(ctx); err != nil && ctx.Err() == nil {
		return fmt.Errorf("send the events: %w", err)
	}
	select {
	case err := <-failed:
		if ctx.Err() == nil {
			return err
		}
	default:
	}
	return nil
}

// sleepUntil returns false when ctx ends before t.
func sleepUntil(ctx context.Context, t time.Time) bool {
	d := time.Until(t)
	if d <= 0 {
		return ctx.Err() == nil
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// await shows progress and returns when every event has an outcome, all kills
// are done and the counts add up.
func (d *demo) await(ctx context.Context, out io.Writer) error {
	view := newView(out, d)
	defer view.close()
	tick := time.NewTicker(view.interval())
	defer tick.Stop()
	stall := stallTime
	if !d.sum.own {
		stall = max(stallTimePatient, 2*d.opts.timeout)
	}
	seen, moved := state{}, time.Now()
	for {
		s := d.progress.get()
		if s != seen {
			seen, moved = s, time.Now()
		}
		if s.sent >= d.total && s.kills >= d.opts.kill && d.audit.Tally().Lost == 0 {
			if n, _ := d.audit.WrongCounts(); n == 0 || time.Since(moved) > 10*time.Second {
				return nil
			}
		}
		if time.Since(moved) > stall {
			return fmt.Errorf("nothing has moved for %s: %d of %d events sent, %d with an outcome", stall, s.sent, d.total, s.outcomes)
		}
		select {
		case <-d.audit.Moved():
		case <-tick.C:
			view.show()
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// finish fills in the summary.
func (d *demo) finish() {
	s := &d.sum
	s.app, s.seed, s.input = d.home.App, d.opts.seed, d.total
	if !d.home.temporary {
		s.dir = d.home.dir
	}
	s.tally = d.audit.Tally()
	s.calls = d.ledger.Stats()
	s.callsNow = s.calls.Calls - d.callsWas
	p := d.progress.get()
	s.kills, s.restarts = p.kills, d.opts.kill > 0
	s.unsent = d.total - p.sent
	s.products = d.audit.PerProduct()
	s.wrong, s.example = d.audit.WrongCounts()
	s.problems = d.audit.Problems()
	s.total = time.Since(d.started)
	if !d.first.IsZero() && d.last.After(d.first) {
		s.streaming = d.last.Sub(d.first)
	}
}
