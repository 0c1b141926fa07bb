package state

import (
	"errors"
	"fmt"
	"iter"
	"strings"
	"testing"
)

// failing is a backend whose reads or writes fail.
type failing struct {
	Backend
	read, write error
}

func (f *failing) Get(key []byte) ([]byte, error) {
	if f.read != nil {
		return nil, f.read
	}
	return f.Backend.Get(key)
}

func (f *failing) Scan(lower, upper []byte, reverse bool) iter.Seq2[KV, error] {
	if f.read != nil {
		return fail[KV](f.read)
	}
	return f.Backend.Scan(lower, upper, reverse)
}

func (f *failing) Write(b *Batch) error {
	if f.write != nil {
		return f.write
	}
	return f.Backend.Write(b)
}

func TestPartitionErrors(t *testing.T) {
	t.Parallel()
	broken := errors.New("broken")
	db := &failing{Backend: NewMemory(), read: broken}
	p := NewPartition(db, TaskID{"s", 1}, []Spec{{Name: "a"}})
	s := NewKeyValueStore(p.Store("a"), textSerde{}, numberSerde{})
	if _, _, err := s.Get("k"); !errors.Is(err, broken) {
		t.Errorf("Get: %v", err)
	}
	n := 0
	for _, err := range s.Range(nil, nil) {
		if n++; !errors.Is(err, broken) {
			t.Errorf("Range: %v", err)
		}
	}
	if n != 1 {
		t.Errorf("Range gives %d errors, want 1", n)
	}
	cell := p.Cell("time")
	if got := cell.Value(); got != -1 || !errors.Is(p.Err(), broken) {
		t.Errorf("cell is %d, Err is %v", got, p.Err())
	}
	if err := p.Commit(); !errors.Is(err, broken) {
		t.Errorf("Commit with an unread cell: %v", err)
	}
	db.read = nil
	p.Abort()
	if got := cell.Value(); got != -1 || p.Err() != nil {
		t.Errorf("after Abort the cell is %d, Err is %v", got, p.Err())
	}

	// A row that is no row: an error, not a zero.
	if err := db.Write(&Batch{Ops: []Op{{Key: append(StorePrefix(p.ID, "a"), 'k'), Value: []byte("short")}}}); err != nil {
		t.Fatal(err)
	}
	if _, ok, err := s.Get("k"); ok || !errors.Is(err, ErrCorrupt) {
		t.Errorf("Get of a damaged row: %v, %v", ok, err)
	}

	// A write that fails changes nothing, and can be repeated.
	if err := s.Put("x", 1, 1); err != nil {
		t.Fatal(err)
	}
	if err := p.Commit(); err != nil {
		t.Fatal(err)
	}
	db.write = broken
	if err := p.WriteBack(&Batch{}); !errors.Is(err, broken) {
		t.Errorf("WriteBack: %v", err)
	}
	if v, ok, err := s.Get("x"); v != 1 || !ok || err != nil {
		t.Errorf("after a failed write: %d, %v, %v", v, ok, err)
	}
	db.write = nil
	if err := p.WriteBack(&Batch{}); err != nil {
		t.Error(err)
	}
	if n, _ := p.Unwritten(); n != 0 {
		t.Errorf("%d bytes are unwritten", n)
	}
}

// counting counts the reads that reach the backend.
type counting struct {
	Backend
	gets int
}

func (c *counting) Get(key []byte) ([]byte, error) {
	c.gets++
	return c.Backend.Get(key)
}

