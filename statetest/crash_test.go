package statetest_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

	"github.com/millrace/millrace/serde"
	"github.com/millrace/millrace/state"
)

var (
	crashSpec = state.Spec{Name: "counts"}
	crashTask = state.TaskID{SubTopology: "count"}
)

// A crashRun writes cycles of a task. Every cycle sets each of its keys to the
// number of the cycle, and the checkpoint with it, so that what survives a crash
// must be one cycle, whole.
type crashRun struct {
	db    *state.Pebble
	part  *state.Partition
	store state.KeyValueStore[string, int64]
	cycle int64
}

const crashKeys = 20

func newCrashRun(db *state.Pebble) *crashRun {
	r := &crashRun{db: db, part: state.NewPartition(db, crashTask, []state.Spec{crashSpec})}
	r.store = state.NewKeyValueStore(r.part.Store("counts"), serde.String(), serde.Int64())
	return r
}

func (r *crashRun) checkpoint() *state.Checkpoint {
	return &state.Checkpoint{Logs: map[string]state.LogPosition{"counts": {Next: r.cycle * crashKeys}}, Time: r.cycle}
}

func (r *crashRun) commit(pad int) error {
	r.cycle++
	for k := range crashKeys {
		if err := r.store.Put(crashKey(k, pad), r.cycle, r.cycle); err != nil {
			return err
		}
	}
	b := &state.Batch{}
	if err := r.checkpoint().AppendTo(b, crashTask); err != nil {
		return err
	}
	if err := r.part.Commit(); err != nil {
		return err
	}
	return r.part.WriteBack(b)
}

// ingest restores one cycle as a file.
func (r *crashRun) ingest(pad int) error {
	r.cycle++
	cp := r.checkpoint()
	cp.Logs["counts"] = state.LogPosition{}
	re := state.NewRestorer(r.db, crashTask, []state.Spec{crashSpec}, cp)
	for k := range int64(crashKeys) {
		key := []byte(crashKey(int(k), pad))
		value := binary.BigEndian.AppendUint64(nil, uint64(r.cycle))
		if err := re.Add("counts", r.cycle*crashKeys-crashKeys+k, key, value, r.cycle); err != nil {
			return err
		}
	}
	// Records of a key that is deleted at once bring it to the size of a file.
	junk := make([]byte, 1<<20)
	for range 5 {
		if err := re.Add("counts", 0, []byte("junk"), junk, 0); err != nil {
			return err
		}
	}
	if err := re.Add("counts", 0, []byte("junk"), nil, 0); err != nil {
		return err
	}
	r.part.Abort()
	return re.Flush(r.cycle)
}

func crashKey(k, pad int) string { return fmt.Sprintf("%03d%s", k, strings.Repeat("x", pad)) }

// survived opens what a crash left and returns its cycle, after checking that it
// is whole.
func survived(t *testing.T, fs vfs.FS, pad int) int64 {
	t.Helper()
	db, err := state.OpenPebble("db", state.FS(fs), state.BlockCache(1<<20))
	if err != nil {
		t.Fatalf("a crash left what does not open: %v", err)
	}
	defer func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	}()
	cp, err := state.LoadCheckpoint(db, crashTask)
	if err != nil {
		t.Fatal(err)
	}
	cycle := int64(0)
	if cp != nil {
		cycle = cp.Time
		if next := cp.Logs["counts"].Next; next != cycle*crashKeys {
			t.Fatalf("cycle %d has position %d", cycle, next)
		}
	}
	r := newCrashRun(db)
	n := 0
	for row, err := range r.store.Range(nil, nil) {
		if err != nil {
			t.Fatal(err)
		}
		n++
		if row.Value != cycle {
			t.Fatalf("the checkpoint is of cycle %d, row %.3s of cycle %d", cycle, row.Key, row.Value)
		}
	}
	if want := crashKeys; cycle > 0 && n != want || cycle == 0 && n != 0 {
		t.Fatalf("cycle %d has %d rows", cycle, n)
	}
	return cycle
}

