package state

import (
	"fmt"
	"iter"
	"slices"
)

const (
	// restoreBytes is how much of the changelog a Restorer holds: at most that
	// many bytes of keys and rows, and 24 bytes per record.
	restoreBytes = 32 << 20
	// ingestBytes is the size from which rows are ingested as a file instead of
	// going through the database's memory.
	ingestBytes = 4 << 20
)

// A Restorer fills the stores of a task from their changelogs. It keeps the last
// record per key of what it holds, and writes it sorted together with a
// checkpoint row, so that a restore that was cut short goes on from there. It is
// not safe for concurrent use.
//
// While it runs nothing else may write to the task's rows, and they are not fit
// to be read: they lack changes that later records make.
type Restorer struct {
	db     Backend
	id     TaskID
	stores map[string]*restoring
	order  []*restoring // by backend prefix
	cp     *Checkpoint
	held   int
	limit  int
	sorter sorter
	count  int64
}

// restoring is what a Restorer holds of one store.
type restoring struct {
	spec   Spec
	prefix []byte
	data   []byte // backend keys and rows
	rows   []rawRow
}

// A rawRow is a row in restoring.data.
type rawRow struct {
	at      int
	key     int32
	value   int32
	deleted bool
}

// NewRestorer returns a restorer of the task's stores, the task's own rows
// included. The checkpoint is the one to go on from: topic ids and positions of
// every store that Add will be called for, and inputs. Its time is when the rows
// reflected the changelogs, or when the reading of them from their starts began: a
// restore that is cut short is as old as that, whenever its checkpoint was written,
// since a deletion that it has not read may be gone from the changelog before the
// next. It is copied.
func NewRestorer(db Backend, id TaskID, specs []Spec, from *Checkpoint) *Restorer {
	r := &Restorer{db: db, id: id, stores: map[string]*restoring{}, cp: from.Clone(), limit: restoreBytes}
	if r.cp.Logs == nil {
		r.cp.Logs = map[string]LogPosition{}
	}
	for _, spec := range append([]Spec{{Name: TaskRows}}, specs...) {
		s := &restoring{spec: spec, prefix: StorePrefix(id, spec.Name)}
		r.stores[spec.Name] = s
		r.order = append(r.order, s)
	}
	slices.SortFunc(r.order, func(a, b *restoring) int { return slices.Compare(a.prefix, b.prefix) })
	return r
}

// Add takes a record of the changelog of a store; it copies key and value. The
// records of one store come in the order of their offsets, those of several
// stores in any order. A nil value is a tombstone. When memory is full it writes
// what it holds.
//
// The error says that the record cannot be one of the store, or is one of
// [Restorer.Flush].
func (r *Restorer) Add(store string, offset int64, key, value []byte, timestamp int64) error {
	s := r.stores[store]
	if s == nil {
		return fmt.Errorf("restore of task %s: it has no store %q", r.id, store)
	}
	start := len(s.data)
	s.data = append(s.data, s.prefix...)
	withKey, err := s.spec.appendRowKey(s.data, key, value)
	if err != nil {
		s.data = s.data[:start]
		return fmt.Errorf("restore of task %s: offset %d: %w", r.id, offset, err)
	}
	row := rawRow{at: start, key: int32(len(withKey) - start)}
	s.data = withKey
	if value == nil {
		row.deleted = true
	} else {
		s.data = s.spec.appendRowValue(s.data, value, timestamp)
		row.value = int32(len(s.data) - len(withKey))
	}
	s.rows = append(s.rows, row)
	r.held += len(s.data) - start
	r.count++
	r.Skip(store, offset+1)
	if r.held >= r.limit {
		return r.Flush(r.cp.Time)
	}
	return nil
}

// Skip moves the position of a store to next without a record: over a
// transaction marker, or a gap left by compaction. It never moves back.
func (r *Restorer) Skip(store string, next int64) {
	pos := r.cp.Logs[store]
	if next > pos.Next {
		pos.Next = next
		r.cp.Logs[store] = pos
	}
}

// Count returns how many records were added.
func (r *Restorer) Count() int64 { return r.count }

// Checkpoint returns the checkpoint that the next Flush writes.
func (r *Restorer) Checkpoint() *Checkpoint { return r.cp.Clone() }

// Flush writes what it holds and the checkpoint, atomically. time, in ms since the
// epoch, is when the changelogs ended where the rows now do. After an error the
// restore must begin anew from the checkpoint in the database.
func (r *Restorer) Flush(time int64) error {
	cp := r.cp.Clone()
	cp.Time = time
	data, err := cp.MarshalBinary()
	if err == nil {
		rows := func(yield func(k, v []byte) bool) {
			if !yield(CheckpointKey(r.id), data) { // 'k' sorts before 's'
				return
			}
			for _, s := range r.order {
				if !s.each(&r.sorter, yield) {
					return
				}
			}
		}
		if in, ok := r.db.(Ingester); ok && r.held >= ingestBytes {
			err = in.Ingest(rows)
		} else {
			err = writeAll(r.db, rows)
		}
	}
	if err != nil {
		return fmt.Errorf("restore of task %s: %w", r.id, err)
	}
	r.held = 0
	for _, s := range r.order {
		s.data, s.rows = s.data[:0], s.rows[:0]
	}
	return nil
}

func writeAll(db Backend, rows iter.Seq2[[]byte, []byte]) error {
	b := &Batch{}
	for k, v := range rows {
		b.Set(k, v)
	}
	return db.Write(b)
}

// each yields the last row of every key in order.
func (s *restoring) each(sorter *sorter, yield func(k, v []byte) bool) bool {
	key := func(i int32) []byte {
		r := s.rows[i]
		return s.data[r.at : r.at+int(r.key)]
	}
	order := sortKeys(sorter, len(s.rows), key)
	for i, h := range order {
		k := key(h.at)
		if i+1 < len(order) && order[i+1].bits == h.bits && string(key(order[i+1].at)) == string(k) {
			continue // a later record has the key
		}
		r := s.rows[h.at]
		var v []byte
		if !r.deleted {
			end := r.at + int(r.key)
			v = s.data[end : end+int(r.value) : end+int(r.value)]
		}
		if !yield(k, v) {
			return false
		}
	}
	return true
}
