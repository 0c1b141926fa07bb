package topology_test

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/millrace/millrace/serde"
	"github.com/millrace/millrace/topology"
	"github.com/millrace/millrace/topologytest"
)

func ExampleForeignKeyJoin() {
	b := topology.New("shop")
	orders := topology.Table(b, "orders", "order-rows", serde.String(), serde.String())          // order -> customer
	customers := topology.Table(b, "customers", "customer-rows", serde.String(), serde.String()) // customer -> city
	topology.ForeignKeyJoin(orders, customers, "deliveries", serde.String(),
		func(_, customer string) (string, bool) { return customer, true },
		func(customer, city string) string { return customer + " in " + city }).ToStream().To("out")

	d := topologytest.New(topologytest.NoTest(), b)
	defer d.Close()
	order := topologytest.Input(d, "orders", serde.String(), serde.String())
	customer := topologytest.Input(d, "customers", serde.String(), serde.String())
	customer.Pipe("ada", "Paris", 1)
	order.Pipe("order-1", "ada", 2)
	order.Pipe("order-2", "ada", 3)
	customer.Pipe("ada", "Rome", 4) // moves both deliveries
	order.Delete("order-1", 5)
	printOut(d, serde.String(), serde.String())
	// Output:
	// order-1:ada in Paris@2
	// order-2:ada in Paris@3
	// order-1:ada in Rome@4
	// order-2:ada in Rome@4
	// order-1:null@5
}

func ExampleForeignKeyLeftJoin() {
	b := topology.New("shop")
	orders := topology.Table(b, "orders", "order-rows", serde.String(), serde.String())
	coupons := topology.Table(b, "coupons", "coupon-rows", serde.String(), serde.Int64())
	topology.ForeignKeyLeftJoin(orders, coupons, "discounts", serde.String(),
		func(_, order string) (string, bool) {
			_, coupon, ok := strings.Cut(order, " with ")
			return coupon, ok
		},
		func(order string, percent int64, _ bool) string { return fmt.Sprintf("%s: -%d%%", order, percent) }).ToStream().To("out")

	d := topologytest.New(topologytest.NoTest(), b)
	defer d.Close()
	order := topologytest.Input(d, "orders", serde.String(), serde.String())
	topologytest.Input(d, "coupons", serde.String(), serde.Int64()).Pipe("SPRING", 10, 1)
	order.Pipe("1", "tea", 2) // without a coupon
	order.Pipe("2", "wine with SPRING", 3)
	order.Pipe("3", "cake with AUTUMN", 4) // with one that does not exist
	printOut(d, serde.String(), serde.String())
	// Output:
	// 1:tea: -0%@2
	// 2:wine with SPRING: -10%@3
	// 3:cake with AUTUMN: -0%@4
}

// TestForeignKeyJoinsMatchTables updates both tables at random, in several
// partitions and with restarts, and joins them again in the end.
func TestForeignKeyJoinsMatchTables(t *testing.T) {
	t.Parallel()
	seeds(t, func(t *testing.T, r *rand.Rand) {
		left := r.IntN(2) == 0
		foreign := func(_, v string) (string, bool) { return v[:2], v[:2] != "k5" }
		b := topology.New("app")
		orders, customers := tableOf(b, "left"), tableOf(b, "right").Filter(func(_, v string) bool { return v != "r0" })
		var joined *table
		if left {
			joined = topology.ForeignKeyLeftJoin(orders, customers, "j", str, foreign, func(l, r string, _ bool) string { return l + "+" + r })
		} else {
			joined = topology.ForeignKeyJoin(orders, customers, "j", str, foreign, func(l, r string) string { return l + "+" + r })
		}
		joined.ToStream().To("out")
		d := topologytest.New(t, b, topologytest.Partitions(1+r.Int32N(4)))
		tables := map[string]map[string]string{"left": {}, "right": {}}
		for i := range 300 {
			topic, key, value := "left", fmt.Sprint("order", r.IntN(10)), fmt.Sprintf("k%d %d", r.IntN(6), r.IntN(3))
			if r.IntN(3) == 0 {
				topic, key, value = "right", fmt.Sprint("k", r.IntN(6)), fmt.Sprint("r", r.IntN(4))
			}
			if in := topologytest.Input(d, topic, str, str); r.IntN(4) == 0 {
				delete(tables[topic], key)
				in.Delete(key, int64(i))
			} else {
				tables[topic][key] = value
				in.Pipe(key, value, int64(i))
			}
			if r.IntN(30) == 0 {
				d.Restart()
			}
		}
		want, got := map[string]string{}, map[string]string{}
		for key, l := range tables["left"] {
			fk, ok := foreign("", l)
			row, ok2 := tables["right"][fk]
			if ok = ok && ok2 && row != "r0"; !ok {
				row = ""
			}
			if ok || left {
				want[key] = l + "+" + row
			}
		}
		for _, row := range topologytest.KeyValue(d, "j", str, str).Rows() {
			got[row.Key] = row.Value
		}
		if !maps.Equal(got, want) {
			t.Errorf("left join %v: got %v\nwant %v", left, got, want)
		}
		last := map[string]string{}
		for _, rec := range topologytest.Output(d, "out", str, str).Read() {
			if last[rec.Key] = rec.Value; rec.NoValue {
				delete(last, rec.Key)
			}
		}
		if !maps.Equal(last, want) {
			t.Errorf("left join %v: the output leaves %v\nwant %v", left, last, want)
		}
		// A left row has one subscription, if it has a foreign key.
		subscribed := 0
		for _, l := range tables["left"] {
			if _, ok := foreign("", l); ok {
				subscribed++
			}
		}
		if rows := topologytest.KeyValue(d, "j-subscriptions", serde.Bytes(), serde.Bytes()).Rows(); len(rows) != subscribed {
			t.Errorf("%d subscriptions for %d rows", len(rows), subscribed)
		}
	})
}

// TestForeignKeyOfSelf: a table may be joined with itself, and rows without a
// foreign key are counted by an inner join.
func TestForeignKeyOfSelf(t *testing.T) {
	t.Parallel()
	runAll(t, []scenario{{
		"employees and their managers", func(b *topology.Builder) {
			staff := tableOf(b, "in")
			manager := func(_, v string) (string, bool) { return v, v != "nobody" }
			topology.ForeignKeyJoin(staff, staff, "j", str, manager, func(m, above string) string { return m + "<" + above }).ToStream().To("out")
		}, `
		in ada nobody 1
		in bob ada 2
		in cid bob 3
		in ada bob 4`,
		"bob:ada<nobody@2 cid:bob<ada@3 bob:ada<bob@4 ada:bob<ada@4",
		[]string{"j null-foreign-key"},
	}})
}
