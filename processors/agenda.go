package processors

import (
	"bytes"
	"encoding/binary"
	"fmt"

	"github.com/millrace/millrace/state"
)

// An agenda holds keys by the time at which something is due, in the task's own
// rows: 't' name 0x00 | time (ms, 8 bytes, big-endian) | key. So what is due is found
// without a look at anything else, in the order of time and then of key.
type agenda struct {
	name   string
	rows   *state.Store
	prefix []byte
	// first: no place is earlier; -1 if there is none.
	first *state.Cell
}

// newAgenda returns the agenda of that name: a step's, or a store's.
func newAgenda(t Task, name string) *agenda {
	return &agenda{name: name, rows: t.Store(state.TaskRows), prefix: append(append([]byte{'t'}, name...), 0), first: t.Cell("agenda/" + name)}
}

func (a *agenda) place(at int64, key []byte) []byte {
	return append(binary.BigEndian.AppendUint64(bytes.Clone(a.prefix), uint64(at)), key...)
}

// put adds a key at a time. One that is there at that time already stays.
func (a *agenda) put(at int64, key []byte) {
	at = max(at, 0)
	a.rows.Put(a.place(at, key), []byte{0})
	if first := a.first.Value(); first < 0 || at < first {
		a.first.Set(at)
	}
}

// remove takes a key at a time out, if it is there.
func (a *agenda) remove(at int64, key []byte) { a.rows.Put(a.place(max(at, 0), key), nil) }

// take takes the places up to due out, the earliest first, and calls f for each, until
// it returns false: that place stays. f may put others, also the same again, which is
// for a later call then.
func (a *agenda) take(due int64, f func(key []byte, at int64) (bool, error)) error {
	first := a.first.Value()
	if first < 0 || first > due {
		return nil
	}
	a.first.Set(-1) // what f puts sets it again
	left := int64(-1)
	for kv, err := range a.rows.Scan(a.place(first, nil), prefixEnd(a.prefix), false) {
		if err != nil {
			return err
		}
		place := bytes.Clone(kv.Key)
		rest := place[len(a.prefix):]
		if len(rest) < 8 {
			return fmt.Errorf("%q: the row %x is no place of its agenda", a.name, place)
		}
		at := int64(binary.BigEndian.Uint64(rest))
		if at > due {
			left = at
			break
		}
		a.rows.Put(place, nil)
		done, err := f(rest[8:], at)
		if err != nil {
			return err
		}
		if !done {
			a.put(at, rest[8:])
			break
		}
	}
	if first := a.first.Value(); left >= 0 && (first < 0 || left < first) {
		a.first.Set(left)
	}
	return nil
}