// TestCrash clones the file system at random moments of random runs: between
// commits, flushes, ingests and while they work in the background.
func TestCrash(t *testing.T) {
	t.Parallel()
	for seed := range uint64(60) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			rng := rand.New(rand.NewPCG(seed, 2))
			var crashes []*vfs.MemFS
			mem := vfs.NewCrashableMem()
			// Writes and syncs of all threads pass here: the moments of crashes.
			var ops atomic.Int64
			clones := make(chan *vfs.MemFS, 1000)
			every := 1 + rng.Int64N(40)
			fs := errorfs.Wrap(mem, errorfs.InjectorFunc(func(op errorfs.Op) error {
				if op.Kind.ReadOrWrite() == errorfs.OpIsWrite && ops.Add(1)%every == 0 && len(clones) < 20 {
					percent := []int{0, 50, 100}[ops.Load()%3]
					clones <- mem.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: percent, RNG: rand.New(rand.NewPCG(seed, uint64(ops.Load())))})
				}
				return nil
			}))
			db := openPebble(t, fs)
			r := newCrashRun(db)
			flushed := int64(0) // cycle that must survive
			for range 30 {
				var err error
				switch p := rng.IntN(10); {
				case p < 7:
					err = r.commit(100)
				case p < 9:
					err = db.Flush()
					flushed = r.cycle
				default:
					err = r.ingest(100)
					flushed = r.cycle
				}
				if err != nil {
					t.Fatal(err)
				}
			}
			last := mem.CrashClone(vfs.CrashCloneCfg{})
			if err := db.Close(); err != nil {
				t.Fatal(err)
			}
			closed := mem.CrashClone(vfs.CrashCloneCfg{})
			close(clones)
			for c := range clones {
				crashes = append(crashes, c)
			}
			for _, c := range crashes {
				survived(t, c, 100)
			}
			if got := survived(t, last, 100); got < flushed {
				t.Errorf("cycle %d survived, %d was flushed", got, flushed)
			}
			if got := survived(t, closed, 100); got != r.cycle {
				t.Errorf("cycle %d survived Close, the last was %d", got, r.cycle)
			}
		})
	}
}

// TestCrashRotation crashes while memtables are full, wait and are flushed in the
// background.
func TestCrashRotation(t *testing.T) {
	t.Parallel()
	const pad = 200_000
	mem := vfs.NewCrashableMem()
	db := openPebble(t, mem)
	r := newCrashRun(db)
	best := int64(0)
	for i := range 40 { // 4 MB each: the memtable rotates at 64
		if err := r.commit(pad); err != nil {
			t.Fatal(err)
		}
		if i%8 == 7 {
			clone := mem.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: 50, RNG: rand.New(rand.NewPCG(uint64(i), 3))})
			got := survived(t, clone, pad)
			if got < best || got > r.cycle {
				t.Fatalf("cycle %d survived of %d, after %d had", got, r.cycle, best)
			}
			best = got
		}
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	if got := survived(t, mem.CrashClone(vfs.CrashCloneCfg{}), pad); got != r.cycle {
		t.Errorf("cycle %d survived Close, the last was %d", got, r.cycle)
	}
}

// TestFailedFlush fills the disk: the failure surfaces in Flush and in the next
// Write, nothing is lost, and writing goes on when there is room.
func TestFailedFlush(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		mem := vfs.NewCrashableMem()
		var full atomic.Bool
		fs := errorfs.Wrap(mem, errorfs.InjectorFunc(func(op errorfs.Op) error {
			if full.Load() && op.Kind == errorfs.OpCreate && strings.HasSuffix(op.Path, ".sst") {
				return syscall.ENOSPC
			}
			return nil
		}))
		db := openPebble(t, fs)
		r := newCrashRun(db)
		if err := errors.Join(r.commit(1), db.Flush(), r.commit(1)); err != nil {
			t.Fatal(err)
		}
		full.Store(true)
		if err := db.Flush(); !errors.Is(err, syscall.ENOSPC) {
			t.Fatalf("Flush on a full disk: %v", err)
		}
		if err := r.commit(1); !errors.Is(err, syscall.ENOSPC) {
			t.Fatalf("Write after a failed flush: %v", err)
		}
		if got := survived(t, mem.CrashClone(vfs.CrashCloneCfg{}), 1); got != 1 {
			t.Fatalf("cycle %d survived, 1 was flushed", got)
		}
		full.Store(false)
		<-time.After(time.Minute) // of the bubble: retries are paced
		if err := errors.Join(r.commit(1), db.Flush()); err != nil {
			t.Fatalf("with room again: %v", err)
		}
		if got := survived(t, mem.CrashClone(vfs.CrashCloneCfg{}), 1); got != r.cycle {
			t.Fatalf("cycle %d survived, %d was flushed", got, r.cycle)
		}
		if err := db.Close(); err != nil {
			t.Fatal(err)
		}
	})
}

