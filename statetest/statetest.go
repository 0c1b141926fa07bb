// Package statetest is the conformance suite of state backends, and of the stores
// on them: run it against every implementation of [state.Backend].
package statetest

import (
	"bytes"
	"fmt"
	"iter"
	"slices"
	"testing"

	"github.com/millrace/millrace/state"
)

// An Opener opens a backend. Opened again after Close, it gives the rows that the
// one before had. Each call of a Factory's result is a storage of its own.
type Opener func(t testing.TB) state.Backend

// Run runs the whole suite. newStorage returns an opener of new, empty storage.
func Run(t *testing.T, newStorage func(t testing.TB) Opener) {
	t.Run("backend", func(t *testing.T) { Backend(t, newStorage) })
	t.Run("partition", func(t *testing.T) { Partition(t, newStorage) })
	t.Run("key-value", func(t *testing.T) { KeyValue(t, newStorage) })
	t.Run("window", func(t *testing.T) { Window(t, newStorage) })
	t.Run("sessions", func(t *testing.T) { Sessions(t, newStorage) })
	t.Run("events", func(t *testing.T) { Events(t, newStorage) })
	t.Run("versioned", func(t *testing.T) { Versioned(t, newStorage) })
	t.Run("restore", func(t *testing.T) { Restore(t, newStorage) })
	t.Run("view", func(t *testing.T) { View(t, newStorage) })
	t.Run("model", func(t *testing.T) {
		for seed := range uint64(8) {
			t.Run(fmt.Sprint(seed), func(t *testing.T) { Model(t, newStorage(t), seed, 3_000) })
		}
	})
}

// Backend tests a backend by itself.
func Backend(t *testing.T, newStorage func(t testing.TB) Opener) {
	tests := []struct {
		name string
		ops  []state.Op
		want string // the rows left of a=1 b=2 c=3 bb=4
	}{
		{"nothing", nil, "a=1 b=2 bb=4 c=3"},
		{"set", []state.Op{set("b", "x"), set("d", "5")}, "a=1 b=x bb=4 c=3 d=5"},
		{"empty value", []state.Op{set("b", "")}, "a=1 b= bb=4 c=3"},
		{"delete", []state.Op{{Key: []byte("b")}}, "a=1 bb=4 c=3"},
		{"delete what is absent", []state.Op{{Key: []byte("zz")}}, "a=1 b=2 bb=4 c=3"},
		{"delete range", []state.Op{{Key: []byte("b"), End: []byte("c")}}, "a=1 c=3"},
		{"delete empty range", []state.Op{{Key: []byte("b"), End: []byte("b")}}, "a=1 b=2 bb=4 c=3"},
		{"later operations win", []state.Op{set("b", "x"), {Key: []byte("b")}, set("b", "y")}, "a=1 b=y bb=4 c=3"},
		{"set after delete range", []state.Op{{Key: []byte("a"), End: []byte("z")}, set("b", "y")}, "b=y"},
		{"delete range after set", []state.Op{set("b", "y"), {Key: []byte("a"), End: []byte("bb")}}, "bb=4 c=3"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			open := newStorage(t)
			db := open(t)
			must(t, db.Write(&state.Batch{Ops: []state.Op{set("a", "1"), set("b", "2"), set("c", "3"), set("bb", "4")}}))
			must(t, db.Write(&state.Batch{Ops: test.ops}))
			equal(t, "rows", rows(t, db.Scan(nil, nil, false)), test.want)
			must(t, db.Close())
			db = open(t)
			defer closeBackend(t, db)
			equal(t, "rows after reopening", rows(t, db.Scan(nil, nil, false)), test.want)
		})
	}
	t.Run("scan", func(t *testing.T) { backendScan(t, newStorage(t)(t)) })
	t.Run("get", func(t *testing.T) { backendGet(t, newStorage(t)(t)) })
	t.Run("sync", func(t *testing.T) {
		db := newStorage(t)(t)
		defer closeBackend(t, db)
		must(t, db.Write(&state.Batch{Ops: []state.Op{set("a", "1")}, Sync: true}))
		must(t, db.Flush())
		must(t, db.Flush())
		equal(t, "rows", rows(t, db.Scan(nil, nil, false)), "a=1")
	})
	t.Run("close twice", func(t *testing.T) {
		db := newStorage(t)(t)
		must(t, db.Close())
		must(t, db.Close())
	})
	t.Run("concurrent", func(t *testing.T) { backendConcurrent(t, newStorage(t)(t)) })
}

