package statetest_test

import (
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/millrace/millrace/state"
	"github.com/millrace/millrace/statetest"
)

func TestMemory(t *testing.T) {
	t.Parallel()
	statetest.Run(t, func(testing.TB) statetest.Opener {
		db := state.NewMemory()
		return func(testing.TB) state.Backend { return db }
	})
}

func TestPebble(t *testing.T) {
	t.Parallel()
	statetest.Run(t, func(testing.TB) statetest.Opener {
		fs := vfs.NewMem()
		return func(t testing.TB) state.Backend { return openPebble(t, fs) }
	})
}

func TestPebbleOnDisk(t *testing.T) {
	t.Parallel()
	statetest.Backend(t, func(t testing.TB) statetest.Opener {
		dir := t.TempDir()
		return func(t testing.TB) state.Backend {
			db, err := state.OpenPebble(dir)
			if err != nil {
				t.Fatal(err)
			}
			return db
		}
	})
}

func openPebble(t testing.TB, fs vfs.FS) *state.Pebble {
	t.Helper()
	db, err := state.OpenPebble("db", state.FS(fs), state.BlockCache(1<<20))
	if err != nil {
		t.Fatal(err)
	}
	return db
}
