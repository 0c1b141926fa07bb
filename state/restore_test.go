package state

import "testing"

// A restore that is cut short is as old as the checkpoint it went on from: what it
// has not read, a deletion perhaps, may leave the changelog before the next one, and
// only the age of its rows tells.
func TestRestoreCutShort(t *testing.T) {
	t.Parallel()
	db, id := NewMemory(), TaskID{"count", 0}
	r := NewRestorer(db, id, []Spec{{Name: "counts"}}, &Checkpoint{Time: 5})
	r.limit = 200
	for offset := range int64(10) {
		if err := r.Add("counts", offset, []byte("key"), make([]byte, 50), 1000); err != nil {
			t.Fatal(err)
		}
	}
	expect := func(time int64) {
		t.Helper()
		if c, err := LoadCheckpoint(db, id); err != nil || c == nil || c.Time != time {
			t.Errorf("checkpoint %+v, %v, want time %d", c, err, time)
		}
	}
	expect(5)
	if err := r.Flush(8); err != nil {
		t.Fatal(err)
	}
	expect(8)
}
