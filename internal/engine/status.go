package engine

import (
	"errors"
	"runtime/debug"
	"time"

	"github.com/millrace/millrace/processors"
	"github.com/millrace/millrace/state"
)

// TaskState is what a task does now.
type TaskState uint8

// The states of a task.
const (
	// Rebalancing: the task is not here, or on its way.
	Rebalancing TaskState = iota
	// Restoring: its state is read from the changelogs.
	Restoring
	// Running: it processes records.
	Running
	// Parked: it stopped with an error; its partitions are not consumed.
	Parked
)

// String returns the state's name in capitals.
func (s TaskState) String() string {
	switch s {
	case Restoring:
		return "RESTORING"
	case Running:
		return "RUNNING"
	case Parked:
		return "PARKED"
	}
	return "REBALANCING"
}

// TaskStatus describes a task for listeners, metrics and the health server.
type TaskStatus struct {
	Task  state.TaskID
	Group string
	State TaskState
	Since time.Time
	Err   error // why it is parked
	// RestoreDone and RestoreTotal count changelog offsets while it restores.
	RestoreDone, RestoreTotal int64
	// Lag is the number of offsets between what is committed and the ends of the
	// task's inputs, plus the in-flight entries of its asynchronous step.
	Lag int64
	// Pending is the number of in-flight entries, Oldest the timestamp of the
	// oldest.
	Pending int
	Oldest  time.Time
	// Stores are the sizes of the stores of which rows expire.
	Stores []processors.StoreSize
}

// setState changes what is reported of a task.
func (inst *Instance) setState(t *task, st TaskState, err error) {
	inst.setStateOf(t.id, st, err)
}

func (inst *Instance) setStateOf(id state.TaskID, st TaskState, err error) {
	inst.mu.Lock()
	s := inst.statusOf(id)
	same := s.State == st && errors.Is(err, s.Err)
	s.State, s.Err, s.Since = st, err, time.Now()
	if st == Rebalancing { // its owner reports these
		s.Lag, s.Pending, s.Oldest, s.Stores = 0, 0, time.Time{}, nil
	}
	copied := *s
	inst.mu.Unlock()
	if same {
		return
	}
	inst.log.Info("task state", "task", id.String(), "state", st.String(), "error", err)
	if inst.cfg.Listener != nil {
		inst.tell(copied)
	}
}

// tell tells the application's listener.
func (inst *Instance) tell(s TaskStatus) {
	defer func() {
		if p := recover(); p != nil {
			inst.log.Error("panic of the task state listener", "panic", p, "stack", string(debug.Stack()))
		}
	}()
	inst.cfg.Listener(s)
}

// statusOf returns the status entry of a task. The caller holds mu.
func (inst *Instance) statusOf(id state.TaskID) *TaskStatus {
	s, ok := inst.status[id]
	if !ok {
		s = &TaskStatus{Task: id}
		if sub := inst.sub(id.SubTopology); sub != nil {
			s.Group = sub.KafkaGroup
		}
		inst.status[id] = s
	}
	return s
}

// report refreshes the numbers of a task's status after a commit.
func (inst *Instance) report(t *task) {
	pending, oldest := t.pipe.Pending()
	lag, sizes := int64(pending), t.pipe.Sizes()
	for _, in := range t.inputs {
		lag += in.lag()
	}
	inst.mu.Lock()
	defer inst.mu.Unlock()
	s := inst.statusOf(t.id)
	s.Lag, s.Pending, s.Oldest, s.Stores = lag, pending, time.Time{}, sizes
	if pending > 0 {
		s.Oldest = time.UnixMilli(oldest)
	}
}

// restoreProgress reports how far a restore is.
func (inst *Instance) restoreProgress(id state.TaskID, done, total int64) {
	inst.mu.Lock()
	defer inst.mu.Unlock()
	s := inst.statusOf(id)
	s.RestoreDone, s.RestoreTotal = done, total
}

// assigned notes that a worker has been given its share of the group.
func (inst *Instance) assigned(w *worker) {
	inst.mu.Lock()
	defer inst.mu.Unlock()
	delete(inst.waiting, w)
}

// Ready reports whether every worker has been given its share of the group and no
// task of this instance is restoring.
func (inst *Instance) Ready() bool {
	if !inst.prepared() {
		return false
	}
	inst.mu.Lock()
	waiting := len(inst.waiting)
	inst.mu.Unlock()
	if waiting > 0 {
		return false
	}
	for _, t := range inst.Tasks() {
		if t.State == Restoring {
			return false
		}
	}
	return true
}
