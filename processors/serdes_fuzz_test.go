package processors

import (
	"bytes"
	"cmp"
	"math"
	"reflect"
	"testing"
	"time"

	"github.com/millrace/millrace/serde"
)

func FuzzChangeSerde(f *testing.F) {
	s := ChangeSerde(serde.String())
	for _, c := range []Change[string]{
		{}, {New: "new", HasNew: true}, {Old: "old", HasOld: true}, {Old: "old", New: "new", HasOld: true, HasNew: true}, {HasOld: true, HasNew: true},
	} {
		data, err := s.Append(nil, c)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data, c.Old, c.New)
	}
	f.Add([]byte{3, 200}, "", "")
	f.Add([]byte{0, 1}, "", "")
	f.Add([]byte{4}, "", "")
	f.Fuzz(func(t *testing.T, data []byte, before, after string) {
		if c, err := s.Decode(data); err == nil {
			again, err := s.Append(nil, c)
			if err != nil {
				t.Fatal(err)
			}
			d, err := s.Decode(again)
			if err != nil || d != c {
				t.Fatalf("%v came back as %v: %v", c, d, err)
			}
		}
		for flags := range 4 {
			c := Change[string]{HasOld: flags&1 != 0, HasNew: flags&2 != 0}
			if c.HasOld {
				c.Old = before
			}
			if c.HasNew {
				c.New = after
			}
			dst := []byte("kept")
			data, err := s.Append(dst, c)
			if err != nil || !bytes.HasPrefix(data, dst) {
				t.Fatalf("%q: %v", data, err)
			}
			if d, err := s.Decode(data[len(dst):]); err != nil || d != c {
				t.Fatalf("%v came back as %v: %v", c, d, err)
			}
		}
	})
}

func FuzzRecordSerde(f *testing.F) {
	s := RecordSerde(serde.String(), serde.String())
	for _, r := range []Record[string, string]{
		{NoKey: true, NoValue: true}, {Key: "k", Value: "v"}, {NoKey: true, Value: "v", Headers: []Header{{Key: "a"}, {Key: "", Value: []byte{}}, {Key: "a", Value: []byte("x")}}},
	} {
		data, err := s.Append(nil, r)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Add([]byte{1, 0, 200})
	f.Add([]byte{0, 1, 0, 9})
	f.Add([]byte{2, 255, 255, 255, 255, 255, 255, 255, 255, 255, 1})
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := s.Decode(data)
		if err != nil {
			return
		}
		dst := []byte("kept")
		enc, err := s.Append(dst, r)
		if err != nil || !bytes.HasPrefix(enc, dst) {
			t.Fatalf("%q: %v", enc, err)
		}
		if again, err := s.Decode(enc[len(dst):]); err != nil || !reflect.DeepEqual(again, r) {
			t.Fatalf("%v came back as %v: %v", r, again, err)
		}
	})
}

func FuzzMomentSerde(f *testing.F) {
	s := MomentSerde()
	f.Add([]byte("short"), int64(0), int64(1), int64(1)<<62, int64(0))
	f.Fuzz(func(t *testing.T, data []byte, time, number, time2, number2 int64) {
		if m, err := s.Decode(data); err == nil {
			if again, err := s.Append(nil, m); err != nil || !bytes.Equal(again, data) {
				t.Fatalf("%q came back as %q: %v", data, again, err)
			}
		}
		a, b := Moment{time & math.MaxInt64, number & math.MaxInt64}, Moment{time2 & math.MaxInt64, number2 & math.MaxInt64}
		encA, errA := s.Append(nil, a)
		encB, errB := s.Append(nil, b)
		if errA != nil || errB != nil {
			t.Fatal(errA, errB)
		}
		if got, want := bytes.Compare(encA, encB), cmp.Or(cmp.Compare(a.Time, b.Time), cmp.Compare(a.Number, b.Number)); got != want {
			t.Fatalf("%v and %v are ordered %d, want %d", a, b, got, want)
		}
	})
}

func FuzzWindowedSerde(f *testing.F) {
	s := WindowedSerde(serde.String(), time.Minute)
	f.Add([]byte("key\x00\x00\x00\x00\x00\x00\xea\x60"), "key", int64(60_000), int64(0))
	f.Add([]byte("short"), "", int64(1)<<62, int64(7))
	f.Add([]byte("\xff\xff\xff\xff\xff\xff\xff\xff"), "a", int64(1), int64(0))
	f.Fuzz(func(t *testing.T, data []byte, key string, start int64, start2 int64) {
		if w, err := s.Decode(data); err == nil {
			again, err := s.Append(nil, w)
			if err != nil || !bytes.Equal(again, data) {
				t.Fatalf("%q came back as %q: %v", data, again, err)
			}
		}
		const most = 1<<63 - 1 - 60_000
		start, start2 = min(start&(1<<63-1), most), min(start2&(1<<63-1), most)
		w := Windowed[string]{key, start, start + 60_000}
		enc, err := s.Append(nil, w)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := s.Decode(enc); err != nil || got != w {
			t.Fatalf("%v came back as %v: %v", w, got, err)
		}
		// Within a key the encodings are ordered like the starts.
		enc2, err := s.Append(nil, Windowed[string]{key, start2, start2 + 60_000})
		if err != nil {
			t.Fatal(err)
		}
		if sign := bytes.Compare(enc, enc2); sign < 0 != (start < start2) || sign == 0 != (start == start2) {
			t.Fatalf("starts %d and %d are ordered %d", start, start2, sign)
		}
	})
}

