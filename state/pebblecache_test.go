package state

import (
	"fmt"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// Pebble takes its memtables out of its block cache: the size that was asked for has to
// be left for blocks.
func TestBlockCache(t *testing.T) {
	t.Parallel()
	p, err := OpenPebble("db", FS(vfs.NewMem()), BlockCache(16<<20))
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	const rows = 20_000
	var b Batch
	for i := range rows {
		b.Set(fmt.Appendf(nil, "%08d", i), make([]byte, 100))
	}
	b.Sync = true
	if err := p.Write(&b); err != nil {
		t.Fatal(err)
	}
	readAll := func() (missed int64) {
		before := p.db.Metrics().BlockCache.Misses
		for i := range rows {
			if v, err := p.Get(fmt.Appendf(nil, "%08d", i)); len(v) != 100 || err != nil {
				t.Fatalf("row %d: %d bytes, %v", i, len(v), err)
			}
		}
		return p.db.Metrics().BlockCache.Misses - before
	}
	readAll()
	if missed := readAll(); missed > 0 {
		t.Errorf("%d blocks of 2 MB of rows were not in the cache of 16 MiB when they were read again", missed)
	}
}
