package serde

import (
	"encoding/binary"
	"fmt"
	"math"
	"unsafe"
)

// String returns the serde of strings: their bytes as they are, normally UTF-8
// (Kafka's StringSerializer). A decoded string shares memory with the record it
// came from; use [strings.Clone] to keep a small one for long.
//
// Encoded strings are ordered like the strings.
func String() Serde[string] { return stringSerde{} }

// Bytes returns the serde of byte slices: the bytes as they are (Kafka's
// ByteArraySerializer). Decoding does not copy; nil encodes as no bytes and
// decodes as an empty slice.
func Bytes() Serde[[]byte] { return bytesSerde{} }

// Int32 returns the serde of 32-bit integers: 4 bytes, big-endian, two's
// complement (Kafka's IntegerSerializer). In the order of the encoded bytes,
// which range scans use, negative numbers come after the positive ones.
func Int32() Serde[int32] { return int32Serde{} }

// Int64 returns the serde of 64-bit integers: 8 bytes, big-endian, two's
// complement (Kafka's LongSerializer). In the order of the encoded bytes, which
// range scans use, negative numbers come after the positive ones.
func Int64() Serde[int64] { return int64Serde{} }

// Float64 returns the serde of floating-point numbers: the 8 bytes of IEEE 754,
// big-endian (Kafka's DoubleSerializer). The bits are kept, those of a NaN too.
func Float64() Serde[float64] { return float64Serde{} }

// Bool returns the serde of booleans: one byte, 0 or 1 (Kafka's
// BooleanSerializer).
func Bool() Serde[bool] { return boolSerde{} }

type stringSerde struct{}

func (stringSerde) Append(dst []byte, v string) ([]byte, error) {
	return notNil(append(dst, v...)), nil
}
func (stringSerde) Name() string { return "string" }

func (stringSerde) Decode(data []byte) (string, error) {
	// Nobody changes data afterwards, so the string may share its memory, which
	// saves an allocation per key and value.
	return unsafe.String(unsafe.SliceData(data), len(data)), nil
}

type bytesSerde struct{}

func (bytesSerde) Append(dst []byte, v []byte) ([]byte, error) { return notNil(append(dst, v...)), nil }
func (bytesSerde) Decode(data []byte) ([]byte, error)          { return notNil(data), nil }
func (bytesSerde) Name() string                                { return "bytes" }

// notNil keeps an empty encoding from being taken for Kafka's null.
func notNil(b []byte) []byte {
	if b == nil {
		return []byte{}
	}
	return b
}

type int32Serde struct{}

func (int32Serde) Append(dst []byte, v int32) ([]byte, error) {
	return binary.BigEndian.AppendUint32(dst, uint32(v)), nil
}

func (s int32Serde) Decode(data []byte) (int32, error) {
	if err := wantLen(s.Name(), data, 4); err != nil {
		return 0, err
	}
	return int32(binary.BigEndian.Uint32(data)), nil
}

func (int32Serde) Name() string { return "int32" }

type int64Serde struct{}

func (int64Serde) Append(dst []byte, v int64) ([]byte, error) {
	return binary.BigEndian.AppendUint64(dst, uint64(v)), nil
}

func (s int64Serde) Decode(data []byte) (int64, error) {
	if err := wantLen(s.Name(), data, 8); err != nil {
		return 0, err
	}
	return int64(binary.BigEndian.Uint64(data)), nil
}

func (int64Serde) Name() string { return "int64" }

type float64Serde struct{}

func (float64Serde) Append(dst []byte, v float64) ([]byte, error) {
	return binary.BigEndian.AppendUint64(dst, math.Float64bits(v)), nil
}

func (s float64Serde) Decode(data []byte) (float64, error) {
	if err := wantLen(s.Name(), data, 8); err != nil {
		return 0, err
	}
	return math.Float64frombits(binary.BigEndian.Uint64(data)), nil
}

func (float64Serde) Name() string { return "float64" }

type boolSerde struct{}

func (boolSerde) Append(dst []byte, v bool) ([]byte, error) {
	if v {
		return append(dst, 1), nil
	}
	return append(dst, 0), nil
}

func (s boolSerde) Decode(data []byte) (bool, error) {
	if err := wantLen(s.Name(), data, 1); err != nil {
		return false, err
	}
	if data[0] > 1 {
		return false, fmt.Errorf("serde %s: byte %#x, want 0 or 1", s.Name(), data[0])
	}
	return data[0] == 1, nil
}

func (boolSerde) Name() string { return "bool" }

func wantLen(name string, data []byte, n int) error {
	if len(data) != n {
		return fmt.Errorf("serde %s: %d bytes, want %d", name, len(data), n)
	}
	return nil
}
