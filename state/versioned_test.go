package state

import (
	"bytes"
	"testing"

	"github.com/millrace/millrace/serde"
)

func FuzzVersionSerde(f *testing.F) {
	s := versionSerde[string]{serde.String()}
	f.Add([]byte{}, "")
	f.Add([]byte{1, 'x'}, "x")
	f.Add([]byte{2}, "")
	f.Fuzz(func(t *testing.T, data []byte, value string) {
		if v, err := s.Decode(data); err == nil {
			if again, err := s.Append(nil, v); err != nil || !bytes.Equal(again, data) {
				t.Fatalf("%q came back as %q: %v", data, again, err)
			}
		}
		for _, v := range []version[string]{{}, {value, true}} {
			dst := []byte("kept")
			data, err := s.Append(dst, v)
			if err != nil || !bytes.HasPrefix(data, dst) {
				t.Fatalf("%q: %v", data, err)
			}
			if got, err := s.Decode(data[len(dst):]); err != nil || got != v {
				t.Fatalf("%v came back as %v: %v", v, got, err)
			}
		}
	})
}
