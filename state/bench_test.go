package state

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"syscall"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
)

type textSerde struct{}

func (textSerde) Append(dst []byte, s string) ([]byte, error) { return append(dst, s...), nil }
func (textSerde) Decode(b []byte) (string, error)             { return string(b), nil }
func (textSerde) Name() string                                { return "string" }

type numberSerde struct{}

func (numberSerde) Append(dst []byte, v int64) ([]byte, error) {
	return binary.BigEndian.AppendUint64(dst, uint64(v)), nil
}

func (numberSerde) Decode(b []byte) (int64, error) {
	if len(b) != 8 {
		return 0, fmt.Errorf("%d bytes, not 8", len(b))
	}
	return int64(binary.BigEndian.Uint64(b)), nil
}
func (numberSerde) Name() string { return "int64" }

// cpuTime is the processor time of this process in ns: a benchmark's own cost
// also where other programs share the machine.
func cpuTime() int64 {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		panic(err)
	}
	return u.Utime.Nano() + u.Stime.Nano()
}

func benchBackends(b *testing.B, run func(b *testing.B, db Backend)) {
	b.Run("memory", func(b *testing.B) { run(b, NewMemory()) })
	b.Run("pebble", func(b *testing.B) {
		db, err := OpenPebble(b.TempDir(), FS(vfs.Default))
		if err != nil {
			b.Fatal(err)
		}
		defer db.Close()
		run(b, db)
	})
}

// BenchmarkCount is the state's part of a count: read, add, write, in records of
// their own, with a commit and its changelog rows every 100,000 records.
func BenchmarkCount(b *testing.B) {
	for _, keys := range []int{1, 100_000, 1_000_000} {
		b.Run(fmt.Sprintf("keys=%d", keys), func(b *testing.B) {
			benchBackends(b, func(b *testing.B, db Backend) {
				names := make([]string, keys)
				for i := range names {
					names[i] = fmt.Sprintf("key-%08d", i)
				}
				spec := Spec{Name: "counts"}
				p := NewPartition(db, TaskID{"count", 0}, []Spec{spec})
				store := NewKeyValueStore(p.Store("counts"), textSerde{}, numberSerde{})
				clock := p.Cell("stream-time")
				rng := rand.New(rand.NewPCG(1, 2))
				logged := 0
				b.ReportAllocs()
				start := cpuTime()
				b.ResetTimer()
				for i := range b.N {
					p.Begin()
					clock.Set(int64(i))
					key := names[rng.IntN(keys)]
					n, _, err := store.Get(key)
					if err == nil {
						err = store.Put(key, n+1, int64(i))
					}
					if err != nil {
						b.Fatal(err)
					}
					if i%100_000 == 99_999 {
						for k, v := range p.Store("counts").Changes() {
							k, v, _ = spec.ChangelogRecord(k, v, 0)
							logged += len(k) + len(v)
						}
						if err := errors.Join(p.Commit(), p.WriteBack(&Batch{})); err != nil {
							b.Fatal(err)
						}
					}
				}
				b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "updates/s")
				b.ReportMetric(float64(cpuTime()-start)/float64(b.N), "cpu-ns/op")
			})
		})
	}
}

// BenchmarkHotKey reads or writes one key that is in the overlay.
func BenchmarkHotKey(b *testing.B) {
	p := NewPartition(NewMemory(), TaskID{"count", 0}, []Spec{{Name: "a"}})
	s := p.Store("a")
	key, value := []byte("a-hot-key"), []byte("12345678value")
	s.Put(key, value)
	b.Run("get", func(b *testing.B) {
		b.ReportAllocs()
		for range b.N {
			if _, err := s.Get(key); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("put", func(b *testing.B) {
		b.ReportAllocs()
		for range b.N {
			p.Begin()
			s.Put(key, value)
		}
	})
	b.Run("cell", func(b *testing.B) {
		cell := p.Cell("time")
		b.ReportAllocs()
		for i := range b.N {
			p.Begin()
			cell.Set(int64(i))
		}
	})
}

// BenchmarkRestore restores records of 100 bytes, each key twice.
func BenchmarkRestore(b *testing.B) {
	const records = 1_000_000
	benchBackends(b, func(b *testing.B, db Backend) {
		key, value := make([]byte, 16), make([]byte, 84)
		b.ReportAllocs()
		start := cpuTime()
		for round := range b.N {
			r := NewRestorer(db, TaskID{"count", int32(round)}, []Spec{{Name: "counts"}}, &Checkpoint{})
			for i := range records {
				binary.BigEndian.PutUint64(key, uint64(i%(records/2))*0x9e3779b97f4a7c15)
				if err := r.Add("counts", int64(i), key, value, int64(i)); err != nil {
					b.Fatal(err)
				}
			}
			if err := r.Flush(0); err != nil {
				b.Fatal(err)
			}
		}
		b.ReportMetric(float64(b.N)*records/b.Elapsed().Seconds(), "records/s")
		b.ReportMetric(float64(cpuTime()-start)/float64(b.N)/records, "cpu-ns/record")
	})
}

// BenchmarkFetch fetches three windows of a key among 100,000, with a small
// overlay.
func BenchmarkFetch(b *testing.B) {
	benchBackends(b, func(b *testing.B, db Backend) {
		spec := testWindows
		p := NewPartition(db, TaskID{"count", 0}, []Spec{spec})
		s := NewWindowStore(p.Store(spec.Name), textSerde{}, numberSerde{}, nil)
		put := func(n int) {
			for i := range n {
				for m := range int64(3) {
					if err := s.Put(fmt.Sprintf("key-%06d", i), m*60_000, 1, 1); err != nil {
						b.Fatal(err)
					}
				}
			}
		}
		put(100_000)
		if err := errors.Join(p.Commit(), p.WriteBack(&Batch{})); err != nil {
			b.Fatal(err)
		}
		put(1000)
		rng := rand.New(rand.NewPCG(1, 2))
		b.ReportAllocs()
		b.ResetTimer()
		for range b.N {
			n := 0
			for _, err := range s.Fetch(fmt.Sprintf("key-%06d", rng.IntN(100_000)), 0, 180_000) {
				if err != nil {
					b.Fatal(err)
				}
				n++
			}
			if n != 3 {
				b.Fatalf("%d windows", n)
			}
		}
	})
}
