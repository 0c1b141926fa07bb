package processors

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/millrace/millrace/serde"
)

// AloneSerde encodes the identity of an unmatched record in the order in which
// they are forwarded: time (8 bytes, big-endian), side (0 for the right one, 1 for
// the left one), key with 0x00 as 0x00 0xff, 0x00 0x01, number (8 bytes).
func AloneSerde[K any](keys serde.Serde[K]) serde.Serde[Alone[K]] { return aloneSerde[K]{keys} }

type aloneSerde[K any] struct{ keys serde.Serde[K] }

func (s aloneSerde[K]) Append(dst []byte, a Alone[K]) ([]byte, error) {
	enc := binary.BigEndian.AppendUint64(dst, uint64(a.Time))
	if a.Bound {
		return enc, nil
	}
	key, err := s.keys.Append(nil, a.Key)
	if err != nil {
		return dst, err
	}
	side := byte(0)
	if a.Left {
		side = 1
	}
	enc = append(enc, side)
	for i := bytes.IndexByte(key, 0); i >= 0; i = bytes.IndexByte(key, 0) {
		enc = append(append(enc, key[:i]...), 0, 0xff)
		key = key[i+1:]
	}
	enc = append(append(enc, key...), 0, 1)
	return binary.BigEndian.AppendUint64(enc, uint64(a.Number)), nil
}

var errAlone = errors.New("key of an unmatched record: malformed")

func (s aloneSerde[K]) Decode(data []byte) (a Alone[K], err error) {
	if len(data) < 8+1+2+8 || data[8] > 1 {
		return a, errAlone
	}
	a.Time, a.Left = int64(binary.BigEndian.Uint64(data)), data[8] == 1
	escaped := data[9 : len(data)-8]
	a.Number = int64(binary.BigEndian.Uint64(data[len(data)-8:]))
	var key []byte
	for {
		i := bytes.IndexByte(escaped, 0)
		if i < 0 || i+1 == len(escaped) {
			return Alone[K]{}, errAlone
		}
		key = append(key, escaped[:i]...)
		code := escaped[i+1]
		escaped = escaped[i+2:]
		if code == 1 && len(escaped) == 0 {
			break
		}
		if code != 0xff {
			return Alone[K]{}, errAlone
		}
		key = append(key, 0)
	}
	if a.Key, err = s.keys.Decode(key); err != nil {
		return Alone[K]{}, err
	}
	return a, nil
}

func (s aloneSerde[K]) Name() string { return "unmatched(" + s.keys.Name() + ")" }

// EitherSerde encodes a value of one of two types as 1 for the left or 0 for the
// right one, followed by its encoding.
func EitherSerde[L, R any](left serde.Serde[L], right serde.Serde[R]) serde.Serde[Either[L, R]] {
	return eitherSerde[L, R]{left, right}
}

type eitherSerde[L, R any] struct {
	left  serde.Serde[L]
	right serde.Serde[R]
}

func (s eitherSerde[L, R]) Append(dst []byte, e Either[L, R]) ([]byte, error) {
	var enc []byte
	var err error
	if e.IsLeft {
		enc, err = s.left.Append(append(dst, 1), e.Left)
	} else {
		enc, err = s.right.Append(append(dst, 0), e.Right)
	}
	if err != nil {
		return dst, err
	}
	return enc, nil
}

func (s eitherSerde[L, R]) Decode(data []byte) (e Either[L, R], err error) {
	switch {
	case len(data) > 0 && data[0] == 1:
		e.IsLeft = true
		e.Left, err = s.left.Decode(data[1:])
	case len(data) > 0 && data[0] == 0:
		e.Right, err = s.right.Decode(data[1:])
	default:
		err = errors.New("value of one of two types: it says neither")
	}
	if err != nil {
		return Either[L, R]{}, err
	}
	return e, nil
}

func (s eitherSerde[L, R]) Name() string {
	return fmt.Sprintf("either(%s,%s)", s.left.Name(), s.right.Name())
}
