package state

import "iter"

// A Backend holds the committed rows of all tasks of an instance, ordered by
// key. It is safe for concurrent use.
type Backend interface {
	// Get returns the value of key, or nil if there is none. The result belongs
	// to the caller.
	Get(key []byte) ([]byte, error)
	// Scan iterates over the rows with lower <= key < upper in ascending order, or
	// descending if reverse; a nil upper is open. The slices are valid until the
	// next step.
	Scan(lower, upper []byte, reverse bool) iter.Seq2[KV, error]
	// Write applies all changes of b atomically. A nil value deletes the key.
	Write(b *Batch) error
	// Flush makes everything written so far durable.
	Flush() error
	Close() error
}

// KV is a row as bytes.
type KV struct{ Key, Value []byte }

// A Batch collects changes that a [Backend] applies atomically and in order. It
// keeps the slices it is given.
type Batch struct {
	Ops []Op
	// Sync asks for durability when Write returns.
	Sync bool
}

// An Op sets Key to Value, or deletes it if Value is nil. With End not nil it
// deletes all keys in [Key, End).
type Op struct{ Key, Value, End []byte }

// Set adds the assignment of value to key; a nil value deletes the key.
func (b *Batch) Set(key, value []byte) { b.Ops = append(b.Ops, Op{Key: key, Value: value}) }

// DeleteRange adds the deletion of all keys in [from, to).
func (b *Batch) DeleteRange(from, to []byte) { b.Ops = append(b.Ops, Op{Key: from, End: to}) }

// An Ingester is a [Backend] that takes sorted rows in bulk.
type Ingester interface {
	// Ingest sets all rows atomically and durably. The keys ascend strictly; a nil
	// value deletes the key. Rows that were written to the same keys before, and
	// all that was written in one batch with them, are durable then too.
	Ingest(rows iter.Seq2[[]byte, []byte]) error
}
