package millrace_test

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/millrace/millrace"
	"github.com/millrace/millrace/internal/broker"
	"github.com/millrace/millrace/serde"
	"github.com/millrace/millrace/state"
	"github.com/millrace/millrace/topology"
)

// visits counts page visits per user, in all and per minute.
func visits() (b *topology.Builder, total *topology.KTable[string, int64], perMinute *topology.KTable[topology.Windowed[string], int64]) {
	b = topology.New("visits")
	grouped := topology.Stream(b, "pages", serde.String(), serde.String()).GroupByKey()
	total = grouped.Count("total")
	perMinute = topology.Count(grouped, "per-minute", topology.Tumbling(time.Minute, topology.Grace(0), topology.Retention(time.Hour)))
	return b, total, perMinute
}

func embedded(t *testing.T, topics ...broker.Topic) string {
	t.Helper()
	b, err := broker.StartEmbedded(broker.EmbeddedConfig{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	})
	if err := broker.CreateTopics(t.Context(), b.Addr(), topics...); err != nil {
		t.Fatal(err)
	}
	return b.Addr()
}

// run runs something until the returned function is called, which fails the test
// if it ends with an error.
func run(t *testing.T, what interface{ Run(context.Context) error }) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- what.Run(ctx) }()
	return func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

func pages(t *testing.T, addr string, minute int, users ...string) {
	t.Helper()
	cl, err := kgo.NewClient(kgo.SeedBrokers(addr))
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	for i, user := range users {
		at := time.UnixMilli(1_700_000_040_000).Add(time.Duration(minute)*time.Minute + time.Duration(i)*time.Millisecond)
		r := &kgo.Record{Topic: "pages", Key: []byte(user), Value: []byte("/"), Timestamp: at}
		if err := cl.ProduceSync(t.Context(), r).FirstErr(); err != nil {
			t.Fatal(err)
		}
	}
}

// eventually asks until the answer is as wanted.
func eventually[V comparable](t *testing.T, want V, ask func() (V, error)) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for {
		got, err := ask()
		if err == nil && got == want {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("got %v (%v), want %v", got, err, want)
		}
	}
}

// The same view reads an instance and a replica in another program; the replica
// is complete before it answers, survives a restart, and follows.
func TestViews(t *testing.T) {
	t.Parallel()
	addr := embedded(t, broker.Topic{Name: "pages", Partitions: 3})
	b, total, perMinute := visits()
	app, err := millrace.New(b, millrace.Brokers(addr), millrace.StateDir(t.TempDir()))
	if err != nil {
		t.Fatal(err)
	}
	defer run(t, app)()
	pages(t, addr, 0, "ann", "bob", "ann", "eve")
	pages(t, addr, 1, "ann")

	local := state.View(app, total)
	count := func(v *state.Reader[string, int64], user string) func() (int64, error) {
		return func() (int64, error) {
			n, _, err := v.Get(t.Context(), user)
			return n, err
		}
	}
	eventually(t, 3, count(local, "ann"))
	eventually(t, "2@1700000040000 1@1700000100000 ", func() (string, error) { return fetch(t, state.View(app, topology.WindowStore(perMinute)), "ann") })

	dir := t.TempDir()
	for life := range 2 {
		replica, err := millrace.NewReplica("visits", state.KeyValueHandle("total", serde.String(), serde.Int64()), millrace.Brokers(addr), millrace.StateDir(dir))
		if err != nil {
			t.Fatal(err)
		}
		remote := state.View(replica, state.KeyValueHandle("total", serde.String(), serde.Int64()))
		if _, _, err := remote.Get(t.Context(), "ann"); err == nil {
			t.Fatal("a replica that has not caught up answers")
		}
		stop := run(t, replica)
		if err := replica.CaughtUp(t.Context()); err != nil {
			t.Fatal(err)
		}
		eventually(t, int64(3+life), count(remote, "ann"))
		pages(t, addr, 2+life, "ann")
		eventually(t, int64(4+life), count(remote, "ann"))
		var users string
		for row, err := range remote.Range(t.Context(), nil, nil) {
			if err != nil {
				t.Fatal(err)
			}
			users += fmt.Sprintf("%s=%d ", row.Key, row.Value)
		}
		if len(users) != len("ann=4 bob=1 eve=1 ") {
			t.Errorf("rows %q, want ann, bob and eve", users)
		}
		stop()
		if _, _, err := remote.Get(t.Context(), "ann"); !errors.As(err, new(*state.NotReadyError)) {
			t.Errorf("a stopped replica answers with %v, want a NotReadyError", err)
		}
	}
}

