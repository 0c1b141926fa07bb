package state

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"iter"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/millrace/millrace/serde"
)

// A Host is what a view reads from: an instance of an application. It is safe
// for concurrent use.
type Host interface {
	// Backend returns the committed rows, nil before the instance has opened them.
	Backend() Backend
	// Partitions returns the number of partitions of a store of the application,
	// 1 for a global table. The error says why it is not known.
	Partitions(store string) (int32, error)
	// Local returns the state of a partition of a store on this instance.
	Local(store string, partition int32) Local
}

// Local is the state of a store's partition on an instance.
type Local struct {
	Task   TaskID
	Status Status
	// Staleness is the time since the partition was last known to reflect all of
	// its input.
	Staleness time.Duration
	// StreamTime is the committed stream time (ms since the epoch) by which rows
	// of a window store expire. -1 hides no row.
	StreamTime int64
}

// Status tells whether a partition can be read.
type Status uint8

const (
	// Absent: the partition is not on this instance.
	Absent Status = iota
	// Restoring: the partition is here but not complete yet.
	Restoring
	// Ready: committed rows can be read.
	Ready
)

// String returns the status's name.
func (s Status) String() string {
	return [...]string{"absent", "restoring", "ready"}[min(s, Ready)]
}

// A Handle names a store with its types: what a table of a topology offers. For
// a window store K is the key without the window.
type Handle[K, V any] interface {
	StoreSpec() Spec
	StoreSerdes() (serde.Serde[K], serde.Serde[V])
}

// A Reader reads the committed rows of a store that are on this instance. It
// never sees the changes of an open transaction. It is safe for concurrent use.
type Reader[K, V any] struct {
	host Host
	spec Spec
	cod  codec[K, V]
	cfg  viewConfig
}

// A ViewOption configures [View].
type ViewOption func(*viewConfig)

type viewConfig struct {
	maxStaleness time.Duration
	hash         func(key []byte, partitions int32) int32
	localOnly    bool
}

// MaxStaleness refuses answers from partitions that lag by more than d, with a
// [StaleError]. By default any committed row is served.
func MaxStaleness(d time.Duration) ViewOption { return func(c *viewConfig) { c.maxStaleness = d } }

// HashBy sets how keys are spread over partitions. The default is Kafka's
// murmur2, as in [PartitionOf].
func HashBy(partition func(key []byte, partitions int32) int32) ViewOption {
	return func(c *viewConfig) { c.hash = partition }
}

// LocalOnly makes Range, Prefix and FetchAll read the partitions that are here
// and leave out the others. By default they fail if one is missing.
func LocalOnly() ViewOption { return func(c *viewConfig) { c.localOnly = true } }

// View returns a reader of a store.
func View[K, V any](host Host, table Handle[K, V], opts ...ViewOption) *Reader[K, V] {
	spec := table.StoreSpec()
	key, value := table.StoreSerdes()
	r := &Reader[K, V]{host: host, spec: spec, cod: codec[K, V]{spec.Name, key, value}, cfg: viewConfig{hash: PartitionOf}}
	for _, o := range opts {
		o(&r.cfg)
	}
	return r
}

// murmur2 picks partitions as Kafka's default partitioner does. For records with a
// key it only hashes, so that one serves all; to make one costs 10 µs.
var murmur2 = kgo.StickyKeyPartitioner(nil).ForTopic("")

// PartitionOf returns the partition of an encoded key as Kafka's default
// partitioner gives it: murmur2.
func PartitionOf(key []byte, partitions int32) int32 {
	if key == nil {
		key = []byte{}
	}
	return int32(murmur2.Partition(&kgo.Record{Key: key}, int(partitions)))
}

// ErrKind is returned by operations that a store of this kind does not have.
var ErrKind = errors.New("the store is of another kind")

// A NotLocalError says that a partition is not on this instance. Whoever routes
// requests sends them to the instance that has it.
type NotLocalError struct {
	Store     string
	Partition int32
}

func (e *NotLocalError) Error() string {
	return fmt.Sprintf("store %q: partition %d is not on this instance: ask the one that owns it", e.Store, e.Partition)
}

