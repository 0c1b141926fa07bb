package state

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/google/uuid"
)

func testManifest() Manifest {
	return Manifest{
		Application: "shop",
		Stores: []Spec{
			{Name: "counts", KeySerde: "string", ValueSerde: "int64"},
			{Name: "per-minute", Kind: Window, KeySerde: "string", ValueSerde: "int64", WindowSize: time.Minute, Retention: time.Hour},
		},
		SubTopologies: []SubTopologyManifest{
			{Name: "counts", Stores: []string{"per-minute", "counts"}, Sources: []string{"orders"}, HasRows: true},
			{Name: "triage", Sources: []string{"tickets"}, HasRows: true},
		},
	}
}

func openTest(t *testing.T, fs vfs.FS, m Manifest) (*Dir, *Pebble) {
	t.Helper()
	d, err := OpenDir("state", m, FS(fs))
	if err != nil {
		t.Fatal(err)
	}
	db, err := d.OpenBackend(BlockCache(1 << 20))
	if err != nil {
		t.Fatal(err)
	}
	return d, db
}

// makeState leaves a directory with one row and returns its identity.
func makeState(t *testing.T, fs vfs.FS) uuid.UUID {
	t.Helper()
	d, db := openTest(t, fs, testManifest())
	b := &Batch{Sync: true}
	b.Set([]byte("s-row"), []byte("value"))
	if err := errors.Join(db.Write(b), db.Close(), d.Close()); err != nil {
		t.Fatal(err)
	}
	return d.Identity()
}

func TestDir(t *testing.T) {
	t.Parallel()
	fs := vfs.NewMem()
	id := makeState(t, fs)
	d, db := openTest(t, fs, testManifest())
	if d.Identity() != id || id == uuid.Nil {
		t.Errorf("the identity is %s, was %s", d.Identity(), id)
	}
	if v, err := db.Get([]byte("s-row")); string(v) != "value" || err != nil {
		t.Errorf("row: %q, %v", v, err)
	}
	if stores, subs := d.Orphans(); stores != nil || subs != nil {
		t.Errorf("orphans: %v, %v", stores, subs)
	}
	if _, err := OpenDir("state", testManifest(), FS(fs)); !errors.Is(err, ErrLocked) {
		t.Errorf("opened twice: %v", err)
	}
	if err := errors.Join(db.Close(), d.Close(), d.Close()); err != nil {
		t.Fatal(err)
	}
}

func TestDirOnDisk(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "a", "state")
	if err := os.MkdirAll(path, 0o755); err != nil {
		t.Fatal(err)
	}
	d, err := OpenDir(path, testManifest())
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("mode is %v, %v", info.Mode(), err)
	}
	link := filepath.Join(filepath.Dir(path), "link")
	if err := os.Symlink(path, link); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenDir(link, testManifest()); !errors.Is(err, ErrLocked) {
		t.Errorf("opened twice, under another name: %v", err)
	}
	db, err := d.OpenBackend()
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(db.Close(), d.Close()); err != nil {
		t.Fatal(err)
	}
}

