package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/millrace/millrace/internal/deadletter"
	"github.com/millrace/millrace/llm/answer"
)

const dlqUsage = "list, show or replay"

// dlqCommand reads and replays the dead letters of an application.
func dlqCommand(ctx context.Context, args []string, std stdio) error {
	if len(args) == 0 {
		return usagef("say what to do: %s", dlqUsage)
	}
	d := &dlq{fs: flag.NewFlagSet("dlq "+args[0], flag.ContinueOnError), std: std}
	d.conn.flags(d.fs)
	d.fs.StringVar(&d.app, "app", "", "`name` of the application, whose dead letters are in <app>.dlq and <app>.<step>.dlq; required")
	d.fs.BoolVar(&d.json, "json", false, "print JSON, one object in a line")
	run := map[string]func(context.Context, []string) error{"list": d.list, "show": d.show, "replay": d.replay}[args[0]]
	switch {
	case args[0] == "-h" || args[0] == "-help" || args[0] == "--help":
		fmt.Fprintf(std.out, "Usage: millrace dlq COMMAND -brokers ADDRESSES -app NAME [flags]\n\nThe commands are %s; each has -h.\n", dlqUsage)
		return flag.ErrHelp
	case run == nil:
		return usagef("there is no command %q; the commands are %s", args[0], dlqUsage)
	}
	return run(ctx, args[1:])
}

// dlq is a run of one of the commands.
type dlq struct {
	fs   *flag.FlagSet
	std  stdio
	conn connection
	app  string
	json bool

	filter       deadletter.Filter
	at           string
	since, until string
}

// filterFlags adds the flags that choose letters.
func (d *dlq) filterFlags() {
	d.fs.StringVar(&d.filter.Class, "class", "", "only letters of the `class`, as violation, refused, decode")
	d.fs.StringVar(&d.filter.Step, "step", "", "only letters of the `step`")
	d.fs.StringVar(&d.since, "since", "", "only letters given up at or after the `time`, as 2026-01-31T15:04:05Z, or so long ago, as 90m")
	d.fs.StringVar(&d.until, "until", "", "only letters given up before the `time`, or so long ago")
	d.fs.StringVar(&d.at, "at", "", "only the letters at the `positions`, topic/partition/offset with commas between them")
}

// open parses the flags and returns the dead letters of the application.
func (d *dlq) open(ctx context.Context, args []string, check func() error) (*deadletter.Store, error) {
	if err := parse(d.fs, args, d.std); err != nil {
		return nil, err
	}
	var errs []error
	if d.app == "" {
		errs = append(errs, errors.New("-app: name the application, as topology.New does"))
	}
	for _, one := range []struct {
		flag, text string
		to         *time.Time
	}{{"since", d.since, &d.filter.Since}, {"until", d.until, &d.filter.Until}} {
		var err error
		if *one.to, err = parseTime(one.text, time.Now()); err != nil {
			errs = append(errs, fmt.Errorf("-%s %w", one.flag, err))
		}
	}
	if d.at != "" {
		for text := range strings.SplitSeq(d.at, ",") {
			at, err := deadletter.ParsePosition(text)
			if err != nil {
				errs = append(errs, fmt.Errorf("-at: %w", err))
			}
			d.filter.At = append(d.filter.At, at)
		}
	}
	if d.filter.Limit < 0 {
		errs = append(errs, fmt.Errorf("-limit %d: it must not be negative; 0 is no limit", d.filter.Limit))
	}
	if check != nil {
		errs = append(errs, check())
	}
	conf, err := d.conn.config()
	if err := errors.Join(append(errs, err)...); err != nil {
		return nil, usageError{err}
	}
	client, err := kgo.NewClient(conf.PlainOpts(nil)...)
	if err != nil {
		return nil, fmt.Errorf("kafka client: %w", err)
	}
	defer client.Close()
	return deadletter.New(d.app, &conf), reach(ctx, client, conf.Brokers)
}

