package engine_test

import (
	"errors"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/millrace/millrace/internal/engine"
	"github.com/millrace/millrace/internal/kafka"
	"github.com/millrace/millrace/processors"
	"github.com/millrace/millrace/serde"
	"github.com/millrace/millrace/topology"
)

// bad is the record that user code of these tests does its worst with.
const bad = "bad"

// A hostileSerde panics, or answers nonsense, for bad.
type hostileSerde struct {
	serde.Serde[string]
	decode, encode func()
	null           bool // it encodes bad as nil without an error
}

func hostile() hostileSerde { return hostileSerde{Serde: serde.String()} }

func (s hostileSerde) Name() string { return "hostile" }

func (s hostileSerde) Decode(data []byte) (string, error) {
	if string(data) == bad && s.decode != nil {
		s.decode()
	}
	return s.Serde.Decode(data)
}

func (s hostileSerde) Append(dst []byte, v string) ([]byte, error) {
	if v == bad && s.null {
		return nil, nil
	}
	if v == bad && s.encode != nil {
		s.encode()
	}
	return s.Serde.Append(dst, v)
}

// A nilError is an error whose methods do not stand a nil receiver.
type nilError struct{ text string }

func (e *nilError) Error() string { return e.text }

func explode() { panic("hostile") }

func explodeAt(v string) {
	if v == bad {
		explode()
	}
}

// hostileTopologies read "in" and write "out"; they do something terrible about bad,
// as a value or as a key.
var hostileTopologies = map[string]func(b *topology.Builder){
	"value serde panics while it decodes": func(b *topology.Builder) {
		s := hostile()
		s.decode = explode
		topology.Stream(b, "in", serde.String(), serde.Serde[string](s)).To("out")
	},
	"value serde panics while it encodes": func(b *topology.Builder) {
		s := hostile()
		s.encode = explode
		topology.Stream(b, "in", serde.String(), serde.String()).WithValueSerde(s).To("out")
	},
	"value serde encodes as null": func(b *topology.Builder) {
		s := hostile()
		s.null = true
		topology.Stream(b, "in", serde.String(), serde.String()).WithValueSerde(s).GroupByKey().Reduce("r", func(_, v string) string { return v }).ToStream().To("out")
	},
	"state serde panics": func(b *topology.Builder) {
		s := hostile()
		s.encode = explode
		in := topology.Stream(b, "in", serde.String(), serde.String())
		topology.Aggregate(in.GroupByKey(), "agg", serde.Serde[string](s), func() string { return "" }, func(_, v, _ string) string { return v }).
			ToStream().To("out")
	},
	"filter panics": func(b *topology.Builder) {
		topology.Stream(b, "in", serde.String(), serde.String()).Filter(func(_, v string) bool { explodeAt(v); return true }).To("out")
	},
	"error of a nil pointer": func(b *topology.Builder) {
		in := topology.Stream(b, "in", serde.String(), serde.String())
		topology.TryMapValues(in, func(r processors.Record[string, string]) (string, error) {
			if r.Value == bad {
				var e *nilError
				return "", e
			}
			return r.Value, nil
		}).To("out")
	},
	"panic with a nil pointer error": func(b *topology.Builder) {
		topology.Stream(b, "in", serde.String(), serde.String()).Filter(func(_, v string) bool {
			if v == bad {
				var e *nilError
				panic(e)
			}
			return true
		}).To("out")
	},
	"error text of a megabyte that is no UTF-8": func(b *topology.Builder) {
		in := topology.Stream(b, "in", serde.String(), serde.String())
		topology.TryMapValues(in, func(r processors.Record[string, string]) (string, error) {
			if r.Value == bad {
				return "", errors.New(strings.Repeat("\xff", 2<<20))
			}
			return r.Value, nil
		}).To("out")
	},
	"timestamp extractor panics": func(b *topology.Builder) {
		topology.Stream(b, "in", serde.String(), serde.String(), topology.Timestamps(func(r processors.Record[string, string], _ int64) (int64, error) {
			explodeAt(r.Value)
			return r.Timestamp, nil
		})).To("out")
	},
	"partitioner panics": func(b *topology.Builder) {
		topology.Stream(b, "in", serde.String(), serde.String()).To("out", topology.PartitionBy(func(_, v string, _ int32) int32 { explodeAt(v); return 0 }))
	},
	"partitioner out of range": func(b *topology.Builder) {
		topology.Stream(b, "in", serde.String(), serde.String()).To("out", topology.PartitionBy(func(_, v string, n int32) int32 {
			if v == bad {
				return n
			}
			return 0
		}))
	},
	"topic per record panics": func(b *topology.Builder) {
		topology.Stream(b, "in", serde.String(), serde.String()).ToEach(func(r processors.Record[string, string]) (string, error) {
			explodeAt(r.Value)
			return "out", nil
		})
	},
	"topic per record does not exist": func(b *topology.Builder) {
		topology.Stream(b, "in", serde.String(), serde.String()).ToEach(func(r processors.Record[string, string]) (string, error) {
			if r.Value == bad {
				return "nowhere", nil
			}
			return "out", nil
		}, topology.PartitionBy(func(_, _ string, _ int32) int32 { return 0 }))
	},
	"key of a group panics": func(b *topology.Builder) {
		in := topology.Stream(b, "in", serde.String(), serde.String())
		topology.GroupBy(in, "g", func(_, v string) string { explodeAt(v); return v }).Count("c").ToStream().To("out")
	},
	"reducer panics": func(b *topology.Builder) {
		in := topology.Stream(b, "in", serde.String(), serde.String())
		in.GroupByKey().Reduce("r", func(_, v string) string { explodeAt(v); return v }).ToStream().To("out")
	},
	"output with a negative timestamp": func(b *topology.Builder) {
		in := topology.Stream(b, "in", serde.String(), serde.String())
		topology.TryMap(in, func(r processors.Record[string, string]) (processors.Record[string, string], error) {
			if r.Value == bad {
				r.Timestamp = -1 << 62
			}
			return r, nil
		}).To("out")
	},
	"output with headers of megabytes": func(b *topology.Builder) {
		in := topology.Stream(b, "in", serde.String(), serde.String())
		topology.TryMap(in, func(r processors.Record[string, string]) (processors.Record[string, string], error) {
			if r.Value == bad {
				r.Headers = append(r.Headers, processors.Header{Key: "h", Value: make([]byte, 3<<20)})
			}
			return r, nil
		}).To("out")
	},
}

