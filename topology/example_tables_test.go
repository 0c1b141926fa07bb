package topology_test

import (
	"fmt"
	"strings"
	"time"

	"github.com/millrace/millrace/serde"
	"github.com/millrace/millrace/topology"
	"github.com/millrace/millrace/topologytest"
)

// printOut prints what a driver wrote to topic "out", as key:value@timestamp.
func printOut[K, V any](d *topologytest.Driver, key serde.Serde[K], value serde.Serde[V]) {
	for _, line := range topologytest.Output(d, "out", key, value).Text() {
		fmt.Println(line)
	}
}

func ExampleTable() {
	b := topology.New("shop")
	prices := topology.Table(b, "prices", "price-rows", serde.String(), serde.Int64())
	prices.Filter(func(_ string, cents int64) bool { return cents < 1000 }).ToStream().To("out")

	d := topologytest.New(topologytest.NoTest(), b)
	defer d.Close()
	in := topologytest.Input(d, "prices", serde.String(), serde.Int64())
	in.Pipe("tea", 500, 1)
	in.Pipe("wine", 2500, 2) // never passed: nothing to delete
	in.Pipe("tea", 1200, 3)  // no longer passes
	printOut(d, serde.String(), serde.Int64())
	// Output:
	// tea:500@1
	// tea:null@3
}

func ExampleKStream_ToTable() {
	b := topology.New("shop")
	clicks := topology.Stream(b, "clicks", serde.String(), serde.String())
	byPage := topology.SelectKey(clicks, func(user, page string) string { return page })
	byPage.ToTable("last-click").ToStream().To("out") // through shop.last-click-repartition

	d := topologytest.New(topologytest.NoTest(), b)
	defer d.Close()
	topologytest.Input(d, "clicks", serde.String(), serde.String()).Pipe("ada", "/home", 1)
	fmt.Println(len(d.RawOutput("shop.last-click-repartition")))
	printOut(d, serde.String(), serde.String())
	// Output:
	// 1
	// /home:/home@1
}

func ExampleTableMapValues() {
	b := topology.New("shop")
	names := topology.Table(b, "names", "name-rows", serde.String(), serde.String())
	topology.TableMapValues(names, strings.ToUpper).ToStream().To("out")

	d := topologytest.New(topologytest.NoTest(), b)
	defer d.Close()
	in := topologytest.Input(d, "names", serde.String(), serde.String())
	in.Pipe("1", "ada", 1)
	in.Delete("1", 2)
	printOut(d, serde.String(), serde.String())
	// Output:
	// 1:ADA@1
	// 1:null@2
}

func ExampleGroupBy() {
	b := topology.New("shop")
	orders := topology.Stream(b, "orders", serde.String(), serde.String())
	byItem := topology.GroupBy(orders, "by-item", func(order, item string) string { return item })
	byItem.Count("sold").ToStream().To("out")

	d := topologytest.New(topologytest.NoTest(), b)
	defer d.Close()
	in := topologytest.Input(d, "orders", serde.String(), serde.String())
	in.Pipe("order-1", "tea", 1)
	in.Pipe("order-2", "tea", 2)
	printOut(d, serde.String(), serde.Int64())
	fmt.Println(topologytest.KeyValue(d, "sold", serde.String(), serde.Int64()).Get("tea"))
	// Output:
	// tea:1@1
	// tea:2@2
	// 2 true
}

func ExampleKGroupedStream_Reduce() {
	b := topology.New("sensors")
	readings := topology.Stream(b, "readings", serde.String(), serde.Int64())
	readings.GroupByKey().Reduce("highest", func(a, b int64) int64 { return max(a, b) }).ToStream().To("out")

	d := topologytest.New(topologytest.NoTest(), b)
	defer d.Close()
	in := topologytest.Input(d, "readings", serde.String(), serde.Int64())
	in.Pipe("roof", 20, 1)
	in.Pipe("roof", 18, 2)
	in.Pipe("roof", 25, 3)
	printOut(d, serde.String(), serde.Int64())
	// Output:
	// roof:20@1
	// roof:20@2
	// roof:25@3
}

