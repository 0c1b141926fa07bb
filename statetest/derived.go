package statetest

import (
	"bytes"
	"cmp"
	"fmt"
	"iter"
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
	must(t, commitThrough(r.part))
}

// restore replaces the task by one whose stores were rebuilt from the log.
func (r *rig) restore(t testing.TB) {
	t.Helper()
	r.commit(t)
	r.part.Close()
	r.db = state.NewMemory()
	in := state.NewRestorer(r.db, task, r.specs, &state.Checkpoint{})
	for i, rec := range r.log {
		must(t, in.Add(rec.store, int64(i), rec.key, rec.value, rec.timestamp))
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

// Sessions tests the session store against a list of all sessions.
func Sessions(t *testing.T, newStorage func(t testing.TB) Opener) {
	const minute, retention = int64(60_000), int64(20)
	spec := state.SessionSpec("s", "string", "int64", time.Minute, time.Duration(retention)*time.Minute)
	type session = state.Session[string, int64]
	for seed := range uint64(4) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			rng := rand.New(rand.NewPCG(seed, 3))
			r := newRig(newStorage(t)(t), spec)
			defer func() { closeBackend(t, r.db) }()
			var s state.SessionStore[string, int64]
			now := int64(0)
			clock := func() int64 { return now * minute }
			attach := func(p *state.Partition) {
				s = state.NewSessionStore(p.Store("s"), serde.String(), serde.Int64(), clock, clock)
			}
			attach(r.part)
			var all []session
			for range 500 {
				now += rng.Int64N(3)
				end := max(0, now-rng.Int64N(retention+3)) * minute
				one := session{Key: fmt.Sprint("k", rng.IntN(3)), Start: max(0, end-rng.Int64N(5)*minute), End: end, Value: rng.Int64N(100)}
				oldest := max(0, (now-retention)*minute+1)
				live := one.End >= oldest
				same := func(o session) bool { return o.Key == one.Key && o.End >= one.Start && o.Start <= one.End }
				for _, o := range all {
					if same(o) && live {
						must(t, s.Delete(o.Key, o.End))
					}
				}
				must(t, s.Put(one.Key, one.Start, one.End, one.Value))
				if live {
					all = append(slices.DeleteFunc(all, same), one)
				}
				slices.SortFunc(all, func(a, b session) int {
					return cmp.Or(cmp.Compare(a.End, b.End), cmp.Compare(a.Start, b.Start), cmp.Compare(a.Key, b.Key))
				})
				from, to := (now-rng.Int64N(retention))*minute, (now+1-rng.Int64N(retention))*minute
				compareSessions(t, s, all, one.Key, from, to, oldest)
				r.disturb(t, rng, attach)
			}
			if _, ok, err := s.Get("k0", -1, 0); ok || err != nil {
				t.Errorf("a session that never was: %v, %v", ok, err)
			}
		})
	}
}

func compareSessions(t testing.TB, s state.SessionStore[string, int64], all []state.Session[string, int64], key string, from, to, oldest int64) {
	t.Helper()
	var found, ended []state.Session[string, int64]
	for _, o := range all {
		if o.End < oldest {
			continue
		}
		if o.Key == key && o.End >= from && o.Start <= to {
			found = append(found, o)
		}
		if o.End >= from && o.End <= to {
			ended = append(ended, o)
		}
		v, ok, err := s.Get(o.Key, o.Start, o.End)
		if v != o.Value || !ok || err != nil {
			t.Fatalf("Get(%v) = %d, %v, %v", o, v, ok, err)
		}
	}
	for what, pair := range map[string]struct {
		got  iter.Seq2[state.Session[string, int64], error]
		want []state.Session[string, int64]
	}{"find": {s.Find(key, from, to), found}, "ended": {s.Ended(from, to), ended}} {
		var got []state.Session[string, int64]
		for o, err := range pair.got {
			must(t, err)
			got = append(got, o)
		}
		if !slices.Equal(got, pair.want) {
			t.Fatalf("%s %q in [%d, %d]: got %v, want %v", what, key, from, to, got, pair.want)
		}
	}
}

// Events tests the event store against a list of all events.
func Events(t *testing.T, newStorage func(t testing.TB) Opener) {
	const minute, retention = int64(60_000), int64(20)
	spec := state.Spec{Name: "e", Kind: state.Events, KeySerde: "string", ValueSerde: "string", Retention: time.Duration(retention) * time.Minute}
	type event struct {
		key string
		state.Event[string]
	}
	for seed := range uint64(4) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			rng := rand.New(rand.NewPCG(seed, 4))
			r := newRig(newStorage(t)(t), spec)
			defer func() { closeBackend(t, r.db) }()
			var s state.EventStore[string, string]
			now := int64(0)
			attach := func(p *state.Partition) {
				s = state.NewEventStore(p.Store("e"), serde.String(), serde.String(), func() int64 { return now * minute })
			}
			attach(r.part)
			if s.Put("a", -1, 0, "") == nil || s.Put("a", 0, -1, "") == nil {
				t.Error("a negative time or number is accepted")
			}
			var all []event
			for i := range int64(500) {
				now += rng.Int64N(2)
				e := event{fmt.Sprintf("k%d\x00", rng.IntN(3)), state.Event[string]{Time: max(0, now-rng.Int64N(retention+3)) * minute, Number: i, Value: fmt.Sprint(rng.IntN(3))[:rng.IntN(2)]}}
				must(t, s.Put(e.key, e.Time, e.Number, e.Value))
				oldest := max(0, (now-retention)*minute+1)
				if e.Time >= oldest {
					all = append(all, e)
				}
				from, to := (now-rng.Int64N(retention+2))*minute, (now+1-rng.Int64N(retention))*minute
				var want, got []state.Event[string]
				for _, o := range all {
					if o.key == e.key && o.Time >= max(from, oldest) && o.Time <= to {
						want = append(want, o.Event)
					}
				}
				slices.SortStableFunc(want, func(a, b state.Event[string]) int { return cmp.Compare(a.Time, b.Time) })
				for o, err := range s.Fetch(e.key, from, to) {
					must(t, err)
					got = append(got, o)
				}
				if !slices.Equal(got, want) {
					t.Fatalf("events of %q in [%d, %d]: got %v, want %v", e.key, from, to, got, want)
				}
				r.disturb(t, rng, attach)
			}
			r.commit(t)
			n := 0
			for _, err := range r.part.Store("e").Scan(nil, nil, false) {
				must(t, err)
				n++
			}
			if len(all) < 400 || n > 300 {
				t.Errorf("%d of %d events are kept, segments do not expire", n, len(all))
			}
		})
	}
}
