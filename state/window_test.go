package state

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"
)

var testWindows = Spec{Name: "w", Kind: Window, WindowSize: time.Minute, Retention: 10 * time.Minute}

// The order of rows is that of segment, key, start, whatever bytes keys have.
func FuzzWindowKey(f *testing.F) {
	f.Add([]byte("a"), []byte("a\x00"), int64(0), int64(1))
	f.Add([]byte(""), []byte("\x00\xff"), int64(300_000), int64(299_999))
	f.Add([]byte("\x00"), []byte("\x00\x01"), int64(1<<62), int64(5))
	f.Fuzz(func(t *testing.T, a, b []byte, startA, startB int64) {
		startA, startB = max(0, startA), max(0, startB)
		rowA, rowB := testWindows.appendWindowKey(nil, a, startA), testWindows.appendWindowKey(nil, b, startB)
		key, start, err := splitWindowKey(rowA)
		if err != nil || !bytes.Equal(key, a) || start != startA {
			t.Fatalf("%x reads as %x, %d, %v", rowA, key, start, err)
		}
		order := func(x, y int64) int {
			switch {
			case x < y:
				return -1
			case x > y:
				return 1
			}
			return 0
		}
		want := order(startA/testWindows.segment(), startB/testWindows.segment())
		if want == 0 {
			want = bytes.Compare(a, b)
		}
		if want == 0 {
			want = order(startA, startB)
		}
		if got := bytes.Compare(rowA, rowB); got != want {
			t.Fatalf("rows of %q/%d and %q/%d compare as %d, want %d", a, startA, b, startB, got, want)
		}
		if p := appendWindowPrefix(nil, startB/testWindows.segment(), b); bytes.HasPrefix(rowA, p) != (bytes.Equal(a, b) && startA/testWindows.segment() == startB/testWindows.segment()) {
			t.Fatalf("%x has prefix %x of another key", rowA, p)
		}
	})
}

// Whatever is not a row key is an error, and what is one is the only encoding.
func FuzzSplitWindowKey(f *testing.F) {
	f.Add(testWindows.appendWindowKey(nil, []byte("k\x00ey"), 600_001))
	f.Add([]byte("\x00\x00\x00\x00\x00\x00\x00\x02k\x00"))
	f.Fuzz(func(t *testing.T, row []byte) {
		key, start, err := splitWindowKey(row)
		if err != nil {
			if !errors.Is(err, ErrCorrupt) {
				t.Fatal(err)
			}
			return
		}
		again := appendWindowPrefix(nil, int64(binary.BigEndian.Uint64(row)), key)
		again = binary.BigEndian.AppendUint64(again, uint64(start))
		if !bytes.Equal(again, row) {
			t.Fatalf("%x and %x read the same", row, again)
		}
	})
}

// A changelog record, however odd, is refused or gives a row that logs as the
// same record.
func FuzzRestoreRow(f *testing.F) {
	f.Add([]byte("key"), []byte("value"), int64(7), false)
	f.Add([]byte("\x00\x00\x00\x00\x00\x00\x00\x05"), []byte("01234567"), int64(7), true)
	f.Add([]byte("k\xff\xff\xff\xff\xff\xff\xff\xff"), []byte(nil), int64(-1), true)
	f.Fuzz(func(t *testing.T, key, value []byte, ts int64, window bool) {
		spec := Spec{Name: "s"}
		if window {
			spec = testWindows
		}
		rowKey, row, err := spec.RestoreRow(key, value, ts)
		if err != nil {
			return
		}
		if key == nil || (row == nil) != (value == nil) {
			t.Fatalf("RestoreRow(%v, %v) = %v, %v", key, value, rowKey, row)
		}
		k, v, at := spec.ChangelogRecord(rowKey, row, ts)
		if !bytes.Equal(k, key) || !bytes.Equal(v, value) || (v == nil) != (value == nil) || at != ts {
			t.Fatalf("%q=%q at %d logs as %q=%q at %d", key, value, ts, k, v, at)
		}
	})
}

func TestChangelogRecord(t *testing.T) {
	t.Parallel()
	windowRow := testWindows.appendWindowKey(nil, []byte("k"), 60_000)
	tests := []struct {
		name     string
		spec     Spec
		key, row []byte
		wantKey  string
		want     string
		deleted  bool
		at       int64
	}{
		{"key-value: plain key and value, the row's time", Spec{Name: "s"}, []byte("k"), append(AppendRow(nil, 5), "v"...), "k", "v", false, 5},
		{"key-value: an empty value is not a tombstone", Spec{Name: "s"}, []byte("k"), AppendRow(nil, 5), "k", "", false, 5},
		{"key-value: a deletion has the wall clock", Spec{Name: "s"}, []byte("k"), nil, "k", "", true, 99},
		{
			"window: start behind the key, the row as is, the wall clock", testWindows, windowRow, append(AppendRow(nil, 5), "v"...),
			"k\x00\x00\x00\x00\x00\x00\xea\x60", "\x00\x00\x00\x00\x00\x00\x00\x05v", false, 99,
		},
		{"window: deletion", testWindows, windowRow, nil, "k\x00\x00\x00\x00\x00\x00\xea\x60", "", true, 99},
		{"rows of the task: as they are", Spec{Name: TaskRows}, []byte("cx"), []byte("v"), "cx", "v", false, 99},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			key, value, at := test.spec.ChangelogRecord(test.key, test.row, 99)
			if string(key) != test.wantKey || string(value) != test.want || (value == nil) != test.deleted || at != test.at {
				t.Errorf("got %q=%q (nil: %v) at %d", key, value, value == nil, at)
			}
			rowKey, row, err := test.spec.RestoreRow(key, value, at)
			if err != nil || !bytes.Equal(rowKey, test.key) || !bytes.Equal(row, test.row) || (row == nil) != (test.row == nil) {
				t.Errorf("restored as %q=%q, %v", rowKey, row, err)
			}
		})
	}
}

func TestSegments(t *testing.T) {
	t.Parallel()
	for retention, want := range map[time.Duration]int64{time.Second: 60_000, 2 * time.Minute: 60_000, time.Hour: 1_800_000} {
		if got := (&Spec{Retention: retention}).segment(); got != want {
			t.Errorf("segments of a store with retention %s are %d ms, want %d", retention, got, want)
		}
	}
}

// The fixture was written by version 1 of the format: a key, a window start and
// the row key in hex.
func TestWindowKeyFixture(t *testing.T) {
	t.Parallel()
	data, err := os.ReadFile("testdata/window-keys-v1.txt")
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for line := range strings.Lines(string(data)) {
		var key string
		var start int64
		var row []byte
		if _, err := fmt.Sscanf(line, "%q %d %x", &key, &start, &row); err != nil {
			t.Fatal(err)
		}
		n++
		if got := testWindows.appendWindowKey(nil, []byte(key), start); !bytes.Equal(got, row) {
			t.Errorf("%q at %d is written as %x, the fixture is %x", key, start, got, row)
		}
		if k, s, err := splitWindowKey(row); string(k) != key || s != start || err != nil {
			t.Errorf("%x reads as %q, %d, %v", row, k, s, err)
		}
	}
	if n < 5 {
		t.Errorf("only %d keys", n)
	}
}