func ExampleAggregate() {
	b := topology.New("chat")
	messages := topology.Stream(b, "messages", serde.String(), serde.String())
	last2 := topology.Aggregate(messages.GroupByKey(), "last-two", serde.JSON[[]string](),
		func() []string { return nil },
		func(_, message string, last []string) []string {
			last = append(last, message)
			return last[max(0, len(last)-2):]
		})
	last2.ToStream().To("out")

	d := topologytest.New(topologytest.NoTest(), b)
	defer d.Close()
	in := topologytest.Input(d, "messages", serde.String(), serde.String())
	for i, m := range []string{"hi", "all", "bye"} {
		in.Pipe("room", m, int64(i))
	}
	printOut(d, serde.String(), serde.JSON[[]string]())
	// Output:
	// room:[hi]@0
	// room:[hi all]@1
	// room:[all bye]@2
}

func ExampleCount() {
	b := topology.New("shop")
	visits := topology.Stream(b, "visits", serde.String(), serde.String())
	minutes := topology.Tumbling(time.Minute, topology.Grace(10*time.Second))
	topology.Count(visits.GroupByKey(), "per-minute", minutes).ToStream().To("out")

	d := topologytest.New(topologytest.NoTest(), b)
	defer d.Close()
	in := topologytest.Input(d, "visits", serde.String(), serde.String())
	in.Pipe("home", "", 1_000)
	in.Pipe("home", "", 65_000)
	in.Pipe("home", "", 59_000) // late, but within the grace
	in.Pipe("home", "", 70_000) // closes the first minute
	in.Pipe("home", "", 58_000) // too late
	printOut(d, topology.WindowedSerde(serde.String(), time.Minute), serde.Int64())
	fmt.Println(d.Drops()[0].Step, d.Drops()[0].Reason)
	// Output:
	// [home@0/60000]:1@1000
	// [home@60000/120000]:1@65000
	// [home@0/60000]:2@59000
	// [home@60000/120000]:2@70000
	// per-minute late
}

func ExampleEmitFinal() {
	b := topology.New("shop")
	visits := topology.Stream(b, "visits", serde.String(), serde.String())
	minutes := topology.Tumbling(time.Minute, topology.Grace(0), topology.EmitFinal())
	topology.Count(visits.GroupByKey(), "per-minute", minutes).ToStream().To("out")

	d := topologytest.New(topologytest.NoTest(), b)
	defer d.Close()
	in := topologytest.Input(d, "visits", serde.String(), serde.String())
	in.Pipe("home", "", 1_000)
	in.Pipe("home", "", 2_000)
	in.Pipe("about", "", 60_000) // closes the first minute
	printOut(d, topology.WindowedSerde(serde.String(), time.Minute), serde.Int64())
	// Output:
	// [home@0/60000]:2@2000
}

func ExampleWindowedAggregate() {
	b := topology.New("sensors")
	readings := topology.Stream(b, "readings", serde.String(), serde.Int64())
	w := topology.Hopping(10*time.Second, 5*time.Second, topology.Grace(0))
	topology.WindowedAggregate(readings.GroupByKey(), "sums", w, serde.Int64(),
		func() int64 { return 0 },
		func(_ string, value, sum int64) int64 { return sum + value }).ToStream().To("out")

	d := topologytest.New(topologytest.NoTest(), b)
	defer d.Close()
	in := topologytest.Input(d, "readings", serde.String(), serde.Int64())
	in.Pipe("roof", 20, 6_000)
	in.Pipe("roof", 22, 11_000)
	printOut(d, topology.WindowedSerde(serde.String(), 10*time.Second), serde.Int64())
	// Output:
	// [roof@0/10000]:20@6000
	// [roof@5000/15000]:20@6000
	// [roof@5000/15000]:42@11000
	// [roof@10000/20000]:22@11000
}

