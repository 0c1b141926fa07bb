package topology_test

import (
	"fmt"
	"time"

	"github.com/millrace/millrace/serde"
	"github.com/millrace/millrace/topology"
	"github.com/millrace/millrace/topologytest"
)

func ExampleVersioned() {
	b := topology.New("shop")
	orders := topology.Stream(b, "orders", serde.String(), serde.Int64())
	prices := topology.Table(b, "prices", "price-rows", serde.String(), serde.Int64(), topology.Versioned(time.Hour))
	topology.Join(orders, prices, func(pieces, cents int64) int64 { return pieces * cents }).To("out")

	d := topologytest.New(topologytest.NoTest(), b)
	defer d.Close()
	price := topologytest.Input(d, "prices", serde.String(), serde.Int64())
	order := topologytest.Input(d, "orders", serde.String(), serde.Int64())
	price.Pipe("tea", 500, 1_000)
	price.Pipe("tea", 600, 3_000)
	order.Pipe("tea", 1, 2_000) // ordered when tea was at 500
	order.Pipe("tea", 1, 4_000)
	price.Pipe("tea", 550, 1_500) // comes late, changes the past
	order.Pipe("tea", 1, 2_000)
	printOut(d, serde.String(), serde.Int64())
	// Output:
	// tea:500@2000
	// tea:600@4000
	// tea:550@2000
}

func ExampleGrace_join() {
	b := topology.New("shop")
	orders := topology.Stream(b, "orders", serde.String(), serde.String())
	stock := topology.Table(b, "stock", "stock-rows", serde.String(), serde.Int64(), topology.Versioned(time.Hour))
	topology.LeftJoin(orders, stock, func(order string, pieces int64, _ bool) string {
		return fmt.Sprintf("%s of %d", order, pieces)
	}, topology.Named("check"), topology.Grace(10*time.Second)).To("out")

	d := topologytest.New(topologytest.NoTest(), b)
	defer d.Close()
	pieces := topologytest.Input(d, "stock", serde.String(), serde.Int64())
	order := topologytest.Input(d, "orders", serde.String(), serde.String())
	order.Pipe("tea", "one", 5_000)  // waits
	pieces.Pipe("tea", 7, 4_000)     // comes later, was there before
	order.Pipe("tea", "two", 15_000) // ends the wait of the first
	printOut(d, serde.String(), serde.String())
	// Output:
	// tea:one of 7@5000
}
