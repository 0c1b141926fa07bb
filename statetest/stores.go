package statetest

import (
	"fmt"
	"iter"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/millrace/millrace/serde"
	"github.com/millrace/millrace/state"
)

var (
	countSpec  = state.Spec{Name: "counts", KeySerde: "string", ValueSerde: "int64"}
	windowSpec = state.Spec{
		Name: "windows", Kind: state.Window, KeySerde: "string", ValueSerde: "int64",
		WindowSize: time.Minute, Retention: 10 * time.Minute,
	}
	task = state.TaskID{SubTopology: "count", Partition: 3}
)

// Partition tests the overlay of a task: records, commits, aborts, cells.
func Partition(t *testing.T, newStorage func(t testing.TB) Opener) {
	for name, test := range map[string]func(*testing.T, func(*testing.T) (*state.Partition, *state.Store)){
		"commit": overlayCommit, "rollback": overlayRollback, "cells": overlayCells, "scan sees changes ahead": overlayScan,
	} {
		t.Run(name, func(t *testing.T) {
			test(t, func(t *testing.T) (*state.Partition, *state.Store) {
				db := newStorage(t)(t)
				t.Cleanup(func() { closeBackend(t, db) })
				p := state.NewPartition(db, task, []state.Spec{countSpec})
				return p, p.Store("counts")
			})
		})
	}
	t.Run("stores and tasks are apart", func(t *testing.T) { overlaysApart(t, newStorage) })
}

// put changes rows: "k=v" sets one, "k" deletes it.
func put(s *state.Store, pairs ...string) {
	for _, pair := range pairs {
		k, v, ok := strings.Cut(pair, "=")
		if !ok {
			s.Put([]byte(k), nil)
			continue
		}
		s.Put([]byte(k), []byte(v))
	}
}

func all(s *state.Store) iter.Seq2[state.KV, error] { return s.Scan(nil, nil, false) }

func overlayCommit(t *testing.T, open func(*testing.T) (*state.Partition, *state.Store)) {
	p, s := open(t)
	if p.Dirty() {
		t.Fatal("a new partition is dirty")
	}
	put(s, "a=1", "b=2", "a=3", "c=4", "c")
	equal(t, "overlay", rows(t, all(s)), "a=3 b=2")
	equal(t, "changes", changes(s), "a=3 b=2 c")
	equal(t, "size", p.Size(), len("a3b2c"))
	must(t, commitThrough(p))
	equal(t, "dirty", p.Dirty(), false)
	equal(t, "size", p.Size(), 0)
	equal(t, "changes", changes(s), "")
	equal(t, "rows", rows(t, all(s)), "a=3 b=2")
}

func overlayRollback(t *testing.T, open func(*testing.T) (*state.Partition, *state.Store)) {
	p, s := open(t)
	cell := p.Cell("time")
	put(s, "a=1", "b=2")
	cell.Set(7)
	must(t, commitThrough(p))
	p.Begin()
	put(s, "a=x")
	cell.Set(8)
	p.Begin()
	put(s, "a=y", "a", "b", "c=3", "c=4")
	cell.Set(9)
	cell.Set(10)
	equal(t, "overlay", rows(t, all(s)), "c=4")
	p.Rollback()
	equal(t, "rows", rows(t, all(s)), "a=x b=2")
	equal(t, "changes", changes(s), "a=x")
	equal(t, "size", p.Size(), len("ax"))
	equal(t, "cell", cell.Value(), 8)
	p.Rollback() // there is nothing more to undo
	equal(t, "rows", rows(t, all(s)), "a=x b=2")
	p.Abort()
	equal(t, "rows", rows(t, all(s)), "a=1 b=2")
	equal(t, "cell", cell.Value(), 7)
	equal(t, "dirty", p.Dirty(), false)
}

func overlayCells(t *testing.T, open func(*testing.T) (*state.Partition, *state.Store)) {
	p, _ := open(t)
	cell := p.Cell("time")
	equal(t, "cell", cell.Value(), -1)
	cell.Set(-1)
	equal(t, "dirty", p.Dirty(), false)
	cell.Set(5)
	equal(t, "dirty", p.Dirty(), true)
	equal(t, "changes", changes(p.Store(state.TaskRows)), "ctime=\x00\x00\x00\x00\x00\x00\x00\x05")
	must(t, commitThrough(p))
	equal(t, "changes", changes(p.Store(state.TaskRows)), "")
	cell.Set(6)
	cell.Set(5)
	equal(t, "dirty", p.Dirty(), false)
}

