package processors

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/millrace/millrace/serde"
	"github.com/millrace/millrace/state"
)

// A join by a foreign key is done in three steps. The rows of the left table are
// partitioned by their own key, those of the right table by theirs, so
// [SubscribeForeign] sends the left row's key to the partition of the right row,
// where [AnswerForeign] keeps it and sends back the right row, now and whenever it
// changes; [ResolveForeign] joins the answer with the left row, unless that has
// changed since.

// A Want says what a subscription asks for.
type Want uint8

// What subscriptions ask for.
const (
	// WantRow subscribes; an answer is sent if there is a right row.
	WantRow Want = iota + 1
	// WantAnswer subscribes; an answer is sent in any case. Without a foreign key
	// there is only the answer.
	WantAnswer
	// WantEnd ends the subscription without an answer.
	WantEnd
	// WantEndAnswer ends the subscription; an answer without a row is sent.
	WantEndAnswer
)

// Hash identifies a left row: the first 128 bits of the SHA-256 sum of its
// encoding. The zero value stands for no row.
type Hash [16]byte

// A Subscription is what a left row sends to the right row that its foreign key
// names.
type Subscription struct {
	Want Want
	Row  Hash
	// Partition is that of the left row, Key its encoded key.
	Partition int32
	Key       []byte
}

// A Response is what a subscription gets back: the right row, or that there is
// none.
type Response[R any] struct {
	Row       Hash
	Partition int32
	Value     R
	OK        bool
}

// rowHash hashes rows of one type.
type rowHash[V any] struct {
	values serde.Serde[V]
	enc    []byte
}

func (h *rowHash[V]) of(v V, ok bool) (Hash, error) {
	if !ok {
		return Hash{}, nil
	}
	var err error
	if h.enc, err = h.values.Append(h.enc[:0], v); err != nil {
		return Hash{}, err
	}
	sum := sha256.Sum256(h.enc)
	return Hash(sum[:16]), nil
}

// SubscribeForeign takes the updates of the left table. foreignKey returns the key of the
// right row that a left row is joined with, and false if it has none; a nil key is
// none, too.
//
// An inner join drops rows without a foreign key ("null-foreign-key").
func SubscribeForeign[K, L, FK any](t Task, step string, kind JoinKind, foreignKey func(key K, row L) (FK, bool),
	keys serde.Serde[K], values serde.Serde[L], foreignKeys serde.Serde[FK], next Forward[FK, Subscription],
) Forward[K, Change[L]] {
	null := NullCheck[FK]()
	hash := &rowHash[L]{values: values}
	var a, b []byte
	return func(r Record[K, Change[L]]) error {
		c := r.Value
		extract := func(row L, ok bool) (fk FK, _ bool) {
			if ok {
				fk, ok = foreignKey(r.Key, row)
			}
			return fk, ok && !null(fk)
		}
		oldKey, had := extract(c.Old, c.HasOld)
		newKey, has := extract(c.New, c.HasNew)
		same := had && has
		var err error
		if same {
			if a, err = foreignKeys.Append(a[:0], oldKey); err == nil {
				b, err = foreignKeys.Append(b[:0], newKey)
			}
			same = bytes.Equal(a, b)
		}
		sub := Subscription{Partition: t.Partition()}
		if err == nil {
			sub.Row, err = hash.of(c.New, c.HasNew)
		}
		if err == nil {
			sub.Key, err = keys.Append([]byte{}, r.Key)
		}
		if err != nil {
			return Fail(ClassProduce, step, err)
		}
		send := func(fk FK, ok bool, want Want) error {
			sub.Want = want
			out := withValue(r, fk, sub, r.Timestamp)
			out.NoKey = !ok
			return next(out)
		}
		if kind == InnerJoin {
			if c.HasNew && !has {
				if err := dropChange(t, step, r, "null-foreign-key"); err != nil {
					return err
				}
			}
			return subscribeInner(send, oldKey, had, newKey, has, same)
		}
		if !c.HasOld && !c.HasNew {
			return nil
		}
		if had && !same {
			if err := send(oldKey, true, WantEnd); err != nil {
				return err
			}
		}
		return send(newKey, has, WantAnswer)
	}
}

