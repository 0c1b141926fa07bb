package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/millrace/millrace/internal/registry"
	"github.com/millrace/millrace/llm/prompt"
)

const promptsUsage = "list, show, publish or label"

// promptsCommand reads and changes the prompts of an application.
func promptsCommand(ctx context.Context, args []string, std stdio) error {
	if len(args) == 0 {
		return usagef("say what to do: %s", promptsUsage)
	}
	p := &prompts{fs: flag.NewFlagSet("prompts "+args[0], flag.ContinueOnError), std: std}
	p.conn.flags(p.fs)
	p.fs.StringVar(&p.app, "app", "", "`name` of the application; required")
	p.fs.StringVar(&p.name, "name", "", "`name` of the prompt")
	p.fs.BoolVar(&p.json, "json", false, "print JSON")
	run := map[string]func(context.Context, []string) error{
		"list": p.list, "show": p.show, "publish": p.publish, "label": p.label,
	}[args[0]]
	switch {
	case args[0] == "-h" || args[0] == "-help" || args[0] == "--help":
		fmt.Fprintf(std.out, "Usage: millrace prompts COMMAND -brokers ADDRESSES -app NAME [flags]\n\nThe commands are %s; each has -h.\n", promptsUsage)
		return flag.ErrHelp
	case run == nil:
		return usagef("there is no command %q; the commands are %s", args[0], promptsUsage)
	}
	return run(ctx, args[1:])
}

// prompts is a run of one of the commands.
type prompts struct {
	fs        *flag.FlagSet
	std       stdio
	conn      connection
	app, name string
	json      bool
}

// open parses the flags and returns the registry of the application.
func (p *prompts) open(args []string, named bool) (*registry.Registry, error) {
	if err := parse(p.fs, args, p.std); err != nil {
		return nil, err
	}
	var errs []error
	if p.app == "" {
		errs = append(errs, errors.New("-app: name the application, as topology.New does"))
	}
	if named && p.name == "" {
		errs = append(errs, errors.New("-name: name the prompt, as prompt.Config does"))
	}
	conf, err := p.conn.config()
	if err := errors.Join(append(errs, err)...); err != nil {
		return nil, usageError{err}
	}
	return registry.New(p.app, &conf), nil
}

// versionJSON and labelJSON are what -json prints.
type versionJSON struct {
	Prompt   string     `json:"prompt"`
	Version  string     `json:"version"`
	Labels   []string   `json:"labels,omitempty"`
	Created  *time.Time `json:"created,omitempty"`
	Note     string     `json:"note,omitempty"`
	System   string     `json:"system,omitempty"`
	User     string     `json:"user,omitempty"`
	MaxValue int        `json:"max_value,omitempty"`
	MaxBytes int        `json:"max_bytes,omitempty"`
}

type labelJSON struct {
	Prompt  string      `json:"prompt,omitempty"`
	Label   string      `json:"label,omitempty"`
	Version string      `json:"version"`
	Percent float64     `json:"percent,omitempty"`
	Since   time.Time   `json:"since"`
	Note    string      `json:"note,omitempty"`
	Earlier []labelJSON `json:"earlier,omitempty"`
}

func (p *prompts) print(v any) error {
	enc := json.NewEncoder(p.std.out)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	return enc.Encode(v)
}

func (p *prompts) list(ctx context.Context, args []string) error {
	r, err := p.open(args, false)
	if err != nil {
		return err
	}
	reg, err := r.Read(ctx)
	if err != nil {
		return err
	}
	of := map[string][]string{} // labels by prompt and version
	labels := []labelJSON{}
	for _, l := range reg.Labels(p.name) {
		text := l.Label
		if l.Percent > 0 {
			text += fmt.Sprintf(" %v%%", l.Percent)
		}
		of[l.Name+"/"+l.Version] = append(of[l.Name+"/"+l.Version], text)
		one := labelJSON{Prompt: l.Name, Label: l.Label, Version: l.Version, Percent: l.Percent, Since: l.Since, Note: l.Note}
		for _, e := range l.Earlier {
			one.Earlier = append(one.Earlier, labelJSON{Version: e.Version, Percent: e.Percent, Since: e.Since, Note: e.Note})
		}
		labels = append(labels, one)
	}
	versions := []versionJSON{}
	for _, v := range reg.Versions(p.name) {
		versions = append(versions, versionJSON{Prompt: v.Name(), Version: v.Version(), Labels: of[v.Name()+"/"+v.Version()], Created: &v.Created, Note: v.Note})
	}
	if p.json {
		return p.print(map[string]any{"versions": versions, "labels": labels})
	}
	w := tabwriter.NewWriter(p.std.out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "PROMPT\tVERSION\tLABELS\tPUBLISHED\tNOTE")
	for _, v := range versions {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", line(v.Prompt), v.Version, strings.Join(v.Labels, ", "), v.Created.Format(time.DateTime), line(v.Note))
	}
	return w.Flush()
}

