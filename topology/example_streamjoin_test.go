package topology_test

import (
	"time"

	"github.com/millrace/millrace/serde"
	"github.com/millrace/millrace/topology"
	"github.com/millrace/millrace/topologytest"
)

func ExampleStreamJoin() {
	b := topology.New("ads")
	views := topology.Stream(b, "views", serde.String(), serde.String())
	clicks := topology.Stream(b, "clicks", serde.String(), serde.String())
	soon := topology.Between(0, 10*time.Second, topology.Grace(time.Minute)) // a click after its view
	topology.StreamJoin(views, clicks, "clicked", soon, func(view, click string) string { return view + " -> " + click }).To("out")

	d := topologytest.New(topologytest.NoTest(), b)
	defer d.Close()
	view := topologytest.Input(d, "views", serde.String(), serde.String())
	click := topologytest.Input(d, "clicks", serde.String(), serde.String())
	view.Pipe("ada", "tea", 1_000)
	click.Pipe("ada", "buy", 4_000)
	click.Pipe("ada", "leave", 12_000) // too late for the first view
	view.Pipe("ada", "wine", 9_000)    // comes late itself
	printOut(d, serde.String(), serde.String())
	// Output:
	// ada:tea -> buy@4000
	// ada:wine -> leave@12000
}

func ExampleStreamLeftJoin() {
	b := topology.New("shop")
	orders := topology.Stream(b, "orders", serde.String(), serde.String())
	payments := topology.Stream(b, "payments", serde.String(), serde.String())
	topology.StreamLeftJoin(orders, payments, "paid", topology.Within(10*time.Second, topology.Grace(0)),
		func(order, payment string, ok bool) string {
			if !ok {
				return order + " unpaid"
			}
			return order + " paid by " + payment
		}).To("out")

	d := topologytest.New(topologytest.NoTest(), b)
	defer d.Close()
	order := topologytest.Input(d, "orders", serde.String(), serde.String())
	payment := topologytest.Input(d, "payments", serde.String(), serde.String())
	order.Pipe("ada", "tea", 1_000)
	order.Pipe("bob", "wine", 2_000)
	payment.Pipe("ada", "card", 5_000)
	payment.Pipe("eve", "cash", 12_001) // ends bob's time
	printOut(d, serde.String(), serde.String())
	// Output:
	// ada:tea paid by card@5000
	// bob:wine unpaid@2000
}

func ExampleStreamOuterJoin() {
	b := topology.New("home")
	inside := topology.Stream(b, "inside", serde.String(), serde.String())
	outside := topology.Stream(b, "outside", serde.String(), serde.String())
	topology.StreamOuterJoin(inside, outside, "both", topology.Within(time.Second, topology.Grace(0)),
		func(in string, _ bool, out string, _ bool) string { return in + "/" + out }).To("out")

	d := topologytest.New(topologytest.NoTest(), b)
	defer d.Close()
	in := topologytest.Input(d, "inside", serde.String(), serde.String())
	out := topologytest.Input(d, "outside", serde.String(), serde.String())
	in.Pipe("hall", "20", 1_000)
	out.Pipe("hall", "5", 1_500)
	out.Pipe("hall", "6", 4_000)
	in.Pipe("hall", "21", 9_000)
	printOut(d, serde.String(), serde.String())
	// Output:
	// hall:20/5@1500
	// hall:/6@4000
}
