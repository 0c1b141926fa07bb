//go:build integration

package engine_test

import (
	"log/slog"
	"net"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/millrace/millrace/internal/broker"
	"github.com/millrace/millrace/internal/broker/brokertest"
	"github.com/millrace/millrace/internal/engine"
	"github.com/millrace/millrace/internal/kafka"
	"github.com/millrace/millrace/serde"
	"github.com/millrace/millrace/topology"
)

// §1.4: a task moves in two rounds, and the member that gives it up asks for the
// second. Here it dies in between. Its successor, a static member, is given what it
// had kept without a rebalance: others must ask for one. (kfake always balances.)
func TestGiverDies(t *testing.T) {
	k := brokertest.Kafka(t, broker.KafkaConfig{})
	if err := broker.CreateTopics(t.Context(), k.Addr(), broker.Topic{Name: "in", Partitions: 4}, broker.Topic{Name: "out", Partitions: 4}); err != nil {
		t.Fatal(err)
	}
	start := func(dir string, net *cuttable) *app {
		b := topology.New("app")
		topology.Stream(b, "in", serde.String(), serde.String()).To("out")
		built, err := b.Build()
		if err != nil {
			t.Fatal(err)
		}
		a := &app{r: &rig{t: t}, done: make(chan error, 1)}
		a.Instance, err = engine.New(engine.Config{
			Topology: built, StateDir: dir, Workers: 1, Registry: prometheus.NewRegistry(),
			Kafka:  kafka.Config{Brokers: []string{k.Addr()}, Dialer: net.DialContext},
			Logger: slog.New(slog.NewTextHandler(t.Output(), nil)),
		})
		if err != nil {
			t.Fatal(err)
		}
		a.run()
		return a
	}
	var joins, last atomic.Int32 // last is the number of the giver's last join
	last.Store(1 << 30)
	giving := &cuttable{dial: new(net.Dialer).DialContext, request: func(key int16) bool {
		return key == int16(kmsg.JoinGroup) && joins.Add(1) > last.Load()
	}}
	dir := filepath.Join(t.TempDir(), "giver")
	giver := start(dir, giving)
	giver.running(4)
	last.Store(joins.Load() + 1) // this one ends the round that takes tasks from it
	taker := start(filepath.Join(t.TempDir(), "taker"), &cuttable{dial: new(net.Dialer).DialContext})
	defer taker.stop()
	for !giving.isCut() {
		giver.r.pass(10 * time.Millisecond)
	}
	giver.cancel()
	if err := <-giver.done; err != nil {
		t.Log("the dead giver:", err)
	}
	giver = start(dir, &cuttable{dial: new(net.Dialer).DialContext})
	defer giver.stop()
	giver.running(2)
	taker.running(2)
}