func ExampleTableAggregate() {
	b := topology.New("hr")
	teams := topology.Table(b, "employees", "employee-rows", serde.String(), serde.String())
	byTeam := topology.TableGroupBy(teams, "by-team", func(name, team string) (string, string) { return team, name })
	topology.TableAggregate(byTeam, "members", serde.String(),
		func() string { return "" },
		func(_, name, members string) string { return members + name + " " },
		func(_, name, members string) string { return strings.Replace(members, name+" ", "", 1) }).ToStream().To("out")

	d := topologytest.New(topologytest.NoTest(), b)
	defer d.Close()
	in := topologytest.Input(d, "employees", serde.String(), serde.String())
	in.Pipe("ada", "red", 1)
	in.Pipe("bob", "red", 2)
	in.Pipe("ada", "blue", 3) // leaves one group, then joins the other
	printOut(d, serde.String(), serde.String())
	// Output:
	// red:ada @1
	// red:ada bob @2
	// red:bob @3
	// blue:ada @3
}

func ExampleJoin() {
	b := topology.New("shop")
	orders := topology.Stream(b, "orders", serde.String(), serde.Int64())
	prices := topology.Table(b, "prices", "price-rows", serde.String(), serde.Int64())
	topology.Join(orders, prices, func(pieces, cents int64) int64 { return pieces * cents }).To("out")

	d := topologytest.New(topologytest.NoTest(), b)
	defer d.Close()
	price := topologytest.Input(d, "prices", serde.String(), serde.Int64())
	order := topologytest.Input(d, "orders", serde.String(), serde.Int64())
	order.Pipe("tea", 1, 1) // no price yet
	price.Pipe("tea", 500, 2)
	order.Pipe("tea", 3, 3)
	printOut(d, serde.String(), serde.Int64())
	// Output:
	// tea:1500@3
}

func ExampleLeftJoin() {
	b := topology.New("shop")
	orders := topology.Stream(b, "orders", serde.String(), serde.String())
	names := topology.Table(b, "customers", "customer-rows", serde.String(), serde.String())
	topology.LeftJoin(orders, names, func(item, name string, ok bool) string {
		if !ok {
			name = "a stranger"
		}
		return item + " for " + name
	}).To("out")

	d := topologytest.New(topologytest.NoTest(), b)
	defer d.Close()
	topologytest.Input(d, "customers", serde.String(), serde.String()).Pipe("c1", "Ada", 1)
	in := topologytest.Input(d, "orders", serde.String(), serde.String())
	in.Pipe("c1", "tea", 2)
	in.Pipe("c2", "wine", 3)
	printOut(d, serde.String(), serde.String())
	// Output:
	// c1:tea for Ada@2
	// c2:wine for a stranger@3
}

func ExampleGlobalJoin() {
	b := topology.New("shop")
	orders := topology.Stream(b, "orders", serde.String(), serde.String())
	prices := topology.GlobalTable(b, "prices", "price-rows", serde.String(), serde.Int64())
	priced := topology.GlobalJoin(orders, prices,
		func(order, item string) string { return item }, // looked up by a key of its own
		func(item string, cents int64) string { return fmt.Sprintf("%s: %d", item, cents) })
	priced.To("out")

	d := topologytest.New(topologytest.NoTest(), b)
	defer d.Close()
	topologytest.Input(d, "prices", serde.String(), serde.Int64()).Pipe("tea", 500, 1)
	topologytest.Input(d, "orders", serde.String(), serde.String()).Pipe("order-1", "tea", 2)
	printOut(d, serde.String(), serde.String())
	// Output:
	// order-1:tea: 500@2
}

func ExampleTableOuterJoin() {
	b := topology.New("crm")
	mails := topology.Table(b, "mails", "mail-rows", serde.String(), serde.String())
	phones := topology.Table(b, "phones", "phone-rows", serde.String(), serde.String())
	contacts := topology.TableOuterJoin(mails, phones, "contacts", serde.String(),
		func(mail string, _ bool, phone string, _ bool) string { return mail + "/" + phone })
	contacts.ToStream().To("out")

	d := topologytest.New(topologytest.NoTest(), b)
	defer d.Close()
	mail := topologytest.Input(d, "mails", serde.String(), serde.String())
	phone := topologytest.Input(d, "phones", serde.String(), serde.String())
	mail.Pipe("ada", "ada@example.org", 1)
	phone.Pipe("ada", "555", 2)
	mail.Delete("ada", 3)
	phone.Delete("ada", 4)
	printOut(d, serde.String(), serde.String())
	// Output:
	// ada:ada@example.org/@1
	// ada:ada@example.org/555@2
	// ada:/555@3
	// ada:null@4
}