func overlayScan(t *testing.T, open func(*testing.T) (*state.Partition, *state.Store)) {
	p, s := open(t)
	put(s, "a=1", "c=3", "e=5", "g=7")
	must(t, commitThrough(p))
	put(s, "b=2", "f=6")
	var got []string
	for kv, err := range all(s) {
		must(t, err)
		got = append(got, string(kv.Key)+"="+string(kv.Value))
		if string(kv.Key) == "b" {
			put(s, "a=x", "c", "d=4", "e=y") // a lies behind
		}
	}
	equal(t, "rows", strings.Join(got, " "), "a=1 b=2 d=4 e=y f=6 g=7")
}

func overlaysApart(t *testing.T, newStorage func(t testing.TB) Opener) {
	db := newStorage(t)(t)
	defer closeBackend(t, db)
	specs := []state.Spec{{Name: "a"}, {Name: "ab"}}
	p := state.NewPartition(db, state.TaskID{SubTopology: "s", Partition: 1}, specs)
	q := state.NewPartition(db, state.TaskID{SubTopology: "s", Partition: 2}, specs)
	put(p.Store("a"), "k=1")
	put(p.Store("ab"), "k=2")
	put(q.Store("a"), "k=3")
	put(q.Store(state.TaskRows), "k=4")
	must(t, commitThrough(p))
	must(t, commitThrough(q))
	for i, s := range []*state.Store{p.Store("a"), p.Store("ab"), q.Store("a"), q.Store(state.TaskRows)} {
		equal(t, "rows", rows(t, all(s)), fmt.Sprintf("k=%d", i+1))
	}
	equal(t, "rows", rows(t, all(p.Store(state.TaskRows))), "")
	b := &state.Batch{}
	state.DeleteTask(b, p.ID, []string{"a", "ab"})
	must(t, db.Write(b))
	p.Abort()
	equal(t, "deleted", rows(t, all(p.Store("a")))+rows(t, all(p.Store("ab"))), "")
	equal(t, "kept", rows(t, all(q.Store("a"))), "k=3")
}

// KeyValue tests the typed key-value store.
func KeyValue(t *testing.T, newStorage func(t testing.TB) Opener) {
	for _, commit := range []bool{false, true} {
		t.Run(fmt.Sprintf("committed=%v", commit), func(t *testing.T) {
			db := newStorage(t)(t)
			defer closeBackend(t, db)
			p := state.NewPartition(db, task, []state.Spec{countSpec})
			s := state.NewKeyValueStore(p.Store("counts"), serde.String(), serde.Int64())
			for i, k := range []string{"", "a", "ab", "ab\x00", "b", "\xc3\xbf"} {
				must(t, s.Put(k, int64(i), int64(100+i)))
			}
			must(t, s.Put("a", 11, 111))
			must(t, s.Put("gone", 1, 1))
			must(t, s.Delete("gone"))
			must(t, s.Delete("never"))
			if commit {
				must(t, commitThrough(p))
			}
			v, ts, ok, err := s.GetTimestamped("a")
			if v != 11 || ts != 111 || !ok || err != nil {
				t.Errorf("GetTimestamped = %d, %d, %v, %v", v, ts, ok, err)
			}
			if v, ok, err := s.Get("gone"); v != 0 || ok || err != nil {
				t.Errorf("Get of a deleted key = %d, %v, %v", v, ok, err)
			}
			from, to := "a", "ab"
			equal(t, "all", typed(t, s.Range(nil, nil)), `""=0@100 "a"=11@111 "ab"=2@102 "ab\x00"=3@103 "b"=4@104 "ÿ"=5@105`)
			equal(t, "range", typed(t, s.Range(&from, &to)), `"a"=11@111 "ab"=2@102`)
			equal(t, "from", typed(t, s.Range(&to, nil)), `"ab"=2@102 "ab\x00"=3@103 "b"=4@104 "ÿ"=5@105`)
			equal(t, "to", typed(t, s.Range(nil, &from)), `""=0@100 "a"=11@111`)
			equal(t, "prefix", typed(t, s.Prefix([]byte("ab"))), `"ab"=2@102 "ab\x00"=3@103`)
			equal(t, "prefix", typed(t, s.Prefix(nil)), typed(t, s.Range(nil, nil)))
		})
	}
}