func backendScan(t *testing.T, db state.Backend) {
	defer closeBackend(t, db)
	var ops []state.Op
	for _, k := range []string{"a", "b", "b\x00", "b\xff", "c", "\xff", "\xff\xff"} {
		ops = append(ops, set(k, "v"))
	}
	must(t, db.Write(&state.Batch{Ops: ops}))
	tests := []struct {
		lower, upper []byte
		want         []string
	}{
		{nil, nil, []string{"a", "b", "b\x00", "b\xff", "c", "\xff", "\xff\xff"}},
		{[]byte("b"), []byte("c"), []string{"b", "b\x00", "b\xff"}},
		{[]byte("b\x00"), []byte("b\xff"), []string{"b\x00"}},
		{[]byte("bz"), nil, []string{"b\xff", "c", "\xff", "\xff\xff"}},
		{nil, []byte("b"), []string{"a"}},
		{[]byte("c"), []byte("b"), nil},
		{[]byte("\xff\xff"), nil, []string{"\xff\xff"}},
	}
	for _, test := range tests {
		for _, reverse := range []bool{false, true} {
			want := slices.Clone(test.want)
			if reverse {
				slices.Reverse(want)
			}
			var got []string
			for kv, err := range db.Scan(test.lower, test.upper, reverse) {
				must(t, err)
				got = append(got, string(kv.Key))
			}
			if !slices.Equal(got, want) {
				t.Errorf("Scan(%q, %q, %v) = %q, want %q", test.lower, test.upper, reverse, got, want)
			}
		}
	}
	for _, err := range db.Scan(nil, nil, false) {
		must(t, err)
		break // leaves nothing open
	}
}

func backendGet(t *testing.T, db state.Backend) {
	defer closeBackend(t, db)
	key, value := []byte("key"), []byte("value")
	must(t, db.Write(&state.Batch{Ops: []state.Op{{Key: key, Value: value}, set("empty", "")}}))
	copy(key, "xxx")
	copy(value, "xxxxx") // the backend has its own copy
	got, err := db.Get([]byte("key"))
	must(t, err)
	equal(t, "value", string(got), "value")
	copy(got, "xxxxx") // so does the caller
	got, err = db.Get([]byte("key"))
	must(t, err)
	equal(t, "value", string(got), "value")
	if got, err = db.Get([]byte("empty")); err != nil || got == nil || len(got) != 0 {
		t.Errorf("an empty value reads as %#v, %v, want an empty slice that is not nil", got, err)
	}
	if got, err = db.Get([]byte("absent")); err != nil || got != nil {
		t.Errorf("an absent key reads as %#v, %v, want nil", got, err)
	}
}

// backendConcurrent checks that a scan sees batches whole while they are written.
func backendConcurrent(t *testing.T, db state.Backend) {
	defer closeBackend(t, db)
	const batches = 200
	write := func(i int) error {
		b := &state.Batch{}
		for k := range 10 {
			b.Set([]byte{byte(k)}, fmt.Append(nil, i))
		}
		return db.Write(b)
	}
	must(t, write(0))
	done := make(chan error, 1)
	go func() { // ends after its batches; the backend is closed behind it
		var err error
		for i := 1; i <= batches && err == nil; i++ {
			err = write(i)
		}
		done <- err
	}()
	for running := true; running; {
		select {
		case err := <-done:
			must(t, err)
			running = false
		default:
		}
		var first []byte
		n := 0
		for kv, err := range db.Scan(nil, nil, n%2 == 1) {
			must(t, err)
			if n == 0 {
				first = bytes.Clone(kv.Value)
			} else if !bytes.Equal(first, kv.Value) {
				t.Fatalf("a scan sees a batch in part: %q and %q", first, kv.Value)
			}
			n++
		}
		if n != 10 {
			t.Fatalf("a scan sees %d rows, want 10", n)
		}
	}
}

func set(k, v string) state.Op { return state.Op{Key: []byte(k), Value: []byte(v)} }

func rows(t testing.TB, scan iter.Seq2[state.KV, error]) string {
	t.Helper()
	var b bytes.Buffer
	for kv, err := range scan {
		must(t, err)
		if b.Len() > 0 {
			b.WriteByte(' ')
		}
		fmt.Fprintf(&b, "%s=%s", kv.Key, kv.Value)
	}
	return b.String()
}

func closeBackend(t testing.TB, db state.Backend) {
	t.Helper()
	must(t, db.Close())
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func equal[T comparable](t testing.TB, what string, got, want T) {
	t.Helper()
	if got != want {
		t.Fatalf("%s: got %v, want %v", what, got, want)
	}
}
