package statetest

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/millrace/millrace/serde"
	"github.com/millrace/millrace/state"
)

// A rig is a task with stores that keep their rows in others. It logs what it
// commits.
type rig struct {
	specs []state.Spec
	db    state.Backend
	part  *state.Partition
	log   []logRecord
}

func newRig(db state.Backend, specs ...state.Spec) *rig {
	return &rig{specs: specs, db: db, part: state.NewPartition(db, task, specs)}
}

func (r *rig) commit(t testing.TB) {
	t.Helper()
	for _, s := range r.part.Stores() {
		for k, v := range s.Changes() {
			key, value, ts := s.Spec.ChangelogRecord(k, v, 42)
			r.log = append(r.log, logRecord{s.Spec.Name, bytes.Clone(key), bytes.Clone(value), ts})
		}
	}
	must(t, r.part.Commit(&state.Batch{}))
}

// restore replaces the task by one whose stores were rebuilt from the log.
func (r *rig) restore(t testing.TB) {
	t.Helper()
	r.commit(t)
	r.part.Close()
	r.db = state.NewMemory()
	in := state.NewRestorer(r.db, task, r.specs, &state.Checkpoint{})
	for i, rec := range r.log {
		must(t, in.Add(rec.store, int64(i), rec.key, rec.value, rec.timestamp, 42))
	}
	must(t, in.Flush(42))
	r.part = state.NewPartition(r.db, task, r.specs)
}

// disturb commits, aborts a record or restores now and then; attach opens the
// stores again.
func (r *rig) disturb(t testing.TB, rng *rand.Rand, attach func(p *state.Partition)) {
	t.Helper()
	switch p := rng.IntN(200); {
	case p < 20:
		r.commit(t)
	case p < 22:
		r.restore(t)
		attach(r.part)
	}
}

// Versioned tests the versioned store against a list of all versions.
func Versioned(t *testing.T, newStorage func(t testing.TB) Opener) {
	const history = 50
	specs := state.VersionedSpecs("v", "string", "int64", history*time.Millisecond)
	for seed := range uint64(4) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			rng := rand.New(rand.NewPCG(seed, 2))
			r := newRig(newStorage(t)(t), specs...)
			defer func() { closeBackend(t, r.db) }()
			var s state.VersionedStore[string, int64]
			attach := func(p *state.Partition) {
				s = state.NewVersionedStore(p.Store("v"), p.Store(state.HistoryStore("v")), serde.String(), serde.Int64(), p.Cell("time"))
			}
			attach(r.part)
			m := versions{history: history, now: -1, of: map[string][]versionOf{}}
			for range 500 {
				key := fmt.Sprint("k", rng.IntN(3))
				ts := max(0, m.now-history-5+rng.Int64N(history+10))
				r.part.Begin()
				if rng.IntN(10) == 0 { // a record that fails
					_, err := s.Put(key, -1, ts+100)
					must(t, err)
					r.part.Rollback()
				}
				v := versionOf{ts, rng.Int64N(100), rng.IntN(4) == 0}
				want := m.put(key, v)
				var got state.Placement
				var err error
				if v.deleted {
					got, err = s.Delete(key, ts)
				} else {
					got, err = s.Put(key, v.value, ts)
				}
				must(t, err)
				if got != want {
					t.Fatalf("%v of %q is placed %d, want %d", v, key, got, want)
				}
				m.compare(t, s, key)
				r.disturb(t, rng, attach)
			}
		})
	}
}

type versionOf struct {
	at, value int64
	deleted   bool
}

// versions is the model of a versioned store.
type versions struct {
	history, now int64
	of           map[string][]versionOf // by time
}

func (m *versions) put(key string, v versionOf) state.Placement {
	if v.at < m.now-m.history {
		return state.Expired
	}
	m.now = max(m.now, v.at)
	all := m.of[key]
	at, found := slices.BinarySearchFunc(all, v.at, func(a versionOf, at int64) int { return int(a.at - at) })
	if found {
		all[at] = v
	} else {
		all = slices.Insert(all, at, v)
	}
	m.of[key] = all
	if at < len(all)-1 {
		return state.Past
	}
	return state.Latest
}

func (m *versions) compare(t testing.TB, s state.VersionedStore[string, int64], key string) {
	t.Helper()
	all := m.of[key]
	check := func(what string, v, ts int64, ok bool, err error, want versionOf, has bool) {
		t.Helper()
		must(t, err)
		if has = has && !want.deleted; !has {
			want = versionOf{}
		}
		if ok != has || ok && (v != want.value || ts != want.at) {
			t.Fatalf("%s of %q is %d@%d, %v, want %d@%d, %v; versions %v, time %d", what, key, v, ts, ok, want.value, want.at, has, all, m.now)
		}
	}
	v, ts, ok, err := s.Get(key)
	var last versionOf
	if len(all) > 0 {
		last = all[len(all)-1]
	}
	check("latest", v, ts, ok, err, last, len(all) > 0)
	for asOf := max(0, m.now-m.history-3); asOf <= m.now+1; asOf++ {
		v, ts, ok, err := s.GetAsOf(key, asOf)
		var want versionOf
		has := false
		for _, one := range all {
			if one.at <= asOf {
				want, has = one, true
			}
		}
		if asOf < m.now-m.history && want.at != last.at {
			has = false
		}
		check(fmt.Sprint("version at ", asOf), v, ts, ok, err, want, has)
	}
}
