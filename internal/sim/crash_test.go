package sim

import (
	"fmt"
	"iter"
	"maps"
	"math/rand/v2"
	"slices"
	"strconv"
	"testing"
	"testing/synctest"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/millrace/millrace/state"
)

// What survives a power cut is what one of the batches since the last flush, or
// ingest, has left: never half of one, and never less than what was flushed. Rows
// and their checkpoint row stay together.
func TestCrashClones(t *testing.T) {
	t.Parallel()
	for seed := range uint64(20) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) { crashClones(t, seed) })
		})
	}
}

func crashClones(t *testing.T, seed uint64) {
	rng := rand.New(rand.NewPCG(seed, 3))
	fs := vfs.NewCrashableMem()
	open := func(fs vfs.FS) *state.Pebble {
		db, err := state.OpenPebble("/db", state.FS(fs))
		if err != nil {
			t.Fatal(err)
		}
		return db
	}
	db := open(fs)
	if err := db.Flush(); err != nil {
		t.Fatal(err)
	}
	// history[n] are the rows after n changes; the row "checkpoint" says which.
	history := []map[string]string{{}}
	durable := 0
	change := func() map[string]string {
		next := maps.Clone(history[len(history)-1])
		next["checkpoint"] = strconv.Itoa(len(history))
		for range 1 + rng.IntN(5) {
			next[fmt.Sprintf("key-%02d", rng.IntN(30))] = fmt.Sprint(len(history), " ", rng.Uint64())
		}
		history = append(history, next)
		return next
	}
	for range 60 {
		switch rng.IntN(8) {
		case 0: // flush: also turns the memtable over
			if err := db.Flush(); err != nil {
				t.Fatal(err)
			}
			durable = len(history) - 1
		case 1: // ingest
			next := change()
			if err := db.Ingest(sorted(next)); err != nil {
				t.Fatal(err)
			}
			durable = len(history) - 1
		case 2: // power cut: look at what the disk kept
			clone := fs.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: oneOf(rng, 0, 50, 100), RNG: rand.New(rand.NewPCG(rng.Uint64(), 1))})
			after := open(clone)
			checkRows(t, after, history, durable)
			if rng.IntN(2) == 0 { // and go on from there
				if err := db.Close(); err != nil {
					t.Fatal(err)
				}
				fs, db = clone, after
				n := checkRows(t, db, history, durable)
				history, durable = history[:n+1], n
				continue
			}
			if err := after.Close(); err != nil {
				t.Fatal(err)
			}
		default:
			b := &state.Batch{}
			for k, v := range sorted(change()) {
				b.Set(k, v)
			}
			if err := db.Write(b); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	db = open(fs)
	checkRows(t, db, history, len(history)-1) // Close flushes
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
}

func sorted(rows map[string]string) iter.Seq2[[]byte, []byte] {
	return func(yield func(k, v []byte) bool) {
		for _, k := range slices.Sorted(maps.Keys(rows)) {
			if !yield([]byte(k), []byte(rows[k])) {
				return
			}
		}
	}
}

// checkRows checks that the rows are those after one of the changes from durable on,
// and returns which.
func checkRows(t *testing.T, db *state.Pebble, history []map[string]string, durable int) int {
	t.Helper()
	got := map[string]string{}
	for kv, err := range db.Scan(nil, nil, false) {
		if err != nil {
			t.Fatal(err)
		}
		got[string(kv.Key)] = string(kv.Value)
	}
	n, _ := strconv.Atoi(got["checkpoint"]) // 0 without the row
	if n < durable || n >= len(history) || !maps.Equal(got, history[n]) {
		t.Fatalf("after a crash the checkpoint is %d, %d was durable, and the rows are %v", n, durable, got)
	}
	return n
}