// parseTime reads a time, or how long ago it was.
func parseTime(text string, now time.Time) (time.Time, error) {
	if text == "" {
		return time.Time{}, nil
	}
	if ago, err := time.ParseDuration(text); err == nil && ago >= 0 {
		return now.Add(-ago), nil
	}
	at, err := time.Parse(time.RFC3339, text)
	if err != nil {
		return time.Time{}, fmt.Errorf("%q: write a time as 2026-01-31T15:04:05Z, or how long ago as 90m", text)
	}
	return at, nil
}

func (d *dlq) list(ctx context.Context, args []string) error {
	d.filterFlags()
	d.fs.IntVar(&d.filter.Limit, "limit", 100, "the last `n` letters, 0 for all")
	d.fs.BoolVar(&d.filter.Fresh, "fresh", false, "leave out letters that were replayed")
	store, err := d.open(ctx, args, nil)
	if err != nil {
		return err
	}
	letters, err := store.List(ctx, d.filter)
	if err != nil {
		return err
	}
	if d.json {
		for _, l := range letters {
			if err := d.printJSON(briefly(l)); err != nil {
				return err
			}
		}
		return nil
	}
	w := tabwriter.NewWriter(d.std.out, 0, 8, 2, ' ', 0)
	fmt.Fprintln(w, "LETTER\tGIVEN UP\tSTEP\tCLASS\tATTEMPTS\tKEY\tREPLAYED\tMESSAGE")
	for _, l := range letters {
		replayed := "-"
		if !l.Replayed.IsZero() {
			replayed = stamp(l.Replayed)
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%d\t%s\t%s\t%s\n", l.Position, stamp(l.FailedAt), oneLine(l.Step, 40), oneLine(l.Class, 30),
			l.Attempts, oneLine(string(l.Key), 30), replayed, oneLine(l.Message, 100))
	}
	return w.Flush()
}

func (d *dlq) show(ctx context.Context, args []string) error {
	d.fs.StringVar(&d.at, "at", "", "`position` of the letter, topic/partition/offset as list prints it; required")
	store, err := d.open(ctx, args, func() error {
		if len(d.filter.At) != 1 {
			return errors.New("-at: name one letter, topic/partition/offset, as list prints it")
		}
		return nil
	})
	if err != nil {
		return err
	}
	l, err := store.Show(ctx, d.filter.At[0])
	if err != nil {
		return err
	}
	if d.json {
		return d.printJSON(wholly(l))
	}
	return printLetter(d.std.out, l)
}

func (d *dlq) replay(ctx context.Context, args []string) error {
	cfg := deadletter.ReplayConfig{}
	all := false
	d.filterFlags()
	d.fs.BoolVar(&all, "all", false, "replay every letter; needed if nothing else chooses some")
	d.fs.IntVar(&d.filter.Limit, "limit", 0, "replay at most `n` letters, the first ones; 0 for all")
	d.fs.StringVar(&cfg.To, "to", "", "`topic` that gets the events (default: the topic and partition that each came from)")
	d.fs.Float64Var(&cfg.Rate, "rate", 10, "at most so many `events` per second")
	d.fs.StringVar(&cfg.PromptVersion, "prompt-version", "", "`version` of the prompt that the step is to ask with, all its digits (see millrace prompts list)")
	d.fs.StringVar(&cfg.Prompt, "prompt", "", "`name` of that prompt, for letters that do not name one")
	d.fs.BoolVar(&cfg.StampNow, "stamp-now", false, "give the events the present time in place of their own")
	d.fs.BoolVar(&cfg.DryRun, "dry-run", false, "write nothing, say what would be replayed")
	store, err := d.open(ctx, args, func() error {
		f := d.filter
		var errs []error
		if !all && f.Step == "" && f.Class == "" && f.Since.IsZero() && f.Until.IsZero() && len(f.At) == 0 && f.Limit == 0 {
			errs = append(errs, errors.New("choose letters with -at, -step, -class, -since, -until or -limit, or replay -all"))
		}
		if !(cfg.Rate > 0 && cfg.Rate <= 1e6) {
			errs = append(errs, fmt.Errorf("-rate %v: it must be above 0, and at most 1000000", cfg.Rate))
		}
		if cfg.Prompt != "" && cfg.PromptVersion == "" {
			errs = append(errs, errors.New("-prompt needs -prompt-version"))
		}
		return errors.Join(errs...)
	})
	if err != nil {
		return err
	}
	cfg.Filter = d.filter
	cfg.Each = func(l *deadletter.Letter, to string, err error) { d.replayed(l, to, err, cfg.DryRun) }
	result, err := store.Replay(ctx, cfg)
	if d.json {
		err = errors.Join(err, d.printJSON(map[string]any{"replayed": result.Replayed, "already": result.Already, "refused": result.Refused, "dry_run": cfg.DryRun}))
	} else {
		verb := "replayed"
		if cfg.DryRun {
			verb = "would be replayed"
		}
		fmt.Fprintf(d.std.out, "%d letters %s, %d were before, %d cannot be\n", result.Replayed, verb, result.Already, result.Refused)
	}
	switch {
	case ctx.Err() != nil:
		return fmt.Errorf("%w; the same command goes on where it stopped", errInterrupted)
	case err != nil:
		return err
	case result.Refused > 0:
		return fmt.Errorf("%d letters cannot be replayed", result.Refused)
	}
	return nil
}

