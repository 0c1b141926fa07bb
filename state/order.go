package state

import (
	"cmp"
	"encoding/binary"
	"math"
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
type sorter struct{ heads, spare []head }

// sort returns the order of n keys; equal keys stay in the order of the list.
// The result is valid until the next sort.
func sortKeys[T string | []byte](s *sorter, n int, key func(i int32) T) []head {
	s.heads = slices.Grow(s.heads[:0], n)
	skip := commonPrefix(n, key)
	var word [8]byte
	shortest, longest := math.MaxInt, 0
	for i := range int32(n) {
		k := key(i)
		shortest, longest = min(shortest, len(k)), max(longest, len(k))
		clear(word[:])
		copy(word[:], k[skip:])
		s.heads = append(s.heads, head{binary.BigEndian.Uint64(word[:]), i})
	}
	s.radix()
	if shortest == longest && longest <= skip+len(word) {
		return s.heads // equal heads are equal keys
	}
	// What the heads do not decide the keys do.
	for from := 0; from < n; {
		to := from + 1
		for to < n && s.heads[to].bits == s.heads[from].bits {
			to++
		}
		if to-from > 1 {
			slices.SortStableFunc(s.heads[from:to], func(a, b head) int {
				return cmp.Compare(string(key(a.at)), string(key(b.at)))
			})
		}
		from = to
	}
	return s.heads
}

// radixLeast is the number of heads from which counting bytes beats comparing.
const radixLeast = 256

// radix sorts the heads by their bits, byte by byte from the last one. It is stable.
func (s *sorter) radix() {
	n := len(s.heads)
	if n < radixLeast {
		slices.SortStableFunc(s.heads, func(a, b head) int { return cmp.Compare(a.bits, b.bits) })
		return
	}
	s.spare = slices.Grow(s.spare[:0], n)[:n]
	for shift := 0; shift < 64; shift += 8 {
		var starts [256]int
		for _, h := range s.heads {
			starts[byte(h.bits>>shift)]++
		}
		if starts[byte(s.heads[0].bits>>shift)] == n {
			continue // all have the same byte
		}
		at := 0
		for b, count := range starts {
			starts[b] = at
			at += count
		}
		for _, h := range s.heads {
			b := byte(h.bits >> shift)
			s.spare[starts[b]] = h
			starts[b]++
		}
		s.heads, s.spare = s.spare, s.heads
	}
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
