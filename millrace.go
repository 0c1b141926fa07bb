// Package millrace runs stream-processing applications on Kafka: topologies of
// streams, tables and joins (package topology), with calls of slow or unreliable
// functions, such as models, as durable steps, exactly once.
//
// An application is a topology, the addresses of a Kafka cluster and a state
// directory. Start as many instances of it as there are partitions to share.
package millrace

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"

	"github.com/millrace/millrace/alert"
	"github.com/millrace/millrace/internal/engine"
	"github.com/millrace/millrace/state"
	"github.com/millrace/millrace/topology"
)

// An App is one instance of an application. Its methods are safe for concurrent
// use.
type App struct {
	topology *topology.Topology
	instance *engine.Instance
	started  atomic.Bool
}

// New builds the topology and checks it and the options. The error lists every
// mistake and what to do about it. Nothing is opened before [App.Run].
func New(b *topology.Builder, opts ...Option) (*App, error) {
	if b == nil {
		return nil, errors.New("millrace: no topology: describe one with topology.New")
	}
	top, buildErr := b.Build()
	if buildErr != nil {
		top = &topology.Topology{App: b.App()} // to hear of the options' mistakes too
	}
	cfg := engine.Config{Topology: top}
	for _, o := range opts {
		o(&cfg)
	}
	inst, err := engine.New(cfg)
	if err := errors.Join(buildErr, err); err != nil {
		return nil, fmt.Errorf("application %q: %w", b.App(), err)
	}
	return &App{topology: top, instance: inst}, nil
}

// Run runs the instance until ctx ends, then drains: the open transactions are
// committed, running calls get the hand-over time to end, and the instance leaves
// its groups. It returns nil after a drain, and an error if the instance cannot
// start or must not go on. It can be called once.
func (a *App) Run(ctx context.Context) error {
	if a.started.Swap(true) {
		return errors.New("millrace: Run was called before: build a new App to start again")
	}
	return a.instance.Run(ctx)
}

// Topology returns the compiled topology.
func (a *App) Topology() *topology.Topology { return a.topology }

// Ready reports whether the instance has joined its groups and restored the tasks
// it owns.
func (a *App) Ready() bool { return a.instance.Ready() }

// Tasks returns the state of the tasks this instance has or had.
func (a *App) Tasks() []TaskStatus { return a.instance.Tasks() }

// Alerts returns the alerts that are raised on this instance; see [OnAlert].
func (a *App) Alerts() []alert.Alert { return a.instance.Alerts() }

// Pause stops taking records of a task's sources until [App.Resume]. Calls in
// flight go on. A pause is not remembered over a restart.
func (a *App) Pause(task state.TaskID) { a.instance.Pause(task) }

// Resume ends a [App.Pause].
func (a *App) Resume(task state.TaskID) { a.instance.Resume(task) }

// TaskStatus describes a task; see [App.Tasks] and [OnTaskState].
type TaskStatus = engine.TaskStatus

// The states of a task.
const (
	Rebalancing = engine.Rebalancing
	Restoring   = engine.Restoring
	Running     = engine.Running
	Parked      = engine.Parked
)

// An App is what views of its stores read: see [state.View].
var _ state.Host = (*App)(nil)

// Backend returns the committed rows of this instance, nil before it has started.
func (a *App) Backend() state.Backend { return a.instance.Backend() }

// Partitions returns the number of partitions of a store.
func (a *App) Partitions(store string) (int32, error) { return a.instance.Partitions(store) }

// Local returns the state of a store's partition on this instance.
func (a *App) Local(store string, partition int32) state.Local {
	return a.instance.Local(store, partition)
}