func TestDirMismatch(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name   string
		change func(*Manifest)
		want   []string // in the error; none if it opens
	}{
		{"same", func(*Manifest) {}, nil},
		{"another application", func(m *Manifest) { m.Application = "bank" }, []string{"application", `"shop"`, `"bank"`}},
		{"another codec", func(m *Manifest) { m.Stores[0].ValueSerde = "json" }, []string{`store "counts"`, `"int64"`, `"json"`}},
		{"another key codec", func(m *Manifest) { m.Stores[0].KeySerde = "bytes" }, []string{`store "counts"`, `"string"`, `"bytes"`}},
		{"another kind", func(m *Manifest) { m.Stores[1] = Spec{Name: "per-minute", KeySerde: "string", ValueSerde: "int64"} }, []string{`"window"`, `"key-value"`}},
		{"another window", func(m *Manifest) { m.Stores[1].WindowSize = time.Hour }, []string{`"1m0s"`, `"1h0m0s"`}},
		{"another retention", func(m *Manifest) { m.Stores[1].Retention = time.Minute }, []string{"retention", `"1h0m0s"`, `"1m0s"`}},
		{"two at once", func(m *Manifest) { m.Application = "bank"; m.Stores[0].KeySerde = "bytes" }, []string{`"bank"`, `"bytes"`}},
		{"renamed sub-topology", func(m *Manifest) { m.SubTopologies[0].Name = "alpha" }, []string{"counts, per-minute", `"counts"`, `"alpha"`}},
		{"renamed sub-topology without stores", func(m *Manifest) { m.SubTopologies[1].Name = "beta" }, []string{"tickets", `"triage"`, `"beta"`}},
		{"new store and sub-topology", func(m *Manifest) {
			m.Stores = append(m.Stores, Spec{Name: "new", KeySerde: "string", ValueSerde: "json"})
			m.SubTopologies = append(m.SubTopologies, SubTopologyManifest{Name: "new", Stores: []string{"new"}, Sources: []string{"other"}})
		}, nil},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			fs := vfs.NewMem()
			makeState(t, fs)
			before := files(t, fs)
			m := testManifest()
			test.change(&m)
			d, err := OpenDir("state", m, FS(fs))
			if test.want == nil {
				if err != nil {
					t.Fatal(err)
				}
				if err := d.Close(); err != nil {
					t.Fatal(err)
				}
				return
			}
			if err == nil {
				t.Fatal("it opens")
			}
			if _, ok := errors.AsType[*MismatchError](err); !ok {
				t.Errorf("the error is %T: %v", err, err)
			}
			for _, want := range append(test.want, "state directory state") {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("the error lacks %s: %v", want, err)
				}
			}
			if after := files(t, fs); after != before {
				t.Errorf("files changed: %s, were %s", after, before)
			}
			d, db := openTest(t, fs, testManifest()) // the lock is free again
			if err := errors.Join(db.Close(), d.Close()); err != nil {
				t.Fatal(err)
			}
		})
	}
}

func TestDirOrphans(t *testing.T) {
	t.Parallel()
	fs := vfs.NewMem()
	makeState(t, fs)
	m := testManifest()
	m.Stores, m.SubTopologies = m.Stores[:1], m.SubTopologies[:1]
	m.SubTopologies[0].Stores = []string{"counts"}
	for range 2 { // they are reported at every start
		d, db := openTest(t, fs, m)
		stores, subs := d.Orphans()
		if !slices.Equal(stores, []string{"per-minute"}) || !slices.Equal(subs, []string{"triage"}) {
			t.Errorf("orphans: %v, %v", stores, subs)
		}
		if err := errors.Join(db.Close(), d.Close()); err != nil {
			t.Fatal(err)
		}
	}
}

