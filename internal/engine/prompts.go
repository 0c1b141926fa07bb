package engine

import (
	"context"
	"fmt"
	"time"

	"github.com/millrace/millrace/internal/registry"
	"github.com/millrace/millrace/llm/prompt"
	"github.com/millrace/millrace/processors"
)

// registerPrompts writes the prompts of the program and what its steps make of answers
// to the topic of prompts, and refuses to start if what they make cannot be read as
// what they made before.
func (inst *Instance) registerPrompts(ctx context.Context) error {
	top := inst.cfg.Topology
	if len(top.Prompts) == 0 {
		return nil
	}
	var unusable error
	err := registry.New(top.App, &inst.cfg.Kafka).Update(ctx, func(reg *prompt.Registry) ([]prompt.Record, error) {
		unusable = reg.Unusable(top.Prompts)
		return reg.Register(top.Prompts, time.Now())
	})
	if err != nil {
		return fmt.Errorf("application %q is not started: %w", top.App, err)
	}
	if unusable != nil {
		inst.metrics.globalError(processors.PromptStore)
		inst.log.Error("what labels of prompts stand for cannot be used: what they stood for before stays in use", "topic", prompt.Topic(top.App), "error", unusable)
	}
	return nil
}
