// Package replica keeps a read-only full copy of a store of another process: a
// goka.View over the store's changelog, with our reader and our storage.
package replica

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/lovoo/goka"
	"github.com/lovoo/goka/codec"
	"github.com/lovoo/goka/storage"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"golang.org/x/sync/errgroup"

	"github.com/millrace/millrace/internal/kafka"
	"github.com/millrace/millrace/state"
)

// Config says what to copy and where to.
type Config struct {
	Topic  string // the store's changelog
	Store  state.Spec
	Kafka  kafka.Config
	Dir    string
	Logger *slog.Logger // nil drops
}

// A Replica is the copy. All methods are safe for concurrent use.
type Replica struct {
	cfg    Config
	failed chan struct{} // closed when Run has returned
	ready  chan struct{} // closed when everything before the start has been applied

	mu     sync.Mutex
	db     state.Backend
	source *kafka.ViewSource
	parts  int32
	fresh  time.Time // when it last was at the ends of the changelog
	err    error
}

var _ state.Host = (*Replica)(nil)

// New returns a replica that Run fills.
func New(cfg Config) *Replica {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	return &Replica{cfg: cfg, failed: make(chan struct{}), ready: make(chan struct{})}
}

// owner is the task under which rows of a partition are kept.
func (r *Replica) owner(partition int32) state.TaskID {
	return state.TaskID{SubTopology: "replica", Partition: partition}
}

// Run fills the copy and keeps it up to date until ctx ends.
func (r *Replica) Run(ctx context.Context) (err error) {
	defer func() {
		r.mu.Lock()
		r.db, r.err = nil, err
		r.mu.Unlock()
		close(r.failed)
	}()
	dir, db, err := r.open()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, db.Close(), dir.Close()) }()
	cl, err := kgo.NewClient(r.cfg.Kafka.PlainOpts(nil)...)
	if err != nil {
		return err
	}
	defer cl.Close()
	reader := kafka.NewReader(ctx, cl, kafka.ReaderConfig{Logger: r.cfg.Logger})
	defer reader.Close()
	source, err := kafka.NewViewSource(ctx, cl, reader, r.cfg.Topic, r.cfg.Logger)
	if err != nil {
		return r.explain(err)
	}
	parts, err := r.partitions(ctx, cl)
	if err != nil {
		return r.explain(err)
	}
	if err := r.dropUnusable(ctx, cl, db, source.TopicID(), parts); err != nil {
		return r.explain(err)
	}
	view, err := goka.NewView(nil, goka.Table(r.cfg.Topic), new(codec.Bytes), source.Options(
		func(_ string, partition int32) (storage.Storage, error) {
			return newStorage(db, r.owner(partition), r.cfg.Store, source.TopicID()), nil
		}, r.apply)...)
	if err != nil {
		return fmt.Errorf("goka view of topic %q: %w", r.cfg.Topic, err)
	}
	r.mu.Lock()
	r.db, r.source, r.parts = db, source, parts
	r.mu.Unlock()
	return r.run(ctx, view, source)
}

// run runs the view and notes when it has caught up.
func (r *Replica) run(ctx context.Context, view *goka.View, source *kafka.ViewSource) error {
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return view.Run(ctx) })
	group.Go(func() error {
		if err := source.CaughtUp(ctx); err != nil {
			return err
		}
		select {
		case <-view.WaitRunning():
			close(r.ready)
		case <-ctx.Done():
		}
		return nil
	})
	return r.explain(group.Wait())
}

// explain drops the errors of an ordinary end.
func (r *Replica) explain(err error) error {
	if err == nil || errors.Is(err, context.Canceled) {
		return nil
	}
	return fmt.Errorf("replica of store %q: %w", r.cfg.Store.Name, err)
}

// open opens the directory and its database; a damaged database is moved aside
// and read anew.
func (r *Replica) open() (*state.Dir, *state.Pebble, error) {
	dir, err := state.OpenDir(r.cfg.Dir, state.Manifest{
		Application: "replica of " + r.cfg.Topic, Stores: []state.Spec{r.cfg.Store},
		SubTopologies: []state.SubTopologyManifest{{Name: "replica", Stores: []string{r.cfg.Store.Name}}},
	}, state.Logger(r.cfg.Logger))
	if err != nil {
		return nil, nil, err
	}
	db, err := dir.OpenBackend()
	if errors.Is(err, state.ErrCorrupt) {
		moved, qerr := dir.Quarantine(time.Now())
		if qerr != nil {
			return nil, nil, errors.Join(err, qerr, dir.Close())
		}
		r.cfg.Logger.Error("the database is damaged: it was moved aside and is read anew", "moved", moved, "error", err)
		db, err = dir.OpenBackend()
	}
	if err != nil {
		return nil, nil, errors.Join(err, dir.Close())
	}
	return dir, db, nil
}

