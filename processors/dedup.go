package processors

import (
	"encoding/binary"
	"fmt"
	"time"

	"github.com/millrace/millrace/serde"
	"github.com/millrace/millrace/state"
)

// A KeyID is what tells duplicates: a key, and an id within the key.
type KeyID[K, ID any] struct {
	Key K
	ID  ID
}

// KeyIDSerde encodes a key behind its length as an unsigned varint, then the id.
func KeyIDSerde[K, ID any](keys serde.Serde[K], ids serde.Serde[ID]) serde.Serde[KeyID[K, ID]] {
	return keyIDSerde[K, ID]{keys, ids}
}

type keyIDSerde[K, ID any] struct {
	keys serde.Serde[K]
	ids  serde.Serde[ID]
}

func (s keyIDSerde[K, ID]) Append(dst []byte, k KeyID[K, ID]) ([]byte, error) {
	key, err := s.keys.Append(nil, k.Key)
	if err != nil {
		return dst, err
	}
	enc, err := s.ids.Append(append(binary.AppendUvarint(dst, uint64(len(key))), key...), k.ID)
	if err != nil {
		return dst, err
	}
	return enc, nil
}

func (s keyIDSerde[K, ID]) Decode(data []byte) (k KeyID[K, ID], err error) {
	key, rest, ok := cutBytes(data)
	if !ok {
		return k, fmt.Errorf("key with an id, of %d bytes: malformed", len(data))
	}
	if k.Key, err = s.keys.Decode(key); err == nil {
		k.ID, err = s.ids.Decode(rest)
	}
	if err != nil {
		return KeyID[K, ID]{}, err
	}
	return k, nil
}

func (s keyIDSerde[K, ID]) Name() string {
	return fmt.Sprintf("key-id(%s,%s)", s.keys.Name(), s.ids.Name())
}

// Deduplicate forwards the first record of every (key, id) as it is, and drops others
// within the interval before and after it ("duplicate"); one that is further away is
// forwarded and is the first from then on. A record that is older than stream time -
// interval is dropped ("late"), since what was forwarded then may have been forgotten.
// A record without a key, or for which id returns false, is forwarded.
//
// Stream time is the largest timestamp that came to the step with a key and an id. The
// store keeps the time of every first record until stream time has passed it by twice
// the interval.
func Deduplicate[K, V, ID any](t Task, step string, interval time.Duration, keys serde.Serde[KeyID[K, ID]], store state.KeyValueStore[KeyID[K, ID], []byte],
	id func(Record[K, V]) (ID, bool, error), next Forward[K, V],
) Forward[K, V] {
	clock, within := windowClock(t, step), interval.Milliseconds()
	rows := newExpiry(t, step, time.Duration(2*within+1)*time.Millisecond, keys, store)
	return func(r Record[K, V]) error {
		if r.NoKey {
			return next(r)
		}
		what, ok, err := id(r)
		if err != nil {
			return err
		}
		if !ok {
			return next(r)
		}
		now := max(clock.Value(), r.Timestamp)
		clock.Set(now)
		if err := rows.sweep(now, maxForget, forgotten); err != nil {
			return Fail(ClassState, step, err)
		}
		if r.Timestamp < now-within {
			return Drop(t, step, r, "late")
		}
		key := KeyID[K, ID]{r.Key, what}
		_, first, ok, err := store.GetTimestamped(key)
		if err != nil {
			return Fail(ClassState, step, err)
		}
		// What is not late is not more than the interval before the first.
		if ok && r.Timestamp <= first+within {
			return Drop(t, step, r, "duplicate")
		}
		if !ok {
			if err := rows.put(key, r.Timestamp); err != nil {
				return Fail(ClassState, step, err)
			}
		}
		if err := store.Put(key, nil, r.Timestamp); err != nil {
			return Fail(ClassState, step, err)
		}
		return next(r)
	}
}

// maxForget bounds how many rows that are not needed any more go with one record.
const maxForget = 1000
