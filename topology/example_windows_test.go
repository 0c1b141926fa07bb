package topology_test

import (
	"fmt"
	"time"

	"github.com/millrace/millrace/serde"
	"github.com/millrace/millrace/topology"
	"github.com/millrace/millrace/topologytest"
)

func ExampleSliding() {
	b := topology.New("bank")
	logins := topology.Stream(b, "failed-logins", serde.String(), serde.String())
	w := topology.Sliding(10*time.Second, topology.Grace(time.Minute))
	topology.Count(logins.GroupByKey(), "attempts", w).
		Filter(func(_ topology.Windowed[string], n int64) bool { return n >= 3 }).ToStream().To("out")

	d := topologytest.New(topologytest.NoTest(), b)
	defer d.Close()
	in := topologytest.Input(d, "failed-logins", serde.String(), serde.String())
	in.Pipe("ada", "", 11_000)
	in.Pipe("ada", "", 25_000)
	in.Pipe("ada", "", 16_000) // late: it is within 10 s of both others
	in.Pipe("ada", "", 19_000)
	printOut(d, topology.WindowedSerde(serde.String(), 10*time.Second), serde.Int64())
	// Output:
	// [ada@15000/25000]:3@25000
	// [ada@9000/19000]:3@19000
}

func ExampleSession() {
	b := topology.New("shop")
	clicks := topology.Stream(b, "clicks", serde.String(), serde.String())
	w := topology.Session(30*time.Minute, topology.Grace(time.Hour))
	topology.Count(clicks.GroupByKey(), "visits", w).ToStream().To("out")

	d := topologytest.New(topologytest.NoTest(), b)
	defer d.Close()
	in := topologytest.Input(d, "clicks", serde.String(), serde.String())
	minute := time.Minute.Milliseconds()
	in.Pipe("ada", "", 10*minute)
	in.Pipe("ada", "", 60*minute) // a second visit
	in.Pipe("ada", "", 35*minute) // late: makes one visit of both
	printOut(d, topology.SessionSerde(serde.String()), serde.Int64())
	// Output:
	// [ada@600000/600000]:1@600000
	// [ada@3600000/3600000]:1@3600000
	// [ada@600000/600000]:null@600000
	// [ada@3600000/3600000]:null@3600000
	// [ada@600000/3600000]:3@3600000
}

func ExampleSessionAggregate() {
	b := topology.New("shop")
	clicks := topology.Stream(b, "clicks", serde.String(), serde.String())
	w := topology.Session(5*time.Second, topology.Grace(0), topology.EmitFinal())
	topology.SessionAggregate(clicks.GroupByKey(), "paths", w, serde.String(),
		func() string { return "" },
		func(_, page, path string) string { return path + page },
		func(_, a, b string) string { return a + b }).ToStream().To("out")

	d := topologytest.New(topologytest.NoTest(), b)
	defer d.Close()
	in := topologytest.Input(d, "clicks", serde.String(), serde.String())
	in.Pipe("ada", "/home", 1_000)
	in.Pipe("ada", "/tea", 4_000)
	in.Pipe("bob", "/home", 9_001) // ada's visit has ended
	printOut(d, topology.SessionSerde(serde.String()), serde.String())
	// Output:
	// [ada@1000/4000]:/home/tea@4000
}

func ExampleUnlimited() {
	b := topology.New("shop")
	orders := topology.Stream(b, "orders", serde.String(), serde.String())
	since := topology.Unlimited(time.UnixMilli(1_000))
	topology.Count(orders.GroupByKey(), "since-launch", since).ToStream().To("out")

	d := topologytest.New(topologytest.NoTest(), b)
	defer d.Close()
	in := topologytest.Input(d, "orders", serde.String(), serde.String())
	in.Pipe("tea", "", 999) // before the launch
	in.Pipe("tea", "", 1_000)
	in.Pipe("tea", "", 5_000)
	for _, r := range topologytest.Output(d, "out", topology.WindowedSerde(serde.String(), topology.UnlimitedSize), serde.Int64()).Read() {
		fmt.Println(r.Key.Key, r.Key.Start, r.Value)
	}
	// Output:
	// tea 1000 1
	// tea 1000 2
}

func ExampleCogroup() {
	b := topology.New("shop")
	orders := topology.Stream(b, "orders", serde.String(), serde.Int64())
	refunds := topology.Stream(b, "refunds", serde.String(), serde.Int64())
	account := topology.Cogroup(orders.GroupByKey(), func(_ string, cents, sum int64) int64 { return sum + cents })
	account = topology.CogroupWith(account, refunds.GroupByKey(), func(_ string, cents, sum int64) int64 { return sum - cents })
	account.Aggregate("balance", serde.Int64(), func() int64 { return 0 }).ToStream().To("out")

	d := topologytest.New(topologytest.NoTest(), b)
	defer d.Close()
	order := topologytest.Input(d, "orders", serde.String(), serde.Int64())
	refund := topologytest.Input(d, "refunds", serde.String(), serde.Int64())
	order.Pipe("ada", 500, 1)
	refund.Pipe("ada", 200, 2)
	order.Pipe("ada", 100, 3)
	printOut(d, serde.String(), serde.Int64())
	// Output:
	// ada:500@1
	// ada:300@2
	// ada:400@3
}

func ExampleWindowedCogroup() {
	b := topology.New("shop")
	views := topology.Stream(b, "views", serde.String(), serde.String())
	buys := topology.Stream(b, "buys", serde.String(), serde.Int64())
	add := topology.Cogroup(views.GroupByKey(), func(_, _ string, s string) string { return s + "v" })
	add = topology.CogroupWith(add, buys.GroupByKey(), func(_ string, _ int64, s string) string { return s + "b" })
	minutes := topology.Tumbling(time.Minute, topology.Grace(0), topology.EmitFinal())
	topology.WindowedCogroup(add, "per-minute", minutes, serde.String(), func() string { return "" }).ToStream().To("out")

	d := topologytest.New(topologytest.NoTest(), b)
	defer d.Close()
	view := topologytest.Input(d, "views", serde.String(), serde.String())
	buy := topologytest.Input(d, "buys", serde.String(), serde.Int64())
	view.Pipe("tea", "", 1_000)
	buy.Pipe("tea", 1, 2_000)
	view.Pipe("tea", "", 60_000) // ends the first minute for both
	printOut(d, topology.WindowedSerde(serde.String(), time.Minute), serde.String())
	// Output:
	// [tea@0/60000]:vb@2000
}
