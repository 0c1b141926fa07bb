package engine_test

import (
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/twmb/franz-go/pkg/kgo"
)

// State that nothing changes is not rebuilt at the next start, however long ago it
// last changed: while its task runs, the checkpoint is kept young. It is rebuilt when
// nobody ran for so long that the changelog may lack deletions.
func TestIdleStateIsKept(t *testing.T) {
	bubble(t, func(r *rig) {
		fs := vfs.NewMem()
		restored := func(a *app) float64 { return a.metric("millrace_restored_records_total", nil) }
		a := r.start(counting(), fs)
		for range 3 {
			r.produce("in", &kgo.Record{Key: []byte("k"), Value: []byte("v")})
		}
		r.await("out", 3)
		for day := range 2 {
			r.pass(90 * time.Minute)
			a.stop()
			r.pass(22 * time.Hour)
			a = r.start(counting(), fs)
			a.running(1)
			if n := restored(a); n != 0 {
				t.Errorf("%v records restored after %d idle days", n, day+1)
			}
		}
		a.stop()
		r.pass(24 * time.Hour)
		a = r.start(counting(), fs)
		a.running(1)
		if restored(a) == 0 {
			t.Error("nothing was restored after a day without an owner")
		}
		r.produce("in", &kgo.Record{Key: []byte("k"), Value: []byte("v")})
		r.await("out", 4)
		a.stop()
	}, "in", "out")
}
