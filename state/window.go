package state

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"fmt"
	"iter"
	"slices"

	"github.com/millrace/millrace/serde"
)

// NewWindowStore returns s as a typed window store. The stream time (ms since
// the epoch, below 0 before the first record) decides which rows have expired;
// it must not go back behind a commit. With a nil streamTime nothing expires.
func NewWindowStore[K, V any](s *Store, key serde.Serde[K], value serde.Serde[V], streamTime func() int64) WindowStore[K, V] {
	if streamTime != nil {
		s.streamTime = streamTime
	}
	return &window[K, V]{store: s, codec: codec[K, V]{s.Spec.Name, key, value}, streamTime: streamTime}
}

type window[K, V any] struct {
	store         *Store
	codec         codec[K, V]
	streamTime    func() int64
	key, enc, row []byte // scratch
}

func (w *window[K, V]) Get(key K, start int64) (v V, timestamp int64, ok bool, err error) {
	if start < w.oldest() {
		return v, 0, false, nil
	}
	if err = w.encode(key, start); err != nil {
		return v, 0, false, err
	}
	row, err := w.store.Get(w.key)
	if err != nil || row == nil {
		return v, 0, false, err
	}
	v, timestamp, err = w.codec.decodeRow(row)
	return v, timestamp, err == nil, err
}

func (w *window[K, V]) Put(key K, start int64, value V, timestamp int64) (err error) {
	if start < 0 {
		return fmt.Errorf("store %q: window start %d is negative", w.store.Spec.Name, start)
	}
	if start < w.oldest() {
		return nil
	}
	if err := w.encode(key, start); err != nil {
		return err
	}
	if w.row, err = w.codec.appendRow(w.row[:0], value, timestamp); err != nil {
		return err
	}
	w.store.Put(w.key, bytes.Clone(w.row))
	return nil
}

func (w *window[K, V]) Delete(key K, start int64) error {
	if start < w.oldest() {
		return nil
	}
	if err := w.encode(key, start); err != nil {
		return err
	}
	w.store.Put(w.key, nil)
	return nil
}

func (w *window[K, V]) Fetch(key K, from, to int64) iter.Seq2[WindowRow[K, V], error] {
	return w.fetch(key, from, to, false)
}

func (w *window[K, V]) FetchReverse(key K, from, to int64) iter.Seq2[WindowRow[K, V], error] {
	return w.fetch(key, from, to, true)
}

func (w *window[K, V]) fetch(key K, from, to int64, reverse bool) iter.Seq2[WindowRow[K, V], error] {
	enc, err := w.codec.appendKey(nil, key)
	if err != nil {
		return fail[WindowRow[K, V]](err)
	}
	return w.codec.fetch(&w.store.Spec, w.store.Scan, enc, max(from, w.oldest()), to, reverse)
}

func (w *window[K, V]) FetchAll(from, to int64) iter.Seq2[WindowRow[K, V], error] {
	return w.codec.fetchAll(&w.store.Spec, w.store.Scan, max(from, w.oldest()), to)
}

func (w *window[K, V]) encode(key K, start int64) (err error) {
	if w.enc, err = w.codec.appendKey(w.enc[:0], key); err == nil {
		w.key = w.store.Spec.appendWindowKey(w.key[:0], w.enc, start)
	}
	return err
}

func (w *window[K, V]) oldest() int64 {
	if w.streamTime == nil {
		return 0
	}
	return w.store.Spec.OldestStart(w.streamTime())
}

// OldestStart returns the smallest window start (ms) that has not expired at
// this stream time: 0 or stream time - retention + 1.
func (s *Spec) OldestStart(streamTime int64) int64 {
	return max(0, streamTime-s.Retention.Milliseconds()+1)
}

// expire adds to b the deletion of the segments that hold expired rows only and
// returns the smallest row key that is left, "" if nothing was ever deleted.
func (s *Store) expire(b *Batch) (floor string) {
	if s.streamTime == nil {
		return ""
	}
	segment := s.Spec.OldestStart(s.committedTime) / s.Spec.segment()
	if segment == 0 {
		return ""
	}
	end := binary.BigEndian.AppendUint64(nil, uint64(segment))
	if segment > s.dropped {
		b.DeleteRange(slices.Clone(s.prefix), slices.Concat(s.prefix, end))
		s.expiring = segment
	}
	return string(end)
}

// A scan iterates over the rows of a store in [from, to).
type scan func(from, to []byte, reverse bool) iter.Seq2[KV, error]

