package state

import (
	"bytes"
	"cmp"
	"errors"
	"math"
	"testing"
	"time"
)

var testEvents = Spec{Name: "e", Kind: Events, Retention: 10 * time.Minute}

func FuzzEventKey(f *testing.F) {
	f.Add([]byte("k\x00ey"), int64(600_001), int64(7), int64(600_000), int64(9))
	f.Add([]byte(""), int64(0), int64(0), int64(0), int64(1))
	f.Fuzz(func(t *testing.T, key []byte, time, number, time2, number2 int64) {
		time, number, time2, number2 = time&math.MaxInt64, number&math.MaxInt64, time2&math.MaxInt64, number2&math.MaxInt64
		row, row2 := testEvents.appendEventKey(nil, key, time, number), testEvents.appendEventKey(nil, key, time2, number2)
		k, at, n, err := splitEventKey(row)
		if err != nil || !bytes.Equal(k, key) || at != time || n != number {
			t.Fatalf("%x reads as %x, %d, %d, %v", row, k, at, n, err)
		}
		if got, want := bytes.Compare(row, row2), cmp.Or(cmp.Compare(time, time2), cmp.Compare(number, number2)); got != want {
			t.Fatalf("%d/%d and %d/%d are ordered %d, want %d", time, number, time2, number2, got, want)
		}
		logged, value, ts := testEvents.ChangelogRecord(row, []byte{}, 5)
		back, restored, err := testEvents.RestoreRow(logged, value, ts)
		if err != nil || !bytes.Equal(back, row) || restored == nil || len(restored) != 0 || ts != 5 {
			t.Fatalf("%x is restored as %x, %v, %v", row, back, restored, err)
		}
	})
}

func FuzzEventLogKey(f *testing.F) {
	f.Add([]byte("short"))
	f.Add(append([]byte("key"), make([]byte, 16)...))
	f.Add(bytes.Repeat([]byte{0xff}, 20))
	f.Fuzz(func(t *testing.T, data []byte) {
		if row, _, err := testEvents.RestoreRow(data, nil, 0); err == nil {
			if key, _, _ := testEvents.ChangelogRecord(row, nil, 0); !bytes.Equal(key, data) {
				t.Fatalf("%x came back as %x", data, key)
			}
		}
		if _, _, _, err := splitEventKey(data); err != nil && !errors.Is(err, ErrCorrupt) {
			t.Fatalf("%x: %v", data, err)
		}
	})
}
