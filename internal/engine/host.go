package engine

import (
	"fmt"
	"time"

	"github.com/millrace/millrace/state"
)

var _ state.Host = (*Instance)(nil)

// Backend returns the committed rows, nil before Run has opened them.
func (inst *Instance) Backend() state.Backend {
	if !inst.prepared() {
		return nil
	}
	return inst.db
}

// prepared reports whether Run has set the instance's fields.
func (inst *Instance) prepared() bool {
	select {
	case <-inst.ready:
		return true
	default:
		return false
	}
}

// Partitions returns the number of partitions of a store.
func (inst *Instance) Partitions(store string) (int32, error) {
	if !inst.prepared() {
		return 0, fmt.Errorf("store %q: the instance has not started yet", store)
	}
	if inst.isGlobal(store) {
		return 1, nil
	}
	sub := inst.storeOwner(store)
	if sub == "" {
		return 0, fmt.Errorf("store %q: the topology has none of that name", store)
	}
	return inst.plan.tasks[sub], nil
}

func (inst *Instance) isGlobal(store string) bool {
	for _, g := range inst.cfg.Topology.Globals {
		if g.Store.Name == store {
			return true
		}
	}
	return false
}

// storeOwner returns the sub-topology that has a store.
func (inst *Instance) storeOwner(store string) string {
	for _, sub := range inst.cfg.Topology.Subs {
		for _, spec := range sub.Stores {
			if spec.Name == store {
				return sub.Name
			}
		}
	}
	return ""
}

// Local returns the state of a store's partition on this instance.
func (inst *Instance) Local(store string, partition int32) state.Local {
	if inst.prepared() && inst.isGlobal(store) {
		return state.Local{Task: globalTask(store), Status: state.Ready, StreamTime: -1}
	}
	id := state.TaskID{SubTopology: inst.storeOwner(store), Partition: partition}
	local := state.Local{Task: id, StreamTime: -1}
	inst.mu.Lock()
	defer inst.mu.Unlock()
	if t, ok := inst.live[id]; ok {
		t.view.looked.Store(time.Now().UnixMilli())
		local.Status = state.Ready
		local.StreamTime = t.view.streamTime.Load()
		local.Staleness = time.Since(time.UnixMilli(t.view.caughtUp.Load()))
		if local.Staleness < 2*housekeeping {
			local.Staleness = 0
		}
		return local
	}
	if s, ok := inst.status[id]; ok && s.State == Restoring {
		local.Status = state.Restoring
	}
	return local
}

// goesLive lets views read the rows of a task; leaves ends that.
func (inst *Instance) goesLive(t *task) {
	inst.mu.Lock()
	defer inst.mu.Unlock()
	inst.live[t.id] = t
}

func (inst *Instance) leaves(t *task) {
	inst.mu.Lock()
	defer inst.mu.Unlock()
	if inst.live[t.id] == t {
		delete(inst.live, t.id)
	}
}

// observeView notes for views how far the task is.
func (t *task) observeView(now time.Time) {
	unwritten, _ := t.part.Unwritten()
	behind := unwritten > 0
	for _, in := range t.inputs {
		behind = behind || in.position.At < in.end || in.position.At != in.committed.At || now.Sub(in.looked) > endsFresh
	}
	if !behind {
		t.view.caughtUp.Store(now.UnixMilli())
	}
}
