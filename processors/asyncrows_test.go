package processors

import (
	"bytes"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	millracev1 "github.com/millrace/millrace/proto/millrace/v1"
)

func TestRowKeys(t *testing.T) {
	t.Parallel()
	prefix := entriesPrefix("ask")
	for _, key := range [][]byte{{}, {0}, []byte("key"), bytes.Repeat([]byte{0xff}, 300)} {
		lane := string(laneOf(prefix, true, key))
		got, seq, keyed, err := parseRowKey(prefix, rowKey(lane, 7))
		if got != lane || seq != 7 || !keyed || err != nil {
			t.Errorf("key %x: lane %x, %d, %v, %v", key, got, seq, keyed, err)
		}
		if a, b := rowKey(lane, 255), rowKey(lane, 256); bytes.Compare(a, b) >= 0 {
			t.Errorf("key %x: rows are not in order of admission", key)
		}
		from, to := (&testLane{prefix: lane}).behind(7)
		if next := rowKey(lane, 8); bytes.Compare(next, from) < 0 || bytes.Compare(next, to) >= 0 {
			t.Errorf("key %x: the next row is not behind", key)
		}
		other := rowKey(string(laneOf(prefix, true, append(bytes.Clone(key), 'x'))), 9)
		if bytes.Compare(other, from) >= 0 && bytes.Compare(other, to) < 0 {
			t.Errorf("key %x: a row of another lane is between its rows", key)
		}
	}
	if _, _, keyed, err := parseRowKey(prefix, rowKey(string(laneOf(prefix, false, nil)), 3)); keyed || err != nil {
		t.Errorf("a lane of its own: %v, %v", keyed, err)
	}
}

// testLane is lane where a variable hides the name.
type testLane = lane

func FuzzParseRowKey(f *testing.F) {
	prefix := entriesPrefix("ask")
	f.Add(rowKey(string(laneOf(prefix, true, []byte("k"))), 1))
	f.Add(rowKey(string(laneOf(prefix, false, nil)), 1))
	f.Add([]byte("eask\x00\x01\xff\xff\xff\xff12345678"))
	f.Fuzz(func(t *testing.T, key []byte) {
		lane, seq, keyed, err := parseRowKey(prefix, key)
		if err != nil {
			return
		}
		if again := rowKey(lane, seq); !bytes.Equal(again, key) {
			t.Errorf("%x became %x", key, again)
		}
		if keyed != (key[len(prefix)] == keyLane) {
			t.Errorf("%x keyed: %v", key, keyed)
		}
	})
}

func FuzzDecodeEntry(f *testing.F) {
	e := &millracev1.Entry{
		Id: "ask/in/0/1/0", Event: &millracev1.Event{Key: []byte{}, Value: []byte("v"), Headers: []*millracev1.Header{{Key: []byte("h\xff")}}},
		Source: &millracev1.Source{Topic: "in", Offset: 1}, Ask: &millracev1.Ask{Instance: "i", Incarnation: "p"},
	}
	row, err := proto.Marshal(e)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(row)
	f.Add(row[:len(row)-1])
	f.Fuzz(func(t *testing.T, row []byte) {
		e, err := decodeEntry(row)
		if err != nil {
			return
		}
		again, err := proto.Marshal(e)
		if err != nil {
			t.Fatalf("an entry that was decoded cannot be encoded: %v", err)
		}
		if f, err := decodeEntry(again); err != nil || !proto.Equal(e, f) {
			t.Errorf("%v became %v, %v", e, f, err)
		}
		liveOf(1, e)
		newHead(&lane{}, 1, placeOf(row), e)
		deadLetter(e, "ask", ClassAsync, 1, "m", time.UnixMilli(0))
	})
}

func FuzzDecodeOutcome(f *testing.F) {
	q := &request{id: "ask/in/0/1/0", round: 1}
	f.Add(encodeOutcome(q.failure(millracev1.Failure_REASON_MAX_WAIT, ClassAsync, "m")).Value)
	o := q.outcome()
	o.Kind = &millracev1.Outcome_Answer{Answer: &millracev1.Answer{}}
	f.Add(encodeOutcome(o).Value)
	f.Add([]byte{0xff})
	f.Fuzz(func(t *testing.T, value []byte) {
		o, err := decodeOutcome(value)
		if err != nil {
			return
		}
		raw := encodeOutcome(o)
		if p, err := decodeOutcome(raw.Value); err != nil || !proto.Equal(o, p) {
			t.Errorf("%v became %v, %v", o, p, err)
		}
		if OutcomeKind(&raw) == "" || string(raw.Key) != o.Id {
			t.Errorf("loop record %+v of %v", raw, o)
		}
		// Whatever it says, a machine that never asked drops it.
		w := newWorld(t)
		w.loop = []Raw{{Value: value}}
		r := w.open(w.process("i"), config(OrderKey)).start()
		r.cycle()
		if len(r.drops) != 1 {
			t.Errorf("drops %q", r.drops)
		}
	})
}

func placeOf(key []byte) row { return row{key: key, size: len(key)} }
