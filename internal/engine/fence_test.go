package engine_test

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/millrace/millrace/internal/engine"
	"github.com/millrace/millrace/processors"
	"github.com/millrace/millrace/serde"
	"github.com/millrace/millrace/state"
	"github.com/millrace/millrace/topology"
)

// Bugs that no schedule meets often enough have tests of their own. Each of them
// passes without the bug and fails with it.
func TestPlantedByHand(t *testing.T) {
	t.Parallel()
	for name, run := range map[string]func(r *rig, plant func(*engine.Config)) error{
		"the fence is read at commit":                fenceIsOld,
		"unchanged offsets are left out":             tickHasOffsets,
		"the restore ends at the last stable offset": restoreWaitsForTransactions,
		"commit after a failed produce":              failedProduceAborts,
	} {
		for _, planted := range []bool{false, true} {
			t.Run(name+map[bool]string{false: ": not so", true: ": found"}[planted], func(t *testing.T) {
				t.Parallel()
				synctest.Test(t, func(t *testing.T) {
					r := newRig(t, "in", "out", "out2")
					defer r.close()
					bug, ok := engine.Bugs[name]
					if !ok {
						t.Fatal("no such bug")
					}
					err := run(r, func(c *engine.Config) {
						if planted {
							engine.Plant(c, bug)
						}
					})
					if planted && err == nil {
						t.Error("not found")
					} else if !planted && err != nil {
						t.Error(err)
					}
				})
			})
		}
	}
}

func echo() *topology.Builder {
	b := topology.New("app")
	topology.Stream(b, "in", serde.String(), serde.String()).To("out")
	return b
}

// fenceIsOld: exactly-once.md §2.1. franz-go has joined the next generation already
// while a cycle is processed: it commits with the generation of its assignment.
func fenceIsOld(r *rig, plant func(*engine.Config)) error {
	a := r.start(echo(), vfs.NewMem(), plant)
	defer a.stop()
	a.running(1)
	group := r.GroupInfo("app")
	member, old := group.Members[0].MemberID, group.Epoch

	var generations []int32
	r.ControlKey(int16(kmsg.TxnOffsetCommit), func(req kmsg.Request) (kmsg.Response, error, bool) {
		if req := req.(*kmsg.TxnOffsetCommitRequest); req.MemberID == member {
			generations = append(generations, req.Generation)
		}
		return nil, nil, false
	})
	synced := make(chan struct{})
	r.ControlKey(int16(kmsg.SyncGroup), func(req kmsg.Request) (kmsg.Response, error, bool) {
		if req.(*kmsg.SyncGroupRequest).MemberID == member {
			r.SleepControl(func() { <-synced })
		}
		return nil, nil, false
	})
	b := r.start(echo(), vfs.NewMem()) // the group moves on
	defer b.stop()
	for r.GroupInfo("app").Epoch == old {
		r.pass(100 * time.Millisecond)
	}
	r.produce("in", &kgo.Record{Key: []byte("k"), Value: []byte("v")})
	r.pass(3 * time.Second)
	close(synced)
	r.await("out", 1)
	if len(generations) == 0 {
		return errors.New("no commit")
	}
	return mismatch("the generation of the first commit", generations[0], old)
}

// failedProduceAborts: exactly-once.md §2.3. franz-go would commit the rest of a
// transaction of which a record was not written.
func failedProduceAborts(r *rig, plant func(*engine.Config)) error {
	b := topology.New("app")
	in := topology.Stream(b, "in", serde.String(), serde.String())
	in.To("out")
	in.To("out2")
	fault := r.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Topic: "out2", Err: kerr.MessageTooLarge})
	a := r.start(b, vfs.NewMem(), plant)
	defer a.stop()
	r.produce("in", &kgo.Record{Key: []byte("k"), Value: []byte("v")})
	r.await("out", 1)
	if fault.Hits() != 1 {
		return errors.New("nothing was refused")
	}
	return mismatch("the number of records in out2", len(r.read("out2")), 1)
}

// ticker forwards a record at every wall-clock punctuation.
type ticker struct {
	ctx *processors.Context[string, string]
}