// Whatever user code does on a record, that record is dead-lettered and the others
// pass: the task is not parked, and no record of it is lost or written twice.
func TestHostileCode(t *testing.T) {
	for name, describe := range hostileTopologies {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(r *rig) {
				b := topology.New("app")
				describe(b)
				for _, v := range []string{"good", bad, "good"} {
					r.produce("in", &kgo.Record{Key: []byte("k"), Value: []byte(v)})
				}
				a := r.start(b, vfs.NewMem(), func(c *engine.Config) { c.Logger = slog.New(slog.DiscardHandler) })
				defer a.stop()
				r.pass(20 * time.Second)
				for _, task := range a.Tasks() {
					if task.State != engine.Running {
						t.Errorf("task %s is %s: %v", task.Task, task.State, task.Err)
					}
				}
				out, dead := r.read("out"), r.read("app.dlq")
				if len(out) != 2 || len(dead) != 1 {
					t.Fatalf("%d outputs and %d dead letters, must be 2 and 1", len(out), len(dead))
				}
				if string(dead[0].Value) != bad && dead[0].Headers["millrace.topic"] == "in" {
					t.Errorf("the wrong record was dead-lettered: %+v", dead[0])
				}
				if len(dead[0].Headers["millrace.message"]) > 9<<10 {
					t.Errorf("a message of %d bytes", len(dead[0].Headers["millrace.message"]))
				}
			}, "in", "out")
		})
	}
}