func FuzzSessionSerde(f *testing.F) {
	s := SessionSerde(serde.String())
	f.Add([]byte("key\x00\x00\x00\x00\x00\x00\xea\x60\x00\x00\x00\x00\x00\x00\x00\x01"), "key", int64(5), int64(7))
	f.Add([]byte("short"), "", int64(0), int64(0))
	f.Add([]byte("\x00\x00\x00\x00\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00\x02"), "a", int64(1), int64(1))
	f.Fuzz(func(t *testing.T, data []byte, key string, start, end int64) {
		if w, err := s.Decode(data); err == nil {
			if again, err := s.Append(nil, w); err != nil || !bytes.Equal(again, data) {
				t.Fatalf("%q came back as %q: %v", data, again, err)
			}
		}
		start &= math.MaxInt64
		w := Windowed[string]{key, start, max(start, end)}
		enc, err := s.Append(nil, w)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := s.Decode(enc); err != nil || got != w {
			t.Fatalf("%v came back as %v: %v", w, got, err)
		}
		if part := s.(PartitionKeyer).PartitionKey(enc); string(part) != key {
			t.Fatalf("%v is partitioned by %q", w, part)
		}
	})
}

func FuzzAloneSerde(f *testing.F) {
	s := AloneSerde(serde.String())
	f.Add([]byte("short"), "a", int64(1), int64(2), "a\x00", int64(1), int64(2), true)
	f.Add(make([]byte, 19), "", int64(0), int64(0), "\x00\xff", int64(0), int64(1), false)
	f.Fuzz(func(t *testing.T, data []byte, key string, time, number int64, key2 string, time2, number2 int64, left bool) {
		if a, err := s.Decode(data); err == nil {
			if again, err := s.Append(nil, a); err != nil || !bytes.Equal(again, data) {
				t.Fatalf("%q came back as %q: %v", data, again, err)
			}
		}
		a := Alone[string]{Time: time & math.MaxInt64, Key: key, Number: number & math.MaxInt64}
		b := Alone[string]{Time: time2 & math.MaxInt64, Left: left, Key: key2, Number: number2 & math.MaxInt64}
		encA, errA := s.Append(nil, a)
		encB, errB := s.Append(nil, b)
		if errA != nil || errB != nil {
			t.Fatal(errA, errB)
		}
		if got, err := s.Decode(encB); err != nil || got != b {
			t.Fatalf("%v came back as %v: %v", b, got, err)
		}
		side := 0
		if b.Left {
			side = -1
		}
		if got, want := bytes.Compare(encA, encB), cmp.Or(cmp.Compare(a.Time, b.Time), side, cmp.Compare(a.Key, b.Key), cmp.Compare(a.Number, b.Number)); got != want {
			t.Fatalf("%v and %v are ordered %d, want %d", a, b, got, want)
		}
		bound, err := s.Append(nil, Alone[string]{Time: a.Time, Bound: true})
		if err != nil || bytes.Compare(bound, encA) >= 0 {
			t.Fatalf("the bound %q is not below %q: %v", bound, encA, err)
		}
	})
}

func FuzzEitherSerde(f *testing.F) {
	s := EitherSerde(serde.String(), serde.Int64())
	f.Add([]byte{})
	f.Add([]byte{1, 'x'})
	f.Add([]byte{0, 1})
	f.Add([]byte{0, 0, 0, 0, 0, 0, 0, 0, 7})
	f.Fuzz(func(t *testing.T, data []byte) {
		if e, err := s.Decode(data); err == nil {
			if again, err := s.Append(nil, e); err != nil || !bytes.Equal(again, data) {
				t.Fatalf("%q came back as %q: %v", data, again, err)
			}
		}
	})
}

func FuzzHeldSerdes(f *testing.F) {
	keys, rows := HeldKeySerde(serde.String()), HeldSerde(serde.String())
	f.Add([]byte{})
	f.Add([]byte{0, 'k'})
	f.Add([]byte{1, 0, 0, 0, 0, 0, 0, 0, 9, 'k'})
	f.Add([]byte{0, 0, 0, 0, 0, 0, 0, 9, 0, 3, 1, 'a', 'b'})
	f.Add([]byte{0, 0, 0, 0, 0, 0, 0, 9, 1, 1, 'h', 3, 'v', 'w', 2, 'b'})
	f.Fuzz(func(t *testing.T, data []byte) {
		if k, err := keys.Decode(data); err == nil {
			if again, err := keys.Append(nil, k); err != nil || !bytes.Equal(again, data) {
				t.Fatalf("key %q came back as %q: %v", data, again, err)
			}
		}
		if h, err := rows.Decode(data); err == nil {
			enc, err := rows.Append(nil, h)
			if err != nil {
				t.Fatal(err)
			}
			if again, err := rows.Decode(enc); err != nil || !reflect.DeepEqual(again, h) {
				t.Fatalf("%v came back as %v: %v", h, again, err)
			}
		}
	})
}

func FuzzForeignKeySerdes(f *testing.F) {
	f.Add([]byte{})
	f.Add([]byte{0, 0, 0, 1, 'f', 'k'})
	f.Add(append([]byte{2}, make([]byte, 30)...))
	f.Add(append([]byte{1}, make([]byte, 21)...))
	f.Add(make([]byte, 21))
	f.Fuzz(func(t *testing.T, data []byte) {
		same(t, SubscriptionKeySerde("k"), data)
		same(t, SubscriptionSerde("k"), data)
		same(t, ResponseSerde(serde.String()), data)
	})
}

// same checks that what can be decoded is the only encoding.
func same[V any](t *testing.T, s serde.Serde[V], data []byte) {
	t.Helper()
	v, err := s.Decode(data)
	if err != nil {
		return
	}
	dst := []byte("kept")
	if again, err := s.Append(dst, v); err != nil || !bytes.Equal(again, append(dst, data...)) {
		t.Fatalf("%s: %q came back as %q: %v", s.Name(), data, again, err)
	}
}
