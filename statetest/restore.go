package statetest

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/millrace/millrace/serde"
	"github.com/millrace/millrace/state"
)

// Restore tests that a restore keeps the last record per key, over what the
// backend has, and continues from its checkpoint.
func Restore(t *testing.T, newStorage func(t testing.TB) Opener) {
	for _, n := range []int{10, 100_000} { // written as a batch, and ingested
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			open := newStorage(t)
			db := open(t)
			restoreOver(t, db, n)
			want := rows(t, db.Scan(nil, nil, false))
			must(t, db.Close())
			db = open(t)
			defer closeBackend(t, db)
			if got := rows(t, db.Scan(nil, nil, false)); got != want {
				t.Fatal("the rows are others after reopening")
			}
		})
	}
}

func restoreOver(t *testing.T, db state.Backend, n int) {
	topic := state.TopicID{1}
	p := state.NewPartition(db, task, []state.Spec{countSpec, windowSpec})
	s := state.NewKeyValueStore(p.Store("counts"), serde.String(), serde.Int64())
	must(t, s.Put("old", 1, 1))
	must(t, s.Put("gone", 1, 1))
	must(t, commitThrough(p))

	from := &state.Checkpoint{
		Logs:   map[string]state.LogPosition{"counts": {Topic: topic, Next: 5}, "windows": {Topic: topic}, "": {Topic: topic}},
		Inputs: map[state.TopicPartition]int64{{Topic: "in", Partition: 3}: 9},
	}
	r := state.NewRestorer(db, task, []state.Spec{countSpec, windowSpec}, from)
	padding := make([]byte, 50)
	for i := range n {
		key := fmt.Appendf(nil, "key-%d-%s", i%(n/2), padding)
		must(t, r.Add("counts", int64(5+i), key, binary.BigEndian.AppendUint64(nil, uint64(i)), int64(i)))
		start := binary.BigEndian.AppendUint64([]byte("w"), uint64(i%3)*60_000)
		must(t, r.Add("windows", int64(i), start, binary.BigEndian.AppendUint64(state.AppendRow(nil, 3), uint64(i)), 0))
	}
	must(t, r.Add("counts", int64(5+n), []byte("gone"), nil, 0))
	r.Skip("counts", int64(9+n)) // markers at the end
	if err := r.Add("windows", int64(n), []byte("short"), nil, 0); err == nil {
		t.Error("a window changelog key without a start is accepted")
	}
	must(t, r.Flush(8))

	p.Abort()
	w := state.NewWindowStore(p.Store("windows"), serde.String(), serde.Int64(), nil)
	for i := range n / 2 {
		v, ts, ok, err := s.GetTimestamped(fmt.Sprintf("key-%d-%s", i, padding))
		if want := int64(n/2 + i); v != want || ts != want || !ok || err != nil {
			t.Fatalf("key %d is %d at %d, %v, %v, want %d", i, v, ts, ok, err, want)
		}
	}
	last := (n - 1) / 3 * 3
	v, ts, ok, err := w.Get("w", 0)
	if v != int64(last) || ts != 3 || !ok || err != nil {
		t.Fatalf("window is %d at %d, %v, %v, want %d", v, ts, ok, err, last)
	}
	old, _, err := s.Get("old")
	must(t, err)
	equal(t, "old", old, 1)
	_, ok, err = s.Get("gone")
	must(t, err)
	equal(t, "gone", ok, false)

	cp, err := state.LoadCheckpoint(db, task)
	must(t, err)
	equal(t, "position", cp.Logs["counts"], state.LogPosition{Topic: topic, Next: int64(9 + n)})
	equal(t, "position", cp.Logs["windows"], state.LogPosition{Topic: topic, Next: int64(n)})
	equal(t, "input", cp.Inputs[state.TopicPartition{Topic: "in", Partition: 3}], 9)
	equal(t, "time", cp.Time, 8)
}

// A host is an instance that has partitions 0 and 1 of 3.
type host struct {
	db     state.Backend
	status map[int32]state.Local
}

func (h *host) Backend() state.Backend           { return h.db }
func (h *host) Partitions(string) (int32, error) { return 3, nil }
func (h *host) Local(_ string, p int32) state.Local {
	l := h.status[p]
	l.Task = state.TaskID{SubTopology: "count", Partition: p}
	return l
}

type handle struct{ spec state.Spec }

