// Package serde holds the typed codecs that turn keys and values into the bytes
// of Kafka records and state rows, and back.
package serde

// A Serde encodes and decodes values of one type. It is safe for concurrent use.
//
// A serde never sees null: a record without a key or a value carries that fact
// itself, and so does a deleted row.
type Serde[T any] interface {
	// Append appends the encoding of v to dst and returns the extended slice.
	Append(dst []byte, v T) ([]byte, error)
	// Decode decodes data. The result may alias data, which nobody changes
	// afterwards.
	Decode(data []byte) (T, error)
	// Name identifies the encoding, for example "string" or
	// "proto(support.v1.Ticket)". State written under one name is refused under
	// another.
	Name() string
}
