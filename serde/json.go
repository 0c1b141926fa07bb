package serde

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
)

// JSON returns the serde of T as JSON, with encoding/json's rules for tags and
// methods; <, > and & are not escaped, map keys are sorted. Decoding ignores
// unknown fields and refuses the JSON value null and anything after the value: a
// record without a value has null bytes, not JSON null.
//
// Its name is "json" for every T: changing T's fields keeps the state, and it is
// for you to see that old rows still decode.
func JSON[T any]() Serde[T] { return jsonSerde[T]{} }

type jsonSerde[T any] struct{}

var (
	jsonNull    = []byte("null")
	errJSONNull = errors.New("serde json: the value is JSON null; use a record without a value instead")
)

func (jsonSerde[T]) Append(dst []byte, v T) ([]byte, error) {
	buf := bytes.NewBuffer(dst)
	enc := json.NewEncoder(buf)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return dst, fmt.Errorf("serde json: encode %T: %w", v, err)
	}
	out := bytes.TrimSuffix(buf.Bytes(), []byte("\n")) // Encode ends with a newline
	if bytes.Equal(out[len(dst):], jsonNull) {
		return dst, errJSONNull
	}
	return out, nil
}

func (jsonSerde[T]) Decode(data []byte) (T, error) {
	var v, zero T
	if bytes.Equal(bytes.TrimSpace(data), jsonNull) {
		return zero, errJSONNull
	}
	if err := json.Unmarshal(data, &v); err != nil {
		return zero, fmt.Errorf("serde json: decode %T: %w", v, err)
	}
	return v, nil
}

func (jsonSerde[T]) Name() string { return "json" }
