package state_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"time"

	"github.com/millrace/millrace/serde"
	"github.com/millrace/millrace/state"
)

// exampleHost is an instance that has the only partition of a store.
type exampleHost struct{ db state.Backend }

func (h exampleHost) Backend() state.Backend         { return h.db }
func (exampleHost) Partitions(string) (int32, error) { return 1, nil }
func (exampleHost) Local(string, int32) state.Local {
	return state.Local{Task: state.TaskID{SubTopology: "visits"}, Status: state.Ready, StreamTime: -1}
}

type visits struct{ spec state.Spec }

func (v visits) StoreSpec() state.Spec { return v.spec }
func (visits) StoreSerdes() (serde.Serde[string], serde.Serde[int64]) {
	return serde.String(), serde.Int64()
}

// A record that fails is rolled back by itself, and a view sees what has been
// committed.
func ExampleView() {
	ctx := context.Background()
	spec := state.Spec{Name: "visits", KeySerde: "string", ValueSerde: "int64"}
	host := exampleHost{state.NewMemory()}
	part := state.NewPartition(host.db, state.TaskID{SubTopology: "visits"}, []state.Spec{spec})
	store := state.NewKeyValueStore(part.Store("visits"), serde.String(), serde.Int64())
	view := state.View(host, visits{spec})
	show := func(when string) {
		n, ok, err := view.Get(ctx, "alice")
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println(when, n, ok)
	}

	part.Begin()
	if err := store.Put("alice", 1, 1000); err != nil {
		log.Fatal(err)
	}
	part.Begin()
	if err := store.Put("alice", 2, 2000); err != nil {
		log.Fatal(err)
	}
	part.Rollback()
	show("before the commit:")
	if err := errors.Join(part.Commit(), part.WriteBack(&state.Batch{})); err != nil {
		log.Fatal(err)
	}
	show("after the commit:")
	// Output:
	// before the commit: 0 false
	// after the commit: 1 true
}

// A window store forgets what is older than its retention.
func ExampleNewWindowStore() {
	spec := state.Spec{Name: "per-minute", Kind: state.Window, WindowSize: time.Minute, Retention: 5 * time.Minute}
	part := state.NewPartition(state.NewMemory(), state.TaskID{SubTopology: "per-minute"}, []state.Spec{spec})
	streamTime := part.Cell("stream-time")
	store := state.NewWindowStore(part.Store("per-minute"), serde.String(), serde.Int64(), streamTime.Value)
	minute := time.Minute.Milliseconds()
	for m := range int64(8) {
		streamTime.Set(m * minute)
		if err := store.Put("alice", m*minute, m, m*minute); err != nil {
			log.Fatal(err)
		}
	}
	for row, err := range store.Fetch("alice", 0, 4*minute) {
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println(time.UnixMilli(row.Start).UTC().Format(time.TimeOnly), row.Value)
	}
	// Output:
	// 00:03:00 3
	// 00:04:00 4
}

// A row that a task logs is restored from the record by another.
func ExampleRestorer() {
	spec := state.Spec{Name: "visits"}
	task := state.TaskID{SubTopology: "visits"}
	db := state.NewMemory()
	restorer := state.NewRestorer(db, task, []state.Spec{spec}, &state.Checkpoint{})
	for offset, value := range []string{"old", "new"} {
		if err := restorer.Add("visits", int64(offset), []byte("alice"), []byte(value), 1000); err != nil {
			log.Fatal(err)
		}
	}
	if err := restorer.Flush(0); err != nil {
		log.Fatal(err)
	}
	store := state.NewKeyValueStore(state.NewPartition(db, task, []state.Spec{spec}).Store("visits"), serde.String(), serde.String())
	value, ok, err := store.Get("alice")
	checkpoint, err2 := state.LoadCheckpoint(db, task)
	if err != nil || err2 != nil {
		log.Fatal(err, err2)
	}
	fmt.Println(value, ok, checkpoint.Logs["visits"].Next)
	// Output:
	// new true 2
}
