package engine

import (
	"context"
	"errors"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/millrace/millrace/internal/kafka"
	"github.com/millrace/millrace/state"
)

// A bug is a mistake that tests plant in the engine, one at a time, to show that
// the simulation finds it. Only tests of this package can set one: the field of
// [Config] is not exported, and its zero value plants none.
type bug uint8

const (
	noBug               bug = iota
	bugLateFence            // the fence is read at commit
	bugOffsetsLeftOut       // the commit names the offsets of one task only
	bugUnchangedLeftOut     // the commit names moved offsets only, and may name none
	bugFailedProduce        // records that were not written do not stop the commit
	bugEmitTwice            // after an abort outputs are written twice
	bugCacheKept            // an abort leaves the uncommitted rows where they are
	bugRestoreShort         // the restore ends before the end of the changelog
	bugRestoreStable        // the restore ends at the last stable offset
	bugAppliedFirst         // rows are written before the transaction has committed
	bugLoopNotRewound       // an abort does not go back in the loop
	bugDispatchedFirst      // calls start before the transaction has committed
	bugOffsetsAhead         // offsets move when records are polled
	bugOldPositions         // a new member id goes on at the old positions
)

// endCycle ends the open transaction, or commits plainly if there is none.
func (s *session) endCycle(ctx context.Context, fence kafka.Fence, took []*task, offsets map[string]map[int32]kafka.Offset) (kafka.Outcome, error) {
	s.plantedTxn.Store(false)
	switch s.w.cfg.planted {
	case bugLateFence:
		fence = kafka.FenceOf(s.cl)
	case bugOffsetsLeftOut:
		offsets = leaveOut(offsets, took, func(i int, _ *task, _ *input) bool { return i > 0 })
	case bugUnchangedLeftOut:
		offsets = leaveOut(offsets, took, func(_ int, t *task, in *input) bool { return t.toCommit(in).At == in.committed.At })
		if len(offsets) == 0 {
			return s.endUnfenced(ctx)
		}
	case bugAppliedFirst:
		for _, t := range took {
			if err := errors.Join(t.part.Commit(), t.part.WriteBack(&state.Batch{})); err != nil {
				return kafka.Unknown, err
			}
		}
	}
	return s.ledger.Commit(ctx, fence, offsets)
}

// leaveOut returns offsets without those that out names.
func leaveOut(offsets map[string]map[int32]kafka.Offset, took []*task, out func(int, *task, *input) bool) map[string]map[int32]kafka.Offset {
	left := map[string]map[int32]kafka.Offset{}
	for i, t := range took {
		for _, in := range t.inputs {
			if !out(i, t, in) {
				set(left, in.topic, t.id.Partition, offsets[in.topic][t.id.Partition])
			}
		}
	}
	return left
}

// endUnfenced commits a transaction without offsets, which the ledger refuses.
func (s *session) endUnfenced(ctx context.Context) (kafka.Outcome, error) {
	if err := s.cl.Flush(ctx); err != nil {
		return kafka.Unknown, err
	}
	if err := s.cl.EndTransaction(ctx, kgo.TryCommit); err != nil {
		return kafka.Unknown, err
	}
	var err error
	if s.ledger, err = kafka.NewLedger(ctx, s.cl, s.w.inst.broker); err != nil {
		return kafka.Unknown, err
	}
	return kafka.Committed, nil
}
