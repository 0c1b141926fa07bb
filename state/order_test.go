package state

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
)

func TestSortKeys(t *testing.T) {
	t.Parallel()
	rng := rand.New(rand.NewPCG(1, 1))
	var s sorter
	for _, n := range []int{0, 1, 2, radixLeast - 1, radixLeast, 5000, 3} {
		for _, prefix := range []string{"", "the-same-beginning-"} {
			for _, distinct := range []int{1, 50, 1 << 30, 1_000_000} {
				keys := make([]string, n)
				for i := range keys {
					k := rng.IntN(distinct)
					if distinct == 1_000_000 { // of one length
						keys[i] = fmt.Sprintf("%s%07d", prefix, k)
						continue
					}
					keys[i] = prefix + strings.Repeat("\x00", k%3) + fmt.Sprint(k) + strings.Repeat("\x00", k%5)
				}
				want := make([]int32, n)
				for i := range want {
					want[i] = int32(i)
				}
				slices.SortStableFunc(want, func(a, b int32) int { return strings.Compare(keys[a], keys[b]) })
				got := make([]int32, 0, n)
				for _, h := range sortKeys(&s, n, func(i int32) string { return keys[i] }) {
					got = append(got, h.at)
				}
				if !slices.Equal(got, want) {
					t.Errorf("%d keys of %d, prefix %q: wrong order", n, distinct, prefix)
				}
			}
		}
	}
}
