package state

import (
	"cmp"
	"encoding/binary"
	"slices"
)

// A head is the start of a key as a number, and the place of the key in a list.
// Keys mostly differ there, so that sorting heads seldom looks at the keys.
type head struct {
	bits uint64
	at   int32
}

// A sorter sorts lists of keys. Backends write sorted rows much faster. It
// reuses its memory.
type sorter struct{ heads []head }

// sort returns the order of n keys; equal keys stay in the order of the list.
// The result is valid until the next sort.
func sortKeys[T string | []byte](s *sorter, n int, key func(i int32) T) []head {
	s.heads = slices.Grow(s.heads[:0], n)
	skip := commonPrefix(n, key)
	var word [8]byte
	for i := range int32(n) {
		clear(word[:])
		copy(word[:], key(i)[skip:])
		s.heads = append(s.heads, head{binary.BigEndian.Uint64(word[:]), i})
	}
	slices.SortFunc(s.heads, func(a, b head) int {
		if a.bits != b.bits {
			return cmp.Compare(a.bits, b.bits)
		}
		if c := cmp.Compare(string(key(a.at)), string(key(b.at))); c != 0 {
			return c
		}
		return cmp.Compare(a.at, b.at)
	})
	return s.heads
}

// commonPrefix returns the length of the prefix that all keys share.
func commonPrefix[T string | []byte](n int, key func(i int32) T) int {
	if n == 0 {
		return 0
	}
	first := key(0)
	shared := len(first)
	for i := int32(1); i < int32(n) && shared > 0; i++ {
		k := key(i)
		if len(k) < shared {
			shared = len(k)
		}
		if string(k[:shared]) == string(first[:shared]) {
			continue
		}
		for j := range shared {
			if k[j] != first[j] {
				shared = j
				break
			}
		}
	}
	return shared
}