// Window tests the typed window store.
func Window(t *testing.T, newStorage func(t testing.TB) Opener) {
	const minute = int64(60_000)
	for _, commit := range []bool{false, true} {
		t.Run(fmt.Sprintf("committed=%v", commit), func(t *testing.T) {
			db := newStorage(t)(t)
			defer closeBackend(t, db)
			p := state.NewPartition(db, task, []state.Spec{windowSpec})
			clock := int64(-1)
			s := state.NewWindowStore(p.Store("windows"), serde.String(), serde.Int64(), func() int64 { return clock })
			for _, k := range []string{"b", "a", "a\x00", ""} {
				for m := range int64(20) {
					must(t, s.Put(k, m*minute, m, m*minute+1))
				}
			}
			must(t, s.Delete("a", 4*minute))
			if err := s.Put("a", -1, 0, 0); err == nil {
				t.Error("a negative window start is accepted")
			}
			if commit {
				must(t, commitThrough(p))
			}
			equal(t, "fetch", windows(t, s.Fetch("a", 2*minute, 5*minute)), `"a"/2=2 "a"/3=3 "a"/5=5`)
			equal(t, "fetch one", windows(t, s.Fetch("a\x00", 4*minute, 4*minute)), `"a\x00"/4=4`)
			equal(t, "fetch open", len(strings.Fields(windows(t, s.Fetch("b", -5, 1<<62)))), 20)
			equal(t, "fetch reverse", windows(t, s.FetchReverse("a", 2*minute, 5*minute)), `"a"/5=5 "a"/3=3 "a"/2=2`)
			wide := strings.Fields(windows(t, s.Fetch("b", 0, 1<<62)))
			slices.Reverse(wide)
			equal(t, "fetch reverse open", windows(t, s.FetchReverse("b", -5, 1<<62)), strings.Join(wide, " "))
			equal(t, "fetch nothing", windows(t, s.Fetch("b", 5*minute, 4*minute)), "")
			equal(t, "fetch all", windows(t, s.FetchAll(3*minute, 5*minute)),
				`""/3=3 "a"/3=3 "a\x00"/3=3 "b"/3=3 ""/4=4 "a\x00"/4=4 "b"/4=4 ""/5=5 "a"/5=5 "a\x00"/5=5 "b"/5=5`)

			// A start is readable while start > stream time - retention.
			clock = 13 * minute
			if _, _, ok, err := s.Get("b", 3*minute); ok || err != nil {
				t.Errorf("an expired row reads as %v, %v", ok, err)
			}
			if _, _, ok, err := s.Get("b", 4*minute); !ok || err != nil {
				t.Errorf("a row in retention reads as %v, %v", ok, err)
			}
			must(t, s.Put("b", 3*minute, 99, 0))
			clock--
			if v, _, ok, err := s.Get("b", 3*minute); v != 3 || !ok || err != nil {
				t.Errorf("an expired row was put: %d, %v, %v", v, ok, err)
			}
			clock++
			equal(t, "fetch", windows(t, s.Fetch("b", 0, 5*minute)), `"b"/4=4 "b"/5=5`)
			equal(t, "fetch reverse", windows(t, s.FetchReverse("b", 0, 5*minute)), `"b"/5=5 "b"/4=4`)
			equal(t, "fetch all", windows(t, s.FetchAll(0, 4*minute)), `""/4=4 "a\x00"/4=4 "b"/4=4`)

			// Segments of 5 minutes: the first is dropped, the second is not.
			clock = 16 * minute
			must(t, commitThrough(p))
			n := 0
			for _, err := range p.Store("windows").Scan(nil, nil, false) {
				must(t, err)
				n++
			}
			equal(t, "rows left", n, 4*15)
		})
	}
}

func changes(s *state.Store) string {
	var out []string
	for k, v := range s.Changes() {
		if v == nil {
			out = append(out, string(k))
		} else {
			out = append(out, string(k)+"="+string(v))
		}
	}
	slices.Sort(out)
	return strings.Join(out, " ")
}

func typed(t testing.TB, rows iter.Seq2[state.Row[string, int64], error]) string {
	t.Helper()
	var out []string
	for r, err := range rows {
		must(t, err)
		out = append(out, fmt.Sprintf("%q=%d@%d", r.Key, r.Value, r.Timestamp))
	}
	return strings.Join(out, " ")
}

func windows(t testing.TB, rows iter.Seq2[state.WindowRow[string, int64], error]) string {
	t.Helper()
	var out []string
	for r, err := range rows {
		must(t, err)
		out = append(out, fmt.Sprintf("%q/%d=%d", r.Key, r.Start/60_000, r.Value))
	}
	return strings.Join(out, " ")
}

// commitThrough commits the changes of a partition and writes them back.
func commitThrough(p *state.Partition) error {
	if err := p.Commit(); err != nil {
		return err
	}
	return p.WriteBack(&state.Batch{})
}