// fetch iterates over the rows of an encoded key with a start in [from, to].
func (c *codec[K, V]) fetch(spec *Spec, rows scan, key []byte, from, to int64, reverse bool) iter.Seq2[WindowRow[K, V], error] {
	return func(yield func(WindowRow[K, V], error) bool) {
		for segment, err := range segments(spec, rows, from, to, reverse) {
			if err != nil {
				yield(WindowRow[K, V]{}, err)
				return
			}
			lower := appendWindowPrefix(nil, segment, key)
			upper := slices.Clone(lower)
			lower = binary.BigEndian.AppendUint64(lower, uint64(max(from, 0)))
			upper = binary.BigEndian.AppendUint64(upper, uint64(to)+1)
			for kv, err := range rows(lower, upper, reverse) {
				r, err := c.decodeWindow(kv, err)
				if !yield(r, err) || err != nil {
					return
				}
			}
		}
	}
}

// fetchAll iterates over all rows with a start in [from, to] by start and key. It
// holds the rows of one segment in memory.
func (c *codec[K, V]) fetchAll(spec *Spec, rows scan, from, to int64) iter.Seq2[WindowRow[K, V], error] {
	return func(yield func(WindowRow[K, V], error) bool) {
		for segment, err := range segments(spec, rows, from, to, false) {
			if err != nil {
				yield(WindowRow[K, V]{}, err)
				return
			}
			found, err := readSegment(rows, segment, from, to)
			if err != nil {
				yield(WindowRow[K, V]{}, err)
				return
			}
			for _, f := range found {
				r, err := c.decodeWindow(f.KV, nil)
				if !yield(r, err) || err != nil {
					return
				}
			}
		}
	}
}

type startedRow struct {
	KV
	start int64
}

func readSegment(rows scan, segment, from, to int64) ([]startedRow, error) {
	var found []startedRow
	for kv, err := range rows(segmentKey(segment), segmentKey(segment+1), false) {
		if err != nil {
			return nil, err
		}
		_, start, err := splitWindowKey(kv.Key)
		if err != nil {
			return nil, err
		}
		if start >= from && start <= to {
			found = append(found, startedRow{own(kv), start})
		}
	}
	// Scanned in order of the key, so a stable sort leaves it within a start.
	slices.SortStableFunc(found, func(a, b startedRow) int { return cmp.Compare(a.start, b.start) })
	return found, nil
}

// segments iterates over the segments that may have rows with a start in [from,
// to], from the last one down if reverse. In a wide range it looks for those that
// exist.
func segments(spec *Spec, rows scan, from, to int64, reverse bool) iter.Seq2[int64, error] {
	const few = 8
	return func(yield func(int64, error) bool) {
		if from = max(from, 0); to < from {
			return
		}
		first, last := from/spec.segment(), to/spec.segment()
		for first <= last {
			segment := first
			if reverse {
				segment = last
			}
			if last-first >= few {
				var ok bool
				var err error
				if segment, ok, err = findSegment(rows, first, last, reverse); err != nil || !ok {
					if err != nil {
						yield(0, err)
					}
					return
				}
			}
			if !yield(segment, nil) {
				return
			}
			if reverse {
				last = segment - 1
			} else {
				first = segment + 1
			}
		}
	}
}

// findSegment returns the first segment in [first, last] that has rows, or the
// last one if reverse.
func findSegment(rows scan, first, last int64, reverse bool) (segment int64, ok bool, err error) {
	for kv, err := range rows(segmentKey(first), segmentKey(last+1), reverse) {
		if err != nil {
			return 0, false, err
		}
		if len(kv.Key) < 8 {
			return 0, false, fmt.Errorf("%w: %x is not the key of a window row", ErrCorrupt, kv.Key)
		}
		return int64(binary.BigEndian.Uint64(kv.Key)), true, nil
	}
	return 0, false, nil
}

func segmentKey(segment int64) []byte {
	return binary.BigEndian.AppendUint64(nil, uint64(segment))
}

func (c *codec[K, V]) decodeWindow(kv KV, err error) (r WindowRow[K, V], _ error) {
	if err != nil {
		return r, err
	}
	key, start, err := splitWindowKey(kv.Key)
	if err != nil {
		return r, fmt.Errorf("store %q: %w", c.store, err)
	}
	if r.Key, err = c.decodeKey(key); err != nil {
		return r, err
	}
	r.Start = start
	r.Value, r.Timestamp, err = c.decodeRow(bytes.Clone(kv.Value))
	return r, err
}
