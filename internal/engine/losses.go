package engine

import (
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/millrace/millrace/internal/kafka"
)

// A groupPartition is an input of a group.
type groupPartition struct {
	group, topic string
	partition    int32
}

// A loss is what the instance has learned of the records of an input that are gone.
// It outlives sessions, whose every start finds the same.
type loss struct {
	counted   int64 // the offset below which records that retention removed are counted
	truncated *kgo.ErrDataLoss
	// oversized is a batch that unpacks to more than the client takes.
	oversized *kgo.ErrDecompressTooLarge
}

func (inst *Instance) lossOf(in groupPartition) *loss {
	l := inst.losses[in]
	if l == nil {
		l = new(loss)
		inst.losses[in] = l
	}
	return l
}

// removed notes that retention removed the records from offset from up to, not
// including, to, and returns how many of them are news.
func (inst *Instance) removed(in groupPartition, from, to int64) int64 {
	inst.mu.Lock()
	defer inst.mu.Unlock()
	l := inst.lossOf(in)
	n := max(0, to-max(from, l.counted))
	l.counted = max(l.counted, to)
	return n
}

// truncated notes that the broker has lost the end of a log that was read.
func (inst *Instance) truncated(in groupPartition, what *kgo.ErrDataLoss) {
	inst.mu.Lock()
	defer inst.mu.Unlock()
	inst.lossOf(in).truncated = what
}

// oversized notes a batch that the client does not unpack. It is fetched once: until the
// position is behind it, there is nothing more to come.
func (inst *Instance) oversized(in groupPartition, what *kgo.ErrDecompressTooLarge) {
	inst.mu.Lock()
	defer inst.mu.Unlock()
	inst.lossOf(in).oversized = what
}

// oversizedAt returns the batch that the client does not unpack if an offset is in it,
// else nil.
func (inst *Instance) oversizedAt(in groupPartition, at int64) *kgo.ErrDecompressTooLarge {
	inst.mu.Lock()
	defer inst.mu.Unlock()
	if l := inst.losses[in]; l != nil && l.oversized != nil && at >= l.oversized.Offset && at < l.oversized.NextOffset {
		return l.oversized
	}
	return nil
}

// truncation returns where the log was cut off if an offset of the group lies behind
// that and is older: what it stood for is gone. Offsets that somebody has set by hand
// have no epoch, and stand.
func (inst *Instance) truncation(in groupPartition, at kafka.Offset) (end int64, cut bool) {
	inst.mu.Lock()
	defer inst.mu.Unlock()
	l := inst.losses[in]
	if l == nil || l.truncated == nil || at.Epoch < 0 || at.Epoch > l.truncated.ConsumedToEpoch || at.At <= l.truncated.ResetTo {
		return 0, false
	}
	return l.truncated.ResetTo, true
}