func (p *ticker) Init(ctx *processors.Context[string, string]) error {
	p.ctx = ctx
	ctx.Schedule(processors.WallClock, time.Second, func(at int64) error {
		return ctx.Forward(processors.Record[string, string]{Key: "tick", Value: "tick", Timestamp: at})
	})
	return nil
}
func (p *ticker) Process(processors.Record[string, string]) error { return nil }
func (p *ticker) Close() error                                    { return nil }

// tickHasOffsets: exactly-once.md §2.2. A cycle of ticks only is fenced by the
// unchanged offsets of its inputs.
func tickHasOffsets(r *rig, plant func(*engine.Config)) error {
	named := map[string]bool{} // epochs of transactions with an offset of the input
	ended, unfenced := 0, 0
	r.ControlKey(-1, func(req kmsg.Request) (kmsg.Response, error, bool) {
		switch req := req.(type) {
		case *kmsg.TxnOffsetCommitRequest:
			named[req.TransactionalID] = len(req.Topics) > 0 && len(req.Topics[0].Partitions) > 0
		case *kmsg.EndTxnRequest:
			if ended++; !named[req.TransactionalID] {
				unfenced++
			}
			delete(named, req.TransactionalID)
		}
		return nil, nil, false
	})
	b := topology.New("app")
	topology.Process(topology.Stream(b, "in", serde.String(), serde.String()), "tick", func() processors.Processor[string, string, string, string] { return &ticker{} }).
		To("out")
	a := r.start(b, vfs.NewMem(), plant)
	a.running(1)
	r.pass(10 * time.Second)
	a.stop()
	if ended < 5 {
		return mismatch("the number of transactions", ended, "at least 5")
	}
	return mismatch("the number of transactions without offsets", unfenced, 0)
}

func counting() *topology.Builder {
	b := topology.New("app")
	topology.AddKeyValueStore(b, "counts", serde.String(), serde.Int64())
	topology.Process(topology.Stream(b, "in", serde.String(), serde.String()), "count", func() processors.Processor[string, string, string, int64] { return &counter{} }, topology.Stores("counts")).
		WithValueSerde(serde.Int64()).To("out")
	return b
}

type counter struct {
	ctx   *processors.Context[string, int64]
	store state.KeyValueStore[string, int64]
}

func (p *counter) Init(ctx *processors.Context[string, int64]) (err error) {
	p.ctx = ctx
	p.store, err = processors.KeyValueStore[string, int64](ctx, "counts")
	return err
}

func (p *counter) Process(r processors.Record[string, string]) error {
	n, _, err := p.store.Get(r.Key)
	if err != nil {
		return err
	}
	if err := p.store.Put(r.Key, n+1, r.Timestamp); err != nil {
		return err
	}
	return p.ctx.Forward(processors.Record[string, int64]{Key: r.Key, Value: n + 1, Timestamp: r.Timestamp})
}

func (p *counter) Close() error { return nil }

// restoreWaitsForTransactions: exactly-once.md §3.5 (KAFKA-10167). A transaction is
// open in the changelog while the task is restored: its end is the high watermark,
// not the last stable offset.
func restoreWaitsForTransactions(r *rig, plant func(*engine.Config)) error {
	a := r.start(counting(), vfs.NewMem())
	r.produce("in", &kgo.Record{Key: []byte("k"), Value: []byte("v")})
	r.await("out", 1)
	a.stop()

	other, err := kgo.NewClient(append(r.opts(), kgo.TransactionalID("other"))...)
	if err != nil {
		return err
	}
	defer other.Close()
	if err := other.BeginTransaction(); err != nil {
		return err
	}
	row := &kgo.Record{Topic: "app.counts-table", Key: []byte("k"), Value: int64Value(100)}
	if err := other.ProduceSync(r.t.Context(), row).FirstErr(); err != nil {
		return err
	}
	b := r.start(counting(), vfs.NewMem(), plant) // from an empty directory
	defer b.stop()
	r.pass(3 * time.Second)
	if err := other.EndTransaction(r.t.Context(), kgo.TryCommit); err != nil {
		return err
	}
	r.produce("in", &kgo.Record{Key: []byte("k"), Value: []byte("v")})
	out := r.await("out", 2)
	return mismatch("the count", out[1].Value, int64Value(101))
}
