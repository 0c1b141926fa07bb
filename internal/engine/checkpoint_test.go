package engine_test

import (
	"bytes"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/millrace/millrace/internal/engine"
	"github.com/millrace/millrace/serde"
	"github.com/millrace/millrace/state"
	"github.com/millrace/millrace/topology"
)

// A buffer takes a log of several goroutines.
type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// spoil changes the rows of a task on a disk: a row becomes one that no changelog
// has, and checkpoint says what becomes of the checkpoint.
func spoil(t *testing.T, fs vfs.FS, id state.TaskID, store, key string, row []byte, checkpoint func(old []byte) []byte) {
	t.Helper()
	db, err := state.OpenPebble("/state/db", state.FS(fs))
	if err != nil {
		t.Fatal(err)
	}
	old, err := db.Get(state.CheckpointKey(id))
	if err != nil || old == nil {
		t.Fatalf("the task %s has no checkpoint: %v", id, err)
	}
	b := &state.Batch{}
	b.Set(append(state.StorePrefix(id, store), key...), row)
	b.Set(state.CheckpointKey(id), checkpoint(bytes.Clone(old)))
	if err := db.Write(b); err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
}

// spoiled are checkpoints whose rows must not be served.
var spoiled = map[string]func(old []byte) []byte{
	"older format": func(old []byte) []byte { old[0]--; return old },
	"newer format": func(old []byte) []byte { old[0]++; return old },
	"damaged":      func(old []byte) []byte { return old[:len(old)-1] },
	"too old": func(old []byte) []byte {
		var c state.Checkpoint
		if err := c.UnmarshalBinary(old); err != nil {
			panic(err)
		}
		c.Time -= (24 * time.Hour).Milliseconds()
		data, err := c.MarshalBinary()
		if err != nil {
			panic(err)
		}
		return data
	},
}

// Rows whose checkpoint cannot be read, since it is damaged or of another format, or
// is too old, are neither served nor a reason to stand still: they are rebuilt from
// the changelog, and the log says why.
func TestUnusableCheckpoint(t *testing.T) {
	for name, checkpoint := range spoiled {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(r *rig) {
				fs := vfs.NewMem()
				record := func() { r.produce("in", &kgo.Record{Key: []byte("k"), Value: []byte("v")}) }
				a := r.start(counting(), fs)
				record()
				record()
				r.await("out", 2)
				id := a.Tasks()[0].Task
				a.stop()
				spoil(r.t, fs, id, "counts", "k", append(state.AppendRow(nil, 1), int64Value(99)...), checkpoint)

				log := new(buffer)
				a = r.start(counting(), fs, func(c *engine.Config) { c.Logger = slog.New(slog.NewTextHandler(log, nil)) })
				defer a.stop()
				record()
				out := r.await("out", 3)
				if err := mismatch("count", out[2].Value, int64Value(3)); err != nil {
					r.t.Error(err)
				}
				if !strings.Contains(log.String(), "rebuilt from the changelogs") || !strings.Contains(log.String(), "checkpoint") {
					r.t.Errorf("the log does not say why:\n%s", log)
				}
			}, "in", "out")
		})
	}
}

// The same holds for the copy of a global table, which is read anew from its topic.
func TestUnusableGlobalCheckpoint(t *testing.T) {
	for name, checkpoint := range spoiled {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(r *rig) {
				build := func() *topology.Builder {
					b := topology.New("app")
					prices := topology.GlobalTable(b, "prices", "prices", serde.String(), serde.String())
					topology.GlobalJoin(topology.Stream(b, "in", serde.String(), serde.String()), prices,
						func(_, v string) string { return v }, func(v, price string) string { return v + "=" + price },
					).WithValueSerde(serde.String()).To("out")
					return b
				}
				fs := vfs.NewMem()
				order := func() { r.produce("in", &kgo.Record{Key: []byte("k"), Value: []byte("tea")}) }
				r.produce("prices", &kgo.Record{Key: []byte("tea"), Value: []byte("1")})
				a := r.start(build(), fs)
				order()
				r.await("out", 1)
				a.stop()
				spoil(r.t, fs, state.TaskID{SubTopology: "\x02prices"}, "prices", "tea", append(state.AppendRow(nil, 1), "99"...), checkpoint)
				a = r.start(build(), fs)
				defer a.stop()
				order()
				if out := r.await("out", 2); string(out[1].Value) != "tea=1" {
					t.Errorf("joined %q", out[1].Value)
				}
			}, "in", "out", "prices")
		})
	}
}
