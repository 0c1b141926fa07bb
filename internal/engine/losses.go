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
