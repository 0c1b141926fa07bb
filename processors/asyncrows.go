package processors

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	millracev1 "github.com/millrace/millrace/proto/millrace/v1"
)

// The rows of a step in the task's own store:
//
//	'e' step 0x00 | lane | sequence number (8 bytes, big-endian) -> Entry
//
// A lane is 0x01, the key's length (4 bytes, big-endian) and the key: its entries
// are called one after the other. An entry that has no order is a lane of its
// own: 0x00 alone. Sequence numbers grow with every change of the task, so that
// they are unique and in order of admission.
const (
	loneLane byte = iota
	keyLane
)

const seqBytes = 8

// rowReserve is the room that an admitted entry leaves in its row for who is
// asked, and for the failure that takes the place of too large a result.
const rowReserve = 1 << 10

// entriesPrefix is the prefix of the rows of a step.
func entriesPrefix(step string) []byte { return append(append([]byte{'e'}, step...), 0) }

// laneOf returns the prefix of the rows of the event's lane.
func laneOf(prefix []byte, ordered bool, key []byte) []byte {
	lane := make([]byte, 0, len(prefix)+5+len(key)+seqBytes)
	lane = append(lane, prefix...)
	if !ordered {
		return append(lane, loneLane)
	}
	lane = append(lane, keyLane)
	lane = binary.BigEndian.AppendUint32(lane, uint32(len(key)))
	return append(lane, key...)
}

func rowKey(lane string, seq int64) []byte {
	return binary.BigEndian.AppendUint64([]byte(lane), uint64(seq))
}

// parseRowKey splits a row's key into its lane and its sequence number, and
// reports whether the lane is that of a key.
func parseRowKey(prefix, key []byte) (lane string, seq int64, keyed bool, err error) {
	rest, ok := bytes.CutPrefix(key, prefix)
	switch {
	case !ok || len(rest) < 1+seqBytes:
		err = fmt.Errorf("row key %x is no entry's", key)
	case rest[0] == loneLane && len(rest) == 1+seqBytes:
	case rest[0] == keyLane && len(rest) >= 5+seqBytes && uint64(len(rest)) == 5+seqBytes+uint64(binary.BigEndian.Uint32(rest[1:])):
		keyed = true
	default:
		err = fmt.Errorf("row key %x is no entry's", key)
	}
	if err != nil {
		return "", 0, false, err
	}
	n := len(key) - seqBytes
	return string(key[:n]), int64(binary.BigEndian.Uint64(key[n:])), keyed, nil
}

// decodeEntry decodes a row and checks what the state machine relies on.
func decodeEntry(row []byte) (*millracev1.Entry, error) {
	e := &millracev1.Entry{}
	if err := proto.Unmarshal(row, e); err != nil {
		return nil, fmt.Errorf("in-flight entry of %d bytes: %w", len(row), err)
	}
	if e.Id == "" || e.Event == nil || e.Source == nil {
		return nil, fmt.Errorf("in-flight entry of %d bytes lacks its id, event or source", len(row))
	}
	return e, nil
}

// decodeOutcome decodes the value of a loop record.
func decodeOutcome(value []byte) (*millracev1.Outcome, error) {
	o := &millracev1.Outcome{}
	if err := proto.Unmarshal(value, o); err != nil {
		return nil, fmt.Errorf("outcome of %d bytes: %w", len(value), err)
	}
	if o.Id == "" || o.Kind == nil {
		return nil, fmt.Errorf("outcome of %d bytes lacks its id or kind", len(value))
	}
	return o, nil
}

// outcomeHeader is the header by which people and metrics tell loop records
// apart.
const outcomeHeader = "millrace.outcome"

// encodeOutcome returns the loop record of an outcome.
func encodeOutcome(o *millracev1.Outcome) Raw {
	kind := "answer"
	switch k := o.Kind.(type) {
	case *millracev1.Outcome_Released:
		kind = "released"
	case *millracev1.Outcome_Again:
		kind = "again"
	case *millracev1.Outcome_Failure:
		kind = reasonName(k.Failure.GetReason())
	}
	value, err := proto.Marshal(o)
	if err != nil { // only invalid UTF-8 in a message can fail, and truncate removes it
		panic(err)
	}
	return Raw{
		Key: []byte(o.Id), Value: value, Timestamp: time.Now().UnixMilli(),
		Headers: []Header{{Key: outcomeHeader, Value: []byte(kind)}},
	}
}

