package topologytest_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/millrace/millrace/serde"
	"github.com/millrace/millrace/topology"
	"github.com/millrace/millrace/topologytest"
)

// TestStoresOfWindowsAndHistories looks into stores that keep more than one row
// per key, in several partitions.
func TestStoresOfWindowsAndHistories(t *testing.T) {
	t.Parallel()
	b := topology.New("app")
	s := serde.String()
	gap := topology.Session(5*time.Millisecond, topology.Grace(time.Second))
	topology.Count(topology.Stream(b, "in", s, s).GroupByKey(), "visits", gap).ToStream().To("out")
	topology.Table(b, "rows", "history", s, s, topology.Versioned(time.Second)).ToStream().To("rows-out")
	d := topologytest.New(t, b, topologytest.Partitions(3))
	in, rows := topologytest.Input(d, "in", s, s), topologytest.Input(d, "rows", s, s)
	for i := range int64(4) {
		in.Pipe(fmt.Sprint("k", i), "", 10*i)
		in.Pipe(fmt.Sprint("k", i), "", 10*i+4)
		rows.Pipe(fmt.Sprint("k", i), "first", 10)
		rows.Pipe(fmt.Sprint("k", i), "second", 20)
	}
	if got, want := fmt.Sprint(topologytest.Sessions(d, "visits", s, serde.Int64()).Rows(14, 24)), "[{k1 10 14 2} {k2 20 24 2}]"; got != want {
		t.Errorf("sessions %s, want %s", got, want)
	}
	history := topologytest.Versioned(d, "history", s, s)
	for at, want := range map[int64]string{9: "", 10: "first", 19: "first", 20: "second"} {
		if got, ok := history.GetAsOf("k2", at); got != want || ok != (want != "") {
			t.Errorf("at %d: %q, %v", at, got, ok)
		}
	}
	if got, ok := topologytest.KeyValue(d, "history", s, s).Get("k2"); got != "second" || !ok {
		t.Errorf("latest row %q, %v", got, ok)
	}
}
