package millrace

import (
	"context"
	"time"

	"github.com/millrace/millrace/internal/registry"
	"github.com/millrace/millrace/llm/prompt"
)

// Prompts are the prompts of an application, in its topic <app>.prompts: versions that
// never change, and the labels that say which of them its instances use. They can be
// changed by any program while the application runs; its instances follow within a
// second, and need no restart. Its methods are safe for concurrent use; changes by
// several programs at once come one after the other.
type Prompts struct {
	registry *registry.Registry
}

// NewPrompts returns the prompts of the application app. Of the options it takes
// those about the brokers and the log, and [Replication] for a topic that it has to
// create. Nothing is opened before the first call.
func NewPrompts(app string, opts ...Option) (*Prompts, error) {
	cfg, err := toolConfig("prompts", app, opts)
	if err != nil {
		return nil, err
	}
	r := registry.New(app, &cfg.Kafka)
	if cfg.Replication != 0 {
		r.Replication = cfg.Replication
	}
	return &Prompts{registry: r}, nil
}

// Read returns what the topic holds now. The topic must exist: an instance of the
// application creates it, and so does Publish.
func (p *Prompts) Read(ctx context.Context) (*prompt.Registry, error) { return p.registry.Read(ctx) }

// Publish writes a version, if it is not there, with a note of who made it or why. A
// version that does not fit the events of the steps that use its name is refused, as
// far as the application has been started once. A new version is used by no step
// before a label stands for it.
func (p *Prompts) Publish(ctx context.Context, version *prompt.Prompt, note string) error {
	return p.registry.Publish(ctx, version, note)
}

// Label makes a label of a prompt, [prompt.Prod] or [prompt.Canary], stand for a
// version: its beginning is enough, or another label. percent is the share of the keys
// that a canary gets, above 0 and at most 100, and 0 for prod.
func (p *Prompts) Label(ctx context.Context, name, label, version string, percent float64, note string) error {
	return p.registry.Update(ctx, func(reg *prompt.Registry) ([]prompt.Record, error) {
		return reg.SetLabel(name, label, version, percent, time.Now(), note)
	})
}

// Unlabel takes a label away: without prod, steps use the version in their program.
func (p *Prompts) Unlabel(ctx context.Context, name, label string) error {
	return p.registry.Update(ctx, func(reg *prompt.Registry) ([]prompt.Record, error) {
		return reg.RemoveLabel(name, label)
	})
}