func subscribeInner[FK any](send func(fk FK, ok bool, want Want) error, oldKey FK, had bool, newKey FK, has, same bool) error {
	switch {
	case !had && !has:
		return nil
	case !has: // whether the row was joined is known there only
		return send(oldKey, true, WantEndAnswer)
	case !had || same: // without a right row there was no joined row before, either
		return send(newKey, true, WantRow)
	}
	if err := send(oldKey, true, WantEnd); err != nil {
		return err
	}
	return send(newKey, true, WantAnswer)
}

// A SubscriptionKey orders subscriptions by their foreign key: the length of its
// encoding as 4 bytes big-endian, the encoding, the encoded key of the left row.
type SubscriptionKey struct{ ForeignKey, Key []byte }

// AnswerForeign takes subscriptions and the updates of the right table, keeps the
// subscriptions in store, and forwards responses by the encoded key of the left
// row. The timestamp of a response to a subscription is the larger of those of the
// left and the right row, that of one to an update the update's.
func AnswerForeign[FK, R any](step string, foreignKeys serde.Serde[FK], store state.KeyValueStore[SubscriptionKey, Subscription], right Lookup[FK, R],
	next Forward[[]byte, Response[R]],
) (subscriptions Forward[FK, Subscription], updates Forward[FK, Change[R]]) {
	o := &answerStep[FK, R]{step: step, foreignKeys: foreignKeys, store: store, right: right, next: next}
	return o.subscribe, o.update
}

type answerStep[FK, R any] struct {
	step        string
	foreignKeys serde.Serde[FK]
	store       state.KeyValueStore[SubscriptionKey, Subscription]
	right       Lookup[FK, R]
	next        Forward[[]byte, Response[R]]
}

func (o *answerStep[FK, R]) subscribe(r Record[FK, Subscription]) error {
	sub := r.Value
	answer := Response[R]{Row: sub.Row, Partition: sub.Partition}
	ts := r.Timestamp
	if !r.NoKey {
		fk, err := o.foreignKeys.Append(nil, r.Key)
		if err != nil {
			return Fail(ClassState, o.step, err)
		}
		key := SubscriptionKey{fk, sub.Key}
		if sub.Want == WantEnd || sub.Want == WantEndAnswer {
			err = o.store.Delete(key)
		} else {
			err = o.store.Put(key, sub, r.Timestamp)
		}
		if err != nil {
			return Fail(ClassState, o.step, err)
		}
		row, at, ok, err := o.right(r.Key)
		if err != nil {
			return Fail(ClassState, o.step, err)
		}
		if ok {
			ts = max(ts, at)
		}
		if ok && sub.Want != WantEndAnswer {
			answer.Value, answer.OK = row, true
		}
	}
	if sub.Want == WantEnd || sub.Want == WantRow && !answer.OK {
		return nil
	}
	return o.next(withValue(r, sub.Key, answer, ts))
}

func (o *answerStep[FK, R]) update(r Record[FK, Change[R]]) error {
	fk, err := o.foreignKeys.Append(nil, r.Key)
	if err != nil {
		return Fail(ClassState, o.step, err)
	}
	for row, err := range o.store.Prefix(appendForeignKey(nil, fk)) {
		if err != nil {
			return Fail(ClassState, o.step, err)
		}
		sub := row.Value
		answer := Response[R]{Row: sub.Row, Partition: sub.Partition, Value: r.Value.New, OK: r.Value.HasNew}
		if err := o.next(withValue(r, row.Key.Key, answer, r.Timestamp)); err != nil {
			return err
		}
	}
	return nil
}

// ResolveForeign joins responses with the rows of the left table and keeps the joined
// rows in store. A response to a row that has changed since is dropped
// ("superseded"): the answer to the new one is on its way.
func ResolveForeign[K, L, R, V any](t Task, step string, kind JoinKind, keys serde.Serde[K], values serde.Serde[L], left Lookup[K, L],
	join func(key K, left L, right R, ok bool) (V, error), store state.KeyValueStore[K, V], next Forward[K, Change[V]],
) Forward[[]byte, Response[R]] {
	null := NullCheck[V]()
	hash := &rowHash[L]{values: values}
	put := storeRow(step, store, next)
	return func(r Record[[]byte, Response[R]]) error {
		key, err := keys.Decode(bytes.Clone(r.Key))
		if err != nil {
			return Fail(ClassDecode, step, err)
		}
		row, _, ok, err := left(key)
		if err != nil {
			return Fail(ClassState, step, err)
		}
		now, err := hash.of(row, ok)
		if err != nil {
			return Fail(ClassState, step, err)
		}
		if now != r.Value.Row {
			t.Drop(step, "superseded")
			return nil
		}
		out := Record[K, V]{Key: key, NoValue: true, Timestamp: r.Timestamp, Headers: r.Headers}
		if ok && (r.Value.OK || kind == LeftJoin) {
			if out.Value, err = join(key, row, r.Value.Value, r.Value.OK); err != nil {
				return err
			}
			out.NoValue = null(out.Value)
		}
		return put(out)
	}
}

