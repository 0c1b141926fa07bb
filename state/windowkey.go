package state

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math"
	"time"
)

// The key of a window row is
//
//	segment (8 bytes) | escaped key | start (8 bytes)
//
// with segment = start / segment interval. The escaping keeps the order of keys
// and ends the key, so that the starts of one key lie together: fetching a key
// over a time range is one short scan per segment, and expiry is a range
// deletion of whole segments.
const (
	escapeByte = 0x00 // 0x00 in a key becomes 0x00 0xff, its end is 0x00 0x01
	escapedNUL = 0xff
	escapedEnd = 0x01
)

// minSegment bounds the number of segments of stores with a short retention.
const minSegment = time.Minute

// segment returns the interval of the store's segments in ms.
func (s *Spec) segment() int64 { return max(s.Retention/2, minSegment).Milliseconds() }

// appendWindowKey appends the row key of an encoded user key and window start.
func (s *Spec) appendWindowKey(dst, key []byte, start int64) []byte {
	dst = appendWindowPrefix(dst, start/s.segment(), key)
	return binary.BigEndian.AppendUint64(dst, uint64(start))
}

// appendWindowPrefix appends what all rows of a key in a segment begin with.
func appendWindowPrefix(dst []byte, segment int64, key []byte) []byte {
	dst = binary.BigEndian.AppendUint64(dst, uint64(segment))
	for {
		i := bytes.IndexByte(key, escapeByte)
		if i < 0 {
			break
		}
		dst = append(append(dst, key[:i]...), escapeByte, escapedNUL)
		key = key[i+1:]
	}
	return append(append(dst, key...), escapeByte, escapedEnd)
}

// splitWindowKey returns the user key, in memory of its own with room for 8
// bytes, and the window start. The error is [ErrCorrupt].
func splitWindowKey(rowKey []byte) (key []byte, start int64, err error) {
	bad := func() ([]byte, int64, error) {
		return nil, 0, fmt.Errorf("%w: %x is not the key of a window row", ErrCorrupt, rowKey)
	}
	if len(rowKey) < 8+2+8 {
		return bad()
	}
	escaped := rowKey[8 : len(rowKey)-8]
	key = make([]byte, 0, len(escaped)+8-2)
	for {
		i := bytes.IndexByte(escaped, escapeByte)
		if i < 0 || i+1 == len(escaped) {
			return bad()
		}
		key = append(key, escaped[:i]...)
		code := escaped[i+1]
		escaped = escaped[i+2:]
		if code == escapedEnd && len(escaped) == 0 {
			break
		}
		if code != escapedNUL {
			return bad()
		}
		key = append(key, escapeByte)
	}
	s := binary.BigEndian.Uint64(rowKey[len(rowKey)-8:])
	if s > math.MaxInt64 {
		return bad()
	}
	return key, int64(s), nil
}