// OutcomeKind tells what a loop record says: answer, again, released, error,
// deadline, max-wait, too-large, breaker-open, over-budget, skip, or empty for a record that is
// none.
func OutcomeKind(r *Raw) string {
	for _, h := range r.Headers {
		if h.Key == outcomeHeader {
			return string(h.Value)
		}
	}
	return ""
}

func reasonName(r millracev1.Failure_Reason) string {
	name := strings.TrimPrefix(r.String(), "REASON_")
	return strings.ReplaceAll(strings.ToLower(name), "_", "-")
}

// maxMessage bounds an error text that is stored, in bytes.
const maxMessage = 8 << 10

// truncate bounds a message; the length and hash of a longer one are kept.
func truncate(s string) string {
	s = strings.ToValidUTF8(s, "\uFFFD")
	if len(s) <= maxMessage {
		return s
	}
	sum := sha256.Sum256([]byte(s))
	return fmt.Sprintf("%s... (%d bytes, SHA-256 %s)", strings.ToValidUTF8(s[:maxMessage], ""), len(s), hex.EncodeToString(sum[:]))
}

// deadLetter returns the dead letter of an entry: the raw source record with its
// headers, followed by millrace.* headers.
func deadLetter(e *millracev1.Entry, step string, class Class, attempts int32, message string, now time.Time, details ...Header) Raw {
	src := e.Source
	rec := src.Record
	if rec == nil {
		rec = e.Event
	}
	raw := Raw{Topic: src.Topic, Partition: src.Partition, Offset: src.Offset, Timestamp: rec.Timestamp, Headers: fromProtoHeaders(rec.Headers)}
	headers := append(DeadLetterHeaders(&raw, step, class, message, now), Header{Key: "millrace.attempts", Value: []byte(strconv.Itoa(int(attempts)))})
	headers = append(headers, details...)
	// The broker refuses timestamps of the future: the original is in the header.
	return Raw{Key: rec.Key, Value: rec.Value, Timestamp: min(max(rec.Timestamp, 0), now.UnixMilli()), Headers: headers}
}

func fromProtoHeaders(hs []*millracev1.Header) []Header {
	out := make([]Header, 0, len(hs)+8)
	for _, h := range hs {
		out = append(out, Header{Key: string(h.Key), Value: h.Value})
	}
	return out
}

// toProtoHeaders copies headers: an entry may outlive the fetch they came in.
func toProtoHeaders(hs []Header) []*millracev1.Header {
	if len(hs) == 0 {
		return nil
	}
	out := make([]*millracev1.Header, len(hs))
	for i, h := range hs {
		out[i] = &millracev1.Header{Key: []byte(h.Key), Value: bytes.Clone(h.Value)}
	}
	return out
}

// sourceOf describes the record an event came from; the record itself is kept
// only if the event differs from it.
func sourceOf(raw *Raw, ev *millracev1.Event) *millracev1.Source {
	src := &millracev1.Source{Topic: raw.Topic, Partition: raw.Partition, Offset: raw.Offset}
	same := equalNullable(raw.Key, ev.Key) && equalNullable(raw.Value, ev.Value) && raw.Timestamp == ev.Timestamp &&
		slices.EqualFunc(raw.Headers, ev.Headers, func(a Header, b *millracev1.Header) bool {
			return a.Key == string(b.Key) && equalNullable(a.Value, b.Value)
		})
	if !same {
		src.Record = &millracev1.Event{Key: bytes.Clone(raw.Key), Value: bytes.Clone(raw.Value), Timestamp: raw.Timestamp, Headers: toProtoHeaders(raw.Headers)}
	}
	return src
}

func equalNullable(a, b []byte) bool { return (a == nil) == (b == nil) && bytes.Equal(a, b) }