func appendForeignKey(dst, fk []byte) []byte {
	return append(binary.BigEndian.AppendUint32(dst, uint32(len(fk))), fk...)
}

// SubscriptionKeySerde encodes subscription keys.
func SubscriptionKeySerde(name string) serde.Serde[SubscriptionKey] {
	return subscriptionKeySerde(name)
}

type subscriptionKeySerde string

func (s subscriptionKeySerde) Append(dst []byte, k SubscriptionKey) ([]byte, error) {
	return append(appendForeignKey(dst, k.ForeignKey), k.Key...), nil
}

func (s subscriptionKeySerde) Decode(data []byte) (SubscriptionKey, error) {
	if len(data) < 4 || uint64(binary.BigEndian.Uint32(data)) > uint64(len(data)-4) {
		return SubscriptionKey{}, errors.New("key of a subscription: malformed")
	}
	end := 4 + int(binary.BigEndian.Uint32(data))
	return SubscriptionKey{data[4:end:end], data[end:]}, nil
}

func (s subscriptionKeySerde) Name() string { return "subscription(" + string(s) + ")" }

// SubscriptionSerde encodes subscriptions: a byte for what they ask for, the hash,
// the partition as 4 bytes big-endian, the encoded key of the left row.
func SubscriptionSerde(keys string) serde.Serde[Subscription] { return subscriptionSerde(keys) }

type subscriptionSerde string

func (s subscriptionSerde) Append(dst []byte, sub Subscription) ([]byte, error) {
	dst = append(append(dst, byte(sub.Want)), sub.Row[:]...)
	dst = binary.BigEndian.AppendUint32(dst, uint32(sub.Partition))
	return append(dst, sub.Key...), nil
}

func (s subscriptionSerde) Decode(data []byte) (sub Subscription, err error) {
	if len(data) < 1+16+4 || Want(data[0]) < WantRow || Want(data[0]) > WantEndAnswer {
		return sub, errors.New("subscription of a foreign-key join: malformed; was the repartition topic written by another program?")
	}
	sub.Want, sub.Row = Want(data[0]), Hash(data[1:17])
	sub.Partition, sub.Key = int32(binary.BigEndian.Uint32(data[17:])), data[21:]
	return sub, nil
}

func (s subscriptionSerde) Name() string { return "subscription(" + string(s) + ")" }

// ResponseSerde encodes responses: 1 if there is a row, else 0, the hash, the
// partition as 4 bytes big-endian, the row.
func ResponseSerde[R any](values serde.Serde[R]) serde.Serde[Response[R]] {
	return responseSerde[R]{values}
}

type responseSerde[R any] struct{ values serde.Serde[R] }

func (s responseSerde[R]) Append(dst []byte, r Response[R]) ([]byte, error) {
	flag := byte(0)
	if r.OK {
		flag = 1
	}
	enc := append(append(dst, flag), r.Row[:]...)
	enc = binary.BigEndian.AppendUint32(enc, uint32(r.Partition))
	if !r.OK {
		return enc, nil
	}
	enc, err := s.values.Append(enc, r.Value)
	if err != nil {
		return dst, err
	}
	return enc, nil
}

func (s responseSerde[R]) Decode(data []byte) (r Response[R], err error) {
	if len(data) < 1+16+4 || data[0] > 1 || data[0] == 0 && len(data) > 21 {
		return r, errors.New("response of a foreign-key join: malformed; was the repartition topic written by another program?")
	}
	r.OK, r.Row, r.Partition = data[0] == 1, Hash(data[1:17]), int32(binary.BigEndian.Uint32(data[17:]))
	if r.OK {
		if r.Value, err = s.values.Decode(data[21:]); err != nil {
			return Response[R]{}, err
		}
	}
	return r, nil
}

func (s responseSerde[R]) Name() string { return fmt.Sprintf("response(%s)", s.values.Name()) }
