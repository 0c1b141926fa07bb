package state

import (
	"fmt"
	"iter"

	"github.com/tidwall/btree"
)

// A Store is one store of a task as bytes: committed rows with a cache and the
// overlay in front.
//
// One map holds both cache and overlay, so that a row of either costs one
// lookup. Values are never changed in place: undo, cache and readers share them.
type Store struct {
	Spec   Spec
	part   *Partition
	prefix []byte
	rows   map[string]*entry
	dirty  []*entry              // the overlay, in the order in which keys became dirty
	behind []*entry              // committed, but not written back yet
	sorted *btree.BTreeG[*entry] // dirty and behind by key; nil until a scan needs it
	epoch  uint64                // counts changes of the overlay, for running scans
	last   *entry                // the entry found last: an update reads it, then writes it
	key    []byte                // scratch

	streamTime func() int64 // set by the window store that is built on it
	// committedTime is the stream time of the last commit.
	committedTime int64
	dropped       int64 // window segments below have been deleted
	expiring      int64 // with the batch that is being written
}

// An entry is a row in the cache or the overlay. Value nil means that there is
// no row: deletions and unsuccessful lookups are kept too.
type entry struct {
	key   string
	value []byte
	// base is the committed row of an entry that is dirty and behind.
	base   []byte
	store  *Store
	state  entryState
	behind bool // the backend has an older committed row
	used   bool // since the cache's hand passed
}

type entryState uint8

const (
	unknown entryState = iota // nothing is known of the committed row
	clean                     // value is the committed row
	dirty                     // value is the uncommitted row
)

// Get returns the row of key, or nil. The result must not be changed.
func (s *Store) Get(key []byte) ([]byte, error) {
	e := s.find(key)
	if e != nil && e.state != unknown {
		e.used = true
		return e.value, nil
	}
	s.key = append(append(s.key[:0], s.prefix...), key...)
	value, err := s.part.db.Get(s.key)
	if err != nil {
		return nil, fmt.Errorf("store %q of task %s: %w", s.Spec.Name, s.part.ID, err)
	}
	if e == nil {
		if s.part.cache.off() {
			return value, nil
		}
		e = s.insert(key)
	}
	e.state = clean
	s.set(e, value)
	return value, nil
}

// Put sets the row of key; a nil value deletes it. It keeps value, which must
// not be changed afterwards.
func (s *Store) Put(key, value []byte) {
	e := s.find(key)
	if e == nil {
		e = s.insert(key)
	}
	p := s.part
	p.undo = append(p.undo, undo{s, e, e.value, e.state})
	if e.state == dirty {
		p.size -= len(e.value)
	} else {
		if e.behind {
			e.base = e.value
		} else if s.sorted != nil {
			s.sorted.Set(e)
		}
		e.state = dirty
		s.dirty = append(s.dirty, e)
		p.size += len(e.key)
	}
	p.size += len(value)
	e.used = true
	s.epoch++
	s.set(e, value)
}

// undo takes back the latest Put. Puts are taken back in reverse order, so that
// an entry that became dirty with it is the last of s.dirty.
func (s *Store) undo(u undo) {
	p := s.part
	p.size -= len(u.entry.value)
	if u.state == dirty {
		p.size += len(u.value)
	} else {
		p.size -= len(u.entry.key)
		s.dirty = s.dirty[:len(s.dirty)-1]
		if u.entry.base = nil; s.sorted != nil && !u.entry.behind {
			s.sorted.Delete(u.entry)
		}
	}
	s.epoch++
	u.entry.state = u.state
	s.set(u.entry, u.value)
}

// commit makes the overlay the committed rows, to be written back later. It returns
// the memory that holds until then, replaced values included.
func (s *Store) commit() (bytes int) {
	for _, e := range s.dirty {
		e.state, e.base = clean, nil
		bytes += len(e.value)
		if !e.behind {
			e.behind = true
			s.behind = append(s.behind, e)
			bytes += len(e.key) + entryOverhead
		}
	}
	s.dirty = truncate(s.dirty)
	if s.streamTime != nil {
		s.committedTime = s.streamTime()
	}
	return bytes
}

// abort forgets all rows but those that are committed and not written back.
func (s *Store) abort() {
	for _, e := range s.dirty {
		if e.behind {
			e.value, e.state, e.base = e.base, clean, nil
		}
	}
	s.dirty = truncate(s.dirty)
	clear(s.rows)
	for _, e := range s.behind {
		s.rows[e.key] = e
		s.part.cache.keep(e)
	}
	s.sorted, s.last = nil, nil
	s.epoch++
}

// written notes that all committed rows are in the backend.
func (s *Store) written() {
	for _, e := range s.behind {
		e.behind, e.base = false, nil
	}
	s.dropped = max(s.dropped, s.expiring)
	s.behind, s.sorted = truncate(s.behind), nil
	s.epoch++
}

func truncate(entries []*entry) []*entry {
	clear(entries)
	return entries[:0]
}

func (s *Store) find(key []byte) *entry {
	if s.last != nil && s.last.key == string(key) {
		return s.last
	}
	e := s.rows[string(key)]
	if e != nil {
		s.last = e
	}
	return e
}

func (s *Store) insert(key []byte) *entry {
	e := &entry{key: string(key), store: s}
	s.rows[e.key] = e
	s.part.cache.add(e)
	s.last = e
	return e
}

func (s *Store) set(e *entry, value []byte) {
	s.part.cache.bytes += len(value) - len(e.value)
	e.value = value
}

// Changes iterates over the net uncommitted changes, each key once; a nil value
// is a deletion. The slices may be kept and must not be changed.
func (s *Store) Changes() iter.Seq2[[]byte, []byte] {
	return func(yield func(k, v []byte) bool) {
		for _, e := range s.dirty {
			if !yield([]byte(e.key), e.value) {
				return
			}
		}
		if s.Spec.Name != TaskRows {
			return
		}
		for _, c := range s.part.ordered {
			if c.dirty() && !yield(c.key, c.row()) {
				return
			}
		}
	}
}
