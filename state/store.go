// Package state holds the stores of an application: typed key-value and window
// stores over one ordered backend per instance, the uncommitted changes of a
// task in front of it, checkpoints, and the views that read committed rows.
//
// A store has three layers: committed rows in the [Backend], a cache of encoded
// values, and the overlay of the open transaction. Only the task that owns a
// store sees its overlay; views read committed rows only.
package state

import (
	"iter"
	"time"
)

// Kind tells how a store lays out its rows.
type Kind uint8

// The kinds of store.
const (
	KeyValue Kind = iota
	Window
	Events
)

// A Spec describes one store of a topology.
type Spec struct {
	// Name is unique in the application. The changelog is <app>.<Name>-table.
	Name string
	Kind Kind
	// KeySerde and ValueSerde name the encodings; the manifest refuses a
	// directory that holds others.
	KeySerde, ValueSerde string
	// WindowSize and Retention are set for window stores: a row is kept until
	// stream time passes its window start by Retention. Retention is set for event
	// stores too.
	WindowSize, Retention time.Duration
	// TTL, if not 0, is how long a row of a key-value store is kept after its
	// timestamp, in stream time. Whoever owns the store deletes it then.
	TTL time.Duration
	// SourceTopic, when not empty, is the topic whose records are the log of this
	// store, so that it has no changelog of its own.
	SourceTopic string
}

// KeyValueStore is a typed key-value store of one task. It is not safe for
// concurrent use: only the task that owns it calls it, while it processes a
// record. Keys are ordered by their encoded bytes.
type KeyValueStore[K, V any] interface {
	// Get returns the value of key, and whether there is one.
	Get(key K) (V, bool, error)
	// GetTimestamped also returns the timestamp (ms since the epoch) of the row.
	GetTimestamped(key K) (v V, timestamp int64, ok bool, err error)
	// Put sets the value of key. The row's timestamp is the given one, in ms
	// since the epoch.
	Put(key K, value V, timestamp int64) error
	// Delete removes key; deleting an absent key is not an error.
	Delete(key K) error
	// Range iterates over the keys in [from, to] in ascending byte order; a nil
	// bound is open. The iteration ends after the first error.
	Range(from, to *K) iter.Seq2[Row[K, V], error]
	// Prefix iterates over the keys whose encoding starts with prefix.
	Prefix(prefix []byte) iter.Seq2[Row[K, V], error]
}

// A Row is a key with its value and timestamp (ms since the epoch).
type Row[K, V any] struct {
	Key       K
	Value     V
	Timestamp int64
}

// WindowStore is a typed store of windowed rows: (key, window start) -> value.
// Rows whose window start is at or before stream time - retention are expired:
// reads do not return them and puts drop them. Not safe for concurrent use.
type WindowStore[K, V any] interface {
	// Get returns the row of key in the window that starts at start (ms).
	Get(key K, start int64) (v V, timestamp int64, ok bool, err error)
	// Put sets the row of key in the window that starts at start.
	Put(key K, start int64, value V, timestamp int64) error
	// Delete removes the row of key in the window that starts at start.
	Delete(key K, start int64) error
	// Fetch iterates over the rows of key whose window start is in [from, to], in
	// ascending start order.
	Fetch(key K, from, to int64) iter.Seq2[WindowRow[K, V], error]
	// FetchReverse is Fetch in descending start order.
	FetchReverse(key K, from, to int64) iter.Seq2[WindowRow[K, V], error]
	// FetchAll iterates over the rows of all keys whose window start is in
	// [from, to], ordered by start, then by encoded key.
	FetchAll(from, to int64) iter.Seq2[WindowRow[K, V], error]
}

// A WindowRow is a row of a window store. Start is the window's start and
// Timestamp the row's event time, both in ms since the epoch.
type WindowRow[K, V any] struct {
	Key       K
	Start     int64
	Value     V
	Timestamp int64
}