// replayed reports one letter. What is reported was committed.
func (d *dlq) replayed(l *deadletter.Letter, to string, err error, dry bool) {
	switch {
	case d.json:
		line := map[string]any{"letter": l.Position.String(), "to": to}
		if err != nil {
			line["error"] = err.Error()
		}
		_ = d.printJSON(line) // the summary fails too
	case err != nil:
		fmt.Fprintf(d.std.err, "%s: cannot be replayed: %s\n", l.Position, oneLine(err.Error(), 500))
	case dry:
		fmt.Fprintf(d.std.out, "%s would go to %s\n", l.Position, to)
	default:
		fmt.Fprintf(d.std.out, "%s to %s\n", l.Position, to)
	}
}

func (d *dlq) printJSON(v any) error {
	e := json.NewEncoder(d.std.out)
	e.SetEscapeHTML(false)
	return e.Encode(v)
}

// letterJSON is a letter as -json prints it. A key, value or header that is no UTF-8
// is in the member whose name ends in _base64.
type letterJSON struct {
	Letter       string             `json:"letter"`
	FailedAt     time.Time          `json:"failed_at"`
	Step         string             `json:"step"`
	Class        string             `json:"class"`
	Message      string             `json:"message"`
	Source       string             `json:"source"`
	EventTime    time.Time          `json:"event_time"`
	Attempts     int                `json:"attempts"`
	Prompt       string             `json:"prompt,omitempty"`
	Version      string             `json:"prompt_version,omitempty"`
	Schema       string             `json:"schema,omitempty"`
	Model        string             `json:"model,omitempty"`
	InputTokens  int64              `json:"input_tokens,omitempty"`
	CachedTokens int64              `json:"cached_tokens,omitempty"`
	OutputTokens int64              `json:"output_tokens,omitempty"`
	CostMicros   *int64             `json:"cost_micros,omitempty"` // millionths of a US dollar
	ReplayOf     string             `json:"replay_of,omitempty"`
	Replayed     *time.Time         `json:"replayed,omitempty"`
	Key          *string            `json:"key,omitempty"`
	KeyBase64    []byte             `json:"key_base64,omitempty"`
	Value        *string            `json:"value,omitempty"`
	ValueBase64  []byte             `json:"value_base64,omitempty"`
	Headers      []headerJSON       `json:"headers,omitempty"`
	Answer       *string            `json:"answer,omitempty"`
	AnswerBase64 []byte             `json:"answer_base64,omitempty"`
	Violations   []answer.Violation `json:"violations,omitempty"`
}

type headerJSON struct {
	Key    string  `json:"key"`
	Value  *string `json:"value,omitempty"`
	Base64 []byte  `json:"value_base64,omitempty"`
}

// textOr returns bytes as text, or as bytes if they are none.
func textOr(b []byte) (*string, []byte) {
	if b == nil {
		return nil, nil
	}
	if s := string(b); utf8.Valid(b) {
		return &s, nil
	}
	return nil, b
}

