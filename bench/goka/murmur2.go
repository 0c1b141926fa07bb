package main

import (
	"encoding/binary"
	"hash"
)

// murmur2 is the hash by which Kafka's clients partition, so that goka's output
// lands in the partition of its input. goka gives it a whole key in one Write.
type murmur2 struct{ sum uint32 }

var _ hash.Hash32 = (*murmur2)(nil)

func (m *murmur2) Write(key []byte) (int, error) {
	m.sum = murmur2Sum(key) & 0x7fffffff
	return len(key), nil
}

func (m *murmur2) Sum32() uint32       { return m.sum }
func (m *murmur2) Reset()              { m.sum = 0 }
func (m *murmur2) Size() int           { return 4 }
func (m *murmur2) BlockSize() int      { return 4 }
func (m *murmur2) Sum(b []byte) []byte { return binary.BigEndian.AppendUint32(b, m.sum) }

func murmur2Sum(b []byte) uint32 {
	const mul = 0x5bd1e995
	h := 0x9747b28c ^ uint32(len(b))
	for ; len(b) >= 4; b = b[4:] {
		k := binary.LittleEndian.Uint32(b) * mul
		h = h*mul ^ (k^k>>24)*mul
	}
	switch len(b) {
	case 3:
		h ^= uint32(b[2]) << 16
		fallthrough
	case 2:
		h ^= uint32(b[1]) << 8
		fallthrough
	case 1:
		h = (h ^ uint32(b[0])) * mul
	}
	h = (h ^ h>>13) * mul
	return h ^ h>>15
}
