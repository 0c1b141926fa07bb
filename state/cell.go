package state

import (
	"encoding/binary"
	"fmt"
)

// A Cell is a durable number of a task, such as a stream time. It is a row of
// the task and undone with the record that changed it.
//
// The number lives in memory and becomes a row when the changes of the task are
// collected: [Store.Changes] and [Partition.WriteBack] include it, [Store.Get] and
// [Store.Scan] see the value that was written back only.
type Cell struct {
	part      *Partition
	key       []byte
	value     int64
	committed int64
	before    int64  // value at the start of record
	record    uint64 // the last record that changed the cell
	loaded    bool
	behind    bool // committed is not written back
	err       error
}

// noValue is the value of a cell that was never set.
const noValue = -1

// Cell returns the cell of that name; its value before the first Set is -1.
func (p *Partition) Cell(name string) *Cell {
	c, ok := p.cells[name]
	if !ok {
		c = &Cell{part: p, key: append([]byte{'c'}, name...)}
		p.cells[name] = c
		p.ordered = append(p.ordered, c)
	}
	return c
}

// Value returns the number. A failed read is reported by [Partition.Err] and by
// the next commit of the task.
func (c *Cell) Value() int64 {
	if !c.loaded {
		c.load()
	}
	return c.value
}

// Set changes the number.
func (c *Cell) Set(v int64) {
	if !c.loaded {
		c.load()
	}
	if c.value == v {
		return
	}
	if c.record != c.part.record {
		c.record, c.before = c.part.record, c.value
		c.part.touched = append(c.part.touched, c)
	}
	c.value = v
}

func (c *Cell) load() {
	s := c.part.order[0]
	row, err := s.part.db.Get(append(append([]byte(nil), s.prefix...), c.key...))
	if err == nil && row != nil && len(row) != 8 {
		err = fmt.Errorf("%w: a row of %d bytes, not 8", ErrCorrupt, len(row))
	}
	c.value, c.loaded, c.err = noValue, true, nil
	if err != nil {
		c.err = fmt.Errorf("cell %q of task %s: %w", c.key[1:], c.part.ID, err)
	} else if row != nil {
		c.value = int64(binary.BigEndian.Uint64(row))
	}
	c.committed = c.value
}

func (c *Cell) dirty() bool { return c.value != c.committed }

func (c *Cell) row() []byte { return rowOf(c.value) }

func rowOf(v int64) []byte { return binary.BigEndian.AppendUint64(nil, uint64(v)) }

func (c *Cell) commit() {
	c.committed, c.behind = c.value, true
}

func (c *Cell) abort() {
	c.err = nil
	if c.behind {
		c.value = c.committed
		return
	}
	c.loaded, c.value, c.committed = false, 0, 0
}
