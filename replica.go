package millrace

import (
	"context"
	"errors"
	"fmt"

	"github.com/millrace/millrace/internal/engine"
	"github.com/millrace/millrace/internal/replica"
	"github.com/millrace/millrace/state"
	"github.com/millrace/millrace/topology"
)

// A Replica is a read-only full copy of one store of an application, in any
// program: a web server, a batch job. It reads the store's changelog, committed
// records only, and keeps the copy in a state directory of its own, so that a
// restart reads only what is new. [state.View] reads it as it reads an [App].
//
// It never answers from a half-restored copy: until it has caught up, reads fail
// with a [state.NotReadyError].
type Replica struct {
	*replica.Replica
}

var _ state.Host = (*Replica)(nil)

// A StoreHandle names a store: a table of a topology, or what [state.KeyValueHandle]
// and [state.WindowHandle] return in a program that does not have the topology.
type StoreHandle interface{ StoreSpec() state.Spec }

// NewReplica returns a replica of a store of the application app, which
// [Replica.Run] fills. Of the options it takes those about the brokers, the state
// directory and the log. The error lists every problem.
func NewReplica(app string, store StoreHandle, opts ...Option) (*Replica, error) {
	var cfg engine.Config
	for _, o := range opts {
		o(&cfg)
	}
	errs := cfg.Kafka.Validate()
	if cfg.StateDir == "" {
		errs = append(errs, errors.New("no state directory: name one with millrace.StateDir; the copy is kept there between restarts"))
	}
	spec := store.StoreSpec()
	if spec.SourceTopic != "" {
		errs = append(errs, fmt.Errorf("store %q is a global table's: read its topic %q with GlobalTable", spec.Name, spec.SourceTopic))
	}
	if err := errors.Join(errs...); err != nil {
		return nil, fmt.Errorf("replica of store %q of application %q: %w", spec.Name, app, err)
	}
	return &Replica{replica.New(replica.Config{
		Topic: topology.ChangelogTopic(app, spec.Name), Store: spec, Kafka: cfg.Kafka, Dir: cfg.StateDir, Logger: cfg.Logger,
	})}, nil
}

// Run keeps the copy up to date until ctx ends; then it returns nil. It fails when
// the directory belongs to something else, and when the changelog is deleted,
// recreated or cannot be read. It can be called once.
func (r *Replica) Run(ctx context.Context) error { return r.Replica.Run(ctx) }

// CaughtUp waits until the copy holds everything that was committed before the
// replica started; after that it can be read and follows the changelog.
func (r *Replica) CaughtUp(ctx context.Context) error { return r.Replica.CaughtUp(ctx) }