func TestDirDamaged(t *testing.T) {
	t.Parallel()
	now := time.UnixMilli(1_700_000_000_000)
	remove := func(names ...string) func(*testing.T, *vfs.MemFS) {
		return func(t *testing.T, fs *vfs.MemFS) {
			for _, n := range names {
				if err := fs.RemoveAll("state/" + n); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	tests := []struct {
		name   string
		damage func(*testing.T, *vfs.MemFS)
		whole  bool // OpenDir refuses, not OpenBackend
	}{
		{"no manifest", remove(manifestName), true},
		{"no identity", remove(identityName), true},
		{"neither", remove(manifestName, identityName), true},
		{"no database", remove(databaseName), false},
		{"manifest cut", func(t *testing.T, fs *vfs.MemFS) {
			edit(t, fs, manifestName, func(b []byte) []byte { return b[:len(b)-9] })
		}, true},
		{"manifest empty", func(t *testing.T, fs *vfs.MemFS) { edit(t, fs, manifestName, func([]byte) []byte { return nil }) }, true},
		{"identity not a UUID", func(t *testing.T, fs *vfs.MemFS) {
			edit(t, fs, identityName, func([]byte) []byte { return []byte("x\n") })
		}, true},
		{"identity of another", func(t *testing.T, fs *vfs.MemFS) {
			edit(t, fs, identityName, func([]byte) []byte { return []byte(uuid.NewString() + "\n") })
		}, true},
		{"database of another", func(t *testing.T, fs *vfs.MemFS) {
			other := vfs.NewMem()
			makeState(t, other)
			remove(databaseName)(t, fs)
			if _, err := vfs.Clone(other, fs, "state/db", "state/db"); err != nil {
				t.Fatal(err)
			}
		}, false},
		{"database emptied", func(t *testing.T, fs *vfs.MemFS) {
			names, err := fs.List("state/db")
			if err != nil {
				t.Fatal(err)
			}
			for _, n := range names {
				remove("db/"+n)(t, fs)
			}
		}, false},
		{"tables deleted", func(t *testing.T, fs *vfs.MemFS) {
			names, err := fs.List("state/db")
			if err != nil {
				t.Fatal(err)
			}
			for _, n := range names {
				if strings.HasSuffix(n, ".sst") {
					remove("db/"+n)(t, fs)
				}
			}
		}, false},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			fs := vfs.NewMem()
			makeState(t, fs)
			test.damage(t, fs)
			d, err := OpenDir("state", testManifest(), FS(fs))
			var moved string
			if test.whole {
				if !errors.Is(err, ErrCorrupt) {
					t.Fatalf("OpenDir: %v", err)
				}
				if moved, err = Quarantine("state", now, FS(fs)); err != nil || moved == "" {
					t.Fatalf("moved to %q, %v", moved, err)
				}
				if d, err = OpenDir("state", testManifest(), FS(fs)); err != nil {
					t.Fatal(err)
				}
			} else {
				if err != nil {
					t.Fatal(err)
				}
				if _, err := d.OpenBackend(); !errors.Is(err, ErrCorrupt) {
					t.Fatalf("OpenBackend: %v", err)
				}
				if moved, err = d.Quarantine(now); err != nil {
					t.Fatal(err)
				}
			}
			db, err := d.OpenBackend()
			if err != nil {
				t.Fatal(err)
			}
			if v, err := db.Get([]byte("s-row")); v != nil || err != nil {
				t.Errorf("the new database serves %q, %v", v, err)
			}
			if err := errors.Join(db.Close(), d.Close()); err != nil {
				t.Fatal(err)
			}
			if moved != "" {
				if kept, err := fs.List(moved); err != nil || len(kept) == 0 {
					t.Errorf("kept: %v, %v", kept, err)
				}
			}
		})
	}
}

// TestMutations damages one byte, or cuts one file, of a state directory. It must
// be noticed, or be without consequence: never served.
func TestMutations(t *testing.T) {
	t.Parallel()
	origin := vfs.NewMem()
	d, db := openTest(t, origin, testManifest())
	want := map[string]string{}
	b := &Batch{Sync: true}
	for i := range 500 {
		k, v := fmt.Sprintf("s-%03d", i), fmt.Sprintf("value %d", i*i)
		b.Set([]byte(k), []byte(v))
		want[k] = v
	}
	if err := errors.Join(db.Write(b), db.Close(), d.Close()); err != nil {
		t.Fatal(err)
	}
	names := strings.Fields(files(t, origin))
	noticed := 0
	const runs = 400
	for seed := range uint64(runs) {
		rng := rand.New(rand.NewPCG(seed, 4))
		fs := vfs.NewMem()
		if _, err := vfs.Clone(origin, fs, "state", "state"); err != nil {
			t.Fatal(err)
		}
		name := names[rng.IntN(len(names))]
		edit(t, fs, name, func(b []byte) []byte {
			if len(b) == 0 {
				return []byte("x")
			}
			if at := rng.IntN(len(b)); rng.IntN(4) == 0 {
				return b[:at]
			} else {
				b[at] ^= byte(1 + rng.IntN(255))
			}
			return b
		})
		if got, err := readAll(fs); err != nil {
			noticed++
		} else {
			for k, v := range got {
				if want[k] != v {
					t.Fatalf("seed %d: %s damaged, and %s is served as %q", seed, name, k, v)
				}
			}
			// Pebble takes a damaged end of its manifest for one that a crash cut
			// off, and opens an earlier version of all rows: with the checkpoints of
			// that version, so that the restore goes on from there.
			if len(got) != len(want) && (len(got) != 0 || !strings.HasPrefix(name, "db/MANIFEST")) {
				t.Fatalf("seed %d: %s damaged, and %d rows of %d are served", seed, name, len(got), len(want))
			}
		}
	}
	if noticed < runs/4 {
		t.Errorf("only %d of %d were noticed", noticed, runs)
	}
}

// readAll returns all rows, each read by itself too.
func readAll(fs vfs.FS) (_ map[string]string, err error) {
	d, err := OpenDir("state", testManifest(), FS(fs))
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, d.Close()) }()
	db, err := d.OpenBackend(BlockCache(1 << 20))
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	rows := map[string]string{}
	for kv, err := range db.Scan([]byte("s"), nil, false) {
		if err != nil {
			return nil, err
		}
		v, err := db.Get(kv.Key)
		if err != nil {
			return nil, err
		}
		if string(v) != string(kv.Value) {
			return nil, fmt.Errorf("a scan and a read differ")
		}
		rows[string(kv.Key)] = string(v)
	}
	return rows, nil
}