func TestCache(t *testing.T) {
	t.Parallel()
	db := &counting{Backend: NewMemory()}
	p := NewPartition(db, TaskID{"s", 1}, []Spec{{Name: "a"}}, WithCache(NewCacheBudget(100_000)))
	s := p.Store("a")
	get := func(key string) string {
		t.Helper()
		v, err := s.Get([]byte(key))
		if err != nil {
			t.Fatal(err)
		}
		return string(v)
	}
	reads := func(want int, what string) {
		t.Helper()
		if db.gets != want {
			t.Errorf("%s: %d reads of the backend, want %d", what, db.gets, want)
		}
		db.gets = 0
	}
	get("x")
	get("y")
	get("x")
	reads(2, "a key that is absent is remembered")
	s.Put([]byte("x"), []byte("1"))
	get("x")
	if err := commitThrough(p); err != nil {
		t.Fatal(err)
	}
	get("x")
	reads(0, "a commit fills the cache")
	s.Put([]byte("x"), []byte("2"))
	p.Abort()
	if got := get("x"); got != "1" {
		t.Errorf("after an abort x is %q", got)
	}
	reads(1, "an abort drops the cache")

	// Memory is bounded by the budget, apart from the overlay, and what is used
	// often stays.
	for i := range 10_000 {
		s.Put(fmt.Appendf(nil, "key-%d", i), make([]byte, 100))
		get("x")
	}
	if p.cache.bytes < 10_000*100 {
		t.Errorf("the overlay has %d bytes", p.cache.bytes)
	}
	if err := commitThrough(p); err != nil {
		t.Fatal(err)
	}
	if p.cache.bytes > 100_000 || len(s.rows) != len(p.cache.ring) {
		t.Errorf("after the commit the cache has %d bytes of 100,000, %d rows, %d in the ring", p.cache.bytes, len(s.rows), len(p.cache.ring))
	}
	db.gets = 0
	for i := range 10_000 {
		get(fmt.Sprintf("key-%d", i))
		get("x")
	}
	if p.cache.bytes > 101_000 {
		t.Errorf("after reads the cache has %d bytes of 100,000", p.cache.bytes)
	}
	if db.gets < 9_000 || db.gets > 10_000 {
		t.Errorf("%d reads of the backend, of 10,000 other keys and one that is always used", db.gets)
	}
	sum := 0
	for _, e := range p.cache.ring {
		sum += len(e.key) + len(e.value) + entryOverhead
	}
	if sum != p.cache.bytes {
		t.Errorf("the cache counts %d bytes, it has %d", p.cache.bytes, sum)
	}
}

func TestCacheShare(t *testing.T) {
	t.Parallel()
	budget := NewCacheBudget(1000)
	p := NewPartition(NewMemory(), TaskID{}, nil, WithCache(budget))
	q := NewPartition(NewMemory(), TaskID{}, nil, WithCache(budget))
	if got := budget.share(); got != 500 {
		t.Errorf("the share of two is %d", got)
	}
	q.Close()
	q.Close()
	if got := budget.share(); got != 1000 {
		t.Errorf("the share of one is %d", got)
	}
	p.Close()
	off := NewPartition(NewMemory(), TaskID{}, []Spec{{Name: "a"}}, WithCache(NewCacheBudget(0)))
	s := off.Store("a")
	s.Put([]byte("k"), []byte("v"))
	if err := commitThrough(off); err != nil {
		t.Fatal(err)
	}
	if v, err := s.Get([]byte("k")); string(v) != "v" || err != nil || len(s.rows) != 0 {
		t.Errorf("without a cache: %q, %v, %d rows kept", v, err, len(s.rows))
	}
}

func TestCellAllocations(t *testing.T) {
	p := NewPartition(NewMemory(), TaskID{}, nil)
	c, n := p.Cell("time"), int64(0)
	p.Begin()
	c.Set(n)
	if got := testing.AllocsPerRun(1000, func() { n++; p.Begin(); c.Set(n) }); got != 0 {
		t.Errorf("Set allocates %v times", got)
	}
}

// The partitions are those of Kafka's own tests of its murmur2.
func TestPartitionOf(t *testing.T) {
	t.Parallel()
	for key, hash := range map[string]int32{
		"21": -973932308, "foobar": -790332482, "a-little-bit-long-string": -985981536,
		"a-little-bit-longer-string": -1486304829, "lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8": -58897971, "abc": 479470107,
	} {
		for _, n := range []int32{1, 4, 10, 127} {
			if got, want := PartitionOf([]byte(key), n), hash&0x7fffffff%n; got != want {
				t.Errorf("PartitionOf(%q, %d) = %d, want %d", key, n, got, want)
			}
		}
	}
}

