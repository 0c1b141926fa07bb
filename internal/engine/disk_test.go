package engine_test

import (
	"errors"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
	"github.com/twmb/franz-go/pkg/kgo"
)

// §3.6 and §3.2: when the disk is full the instance ends and says so; it does not
// run on behind its changelog. The next life is exact.
func TestFullDisk(t *testing.T) {
	bubble(t, func(r *rig) {
		var full atomic.Bool
		disk := vfs.NewMem()
		fs := errorfs.Wrap(disk, errorfs.InjectorFunc(func(op errorfs.Op) error {
			if full.Load() && (op.Kind == errorfs.OpCreate || op.Kind == errorfs.OpFileWrite) {
				return syscall.ENOSPC
			}
			return nil
		}))
		a := r.start(counting(), fs)
		write := func(n int) {
			for range n {
				r.produce("in", &kgo.Record{Key: []byte("k"), Value: []byte("v")})
			}
		}
		write(10)
		r.await("out", 10)
		full.Store(true)
		var err error
		for n := 0; err == nil && n < 120; n++ {
			write(1)
			select {
			case err = <-a.done:
			case <-time.After(time.Second):
			}
		}
		if !errors.Is(err, syscall.ENOSPC) || !strings.Contains(err.Error(), "/state") {
			r.t.Errorf("the instance ended with: %v", err)
		}
		full.Store(false)
		b := r.start(counting(), disk)
		defer b.stop()
		write(10)
		for want := len(r.read("in")); len(r.read("out")) < want; {
			r.pass(time.Second)
		}
		for i, rec := range r.read("out") {
			if err := mismatch("count", rec.Value, int64Value(int64(i)+1)); err != nil {
				r.t.Fatal(err)
			}
		}
	}, "in", "out")
}