func TestForeign(t *testing.T) {
	t.Parallel()
	fs := vfs.NewMem()
	if err := fs.MkdirAll("state", 0o700); err != nil {
		t.Fatal(err)
	}
	edit(t, fs, "photo.jpg", func([]byte) []byte { return []byte("x") })
	if _, err := OpenDir("state", testManifest(), FS(fs)); !errors.Is(err, ErrForeign) || !strings.Contains(err.Error(), "photo.jpg") {
		t.Errorf("OpenDir: %v", err)
	}
	if _, err := Quarantine("state", time.Now(), FS(fs)); !errors.Is(err, ErrForeign) {
		t.Errorf("Quarantine: %v", err)
	}
	if got := files(t, fs); got != "photo.jpg" {
		t.Errorf("files: %s", got)
	}
}

// The fixture was written by version 1 of the format.
func TestManifestFixture(t *testing.T) {
	t.Parallel()
	data, err := os.ReadFile("testdata/manifest-v1.json")
	if err != nil {
		t.Fatal(err)
	}
	f, err := decodeManifest(data)
	if err != nil {
		t.Fatal(err)
	}
	want := newManifestFile(testManifest(), "0190b5c2-7d9a-4c53-8f4e-9a5b6c7d8e9f")
	want.Database = true
	if again, err := want.encode(); err != nil || string(again) != string(data) {
		t.Errorf("it is written as %s, %v: a new layout needs a new version", again, err)
	}
	if bad := f.check(want); len(bad) > 0 {
		t.Errorf("version 1 does not fit: %v", bad)
	}
	f.Version = 2
	newer, err := f.encode()
	if err != nil {
		t.Fatal(err)
	}
	_, err = decodeManifest(newer)
	if m, ok := errors.AsType[*MismatchError](err); !ok || m.Have != "2" || m.Want != "1" || errors.Is(err, ErrCorrupt) {
		t.Errorf("a newer version: %v", err)
	}
}

func FuzzManifest(f *testing.F) {
	data, err := newManifestFile(testManifest(), "id").encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(data)
	f.Add([]byte("{}\ncrc32c 00000000\n"))
	f.Add([]byte("\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		m, err := decodeManifest(data)
		if err != nil {
			_, mismatch := errors.AsType[*MismatchError](err)
			if !mismatch && !errors.Is(err, ErrCorrupt) {
				t.Fatal(err)
			}
			return
		}
		if _, err := m.encode(); err != nil {
			t.Fatal(err)
		}
	})
}

func TestManifestInvalid(t *testing.T) {
	t.Parallel()
	for _, m := range []Manifest{
		{},
		{Application: "a", Stores: []Spec{{}}},
		{Application: "a", Stores: []Spec{{Name: "x\x00"}}},
		{Application: "a", Stores: []Spec{{Name: "w", Kind: Window, WindowSize: time.Second}}},
	} {
		if _, err := OpenDir("state", m, FS(vfs.NewMem())); err == nil {
			t.Errorf("%+v is accepted", m)
		}
	}
}

// files lists all files under the directory but the locks.
func files(t *testing.T, fs vfs.FS) string {
	t.Helper()
	var out []string
	var walk func(dir, prefix string)
	walk = func(dir, prefix string) {
		names, err := fs.List(dir)
		if err != nil {
			t.Fatal(err)
		}
		slices.Sort(names)
		for _, n := range names {
			info, err := fs.Stat(dir + "/" + n)
			if err != nil {
				t.Fatal(err)
			}
			if info.IsDir() {
				walk(dir+"/"+n, prefix+n+"/")
			} else if n != lockName {
				out = append(out, prefix+n)
			}
		}
	}
	walk("state", "")
	return strings.Join(out, " ")
}

func edit(t *testing.T, fs vfs.FS, name string, change func([]byte) []byte) {
	t.Helper()
	var data []byte
	if f, err := fs.Open("state/" + name); err == nil {
		data, err = io.ReadAll(f)
		if err = errors.Join(err, f.Close()); err != nil {
			t.Fatal(err)
		}
	}
	f, err := fs.Create("state/"+name, vfs.WriteCategoryUnspecified)
	if err != nil {
		t.Fatal(err)
	}
	_, err = f.Write(change(data))
	if err = errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
}
