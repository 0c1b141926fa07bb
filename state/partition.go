package state

import (
	"encoding/binary"
	"fmt"
	"slices"
	"time"
)

// TaskID names a task: a sub-topology on one partition.
type TaskID struct {
	SubTopology string
	Partition   int32
}

func (t TaskID) String() string { return fmt.Sprintf("%s/%d", t.SubTopology, t.Partition) }

// A Partition is the state of one task: its stores, and the task's own rows
// (cells, in-flight entries, timers) in the store named [TaskRows].
//
// Changes go into an overlay. [Partition.Commit] makes them the committed rows,
// [Partition.Abort] drops them, and [Partition.Rollback] undoes those since the last
// [Partition.Begin], which is one record. [Partition.WriteBack] writes the net effect
// of any number of commits to the backend in one batch: a row that changes with every
// commit is not written with every commit. It is not safe for concurrent use.
type Partition struct {
	ID     TaskID
	db     Backend
	stores map[string]*Store
	order  []*Store
	cache  cache
	size   int // bytes of keys and values in the overlay

	unwritten int       // memory of what is committed and not written back
	since     time.Time // when the first of them were committed
	scanned   bool      // a store was, since they were

	undo    []undo
	touched []*Cell // cells changed since Begin
	record  uint64  // counts Begins, to find out what a record changed first

	cells   map[string]*Cell
	ordered []*Cell // in order of creation
	keys    []byte  // backend keys of a batch, reused
	sorter  sorter
}

// TaskRows is the name of the store of a task's own rows.
const TaskRows = ""

// An undo restores an entry of an overlay.
type undo struct {
	store *Store
	entry *entry
	value []byte
	state entryState
}

// A PartitionOption configures [NewPartition].
type PartitionOption interface{ applyPartition(*Partition) }

// WithCache makes the partition share the memory of c with the other partitions
// of the instance. By default a partition has a cache of [DefaultCacheBytes] of
// its own.
func WithCache(c *CacheBudget) PartitionOption { return c }

// NewPartition returns the state of a task with the given stores. It reads
// nothing.
func NewPartition(db Backend, id TaskID, specs []Spec, opts ...PartitionOption) *Partition {
	p := &Partition{ID: id, db: db, stores: map[string]*Store{}, cells: map[string]*Cell{}, record: 1}
	for _, o := range opts {
		o.applyPartition(p)
	}
	if p.cache.budget == nil {
		NewCacheBudget(DefaultCacheBytes).applyPartition(p)
	}
	p.add(Spec{Name: TaskRows})
	for _, s := range specs {
		p.add(s)
	}
	return p
}

func (p *Partition) add(spec Spec) {
	s := &Store{Spec: spec, part: p, prefix: StorePrefix(p.ID, spec.Name), rows: map[string]*entry{}}
	p.stores[spec.Name] = s
	p.order = append(p.order, s)
}

// StorePrefix is the prefix in the backend of the rows of a task's store.
func StorePrefix(id TaskID, store string) []byte {
	name := store
	if name == TaskRows {
		name = "\x01" + id.SubTopology
	}
	b := append([]byte{'s'}, name...)
	b = append(b, 0)
	return binary.BigEndian.AppendUint32(b, uint32(id.Partition))
}

// Store returns the store of that name, or nil.
func (p *Partition) Store(name string) *Store { return p.stores[name] }

// Stores returns the stores in declaration order, the task's own rows first.
func (p *Partition) Stores() []*Store { return p.order }

// Size returns the bytes of keys and values in the overlay.
func (p *Partition) Size() int { return p.size }

// Begin starts a record: a later Rollback undoes the changes made from here.
func (p *Partition) Begin() {
	p.undo = p.undo[:0]
	p.touched = p.touched[:0]
	p.record++
}

// Rollback undoes the changes since Begin.
func (p *Partition) Rollback() {
	for _, u := range slices.Backward(p.undo) {
		u.store.undo(u)
	}
	for _, c := range p.touched {
		c.value = c.before
	}
	p.Begin()
}

// Dirty reports whether there are uncommitted changes.
func (p *Partition) Dirty() bool {
	for _, s := range p.order {
		if len(s.dirty) > 0 {
			return true
		}
	}
	for _, c := range p.ordered {
		if c.dirty() {
			return true
		}
	}
	return false
}

