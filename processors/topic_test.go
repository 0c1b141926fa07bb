package processors

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/millrace/millrace/serde"
)

// produced is a task that keeps what is produced.
type produced struct {
	Task
	records []Raw
}

func (p *produced) Produce(topic string, partition int32, raw Raw) error {
	raw.Topic, raw.Partition = topic, partition
	p.records = append(p.records, raw)
	return nil
}

// Records are cut out of shared chunks: none may reach into another, whatever
// their sizes, and failed ones leave no trace.
func TestEncodedRecordsAreSeparate(t *testing.T) {
	t.Parallel()
	seed := rand.Uint64()
	rnd := rand.New(rand.NewPCG(seed, 0))
	task := &produced{}
	bad := errors.New("refused")
	forward := Encode(task, Destination[[]byte, []byte]{
		Topic: "out", Key: serde.Bytes(), Value: serde.Bytes(),
		Validate: func(v []byte) error {
			if len(v) == 13 {
				return bad
			}
			return nil
		},
	})
	fill := func(limit int) []byte {
		b := make([]byte, rnd.IntN(limit))
		for i := range b {
			b[i] = byte(rnd.Uint32())
		}
		return b
	}
	var want []Record[[]byte, []byte]
	for range 5000 {
		limit := 200
		if rnd.IntN(50) == 0 {
			limit = 3 * chunkSize
		}
		r := Record[[]byte, []byte]{Key: fill(limit), Value: fill(limit), NoKey: rnd.IntN(10) == 0, NoValue: rnd.IntN(10) == 0}
		err := forward(r)
		if !r.NoValue && len(r.Value) == 13 {
			if !errors.Is(err, bad) {
				t.Fatalf("seed %d: error %v, want %v", seed, err, bad)
			}
			continue
		}
		if err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		want = append(want, r)
		// Appending to a record that was produced must not harm the next ones.
		last := &task.records[len(task.records)-1]
		_ = append(last.Key, "overwrite"...)
		_ = append(last.Value, "overwrite"...)
	}
	for i, r := range want {
		got := task.records[i]
		if (got.Key == nil) != r.NoKey || (got.Value == nil) != r.NoValue || !r.NoKey && !bytes.Equal(got.Key, r.Key) || !r.NoValue && !bytes.Equal(got.Value, r.Value) {
			t.Fatalf("seed %d: record %d is not what was forwarded", seed, i)
		}
	}
}

type nilable struct{}

func TestNullCheck(t *testing.T) {
	t.Parallel()
	check := func(name string, got, want bool) {
		if got != want {
			t.Errorf("%s: %v, want %v", name, got, want)
		}
	}
	check("nil pointer", NullCheck[*nilable]()(nil), true)
	check("pointer", NullCheck[*nilable]()(&nilable{}), false)
	check("nil bytes", NullCheck[[]byte]()(nil), true)
	check("empty bytes", NullCheck[[]byte]()([]byte{}), false)
	check("nil slice", NullCheck[[]string]()(nil), true)
	check("empty slice", NullCheck[[]string]()([]string{}), false)
	check("nil map", NullCheck[map[string]int]()(nil), true)
	check("nil interface", NullCheck[fmt.Stringer]()(nil), true)
	check("interface", NullCheck[any]()(0), false)
	check("zero string", NullCheck[string]()(""), false)
	check("zero int", NullCheck[int]()(0), false)
	check("zero struct", NullCheck[nilable]()(nilable{}), false)
}

func TestGuardNamesTheInnermostStep(t *testing.T) {
	t.Parallel()
	inner := Guard("inner", func(r Record[string, string]) error {
		switch r.Value {
		case "panic":
			panic("oh")
		case "fail":
			return errors.New("no")
		case "state":
			return &Error{Class: ClassState, Step: "store", Err: errors.New("disk")}
		}
		return nil
	})
	outer := Guard("outer", func(r Record[string, string]) error {
		if r.Value == "outer" {
			panic(errors.ErrUnsupported)
		}
		return inner(r)
	})
	for value, want := range map[string]string{
		"panic": `process: step "inner": panic: oh`,
		"fail":  `process: step "inner": no`,
		"state": `state: step "store": disk`,
		"outer": `process: step "outer": panic: unsupported operation`,
		"fine":  "<nil>",
	} {
		err := outer(Record[string, string]{Value: value})
		if got := fmt.Sprint(err); got != want {
			t.Errorf("%s: %s, want %s", value, got, want)
		}
		if value == "outer" && !errors.Is(err, errors.ErrUnsupported) {
			t.Error("the panic's error is not in the chain")
		}
		if p, ok := errors.AsType[*PanicError](err); ok && !strings.Contains(string(p.Stack), "TestGuard") {
			t.Errorf("%s: the stack does not show the panic", value)
		}
	}
}
