package processors

import "reflect"

// NullCheck returns the test for the values of T that mean null: nil of a
// pointer, slice, map, interface, function or channel type. Values of other
// types never mean null.
func NullCheck[T any]() func(T) bool {
	switch reflect.TypeFor[T]().Kind() {
	case reflect.Interface:
		return func(v T) bool { return any(v) == nil }
	case reflect.Pointer, reflect.Map, reflect.Slice, reflect.Func, reflect.Chan:
		return func(v T) bool { return reflect.ValueOf(v).IsNil() }
	}
	return func(T) bool { return false }
}

// isReference reports whether a value of T may share memory with another, so
// that a user function can change a row that the caller still holds.
func isReference[T any]() bool {
	switch reflect.TypeFor[T]().Kind() {
	case reflect.Bool, reflect.String, reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64,
		reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64, reflect.Float32, reflect.Float64:
		return false
	}
	return true
}
