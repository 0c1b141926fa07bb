package state

import (
	"bytes"
	"errors"
	"os"
	"reflect"
	"strings"
	"testing"
	"time"
)

var testCheckpoint = Checkpoint{
	Logs: map[string]LogPosition{
		"":       {Topic: TopicID{1, 2}, Next: 12},
		"counts": {Topic: TopicID{0xff, 15: 9}, Next: 1 << 40},
	},
	Inputs: map[TopicPartition]int64{{"orders", 3}: 77, {"orders", 0}: 0, {"a", 200}: 5},
	Time:   1_700_000_000_123,
}

func TestCheckpoint(t *testing.T) {
	t.Parallel()
	db, id := NewMemory(), TaskID{"count", 3}
	if c, err := LoadCheckpoint(db, id); c != nil || err != nil {
		t.Fatalf("without a row: %v, %v", c, err)
	}
	b := &Batch{}
	if err := errors.Join(testCheckpoint.AppendTo(b, id), db.Write(b)); err != nil {
		t.Fatal(err)
	}
	c, err := LoadCheckpoint(db, id)
	if err != nil || !reflect.DeepEqual(*c, testCheckpoint) {
		t.Fatalf("got %+v, %v", c, err)
	}
	if c, err := LoadCheckpoint(db, TaskID{"count", 4}); c != nil || err != nil {
		t.Fatalf("of another task: %v, %v", c, err)
	}
}

// The fixture was written by version 1 of the format.
func TestCheckpointFixture(t *testing.T) {
	t.Parallel()
	data, err := os.ReadFile("testdata/checkpoint-v1.bin")
	if err != nil {
		t.Fatal(err)
	}
	var c Checkpoint
	if err := c.UnmarshalBinary(data); err != nil || !reflect.DeepEqual(c, testCheckpoint) {
		t.Errorf("version 1 reads as %+v, %v", c, err)
	}
	again, err := testCheckpoint.MarshalBinary()
	if err != nil || !bytes.Equal(again, data) {
		t.Errorf("it is written as %x, %v, the fixture is %x: a new layout needs a new version", again, err, data)
	}
	data[0] = 2
	if err := c.UnmarshalBinary(data); err == nil || errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), "version 2") {
		t.Errorf("a newer version: %v", err)
	}
}

// A checkpoint that cannot be read is told from a database that cannot: its rows are
// to be rebuilt.
func TestLoadUnreadableCheckpoint(t *testing.T) {
	t.Parallel()
	db, id := NewMemory(), TaskID{"count", 3}
	for what, row := range map[string][]byte{"version 0": {0, 1, 2}, "version 2": {2, 0, 0}, "cut short": {1}, "nothing": {}} {
		b := &Batch{}
		b.Set(CheckpointKey(id), row)
		if err := db.Write(b); err != nil {
			t.Fatal(err)
		}
		c, err := LoadCheckpoint(db, id)
		if _, ok := errors.AsType[*UnusableError](err); c != nil || !ok {
			t.Errorf("%s: %v, %v", what, c, err)
		}
	}
}

func FuzzCheckpoint(f *testing.F) {
	data, err := testCheckpoint.MarshalBinary()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(data)
	f.Add([]byte{1, 0, 0, 0, 0})
	f.Add([]byte{1, 0, 0, 0xff, 0xff, 0xff, 0xff, 0x0f})
	f.Fuzz(func(t *testing.T, data []byte) {
		var c Checkpoint
		if c.UnmarshalBinary(data) != nil {
			return
		}
		again, err := c.MarshalBinary()
		if err != nil || !bytes.Equal(again, data) {
			t.Fatalf("%x reads and is written as %x, %v", data, again, err)
		}
	})
}

func TestCheckpointCut(t *testing.T) {
	t.Parallel()
	data, err := testCheckpoint.MarshalBinary()
	if err != nil {
		t.Fatal(err)
	}
	for n := range len(data) {
		var c Checkpoint
		if err := c.UnmarshalBinary(data[:n]); !errors.Is(err, ErrCorrupt) {
			t.Errorf("the first %d bytes of %d: %v", n, len(data), err)
		}
	}
}

func TestUsable(t *testing.T) {
	t.Parallel()
	now := time.UnixMilli(testCheckpoint.Time).Add(2 * time.Hour)
	topic := testCheckpoint.Logs[""].Topic
	tests := []struct {
		name   string
		cp     *Checkpoint
		store  string
		log    LogState
		reason string
	}{
		{"fits", &testCheckpoint, "", LogState{Topic: topic, Start: 3, End: 20}, ""},
		{"nothing new", &testCheckpoint, "", LogState{Topic: topic, Start: 12, End: 12, MaxAge: 2 * time.Hour}, ""},
		{"no checkpoint", nil, "", LogState{Topic: topic, End: 20}, "no checkpoint"},
		{"new store", &testCheckpoint, "new", LogState{Topic: topic, End: 20}, "does not have it"},
		{"topic created anew", &testCheckpoint, "", LogState{Topic: TopicID{9}, End: 20}, "created anew"},
		{"log truncated", &testCheckpoint, "", LogState{Topic: topic, Start: 13, End: 20}, "begins at offset 13"},
		{"log lost", &testCheckpoint, "", LogState{Topic: topic, Start: 3, End: 11}, "ends at offset 11"},
		{"too old", &testCheckpoint, "", LogState{Topic: topic, End: 20, MaxAge: MaxCheckpointAge(2 * time.Hour)}, "2h0m0s old"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			err := test.cp.Usable(test.store, test.log, now)
			if test.reason == "" {
				if err != nil {
					t.Error(err)
				}
				return
			}
			unusable, ok := errors.AsType[*UnusableError](err)
			if !ok || unusable.Store != test.store || !strings.Contains(unusable.Reason, test.reason) {
				t.Errorf("got %v, want %q", err, test.reason)
			}
		})
	}
}