// An error policy that panics decides nothing: the record stops its task, which says
// so, and the others go on.
func TestHostilePolicy(t *testing.T) {
	bubble(t, func(r *rig) {
		b := topology.New("app")
		topology.Stream(b, "in", serde.String(), serde.Int64()).To("out")
		topology.Stream(b, "in2", serde.String(), serde.String()).To("out2")
		r.produce("in", &kgo.Record{Key: []byte("k"), Value: []byte(bad)})
		a := r.start(b, vfs.NewMem(), func(c *engine.Config) {
			c.Policy = func(*processors.Error) processors.Action { panic("hostile policy") }
			c.Logger = slog.New(slog.DiscardHandler)
		})
		defer a.stop()
		r.pass(20 * time.Second)
		r.produce("in2", &kgo.Record{Key: []byte("k"), Value: []byte("v")})
		r.await("out2", 1)
		parked := 0
		for _, task := range a.Tasks() {
			if task.State == engine.Parked {
				parked++
				if !strings.Contains(task.Err.Error(), "hostile policy") || !strings.Contains(task.Err.Error(), "in/0 offset 0") {
					t.Errorf("the task does not say why: %v", task.Err)
				}
			}
		}
		if parked != 1 {
			t.Errorf("%d tasks are parked: %+v", parked, a.Tasks())
		}
	}, "in", "out", "in2", "out2")
}

// A listener that panics harms nobody.
func TestHostileListener(t *testing.T) {
	bubble(t, func(r *rig) {
		b := topology.New("app")
		topology.Stream(b, "in", serde.String(), serde.String()).To("out")
		r.produce("in", &kgo.Record{Key: []byte("k"), Value: []byte("v")})
		a := r.start(b, vfs.NewMem(), func(c *engine.Config) {
			c.Listener = func(engine.TaskStatus) { panic("hostile listener") }
			c.Logger = slog.New(slog.DiscardHandler)
		})
		defer a.stop()
		r.await("out", 1)
	}, "in", "out")
}

// A batch that unpacks to more than the client takes parks its task, which says so and
// keeps its offset, or is passed and counted; the other tasks go on.
func TestDecompressionBomb(t *testing.T) {
	for name, skip := range map[string]bool{"parked": false, "skipped": true} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(r *rig) {
				cl, err := kgo.NewClient(append(r.opts(), kgo.ProducerBatchMaxBytes(100<<20), kgo.BrokerMaxWriteBytes(200<<20),
					kgo.MaxBufferedBytes(200<<20), kgo.ProducerBatchCompression(kgo.GzipCompression()))...)
				if err != nil {
					t.Fatal(err)
				}
				defer cl.Close()
				record := func() { r.produce("in", &kgo.Record{Key: []byte("k"), Value: []byte("v")}) }
				record()
				bomb := &kgo.Record{Topic: "in", Key: []byte("k"), Value: make([]byte, kafka.MaxDecompressed)}
				if err := cl.ProduceSync(r.t.Context(), bomb).FirstErr(); err != nil {
					t.Fatal(err)
				}
				record()
				b := topology.New("app")
				topology.Stream(b, "in", serde.String(), serde.String()).To("out")
				topology.Stream(b, "in2", serde.String(), serde.String()).To("out2")
				a := r.start(b, vfs.NewMem(), func(c *engine.Config) { c.Logger, c.SkipLost = slog.New(slog.DiscardHandler), skip })
				defer a.stop()
				r.pass(10 * time.Minute)
				r.produce("in2", &kgo.Record{Key: []byte("k"), Value: []byte("v")})
				r.await("out2", 1)
				lost := a.metric("millrace_retention_lost_records_total", map[string]string{"topic": "in"})
				if skip {
					r.await("out", 2)
					if lost != 1 {
						t.Errorf("%v records are counted as lost, want 1", lost)
					}
					return
				}
				r.await("out", 1)
				for _, task := range a.Tasks() {
					if task.Task.SubTopology == "in" && (task.State != engine.Parked || !strings.Contains(task.Err.Error(), "records 1 to 1")) {
						t.Errorf("the task is %s: %v", task.State, task.Err)
					}
				}
				if at := r.GroupInfo("app").Commits["in"][0].Offset; at != 1 || lost != 0 {
					t.Errorf("committed offset %d, must stay before the batch; %v records are counted as lost", at, lost)
				}
			}, "in", "out", "in2", "out2")
		})
	}
}