// Err returns the error of a cell that could not be read. The engine asks
// before it logs the changes of a cycle, since a task must not commit results
// that rest on such a cell.
func (p *Partition) Err() error {
	for _, c := range p.ordered {
		if c.err != nil {
			return c.err
		}
	}
	return nil
}

// Commit commits the changes of the overlay in memory, to be written back to the
// backend by [Partition.WriteBack]. Until then the backend holds an older committed
// state. An error is that of a cell that could not be read: nothing has changed.
func (p *Partition) Commit() error {
	if err := p.Err(); err != nil {
		return err
	}
	if p.unwritten == 0 && p.Dirty() {
		p.since = time.Now()
	}
	for _, s := range p.order {
		p.unwritten += s.commit()
	}
	for _, c := range p.ordered {
		if c.dirty() {
			p.unwritten += len(c.key) + 8
			c.commit()
		}
	}
	p.finish()
	return nil
}

// Unwritten returns how many bytes of memory the rows take that were committed since
// the last [Partition.WriteBack], 0 exactly if there are none, and since when.
func (p *Partition) Unwritten() (bytes int, since time.Time) {
	return p.unwritten, p.since
}

// Full reports whether the rows that wait to be written back take their part of the
// partition's share of the cache: a quarter, and no more than 16 MiB, so that writing
// them is no long pause.
func (p *Partition) Full() bool {
	return p.unwritten > min(p.cache.budget.share()/4, maxUnwritten)
}

const maxUnwritten = 16 << 20

// Scanned reports whether a store was scanned since the last [Partition.WriteBack].
// Scans are fastest over rows that are written back.
func (p *Partition) Scanned() bool { return p.scanned }

// WriteBack writes the committed rows that the backend lacks and the extra
// operations of b in one batch, and drops window segments that have expired. The
// overlay stays as it is. The operations it adds to b are valid until the next call.
//
// After an error nothing was written, and it can be called again.
func (p *Partition) WriteBack(b *Batch) error {
	size, rows := 0, len(p.ordered)
	for _, s := range p.order {
		rows += len(s.behind)
		for _, e := range s.behind {
			size += len(s.prefix) + len(e.key)
		}
	}
	p.keys = slices.Grow(p.keys[:0], size)
	b.Ops = slices.Grow(b.Ops, rows)
	for _, s := range p.order {
		floor := s.expire(b)
		order := sortKeys(&p.sorter, len(s.behind), func(i int32) string { return s.behind[i].key })
		for _, h := range order {
			e := s.behind[h.at]
			row := e.value
			if e.state == dirty {
				row = e.base
			}
			if e.key < floor { // its segment has just been dropped
				if e.state == clean {
					s.set(e, nil)
				}
				continue
			}
			start := len(p.keys)
			p.keys = append(append(p.keys, s.prefix...), e.key...)
			b.Set(p.keys[start:len(p.keys):len(p.keys)], row)
		}
	}
	for _, c := range p.ordered {
		if c.behind {
			b.Set(slices.Concat(p.order[0].prefix, c.key), rowOf(c.committed))
		}
	}
	if len(b.Ops) > 0 {
		if err := p.db.Write(b); err != nil {
			return fmt.Errorf("state of task %s: %w", p.ID, err)
		}
	}
	for _, s := range p.order {
		s.written()
	}
	for _, c := range p.ordered {
		c.behind = false
	}
	p.unwritten, p.scanned = 0, false
	p.cache.trim()
	return nil
}

// Abort drops all uncommitted changes, and the cache with them.
func (p *Partition) Abort() {
	p.cache.drop()
	for _, s := range p.order {
		s.abort()
	}
	for _, c := range p.ordered {
		c.abort()
	}
	p.finish()
}

func (p *Partition) finish() {
	clear(p.undo[:cap(p.undo)]) // it keeps replaced values alive
	p.Begin()
	p.size = 0
}

// Close drops all uncommitted changes and gives the cache's share back. Rows that
// were not written back are gone from memory too. Close is idempotent.
func (p *Partition) Close() {
	p.Abort()
	p.cache.close()
}
