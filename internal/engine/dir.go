package engine

import (
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"

	"github.com/millrace/millrace/processors"
	"github.com/millrace/millrace/state"
	"github.com/millrace/millrace/topology"
)

// openDir opens the state directory and its database. What is damaged is moved
// aside within the directory and rebuilt from the changelogs; what belongs to
// another application, or to another version of this one, is refused.
func (inst *Instance) openDir() error {
	opts := []state.StorageOption{state.Logger(inst.log)}
	if inst.cfg.FS != nil {
		opts = append(opts, state.FS(inst.cfg.FS))
	}
	dir, err := openDir(inst.cfg.StateDir, inst.manifest(), opts)
	if errors.Is(err, state.ErrCorrupt) {
		moved, qerr := state.Quarantine(inst.cfg.StateDir, time.Now(), dirOptions(opts)...)
		if qerr != nil {
			return errors.Join(err, qerr)
		}
		inst.log.Error("the state directory is damaged: it was moved aside and is rebuilt from the changelogs", "moved", moved, "error", err)
		dir, err = openDir(inst.cfg.StateDir, inst.manifest(), opts)
	}
	if err != nil {
		return err
	}
	inst.dir = dir
	if inst.pebble, err = inst.openDatabase(); err != nil {
		return errors.Join(err, dir.Close())
	}
	inst.cache = state.NewCacheBudget(inst.cfg.StateMemory / 2)
	inst.db, inst.id = inst.pebble, dir.Identity().String()
	inst.owner = processors.Owner{Instance: inst.id, Incarnation: uuid.NewString()}
	if stores, subs := dir.Orphans(); len(stores)+len(subs) > 0 {
		inst.log.Warn("the state directory holds state that the topology no longer has; it is kept", "stores", stores, "subtopologies", subs)
	}
	return nil
}

func openDir(path string, m state.Manifest, opts []state.StorageOption) (*state.Dir, error) {
	return state.OpenDir(path, m, dirOptions(opts)...)
}

func dirOptions(opts []state.StorageOption) []state.DirOption {
	out := make([]state.DirOption, len(opts))
	for i, o := range opts {
		out[i] = o
	}
	return out
}

// openDatabase opens the database, or, if it is damaged, moves it aside and makes
// a new one, which is restored from the changelogs.
func (inst *Instance) openDatabase() (*state.Pebble, error) {
	blocks := state.BlockCache(inst.cfg.StateMemory / 2)
	db, err := inst.dir.OpenBackend(blocks)
	if !errors.Is(err, state.ErrCorrupt) {
		return db, err
	}
	moved, qerr := inst.dir.Quarantine(time.Now())
	if qerr != nil {
		return nil, errors.Join(err, qerr)
	}
	inst.log.Error("the database is damaged: it was moved aside and is rebuilt from the changelogs", "moved", moved, "error", err)
	return inst.dir.OpenBackend(blocks)
}

// closeDir flushes and closes the database and gives the directory free.
func (inst *Instance) closeDir() error {
	err := inst.pebble.Close()
	if inst.corrupt {
		moved, qerr := inst.dir.Quarantine(time.Now())
		inst.log.Error("the database is damaged: it was moved aside, and the next start rebuilds it from the changelogs", "moved", moved)
		err = qerr // what Close says of a damaged database is known
	}
	if err := errors.Join(err, inst.dir.Close()); err != nil {
		return fmt.Errorf("state in %s: %w", inst.cfg.StateDir, err)
	}
	return nil
}

// manifest describes what the directory must be fit for.
func (inst *Instance) manifest() state.Manifest {
	m := state.Manifest{Application: inst.cfg.Topology.App}
	for _, sub := range inst.cfg.Topology.Subs {
		m.Stores = append(m.Stores, sub.Stores...)
		if !sub.NeedsRows && len(sub.Stores) == 0 {
			continue
		}
		m.SubTopologies = append(m.SubTopologies, state.SubTopologyManifest{
			Name: sub.Name, Stores: storeNames(sub.Stores), Sources: sourceTopics(sub), HasRows: sub.NeedsRows,
		})
	}
	for _, g := range inst.cfg.Topology.Globals {
		m.Stores = append(m.Stores, g.Store)
	}
	return m
}

func storeNames(specs []state.Spec) []string {
	names := make([]string, len(specs))
	for i, s := range specs {
		names[i] = s.Name
	}
	return names
}

func sourceTopics(sub *topology.SubTopology) []string {
	topics := make([]string, len(sub.Sources))
	for i, s := range sub.Sources {
		topics[i] = s.Topic
	}
	return topics
}
