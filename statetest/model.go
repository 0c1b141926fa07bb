package statetest

import (
	"bytes"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/millrace/millrace/serde"
	"github.com/millrace/millrace/state"
)

// Model runs n random operations on a task's state, with records that are rolled
// back, aborts, commits and reopenings, and compares it with plain maps. At the
// end it rebuilds the state from the changelog it wrote. Equal seeds give equal
// runs.
func Model(t *testing.T, open Opener, seed uint64, n int) {
	m := &model{rng: rand.New(rand.NewPCG(seed, 1)), open: open}
	m.committed = newContents()
	m.cycle = m.committed.clone()
	m.start(t)
	for range n {
		m.step(t)
	}
	m.commit(t)
	m.compare(t)
	m.restore(t)
	must(t, m.db.Close())
}

// A logRecord is a record of the model's changelog.
type logRecord struct {
	store      string
	key, value []byte
	timestamp  int64
}

// contents is what the model thinks the stores hold.
type contents struct {
	counts  map[string]int64
	windows map[windowKey]int64
	clock   int64
}

type windowKey struct {
	key   string
	start int64
}

func newContents() *contents {
	return &contents{map[string]int64{}, map[windowKey]int64{}, -1}
}

func (c *contents) clone() *contents {
	return &contents{maps.Clone(c.counts), maps.Clone(c.windows), c.clock}
}

type model struct {
	rng  *rand.Rand
	open Opener
	db   state.Backend
	part *state.Partition

	clock   *state.Cell
	counts  state.KeyValueStore[string, int64]
	windows state.WindowStore[string, int64]

	committed *contents // as of the last commit
	cycle     *contents // with the records since
	before    *contents // the cycle before the record
	log       []logRecord
}

func (m *model) start(t *testing.T) {
	m.db = m.open(t)
	m.attach(m.db)
}

func (m *model) attach(db state.Backend) {
	// A budget that holds a part of the rows, so that eviction is part of the run.
	m.part = state.NewPartition(db, task, []state.Spec{countSpec, windowSpec}, state.WithCache(state.NewCacheBudget(5_000)))
	m.clock = m.part.Cell("clock")
	m.counts = state.NewKeyValueStore(m.part.Store("counts"), serde.String(), serde.Int64())
	m.windows = state.NewWindowStore(m.part.Store("windows"), serde.String(), serde.Int64(), m.clock.Value)
}

func (m *model) step(t *testing.T) {
	switch p := m.rng.IntN(100); {
	case p < 80:
		m.record(t)
	case p < 88:
		m.compare(t)
	case p < 95:
		m.commit(t)
	case p < 98:
		m.part.Abort()
		m.cycle = m.committed.clone()
	case p < 99:
		must(t, m.db.Flush())
	default:
		must(t, m.part.WriteBack(&state.Batch{})) // the overlay is not part of it
		must(t, m.db.Close())
		m.cycle = m.committed.clone()
		m.start(t)
	}
}

// record processes one record of a few operations.
func (m *model) record(t *testing.T) {
	m.part.Begin()
	m.before = m.cycle.clone()
	for range 1 + m.rng.IntN(5) {
		m.operation(t)
	}
	if m.rng.IntN(5) == 0 {
		m.part.Rollback()
		m.cycle = m.before
	}
}

func (m *model) operation(t *testing.T) {
	key, c := m.key(), m.cycle
	start := max(0, c.clock/60_000+int64(m.rng.IntN(16))-12) * 60_000
	w := windowKey{key, start}
	value := m.rng.Int64N(1000)
	switch m.rng.IntN(8) {
	case 0:
		c.clock += m.rng.Int64N(60_000)
		m.clock.Set(c.clock)
	case 1:
		delete(c.counts, key)
		must(t, m.counts.Delete(key))
	case 2, 3:
		c.counts[key] = value
		must(t, m.counts.Put(key, value, value))
	case 4:
		got, ok, err := m.counts.Get(key)
		must(t, err)
		want, has := c.counts[key]
		if got != want || ok != has {
			t.Fatalf("Get(%q) = %d, %v, want %d, %v", key, got, ok, want, has)
		}
	case 5:
		if !m.expired(start) {
			delete(c.windows, w)
		}
		must(t, m.windows.Delete(key, start))
	case 6:
		if !m.expired(start) {
			c.windows[w] = value
		}
		must(t, m.windows.Put(key, start, value, value))
	default:
		got, _, ok, err := m.windows.Get(key, start)
		must(t, err)
		want, has := c.windows[w]
		if has = has && !m.expired(start); !has {
			want = 0
		}
		if got != want || ok != has {
			t.Fatalf("Get(%q, %d) = %d, %v, want %d, %v", key, start, got, ok, want, has)
		}
	}
}

