package state

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// ErrCorrupt marks damage of stored state: a row, the database, the manifest or
// the identity file. State that reports it must be moved aside (see
// [Dir.Quarantine]) and rebuilt.
var ErrCorrupt = errors.New("state is damaged")

// timestampSize is the length of the timestamp at the start of a row.
const timestampSize = 8

// AppendRow appends to dst the start of a row of a key-value or window store:
// the timestamp in ms since the epoch. The encoded value follows.
func AppendRow(dst []byte, timestamp int64) []byte {
	return binary.BigEndian.AppendUint64(dst, uint64(timestamp))
}

// SplitRow returns the timestamp (ms since the epoch) and the encoded value of a
// row. The value aliases row. The error is [ErrCorrupt].
func SplitRow(row []byte) (timestamp int64, value []byte, err error) {
	if len(row) < timestampSize {
		return 0, nil, fmt.Errorf("%w: a row of %d bytes has no timestamp", ErrCorrupt, len(row))
	}
	return int64(binary.BigEndian.Uint64(row)), row[timestampSize:], nil
}

// ChangelogRecord returns the record that logs a change of a store: rowKey and
// row as [Store.Changes] gives them, a nil row for a deletion, and now, the wall
// clock in ms since the epoch.
//
// A key-value store logs the plain key and value with the row's timestamp, a
// window store the key followed by the window start and the row as it is with
// the wall clock, an event store the key followed by the event's time and number,
// and the task's own rows are logged as they are with the wall clock. Key and value may alias the arguments. It panics on rows that no store
// of this kind wrote.
func (s *Spec) ChangelogRecord(rowKey, row []byte, now int64) (key, value []byte, timestamp int64) {
	switch {
	case s.Name == TaskRows:
		return rowKey, row, now
	case s.Kind == Window:
		user, start, err := splitWindowKey(rowKey)
		if err != nil {
			panic(fmt.Sprintf("store %q: %v", s.Name, err))
		}
		return binary.BigEndian.AppendUint64(user, uint64(start)), row, now
	case s.Kind == Events:
		user, time, number, err := splitEventKey(rowKey)
		if err != nil {
			panic(fmt.Sprintf("store %q: %v", s.Name, err))
		}
		user = binary.BigEndian.AppendUint64(user, uint64(time))
		return binary.BigEndian.AppendUint64(user, uint64(number)), row, now
	case row == nil:
		return rowKey, nil, now
	}
	ts, value, err := SplitRow(row)
	if err != nil {
		panic(fmt.Sprintf("store %q: %v", s.Name, err))
	}
	return rowKey, value, ts
}

// RestoreRow is the inverse of [Spec.ChangelogRecord]: it returns the row that a
// record of the store's changelog, or of its source topic, stands for. A nil
// value, Kafka's tombstone, gives a nil row: a deletion. The result is in memory
// of its own. The error says why the record cannot be one of this store.
func (s *Spec) RestoreRow(key, value []byte, timestamp int64) (rowKey, row []byte, err error) {
	if rowKey, err = s.appendRowKey(nil, key, value); err != nil || value == nil {
		return rowKey, nil, err
	}
	row = make([]byte, 0, timestampSize+len(value))
	return rowKey, s.appendRowValue(row, value, timestamp), nil
}

// appendRowKey checks a record of the changelog and appends the key of its row.
func (s *Spec) appendRowKey(dst, key, value []byte) ([]byte, error) {
	if key == nil {
		return dst, fmt.Errorf("store %q: a changelog record without a key", s.Name)
	}
	switch {
	case s.Name == TaskRows || s.Kind == KeyValue:
		return append(dst, key...), nil
	case s.Kind == Events:
		return s.appendEventLogKey(dst, key)
	}
	user := len(key) - 8
	if user < 0 {
		return dst, fmt.Errorf("store %q: a changelog key of %d bytes has no window start", s.Name, len(key))
	}
	start := int64(binary.BigEndian.Uint64(key[user:]))
	if start < 0 {
		return dst, fmt.Errorf("store %q: a changelog key with window start %d", s.Name, start)
	}
	if value != nil && len(value) < timestampSize {
		return dst, fmt.Errorf("store %q: a changelog value of %d bytes has no timestamp", s.Name, len(value))
	}
	return s.appendWindowKey(dst, key[:user], start), nil
}

// appendRowValue appends the row of a changelog value that is not nil.
func (s *Spec) appendRowValue(dst, value []byte, timestamp int64) []byte {
	if s.Name != TaskRows && s.Kind == KeyValue {
		dst = AppendRow(dst, timestamp)
	}
	return append(dst, value...)
}