// A NotReadyError says that a partition is being restored.
type NotReadyError struct {
	Store     string
	Partition int32
	Status    Status
}

func (e *NotReadyError) Error() string {
	return fmt.Sprintf("store %q: partition %d is %s: try again", e.Store, e.Partition, e.Status)
}

// A StaleError says that a partition lags more than [MaxStaleness] allows.
type StaleError struct {
	Store          string
	Partition      int32
	Staleness, Max time.Duration
}

func (e *StaleError) Error() string {
	return fmt.Sprintf("store %q: partition %d is %s behind, more than %s: try again or allow more",
		e.Store, e.Partition, e.Staleness, e.Max)
}

// Get returns the value of key, and whether there is one.
func (r *Reader[K, V]) Get(ctx context.Context, key K) (V, bool, error) {
	row, ok, err := r.GetTimestamped(ctx, key)
	return row.Value, ok, err
}

// GetTimestamped returns the row of key, and whether there is one.
func (r *Reader[K, V]) GetTimestamped(ctx context.Context, key K) (row Row[K, V], ok bool, err error) {
	row.Key = key
	if err := r.kind(KeyValue); err != nil {
		return row, false, err
	}
	enc, p, err := r.locate(ctx, key)
	if err != nil {
		return row, false, err
	}
	data, err := p.db.Get(append(p.prefix, enc...))
	if err != nil || data == nil {
		return row, false, err
	}
	row.Value, row.Timestamp, err = r.cod.decodeRow(data)
	return row, err == nil, err
}

// Range iterates over the keys in [from, to], partition by partition, each in
// ascending byte order as of one moment; a nil bound is open. It ends after the
// first error.
func (r *Reader[K, V]) Range(ctx context.Context, from, to *K) iter.Seq2[Row[K, V], error] {
	lower, upper, err := r.cod.bounds(from, to)
	if err != nil {
		return fail[Row[K, V]](err)
	}
	return r.rows(ctx, lower, upper)
}

// Prefix iterates over the keys whose encoding starts with prefix, as Range
// does.
func (r *Reader[K, V]) Prefix(ctx context.Context, prefix []byte) iter.Seq2[Row[K, V], error] {
	return r.rows(ctx, bytes.Clone(prefix), prefixEnd(prefix))
}

func (r *Reader[K, V]) rows(ctx context.Context, lower, upper []byte) iter.Seq2[Row[K, V], error] {
	if err := r.kind(KeyValue); err != nil {
		return fail[Row[K, V]](err)
	}
	return overAll(ctx, r, func(p *part) iter.Seq2[Row[K, V], error] {
		return r.cod.rows(p.scan(lower, upper, false))
	})
}

// Fetch iterates over the rows of key in a window store whose window start is in
// [from, to] (ms since the epoch), in ascending order of start.
func (r *Reader[K, V]) Fetch(ctx context.Context, key K, from, to int64) iter.Seq2[WindowRow[K, V], error] {
	if err := r.kind(Window); err != nil {
		return fail[WindowRow[K, V]](err)
	}
	return func(yield func(WindowRow[K, V], error) bool) {
		enc, p, err := r.locate(ctx, key)
		if err != nil {
			yield(WindowRow[K, V]{}, err)
			return
		}
		guard(ctx, r.cod.fetch(&r.spec, p.scan, enc, max(from, p.oldest), to, false))(yield)
	}
}

// FetchAll iterates over the rows of all keys in a window store whose window
// start is in [from, to] (ms since the epoch), partition by partition, each
// ordered by start and encoded key.
func (r *Reader[K, V]) FetchAll(ctx context.Context, from, to int64) iter.Seq2[WindowRow[K, V], error] {
	if err := r.kind(Window); err != nil {
		return fail[WindowRow[K, V]](err)
	}
	return overAll(ctx, r, func(p *part) iter.Seq2[WindowRow[K, V], error] {
		return r.cod.fetchAll(&r.spec, p.scan, max(from, p.oldest), to)
	})
}

func (r *Reader[K, V]) kind(want Kind) error {
	if r.spec.Kind == want {
		return nil
	}
	return fmt.Errorf("store %q is a %s store, not a %s store: %w", r.spec.Name, r.spec.Kind, want, ErrKind)
}

