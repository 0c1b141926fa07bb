package processors

import (
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/millrace/millrace/state"
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
			part := state.NewPartition(state.NewMemory(), state.TaskID{}, nil)
			var got []int64
			cancel := p.Add(tt.kind, 10*time.Millisecond, start, part.Cell("due"), func(at int64) error {
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

// When a stream-time punctuation is due next is part of the task's state: it is undone
// with a record and with a transaction, and survives a restart.
func TestPunctuationsAreDurable(t *testing.T) {
	t.Parallel()
	db := state.NewMemory()
	var got []int64
	open := func(interval time.Duration) (*state.Partition, func(times ...int64)) {
		part := state.NewPartition(db, state.TaskID{}, nil)
		var p Punctuations
		p.Add(StreamTime, interval, time.UnixMilli(0), part.Cell("due"), func(at int64) error {
			got = append(got, at)
			return nil
		})
		return part, func(times ...int64) {
			t.Helper()
			for _, at := range times {
				part.Begin()
				if err := p.StreamTime(at); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	commit := func(part *state.Partition) {
		t.Helper()
		if err := errors.Join(part.Commit(), part.WriteBack(&state.Batch{})); err != nil {
			t.Fatal(err)
		}
	}
	expect := func(what string, want ...int64) {
		t.Helper()
		if !slices.Equal(got, want) {
			t.Errorf("%s: fired at %v, want %v", what, got, want)
		}
		got = nil
	}
	part, at := open(100 * time.Millisecond)
	at(7, 50)
	expect("the first record", 7)
	commit(part)
	at(100)
	part.Rollback()
	at(101)
	expect("a record that failed", 100, 101)
	part.Abort()
	at(100, 101)
	expect("an aborted transaction", 100)
	commit(part)
	_, at = open(100 * time.Millisecond)
	at(120, 199, 200)
	expect("a restart", 200)
	_, at = open(time.Second)
	at(199, 500, 1000)
	expect("a longer interval", 500, 1000)
	_, at = open(10 * time.Millisecond)
	at(130)
	expect("a shorter interval", 130)
}
