package state

import (
	"fmt"
	"iter"
	"slices"

	"github.com/tidwall/btree"
)

// Scan iterates over the rows with from <= key < to, overlay included, in
// ascending order, or descending if reverse; a nil to is open. The slices are
// valid until the next step and must not be changed.
//
// Rows may be put and deleted during the iteration; changes ahead of it are seen.
// The task must not commit, abort or roll back meanwhile.
func (s *Store) Scan(from, to []byte, reverse bool) iter.Seq2[KV, error] {
	return func(yield func(KV, error) bool) {
		s.part.scanned = true
		lower := slices.Concat(s.prefix, from)
		upper := prefixEnd(s.prefix)
		if to != nil {
			upper = slices.Concat(s.prefix, to)
		}
		c := cursor{store: s, from: string(from), to: string(to), open: to == nil, reverse: reverse}
		for kv, err := range s.part.db.Scan(lower, upper, reverse) {
			if err != nil {
				yield(KV{}, fmt.Errorf("store %q of task %s: %w", s.Spec.Name, s.part.ID, err))
				return
			}
			row := KV{kv.Key[len(s.prefix):], kv.Value}
			covered, goOn := c.until(row.Key, yield)
			if !goOn || !covered && !yield(row, nil) {
				return
			}
		}
		c.rest(yield)
	}
}

// A cursor walks the overlay in step with a scan of the committed rows.
type cursor struct {
	store    *Store
	from, to string
	open     bool // no upper bound
	reverse  bool

	pos     []byte // the scan has passed it
	started bool
	next    *entry // first overlay entry beyond pos, as of epoch
	epoch   uint64
	sought  bool
}

// until yields the overlay rows that come before the committed row of key, and
// reports whether the overlay has a row of that key, which it then yielded too.
func (c *cursor) until(key []byte, yield func(KV, error) bool) (covered, goOn bool) {
	for {
		e := c.peek()
		if e == nil || c.after(e, key) {
			c.pos, c.started = append(c.pos[:0], key...), true
			return false, true
		}
		same := e.key == string(key)
		if !c.emit(e, yield) {
			return true, false
		}
		if same {
			return true, true
		}
	}
}

// rest yields the overlay rows behind the last committed one.
func (c *cursor) rest(yield func(KV, error) bool) {
	for e := c.peek(); e != nil; e = c.peek() {
		if !c.emit(e, yield) {
			return
		}
	}
}

func (c *cursor) after(e *entry, key []byte) bool {
	if c.reverse {
		return e.key < string(key)
	}
	return e.key > string(key)
}

func (c *cursor) emit(e *entry, yield func(KV, error) bool) bool {
	c.pos, c.started = append(c.pos[:0], e.key...), true
	c.sought = false
	return e.value == nil || yield(KV{[]byte(e.key), e.value}, nil)
}

// peek returns the overlay's next entry. It searches anew only after the overlay
// changed or the entry was passed.
func (c *cursor) peek() *entry {
	s := c.store
	if c.sought && c.epoch == s.epoch {
		return c.next
	}
	c.next, c.epoch, c.sought = nil, s.epoch, true
	if len(s.dirty)+len(s.behind) == 0 {
		return nil
	}
	if s.sorted == nil {
		s.sort()
	}
	if c.reverse {
		c.seekDown()
	} else {
		c.seekUp()
	}
	return c.next
}

func (c *cursor) seekUp() {
	pivot := c.from
	if c.started {
		pivot = string(c.pos)
	}
	c.store.sorted.Ascend(&entry{key: pivot}, func(e *entry) bool {
		if c.started && e.key == pivot {
			return true
		}
		if c.open || e.key < c.to {
			c.next = e
		}
		return false
	})
}

func (c *cursor) seekDown() {
	step := func(e *entry) bool {
		if c.started && e.key == string(c.pos) || !c.started && !c.open && e.key >= c.to {
			return true
		}
		if e.key >= c.from {
			c.next = e
		}
		return false
	}
	switch {
	case c.started:
		c.store.sorted.Descend(&entry{key: string(c.pos)}, step)
	case c.open:
		c.store.sorted.Reverse(step)
	default:
		c.store.sorted.Descend(&entry{key: c.to}, step)
	}
}

func (s *Store) sort() {
	s.sorted = btree.NewBTreeGOptions(func(a, b *entry) bool { return a.key < b.key }, btree.Options{NoLocks: true})
	for _, e := range s.behind {
		s.sorted.Set(e)
	}
	for _, e := range s.dirty {
		if !e.behind {
			s.sorted.Set(e)
		}
	}
}

// prefixEnd returns the smallest key greater than all keys with the prefix, or
// nil if there is none.
func prefixEnd(prefix []byte) []byte {
	end := slices.Clone(prefix)
	for i := len(end) - 1; i >= 0; i-- {
		if end[i] != 0xff {
			end[i]++
			return end[:i+1]
		}
	}
	return nil
}
