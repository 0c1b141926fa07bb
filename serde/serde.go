// Package serde holds the typed codecs that turn keys and values into the bytes
// of Kafka records and state rows, and back.
//
// The encodings of strings, bytes, numbers and booleans are those of Kafka's Java
// serializers, so that Java programs read and write the same topics.
package serde

// A Serde encodes and decodes values of one type. It is safe for concurrent use.
//
// A serde never sees null: a record without a key or a value carries that fact
// itself, and so does a deleted row. The serdes of this package therefore refuse
// to encode a nil message or anything that encodes as JSON null.
type Serde[T any] interface {
	// Append appends the encoding of v to dst and returns the extended slice. It
	// never returns nil without an error: nil bytes are Kafka's null, an empty
	// encoding is an empty slice. With an error it returns dst as it was. It does
	// not keep dst.
	Append(dst []byte, v T) ([]byte, error)
	// Decode decodes data. The result may alias data, which nobody changes
	// afterwards.
	Decode(data []byte) (T, error)
	// Name identifies the encoding, for example "string" or
	// "proto(support.v1.Ticket)". State written under one name is refused under
	// another.
	Name() string
}
