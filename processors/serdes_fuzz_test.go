package processors

import (
	"bytes"
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
