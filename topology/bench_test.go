package topology

import (
	"fmt"
	"strings"
	"testing"

	"github.com/millrace/millrace/processors"
	"github.com/millrace/millrace/serde"
)

// discard is a task that drops what is produced: it leaves the pipeline's own
// cost.
type discard struct {
	driverTask
	bytes int
}

func (d *discard) Produce(_ string, _ int32, raw processors.Raw) error {
	d.bytes += len(raw.Key) + len(raw.Value)
	return nil
}

func BenchmarkPipeline(b *testing.B) {
	for _, bm := range []struct {
		name  string
		build func(*Builder)
	}{
		{"pass-through strings", func(b *Builder) { textStream(b).To("out") }},
		{"pass-through bytes", func(b *Builder) { Stream(b, "in", serde.Bytes(), serde.Bytes()).To("out") }},
		{"filter, map values", func(b *Builder) {
			MapValues(textStream(b).Filter(func(k, v string) bool { return len(k) > 0 }), func(v string) string { return v[1:] }).To("out")
		}},
		{"select key, two branches, merge", func(b *Builder) {
			br := SelectKey(textStream(b), first).Split()
			one, two := br.Branch("a", func(k, _ string) bool { return k == "a" }), br.Default("rest")
			one.Merge(two).To("out")
		}},
	} {
		b.Run(bm.name, func(b *testing.B) {
			builder := New("app")
			bm.build(builder)
			top, err := builder.Build()
			if err != nil {
				b.Fatal(err)
			}
			task := &discard{}
			pipe, err := top.Subs[0].Start(task)
			if err != nil {
				b.Fatal(err)
			}
			raw := processors.Raw{Topic: "in", Key: []byte("key-00042"), Value: []byte(strings.Repeat("v", 100)), Timestamp: 1}
			b.ReportAllocs()
			for b.Loop() {
				if err := pipe.Process(0, &raw); err != nil {
					b.Fatal(err)
				}
			}
			if task.bytes == 0 {
				b.Fatal("nothing was produced")
			}
		})
	}
}

// TestPassThroughAllocates keeps the promise of one allocation per record: the
// one that holds the encoded key and value.
func TestPassThroughAllocates(t *testing.T) {
	builder := New("app")
	textStream(builder).Filter(pass).To("out")
	top, err := builder.Build()
	if err != nil {
		t.Fatal(err)
	}
	pipe, err := top.Subs[0].Start(&discard{})
	if err != nil {
		t.Fatal(err)
	}
	raw := processors.Raw{Topic: "in", Key: []byte("k"), Value: []byte(fmt.Sprint(t.Name())), Timestamp: 1}
	if n := testing.AllocsPerRun(100, func() {
		if err := pipe.Process(0, &raw); err != nil {
			t.Error(err)
		}
	}); n > 1 {
		t.Errorf("%.1f allocations per record, want at most 1", n)
	}
}