// TestFailedManifest breaks the database's own manifest: it stops for good,
// without ending the process, and what is on disk opens.
func TestFailedManifest(t *testing.T) {
	t.Parallel()
	mem := vfs.NewCrashableMem()
	var broken atomic.Bool
	fs := errorfs.Wrap(mem, errorfs.InjectorFunc(func(op errorfs.Op) error {
		if broken.Load() && op.Kind == errorfs.OpFileWrite && strings.Contains(op.Path, "MANIFEST") {
			return syscall.EIO
		}
		return nil
	}))
	db := openPebble(t, fs)
	r := newCrashRun(db)
	if err := errors.Join(r.commit(1), db.Flush(), r.commit(1)); err != nil {
		t.Fatal(err)
	}
	broken.Store(true)
	if err := db.Flush(); err == nil || !strings.Contains(err.Error(), "MANIFEST") {
		t.Fatalf("Flush with a broken manifest: %v", err)
	}
	broken.Store(false)
	if err := r.commit(1); err == nil {
		t.Fatal("a stopped database takes writes")
	}
	if err := db.Flush(); err == nil {
		t.Fatal("a stopped database flushes")
	}
	if err := db.Close(); err == nil {
		t.Fatal("Close of a stopped database reports nothing")
	}
	if got := survived(t, mem, 1); got != 1 {
		t.Fatalf("cycle %d survived, 1 was flushed", got)
	}
}

// TestFaults fails every write operation of a run in turn. The run ends with an
// error or does not notice; what is on disk is whole either way.
func TestFaults(t *testing.T) {
	t.Parallel()
	script := func(fs vfs.FS) (cycle int64, err error) {
		db, err := state.OpenPebble("db", state.FS(fs), state.BlockCache(1<<20))
		if err != nil {
			return 0, err
		}
		r := newCrashRun(db)
		for i := 0; i < 6 && err == nil; i++ {
			err = r.commit(1)
			if i%2 == 1 && err == nil {
				err = db.Flush()
			}
			if i == 3 && err == nil {
				err = r.ingest(1)
			}
		}
		return r.cycle, errors.Join(err, db.Close())
	}
	var writes atomic.Int32
	count := errorfs.Wrap(vfs.NewMem(), errorfs.InjectorFunc(func(op errorfs.Op) error {
		if op.Kind.ReadOrWrite() == errorfs.OpIsWrite {
			writes.Add(1)
		}
		return nil
	}))
	if _, err := script(count); err != nil {
		t.Fatal(err)
	}
	total, failed := writes.Load(), 0
	for at := range total {
		mem := vfs.NewCrashableMem()
		var n atomic.Int32
		fs := errorfs.Wrap(mem, errorfs.InjectorFunc(func(op errorfs.Op) error {
			if op.Kind.ReadOrWrite() == errorfs.OpIsWrite && n.Add(1)-1 == at {
				return syscall.EIO
			}
			return nil
		}))
		cycle, err := script(fs)
		if err != nil {
			failed++
		}
		got := survived(t, mem.CrashClone(vfs.CrashCloneCfg{}), 1)
		if err == nil && got != cycle || got > cycle {
			t.Fatalf("operation %d failed (%v): cycle %d survived of %d", at, err, got, cycle)
		}
	}
	if failed < int(total)/4 {
		t.Errorf("only %d of %d failures surfaced", failed, total)
	}
}