// Partition returns the partition of key, on whichever instance it is.
func (r *Reader[K, V]) Partition(key K) (int32, error) {
	enc, err := r.cod.appendKey([]byte{}, key)
	if err != nil {
		return 0, err
	}
	n, err := r.partitions()
	if err != nil {
		return 0, err
	}
	return r.cfg.hash(enc, n), nil
}

func (r *Reader[K, V]) partitions() (int32, error) {
	n, err := r.host.Partitions(r.spec.Name)
	if err == nil && n <= 0 {
		err = fmt.Errorf("it has %d partitions", n)
	}
	if err != nil {
		err = fmt.Errorf("store %q: %w", r.spec.Name, err)
	}
	return n, err
}

// A part is a partition of a store that may be read.
type part struct {
	db     Backend
	prefix []byte
	oldest int64 // window start that has not expired
}

func (r *Reader[K, V]) locate(ctx context.Context, key K) ([]byte, *part, error) {
	if err := ctx.Err(); err != nil {
		return nil, nil, err
	}
	enc, err := r.cod.appendKey([]byte{}, key)
	if err != nil {
		return nil, nil, err
	}
	n, err := r.partitions()
	if err != nil {
		return nil, nil, err
	}
	p, err := r.open(r.cfg.hash(enc, n))
	return enc, p, err
}

func (r *Reader[K, V]) open(partition int32) (*part, error) {
	local := r.host.Local(r.spec.Name, partition)
	db := r.host.Backend()
	switch {
	case local.Status == Absent:
		return nil, &NotLocalError{r.spec.Name, partition}
	case local.Status != Ready || db == nil:
		return nil, &NotReadyError{r.spec.Name, partition, Restoring}
	case r.cfg.maxStaleness > 0 && local.Staleness > r.cfg.maxStaleness:
		return nil, &StaleError{r.spec.Name, partition, local.Staleness, r.cfg.maxStaleness}
	}
	return &part{db, StorePrefix(local.Task, r.spec.Name), r.spec.OldestStart(local.StreamTime)}, nil
}

// openAll returns the partitions of the store, or those that are here.
func (r *Reader[K, V]) openAll() ([]*part, error) {
	n, err := r.partitions()
	if err != nil {
		return nil, err
	}
	var parts []*part
	for i := range n {
		p, err := r.open(i)
		if _, absent := errors.AsType[*NotLocalError](err); absent && r.cfg.localOnly {
			continue
		}
		if err != nil {
			return nil, err
		}
		parts = append(parts, p)
	}
	return parts, nil
}

func (p *part) scan(from, to []byte, reverse bool) iter.Seq2[KV, error] {
	lower := append(bytes.Clone(p.prefix), from...)
	upper := prefixEnd(p.prefix)
	if to != nil {
		upper = append(bytes.Clone(p.prefix), to...)
	}
	return func(yield func(KV, error) bool) {
		for kv, err := range p.db.Scan(lower, upper, reverse) {
			if err == nil {
				kv.Key = kv.Key[len(p.prefix):]
			}
			if !yield(kv, err) {
				return
			}
		}
	}
}

// overAll iterates over the rows of all partitions, one after the other.
func overAll[K, V, R any](ctx context.Context, r *Reader[K, V], rows func(*part) iter.Seq2[R, error]) iter.Seq2[R, error] {
	return func(yield func(R, error) bool) {
		var zero R
		parts, err := r.openAll()
		if err != nil {
			yield(zero, err)
			return
		}
		for _, p := range parts {
			for row, err := range guard(ctx, rows(p)) {
				if !yield(row, err) || err != nil {
					return
				}
			}
		}
	}
}

// guard ends an iteration with the context's error.
func guard[R any](ctx context.Context, rows iter.Seq2[R, error]) iter.Seq2[R, error] {
	return func(yield func(R, error) bool) {
		for row, err := range rows {
			if err == nil && ctx.Err() != nil {
				var zero R
				yield(zero, ctx.Err())
				return
			}
			if !yield(row, err) || err != nil {
				return
			}
		}
	}
}