func (m *model) key() string {
	return strings.Repeat("\x00", m.rng.IntN(2)) + fmt.Sprint(m.rng.IntN(60))[:1] + strings.Repeat("\x00", m.rng.IntN(3)) + string(rune('a'+m.rng.IntN(5)))
}

func (m *model) expired(start int64) bool {
	return start <= m.cycle.clock-windowSpec.Retention.Milliseconds()
}

func (m *model) commit(t *testing.T) {
	for _, s := range m.part.Stores() {
		for k, v := range s.Changes() {
			key, value, ts := s.Spec.ChangelogRecord(k, v, 42)
			m.log = append(m.log, logRecord{s.Spec.Name, bytes.Clone(key), bytes.Clone(value), ts})
		}
	}
	must(t, m.part.Commit())
	if m.rng.IntN(3) == 0 {
		must(t, m.part.WriteBack(&state.Batch{}))
	}
	m.committed = m.cycle.clone()
}

// compare checks all rows, in order, and the bounds of a random range.
func (m *model) compare(t *testing.T) {
	t.Helper()
	equal(t, "clock", m.clock.Value(), m.cycle.clock)
	equal(t, "dirty", m.part.Dirty(), m.part.Size() > 0 || m.cycle.clock != m.committed.clock)

	from, to := m.key(), m.key()
	var want []string
	for _, k := range slices.Sorted(maps.Keys(m.cycle.counts)) {
		if k >= from && k <= to {
			want = append(want, fmt.Sprintf("%q=%d@%[2]d", k, m.cycle.counts[k]))
		}
	}
	equal(t, "range", typed(t, m.counts.Range(&from, &to)), strings.Join(want, " "))
	m.compareReverse(t)

	starts := m.cycle.clock - m.rng.Int64N(20*60_000)
	want = nil
	keys := slices.SortedFunc(maps.Keys(m.cycle.windows), func(a, b windowKey) int {
		if a.start != b.start {
			return int(a.start - b.start)
		}
		return strings.Compare(a.key, b.key)
	})
	single := []string{}
	for _, w := range keys {
		if w.start < starts || m.expired(w.start) {
			continue
		}
		row := fmt.Sprintf("%q/%d=%d", w.key, w.start/60_000, m.cycle.windows[w])
		want = append(want, row)
		if w.key == from {
			single = append(single, row)
		}
	}
	equal(t, "fetch all", windows(t, m.windows.FetchAll(starts, 1<<50)), strings.Join(want, " "))
	equal(t, "fetch", windows(t, m.windows.Fetch(from, starts, 1<<50)), strings.Join(single, " "))
}

func (m *model) compareReverse(t *testing.T) {
	t.Helper()
	var got []string
	for kv, err := range m.part.Store("counts").Scan(nil, nil, true) {
		must(t, err)
		got = append(got, string(kv.Key))
	}
	slices.Reverse(got)
	if want := slices.Sorted(maps.Keys(m.cycle.counts)); !slices.Equal(got, want) {
		t.Fatalf("reverse scan: got %q, want %q", got, want)
	}
}

// restore rebuilds the state from the changelog in another backend.
func (m *model) restore(t *testing.T) {
	db := state.NewMemory()
	r := state.NewRestorer(db, task, []state.Spec{countSpec, windowSpec}, &state.Checkpoint{})
	for i, rec := range m.log {
		must(t, r.Add(rec.store, int64(i), rec.key, rec.value, rec.timestamp))
		if m.rng.IntN(100) == 0 {
			must(t, r.Flush(42))
		}
	}
	must(t, r.Flush(42))
	m.attach(db)
	m.compare(t)
}