func (h handle) StoreSpec() state.Spec { return h.spec }
func (handle) StoreSerdes() (serde.Serde[string], serde.Serde[int64]) {
	return serde.String(), serde.Int64()
}

// View tests the reading of committed rows.
func View(t *testing.T, newStorage func(t testing.TB) Opener) {
	db := newStorage(t)(t)
	defer closeBackend(t, db)
	ctx := t.Context()
	h := &host{db, map[int32]state.Local{
		0: {Status: state.Ready, StreamTime: -1},
		1: {Status: state.Ready, StreamTime: 12 * 60_000, Staleness: time.Second},
	}}
	byFirst := state.HashBy(func(key []byte, _ int32) int32 { return int32(key[0] - '0') })
	view := state.View(h, handle{countSpec}, byFirst)
	wins := state.View(h, handle{windowSpec}, byFirst)
	for i := range int32(2) {
		p := state.NewPartition(db, state.TaskID{SubTopology: "count", Partition: i}, []state.Spec{countSpec, windowSpec})
		s := state.NewKeyValueStore(p.Store("counts"), serde.String(), serde.Int64())
		w := state.NewWindowStore(p.Store("windows"), serde.String(), serde.Int64(), nil)
		key := fmt.Sprint(i)
		must(t, s.Put(key+"a", 1, 10))
		must(t, s.Put(key+"b", 2, 20))
		for m := range int64(4) {
			must(t, w.Put(key, m*60_000, m, 0))
		}
		must(t, commitThrough(p))
		must(t, s.Put(key+"a", 99, 99)) // stays in the overlay
		must(t, s.Delete(key+"b"))
		defer p.Close()
	}

	v, ok, err := view.Get(ctx, "1a")
	if v != 1 || !ok || err != nil {
		t.Errorf("Get = %d, %v, %v: a view sees committed rows only", v, ok, err)
	}
	_, ok, err = view.Get(ctx, "1x")
	if ok || err != nil {
		t.Errorf("Get of an absent key = %v, %v", ok, err)
	}
	var absent *state.NotLocalError
	if _, _, err = view.Get(ctx, "2a"); !errors.As(err, &absent) || absent.Partition != 2 {
		t.Errorf("Get of a key elsewhere = %v", err)
	}
	for _, err := range view.Range(ctx, nil, nil) {
		if !errors.As(err, &absent) {
			t.Errorf("a range over all partitions = %v", err)
		}
	}
	local := state.View(h, handle{countSpec}, byFirst, state.LocalOnly())
	from := "0b"
	equal(t, "range", typed(t, local.Range(ctx, &from, nil)), `"0b"=2@20 "1a"=1@10 "1b"=2@20`)
	equal(t, "prefix", typed(t, local.Prefix(ctx, []byte("1"))), `"1a"=1@10 "1b"=2@20`)
	equal(t, "fetch", windows(t, wins.Fetch(ctx, "0", 60_000, 2*60_000)), `"0"/1=1 "0"/2=2`)
	equal(t, "fetch expired", windows(t, wins.Fetch(ctx, "1", 0, 1<<60)), `"1"/3=3`)
	equal(t, "fetch all", windows(t, state.View(h, handle{windowSpec}, state.LocalOnly()).FetchAll(ctx, 2*60_000, 1<<60)),
		`"0"/2=2 "0"/3=3 "1"/3=3`)
	for _, err := range view.Fetch(ctx, "1", 0, 1) {
		if !errors.Is(err, state.ErrKind) {
			t.Errorf("Fetch from a key-value store = %v", err)
		}
	}

	var stale *state.StaleError
	if _, _, err = state.View(h, handle{countSpec}, byFirst, state.MaxStaleness(time.Millisecond)).Get(ctx, "1a"); !errors.As(err, &stale) {
		t.Errorf("Get with a bound = %v", err)
	}
	h.status[1] = state.Local{Status: state.Restoring}
	var notReady *state.NotReadyError
	if _, _, err = view.Get(ctx, "1a"); !errors.As(err, &notReady) || notReady.Status != state.Restoring {
		t.Errorf("Get from a store that is restored = %v", err)
	}
	ctx, cancel := context.WithCancel(ctx)
	cancel()
	if _, _, err = view.Get(ctx, "0a"); !errors.Is(err, context.Canceled) {
		t.Errorf("Get with a cancelled context = %v", err)
	}
}