// line makes text that others wrote one line without control characters.
func line(s string) string { return strings.Join(strings.Fields(prompt.Clean(s)), " ") }

func (p *prompts) show(ctx context.Context, args []string) error {
	ref := p.fs.String("version", prompt.Prod, "`version`, its beginning, or a label")
	r, err := p.open(args, true)
	if err != nil {
		return err
	}
	reg, err := r.Read(ctx)
	if err != nil {
		return err
	}
	v, err := reg.Version(p.name, *ref)
	if err != nil {
		return err
	}
	c := v.Config()
	if p.json {
		return p.print(versionJSON{
			Prompt: v.Name(), Version: v.Version(), Created: &v.Created, Note: v.Note,
			System: v.System(), User: c.User, MaxValue: c.MaxValue, MaxBytes: c.MaxBytes,
		})
	}
	_, err = fmt.Fprintf(p.std.out, "prompt %s, version %s, published %s\nvalues up to %d bytes, messages up to %d\n%s\n--- system\n%s\n--- user\n%s\n",
		line(v.Name()), v.Version(), v.Created.Format(time.DateTime), c.MaxValue, c.MaxBytes, line(v.Note), prompt.Clean(v.System()), prompt.Clean(c.User))
	return err
}

func (p *prompts) publish(ctx context.Context, args []string) error {
	system := p.fs.String("system", "", "`file` with the static text; - is standard input")
	user := p.fs.String("user", "", "`file` with the template of the message for an event; - is standard input; required")
	note := p.fs.String("note", "", "`text` that says who publishes it, or why")
	maxValue := p.fs.Int("max-value", 0, "most `bytes` that one value adds to the message (default 16384)")
	maxBytes := p.fs.Int("max-bytes", 0, "most `bytes` of the message (default 131072)")
	r, err := p.open(args, true)
	if err != nil {
		return err
	}
	c := prompt.Config{Name: p.name, MaxValue: *maxValue, MaxBytes: *maxBytes}
	if *user == "" {
		return usagef("-user: name the file with the template")
	}
	for _, f := range []struct {
		name string
		to   *string
	}{{*system, &c.System}, {*user, &c.User}} {
		if *f.to, err = p.file(f.name); err != nil {
			return err
		}
	}
	version, err := prompt.New(c)
	if err != nil {
		return err
	}
	if err := r.Publish(ctx, version, *note); err != nil {
		return err
	}
	if p.json {
		return p.print(versionJSON{Prompt: p.name, Version: version.Version()})
	}
	_, err = fmt.Fprintln(p.std.out, version.Version())
	return err
}

// file returns the text of a file, nothing for no name.
func (p *prompts) file(name string) (string, error) {
	var data []byte
	var err error
	switch name {
	case "":
	case "-":
		data, err = io.ReadAll(p.std.in)
	default:
		data, err = os.ReadFile(name)
	}
	return strings.TrimRight(string(data), "\n"), err
}

func (p *prompts) label(ctx context.Context, args []string) error {
	label := p.fs.String("label", prompt.Prod, "the `label`: prod or canary")
	ref := p.fs.String("version", "", "`version`, its beginning, or a label: what the label is to stand for")
	percent := p.fs.Float64("percent", 0, "share of the keys that the canary gets, above 0 and at most 100")
	remove := p.fs.Bool("remove", false, "take the label away")
	note := p.fs.String("note", "", "`text` that says who does it, or why")
	r, err := p.open(args, true)
	if err != nil {
		return err
	}
	if *remove == (*ref != "") {
		return usagef("give -version, or -remove to take the label away")
	}
	err = r.Update(ctx, func(reg *prompt.Registry) ([]prompt.Record, error) {
		if *remove {
			return reg.RemoveLabel(p.name, *label)
		}
		return reg.SetLabel(p.name, *label, *ref, *percent, time.Now(), *note)
	})
	if err != nil {
		return err
	}
	reg, err := r.Read(ctx)
	if err != nil {
		return err
	}
	for _, l := range reg.Labels(p.name) {
		if l.Label != *label {
			continue
		}
		if p.json {
			return p.print(labelJSON{Prompt: l.Name, Label: l.Label, Version: l.Version, Percent: l.Percent, Since: l.Since, Note: l.Note})
		}
		_, err = fmt.Fprintf(p.std.out, "%s of prompt %s stands for %s\n", l.Label, line(l.Name), l.Version)
		return err
	}
	if p.json {
		return p.print(struct{}{})
	}
	_, err = fmt.Fprintf(p.std.out, "prompt %s has no label %s\n", line(p.name), *label)
	return err
}
