package topology

import (
	"fmt"
	"time"

	"github.com/millrace/millrace/processors"
	"github.com/millrace/millrace/serde"
)

// Windowed is a key in a window: Start and End are ms since the epoch, End
// exclusive.
type Windowed[K any] = processors.Windowed[K]

// WindowedSerde encodes windowed keys as Kafka Streams does for time windows:
// the key's encoding, then the window's start as 8 bytes big-endian. The end is
// not written; size gives it back.
//
// A sink partitions by the key alone, so that all windows of a key are in the
// partition of the key; a repartition topic by the whole encoding.
func WindowedSerde[K any](key serde.Serde[K], size time.Duration) serde.Serde[Windowed[K]] {
	return processors.WindowedSerde(key, size)
}

// Windows says how a windowed aggregation cuts time; see [Tumbling] and
// [Hopping].
type Windows struct {
	processors.Windows
	grace bool // Grace was given
}

// A WindowOption configures windows.
type WindowOption interface{ window(*Windows) }

type windowOption func(*Windows)

func (f windowOption) window(w *Windows) { f(w) }

// Tumbling windows are [start, start+size) for every multiple of size from 0 on:
// aligned to the epoch, without gap or overlap. [Grace] must be given.
func Tumbling(size time.Duration, opts ...WindowOption) Windows {
	return Hopping(size, size, opts...)
}

// Hopping windows are [start, start+size) for every multiple of advance from 0
// on: aligned to the epoch, overlapping where advance is below size. A record
// counts in every window that contains it. [Grace] must be given.
func Hopping(size, advance time.Duration, opts ...WindowOption) Windows {
	w := Windows{Windows: processors.Windows{Size: size, Advance: advance}}
	for _, opt := range opts {
		opt.window(&w)
	}
	if w.Retention == 0 {
		w.Retention = w.Size + w.Grace
	}
	return w
}

// Grace is how long after its end a window still takes late records: it closes
// when stream time reaches its end + d. There is no default, since a longer
// grace counts more late records and a shorter one needs less state; Grace(0)
// takes none.
//
// A join of a stream with a table that has a history holds its records back for
// the grace, so that updates of the table that come late are seen; see [Versioned].
func Grace(d time.Duration) GraceOption { return grace(d) }

// A GraceOption fits windows, and joins with a table that has a history.
type GraceOption interface {
	WindowOption
	JoinOption
}

type grace time.Duration

func (d grace) window(w *Windows)   { w.Grace, w.grace = time.Duration(d), true }
func (d grace) join(o *joinOptions) { o.grace = (*time.Duration)(&d) }

// Retention is how long the store keeps a window, counted from its start in
// stream time, for queries and lookups: at least size + grace. Default: size +
// grace.
func Retention(d time.Duration) WindowOption {
	return windowOption(func(w *Windows) { w.Retention = d })
}

// EmitFinal emits one result per key and window, when the window closes, instead
// of every update: ordered by window start, then by encoded key. Only a record
// moves stream time, so the last windows of an input that has gone idle stay
// open. A restart neither repeats nor loses a result.
//
// Kafka Streams looks for closed windows at most once per second of wall clock;
// here every record that closes a window emits it, so that the output depends on
// the input only.
func EmitFinal() WindowOption {
	return windowOption(func(w *Windows) { w.Final = true })
}

// check returns what is wrong with w.
func (w Windows) check() []error {
	var errs []error
	fail := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if w.Size <= 0 || w.Size%time.Millisecond != 0 {
		fail("a window size of %s; it must be a positive number of milliseconds", w.Size)
	} else if w.Advance <= 0 || w.Advance > w.Size || w.Advance%time.Millisecond != 0 {
		fail("an advance of %s; it must be a positive number of milliseconds up to the size, %s", w.Advance, w.Size)
	}
	switch {
	case !w.grace:
		fail("no grace; pass topology.Grace, for example topology.Grace(0) to take no late records")
	case w.Grace < 0 || w.Grace%time.Millisecond != 0:
		fail("a grace of %s; it must be a number of milliseconds, 0 or more", w.Grace)
	case len(errs) == 0 && (w.Retention < w.Size+w.Grace || w.Retention%time.Millisecond != 0):
		fail("a retention of %s; it must be a number of milliseconds, at least size + grace = %s", w.Retention, w.Size+w.Grace)
	}
	return errs
}

// String describes the windows, for the fingerprint and Describe.
func (w Windows) String() string {
	s := fmt.Sprintf("tumbling %s", w.Size)
	if w.Advance != w.Size {
		s = fmt.Sprintf("hopping %s by %s", w.Size, w.Advance)
	}
	s += fmt.Sprintf(", grace %s, retention %s", w.Grace, w.Retention)
	if w.Final {
		s += ", final"
	}
	return s
}
