package state

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"iter"
	"slices"
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
// Changes go into an overlay. [Partition.Commit] writes their net effect to the
// backend in one batch, [Partition.Abort] drops them, and [Partition.Rollback]
// undoes those since the last [Partition.Begin], which is one record. It is not
// safe for concurrent use.
type Partition struct {
	ID     TaskID
	db     Backend
	stores map[string]*Store
	order  []*Store
	cells  map[string]*Cell
	undo   []undo
}

// TaskRows is the name of the store of a task's own rows.
const TaskRows = ""

type undo struct {
	store *Store
	key   string
	prev  overlayRow
	had   bool
}

// overlayRow is an uncommitted row; a nil value is a deletion.
type overlayRow struct{ value []byte }

// NewPartition returns the state of a task with the given stores.
func NewPartition(db Backend, id TaskID, specs []Spec) *Partition {
	p := &Partition{ID: id, db: db, stores: map[string]*Store{}, cells: map[string]*Cell{}}
	p.add(Spec{Name: TaskRows})
	for _, s := range specs {
		p.add(s)
	}
	return p
}

func (p *Partition) add(spec Spec) {
	prefix := StorePrefix(p.ID, spec.Name)
	s := &Store{Spec: spec, part: p, prefix: prefix, overlay: map[string]overlayRow{}}
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

// Begin starts a record: a later Rollback undoes the changes made from here.
func (p *Partition) Begin() { p.undo = p.undo[:0] }

// Rollback undoes the changes since Begin.
func (p *Partition) Rollback() {
	for _, u := range slices.Backward(p.undo) {
		if u.had {
			u.store.overlay[u.key] = u.prev
		} else {
			delete(u.store.overlay, u.key)
		}
	}
	p.undo = p.undo[:0]
	for _, c := range p.cells {
		c.loaded = false
	}
}

// Dirty reports whether there are uncommitted changes.
func (p *Partition) Dirty() bool {
	for _, s := range p.order {
		if len(s.overlay) > 0 {
			return true
		}
	}
	return false
}

// Commit writes the net changes and the extra operations of b in one batch and
// empties the overlay.
func (p *Partition) Commit(b *Batch) error {
	for _, s := range p.order {
		for k, row := range s.overlay {
			b.Set(append(bytes.Clone(s.prefix), k...), row.value)
		}
	}
	if err := p.db.Write(b); err != nil {
		return fmt.Errorf("state of task %s: %w", p.ID, err)
	}
	for _, s := range p.order {
		clear(s.overlay)
	}
	p.undo = p.undo[:0]
	return nil
}

// Abort drops all uncommitted changes.
func (p *Partition) Abort() {
	for _, s := range p.order {
		clear(s.overlay)
	}
	p.undo = p.undo[:0]
	for _, c := range p.cells {
		c.loaded = false
	}
}

// A Store is one store of a task as bytes: committed rows with the overlay in
// front.
type Store struct {
	Spec    Spec
	part    *Partition
	prefix  []byte
	overlay map[string]overlayRow
}

// Get returns the row of key, or nil. The result must not be changed.
func (s *Store) Get(key []byte) ([]byte, error) {
	if row, ok := s.overlay[string(key)]; ok {
		return row.value, nil
	}
	return s.part.db.Get(append(slices.Clip(s.prefix), key...))
}

// Put sets the row of key; a nil value deletes it. It keeps value.
func (s *Store) Put(key, value []byte) {
	k := string(key)
	prev, had := s.overlay[k]
	s.part.undo = append(s.part.undo, undo{s, k, prev, had})
	s.overlay[k] = overlayRow{value}
}

// Scan iterates over the rows with from <= key < to, overlay included; a nil to
// is open. The slices are valid until the next step and must not be changed.
func (s *Store) Scan(from, to []byte, reverse bool) iter.Seq2[KV, error] {
	return func(yield func(KV, error) bool) {
		rows := newTree()
		lower := append(slices.Clip(s.prefix), from...)
		upper := prefixEnd(s.prefix)
		if to != nil {
			upper = append(slices.Clip(s.prefix), to...)
		}
		for kv, err := range s.part.db.Scan(lower, upper, false) {
			if err != nil {
				yield(KV{}, err)
				return
			}
			rows.Set(KV{bytes.Clone(kv.Key[len(s.prefix):]), bytes.Clone(kv.Value)})
		}
		for k, row := range s.overlay {
			key := []byte(k)
			if bytes.Compare(key, from) < 0 || to != nil && bytes.Compare(key, to) >= 0 {
				continue
			}
			if row.value == nil {
				rows.Delete(KV{Key: key})
			} else {
				rows.Set(KV{key, row.value})
			}
		}
		step := func(kv KV) bool { return yield(kv, nil) }
		if reverse {
			rows.Reverse(step)
		} else {
			rows.Scan(step)
		}
	}
}

// Changes iterates over the net uncommitted changes; a nil value is a deletion.
func (s *Store) Changes() iter.Seq2[[]byte, []byte] {
	return func(yield func(k, v []byte) bool) {
		for k, row := range s.overlay {
			if !yield([]byte(k), row.value) {
				return
			}
		}
	}
}

// prefixEnd returns the smallest key greater than all keys with the prefix, or
// nil if there is none.
func prefixEnd(prefix []byte) []byte {
	end := bytes.Clone(prefix)
	for i := len(end) - 1; i >= 0; i-- {
		if end[i] != 0xff {
			end[i]++
			return end[:i+1]
		}
	}
	return nil
}

// A Cell is a durable number of a task, such as a stream time. It is a row of
// the task and undone with the record that changed it.
type Cell struct {
	store  *Store
	key    []byte
	value  int64
	loaded bool
	err    error
}

// Cell returns the cell of that name; its value before the first Set is -1.
func (p *Partition) Cell(name string) *Cell {
	c, ok := p.cells[name]
	if !ok {
		c = &Cell{store: p.stores[TaskRows], key: append([]byte{'c'}, name...)}
		p.cells[name] = c
	}
	return c
}

// Value returns the number. A failed read is reported by the next commit of the
// task.
func (c *Cell) Value() int64 {
	if !c.loaded {
		row, err := c.store.Get(c.key)
		c.value, c.err, c.loaded = -1, err, true
		if len(row) == 8 {
			c.value = int64(binary.BigEndian.Uint64(row))
		}
	}
	return c.value
}

// Set changes the number.
func (c *Cell) Set(v int64) {
	if c.loaded && c.value == v {
		return
	}
	c.value, c.loaded = v, true
	c.store.Put(c.key, binary.BigEndian.AppendUint64(nil, uint64(v)))
}