func (r *Replica) partitions(ctx context.Context, cl *kgo.Client) (int32, error) {
	infos, err := kafka.Describe(ctx, kadm.NewClient(cl), r.cfg.Topic)
	if err != nil {
		return 0, err
	}
	info := infos[r.cfg.Topic]
	return info.Partitions, info.Err
}

// dropUnusable deletes the rows of the partitions that cannot be continued: they are
// of a topic that does not exist any more, of offsets that it does not have, or so old
// that the deletions which they lack may be gone from it. They are read anew.
func (r *Replica) dropUnusable(ctx context.Context, cl *kgo.Client, db state.Backend, topic [16]byte, parts int32) error {
	all := make([]int32, parts)
	for p := range all {
		all[p] = int32(p)
	}
	starts, err := kafka.ListOffsets(ctx, cl, kafka.LogStart, map[string][]int32{r.cfg.Topic: all})
	if err != nil {
		return err
	}
	ends, err := kafka.ListOffsets(ctx, cl, kafka.HighWatermark, map[string][]int32{r.cfg.Topic: all})
	if err != nil {
		return err
	}
	b := &state.Batch{}
	for _, p := range all {
		check, err := state.LoadCheckpoint(db, r.owner(p))
		if err == nil {
			err = check.Usable(r.cfg.Store.Name, state.LogState{
				Topic: topic, Start: starts[r.cfg.Topic][p], End: ends[r.cfg.Topic][p],
				MaxAge: state.MaxCheckpointAge(kafka.DeleteRetention),
			}, time.Now())
			if err == nil {
				continue
			}
		}
		if !errors.As(err, new(*state.UnusableError)) {
			return err
		}
		r.cfg.Logger.Info("a partition is copied from the start", "topic", r.cfg.Topic, "partition", p, "reason", err)
		state.DeleteTask(b, r.owner(p), []string{r.cfg.Store.Name})
	}
	return db.Write(b)
}

// apply turns a record of the changelog into a row.
func (r *Replica) apply(ctx goka.UpdateContext, st storage.Storage, key string, value []byte) error {
	rowKey, row, err := r.cfg.Store.RestoreRow([]byte(key), value, ctx.Timestamp().UnixMilli())
	if err != nil {
		return fmt.Errorf("%s/%d offset %d: %w", ctx.Topic(), ctx.Partition(), ctx.Offset(), err)
	}
	if row == nil {
		return st.Delete(string(rowKey))
	}
	return st.Set(string(rowKey), row)
}

// CaughtUp waits until the copy holds everything that was committed before Run.
func (r *Replica) CaughtUp(ctx context.Context) error {
	select {
	case <-r.ready:
		return nil
	case <-r.failed:
		r.mu.Lock()
		defer r.mu.Unlock()
		return errors.Join(fmt.Errorf("replica of store %q: it does not run", r.cfg.Store.Name), r.err)
	case <-ctx.Done():
		return fmt.Errorf("replica of store %q has not caught up: %w", r.cfg.Store.Name, ctx.Err())
	}
}

// Backend returns the rows, nil while the replica does not run.
func (r *Replica) Backend() state.Backend {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.db
}

// Partitions returns the number of partitions of the store.
func (r *Replica) Partitions(store string) (int32, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case store != r.cfg.Store.Name:
		return 0, fmt.Errorf("the replica is of store %q", r.cfg.Store.Name)
	case r.db == nil:
		return 0, &state.NotReadyError{Store: store, Status: state.Restoring}
	}
	return r.parts, nil
}

// Local returns the state of a partition: all become ready at once.
func (r *Replica) Local(_ string, partition int32) state.Local {
	local := state.Local{Task: r.owner(partition), Status: state.Restoring, StreamTime: -1}
	select {
	case <-r.ready:
	default:
		return local
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.db == nil {
		return local
	}
	local.Status = state.Ready
	if lag, known := r.source.Lag(); known && lag == 0 {
		r.fresh = time.Now()
	}
	local.Staleness = time.Since(r.fresh)
	return local
}
