package engine

import (
	"maps"
	"testing"

	"github.com/millrace/millrace/serde"
	"github.com/millrace/millrace/topology"
)

// TestPlanRepartitions: repartition topics that are read together have one count,
// also where no other topic says which.
func TestPlanRepartitions(t *testing.T) {
	t.Parallel()
	s := serde.String()
	stream := func(b *topology.Builder, topic string) *topology.KStream[string, string] {
		return topology.Stream(b, topic, s, s)
	}
	swap := func(in *topology.KStream[string, string]) *topology.KStream[string, string] {
		return topology.SelectKey(in, func(_, v string) string { return v })
	}
	concat := func(a, b string) string { return a + b }
	foreign := func(_, v string) (string, bool) { return v, true }
	w := topology.Within(0, topology.Grace(0))
	for _, tt := range []struct {
		name  string
		build func(b *topology.Builder)
		want  map[string]int32
	}{
		{
			"a join of two repartitioned streams", func(b *topology.Builder) {
				topology.StreamJoin(swap(stream(b, "three")), swap(stream(b, "five")), "j", w, concat).To("out")
			}, map[string]int32{"app.j-left-repartition": 5, "app.j-right-repartition": 5},
		},
		{
			"a join with a stream as it is", func(b *topology.Builder) {
				topology.StreamJoin(stream(b, "three"), swap(stream(b, "five")), "j", w, concat).To("out")
			}, map[string]int32{"app.j-right-repartition": 3},
		},
		{
			"a foreign-key join", func(b *topology.Builder) {
				l, r := topology.Table(b, "three", "l", s, s), topology.Table(b, "five", "r", s, s)
				topology.ForeignKeyJoin(l, r, "j", s, foreign, concat).ToStream().To("out")
			}, map[string]int32{"app.j-subscription-repartition": 5, "app.j-response-repartition": 3},
		},
		{
			"a foreign-key join of repartitioned tables", func(b *topology.Builder) {
				l, r := swap(stream(b, "three")).ToTable("l"), swap(stream(b, "five")).ToTable("r")
				topology.ForeignKeyJoin(l, r, "j", s, foreign, concat).ToStream().To("out")
			}, map[string]int32{"app.l-repartition": 5, "app.r-repartition": 5, "app.j-subscription-repartition": 5, "app.j-response-repartition": 5},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := topology.New("app")
			tt.build(b)
			top, err := b.Build()
			if err != nil {
				t.Fatal(err)
			}
			p, err := newPlan(top, map[string]int32{"three": 3, "five": 5, "out": 1})
			if err != nil {
				t.Fatal(err)
			}
			got := map[string]int32{}
			for topic := range tt.want {
				got[topic] = p.partitions[topic]
			}
			if !maps.Equal(got, tt.want) {
				t.Errorf("got %v, want %v", got, tt.want)
			}
		})
	}
}