// commitThrough commits the changes of a partition and writes them back.
func commitThrough(p *Partition) error {
	if err := p.Commit(); err != nil {
		return err
	}
	return p.WriteBack(&Batch{})
}

// Committed rows that are not written back are the committed state all the same: for
// reads, scans, and what an abort goes back to.
func TestUnwritten(t *testing.T) {
	t.Parallel()
	db := NewMemory()
	p := NewPartition(db, TaskID{"s", 1}, []Spec{{Name: "a"}}, WithCache(NewCacheBudget(0)))
	s, cell := p.Store("a"), p.Cell("time")
	rows := func() string {
		t.Helper()
		var out strings.Builder
		for kv, err := range s.Scan(nil, nil, false) {
			if err != nil {
				t.Fatal(err)
			}
			v, err := s.Get(kv.Key)
			if err != nil || string(v) != string(kv.Value) {
				t.Fatalf("Get of %q: %q, %v, the scan has %q", kv.Key, v, err, kv.Value)
			}
			fmt.Fprintf(&out, "%s=%s ", kv.Key, kv.Value)
		}
		return fmt.Sprint(out.String(), cell.Value())
	}
	is := func(what, want string) {
		t.Helper()
		if got := rows(); got != want {
			t.Errorf("%s: %q, want %q", what, got, want)
		}
	}
	put := func(k, v string) {
		p.Begin()
		if s.Put([]byte(k), []byte(v)); v == "" {
			s.Put([]byte(k), nil)
		}
	}
	put("a", "1")
	put("b", "1")
	cell.Set(7)
	if err := commitThrough(p); err != nil {
		t.Fatal(err)
	}
	put("a", "2")
	put("b", "")
	put("c", "2")
	cell.Set(8)
	if err := p.Commit(); err != nil {
		t.Fatal(err)
	}
	is("committed", "a=2 c=2 8")
	put("a", "3")
	put("b", "3")
	put("d", "3")
	cell.Set(9)
	is("changed", "a=3 b=3 c=2 d=3 9")
	p.Rollback()
	is("rolled back the last", "a=3 b=3 c=2 8")
	p.Abort()
	is("aborted", "a=2 c=2 8")
	put("a", "4")
	put("c", "")
	if err := p.WriteBack(&Batch{}); err != nil {
		t.Fatal(err)
	}
	is("written back amid changes", "a=4 8")
	p.Abort()
	is("aborted after it", "a=2 c=2 8")
	p.Close()
	p = NewPartition(db, TaskID{"s", 1}, []Spec{{Name: "a"}})
	s, cell = p.Store("a"), p.Cell("time")
	is("reopened", "a=2 c=2 8")
}

// The rows that wait are bounded over the instance: the more partitions share the
// cache, the fewer each may keep.
func TestFull(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		budget     int64
		partitions int
		rows       int // after which a partition is full
	}{
		"no cache":       {0, 1, 1},
		"alone":          {80_000, 1, 105}, // of 192 bytes
		"one of ten":     {80_000, 10, 11},
		"16 MiB at most": {1 << 40, 1, 87_382},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			budget := NewCacheBudget(tt.budget)
			var p *Partition
			for range tt.partitions {
				p = NewPartition(NewMemory(), TaskID{}, []Spec{{Name: "a"}}, WithCache(budget))
			}
			s := p.Store("a")
			for n := 0; ; n++ {
				if p.Full() {
					if n != tt.rows {
						t.Errorf("full with %d rows, want %d", n, tt.rows)
					}
					break
				}
				p.Begin()
				s.Put(fmt.Appendf(nil, "%08d", n), []byte("12345678"))
				if err := p.Commit(); err != nil {
					t.Fatal(err)
				}
			}
			if err := p.WriteBack(&Batch{}); err != nil || p.Full() {
				t.Errorf("full after they were written: %v", err)
			}
		})
	}
}
