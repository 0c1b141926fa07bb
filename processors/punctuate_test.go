package processors

import (
	"slices"
	"testing"
	"time"
)

func TestPunctuations(t *testing.T) {
	t.Parallel()
	start := time.UnixMilli(1_000)
	tests := []struct {
		name  string
		kind  PunctuationKind
		times []int64
		want  []int64
	}{
		{"stream time fires on the first record, then on multiples, missed ones once", StreamTime, []int64{7, 9, 10, 11, 35, 39, 40}, []int64{7, 10, 35, 40}},
		{"wall clock fires one interval after the start, missed ones once", WallClock, []int64{1_000, 1_009, 1_010, 1_045, 1_049, 1_050}, []int64{1_010, 1_045, 1_050}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			var p Punctuations
			var got []int64
			cancel := p.Add(tt.kind, 10*time.Millisecond, start, func(at int64) error {
				got = append(got, at)
				return nil
			})
			tick := func(ms int64) {
				if err := p.StreamTime(ms); err != nil {
					t.Fatal(err)
				}
				if err := p.WallClock(time.UnixMilli(ms)); err != nil {
					t.Fatal(err)
				}
			}
			for _, ms := range tt.times {
				if tt.kind == StreamTime {
					if err := p.StreamTime(ms); err != nil {
						t.Fatal(err)
					}
					continue
				}
				tick(ms)
			}
			if !slices.Equal(got, tt.want) {
				t.Errorf("fired at %v, want %v", got, tt.want)
			}
			cancel()
			tick(1_000_000)
			if len(got) != len(tt.want) || p.Any() {
				t.Errorf("fired after cancel: %v", got)
			}
		})
	}
}