func fetch(t *testing.T, v *state.Reader[string, int64], user string) (string, error) {
	var out string
	for row, err := range v.Fetch(t.Context(), user, 0, 1<<50) {
		if err != nil {
			return "", err
		}
		out += fmt.Sprintf("%d@%d ", row.Value, row.Start)
	}
	return out, nil
}

func TestReplicaOptions(t *testing.T) {
	t.Parallel()
	_, err := millrace.NewReplica("visits", state.KeyValueHandle("total", serde.String(), serde.Int64()))
	if err == nil {
		t.Fatal("a replica without brokers and directory is accepted")
	}
	for _, part := range []string{"no broker", "no state directory", "total", "visits"} {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("the error %q does not say %q", err, part)
		}
	}
}

// A replica does not serve rows that it cannot bring up to date: of a checkpoint that
// cannot be read, or is so old that a deletion may be gone from the changelog, or is
// ahead of it. It copies the partition anew.
func TestReplicaCopiesAnew(t *testing.T) {
	t.Parallel()
	addr := embedded(t, broker.Topic{Name: "pages", Partitions: 1})
	b, total, _ := visits()
	app, err := millrace.New(b, millrace.Brokers(addr), millrace.StateDir(t.TempDir()))
	if err != nil {
		t.Fatal(err)
	}
	defer run(t, app)()
	pages(t, addr, 0, "ann", "bob", "ann")
	handle := state.KeyValueHandle("total", serde.String(), serde.Int64())
	local := state.View(app, total)
	eventually(t, 2, func() (int64, error) { n, _, err := local.Get(t.Context(), "ann"); return n, err })

	dir := t.TempDir()
	id := state.TaskID{SubTopology: "replica", Partition: 0}
	live := func() (ghost bool) {
		replica, err := millrace.NewReplica("visits", handle, millrace.Brokers(addr), millrace.StateDir(dir))
		if err != nil {
			t.Fatal(err)
		}
		defer run(t, replica)()
		if err := replica.CaughtUp(t.Context()); err != nil {
			t.Fatal(err)
		}
		remote := state.View(replica, handle)
		if n, _, err := remote.Get(t.Context(), "ann"); n != 2 || err != nil {
			t.Errorf("ann has %d visits, %v", n, err)
		}
		_, ghost, err = remote.Get(t.Context(), "ghost")
		if err != nil {
			t.Error(err)
		}
		return ghost
	}
	spoil := func(change func(*state.Checkpoint) []byte) {
		db, err := state.OpenPebble(filepath.Join(dir, "db"))
		if err != nil {
			t.Fatal(err)
		}
		check, err := state.LoadCheckpoint(db, id)
		if err != nil || check == nil {
			t.Fatalf("the replica has no checkpoint: %v", err)
		}
		b := &state.Batch{}
		// A row whose deletion the changelog has forgotten.
		b.Set(append(state.StorePrefix(id, "total"), "ghost"...), append(state.AppendRow(nil, 1), 0, 0, 0, 0, 0, 0, 0, 9))
		b.Set(state.CheckpointKey(id), change(check))
		if err := errors.Join(db.Write(b), db.Close()); err != nil {
			t.Fatal(err)
		}
	}
	encode := func(c *state.Checkpoint) []byte {
		data, err := c.MarshalBinary()
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	if live() {
		t.Fatal("there is a row that nobody wrote")
	}
	spoil(encode)
	if !live() {
		t.Fatal("a usable copy is read anew")
	}
	for name, change := range map[string]func(*state.Checkpoint) []byte{
		"too old":      func(c *state.Checkpoint) []byte { c.Time -= (24 * time.Hour).Milliseconds(); return encode(c) },
		"older format": func(c *state.Checkpoint) []byte { data := encode(c); data[0]--; return data },
		"ahead": func(c *state.Checkpoint) []byte {
			c.Logs["total"] = state.LogPosition{Topic: c.Logs["total"].Topic, Next: 1 << 40}
			return encode(c)
		},
	} {
		spoil(change)
		if live() {
			t.Errorf("%s: the row is served", name)
		}
	}
}