// briefly is what list prints of a letter.
func briefly(l *deadletter.Letter) letterJSON {
	j := letterJSON{
		Letter: l.Position.String(), FailedAt: l.FailedAt.UTC(), Step: l.Step, Class: l.Class, Message: l.Message,
		Source: l.Source.String(), EventTime: l.EventTime.UTC(), Attempts: l.Attempts,
		Prompt: l.Prompt, Version: l.PromptVersion, Schema: l.Schema, Model: l.Model,
		InputTokens: l.InputTokens, CachedTokens: l.CachedTokens, OutputTokens: l.OutputTokens, ReplayOf: l.ReplayOf,
	}
	if l.CostKnown {
		j.CostMicros = &l.CostMicros
	}
	if !l.Replayed.IsZero() {
		at := l.Replayed.UTC()
		j.Replayed = &at
	}
	j.Key, j.KeyBase64 = textOr(l.Key)
	return j
}

// wholly is what show prints.
func wholly(l *deadletter.Letter) letterJSON {
	j := briefly(l)
	j.Value, j.ValueBase64 = textOr(l.Value)
	j.Answer, j.AnswerBase64 = textOr(l.Answer)
	j.Violations = l.Violations
	for _, h := range l.Headers {
		one := headerJSON{Key: strings.ToValidUTF8(h.Key, "\uFFFD")}
		one.Value, one.Base64 = textOr(h.Value)
		j.Headers = append(j.Headers, one)
	}
	return j
}

func printLetter(out io.Writer, l *deadletter.Letter) error {
	w := tabwriter.NewWriter(out, 0, 8, 2, ' ', 0)
	row := func(name, format string, args ...any) { fmt.Fprintf(w, "%s\t%s\n", name, fmt.Sprintf(format, args...)) }
	row("letter", "%s", l.Position)
	row("given up", "%s by step %s", stamp(l.FailedAt), oneLine(l.Step, 200))
	row("class", "%s", oneLine(l.Class, 200))
	row("message", "%s", oneLine(l.Message, 16<<10))
	row("event", "%s of %s", l.Source, stamp(l.EventTime))
	if l.ReplayOf != "" {
		row("replay of", "%s", oneLine(l.ReplayOf, 500))
	}
	if !l.Replayed.IsZero() {
		row("replayed", "%s", stamp(l.Replayed))
	}
	if l.Attempts > 0 {
		row("attempts", "%d", l.Attempts)
	}
	if l.Prompt != "" {
		row("prompt", "%s, version %s", oneLine(l.Prompt, 200), oneLine(l.PromptVersion, 200))
	}
	if l.Model != "" {
		row("model", "%s, schema %s", oneLine(l.Model, 200), oneLine(l.Schema, 200))
		row("tokens", "%d in, %d of them cached, %d out", l.InputTokens, l.CachedTokens, l.OutputTokens)
	}
	if l.CostKnown {
		row("cost", "%.6f US dollars", float64(l.CostMicros)/1e6)
	}
	row("key", "%s", shown(l.Key))
	row("value", "%s", shown(l.Value))
	for _, h := range l.Headers {
		row("header", "%s: %s", oneLine(h.Key, 500), shown(h.Value))
	}
	if l.Answer != nil {
		row("answer", "%s", shown(l.Answer))
	}
	for _, v := range l.Violations {
		row("violation", "%s", oneLine(v.String(), 2000))
	}
	return w.Flush()
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }

// shown returns bytes as text for a terminal, quoted if they are not plain.
func shown(b []byte) string {
	if b == nil {
		return "(null)"
	}
	for _, r := range string(b) {
		if r == utf8.RuneError || !unicode.IsPrint(r) {
			return fmt.Sprintf("%q", b)
		}
	}
	return string(b)
}

// oneLine returns at most n bytes of text from outside, without what a terminal
// would obey.
func oneLine(s string, n int) string {
	s = strings.Map(func(r rune) rune {
		switch {
		case unicode.IsSpace(r):
			return ' '
		case r == utf8.RuneError || !unicode.IsPrint(r):
			return '?'
		}
		return r
	}, s)
	if len(s) > n {
		s = strings.ToValidUTF8(s[:n], "") + "…"
	}
	return s
}
