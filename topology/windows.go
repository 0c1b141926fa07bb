package topology

import (
	"fmt"
	"time"

	"github.com/millrace/millrace/processors"
	"github.com/millrace/millrace/serde"
)

// Windowed is a key in a window: Start and End are ms since the epoch. End is
// exclusive for tumbling and hopping windows, inclusive for sliding windows and
// sessions, and the largest integer for an unlimited window.
type Windowed[K any] = processors.Windowed[K]

// WindowedSerde encodes windowed keys as Kafka Streams does for time windows:
// the key's encoding, then the window's start as 8 bytes big-endian. The end is
// not written; size gives it back: the size of tumbling and hopping windows, the
// difference of sliding ones, [UnlimitedSize] for an unlimited one.
//
// A sink partitions by the key alone, so that all windows of a key are in the
// partition of the key; a repartition topic by the whole encoding.
func WindowedSerde[K any](key serde.Serde[K], size time.Duration) serde.Serde[Windowed[K]] {
	return processors.WindowedSerde(key, size)
}

// UnlimitedSize is the size of an [Unlimited] window.
const UnlimitedSize = processors.Unlimited

// SessionSerde encodes the windowed keys of sessions as Kafka Streams does: the
// key's encoding, then the session's end and its start, 8 bytes big-endian each.
// A sink partitions by the key alone.
func SessionSerde[K any](key serde.Serde[K]) serde.Serde[Windowed[K]] {
	return processors.SessionSerde(key)
}

// Windows says how a windowed aggregation cuts time; see [Tumbling], [Hopping],
// [Sliding], [Session] and [Unlimited].
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
	return newWindows(processors.Windows{Size: size, Advance: advance}, size, opts)
}

// Sliding windows are [start, start+difference], both ends inclusive, around
// records: one ends at every record, and one starts 1 ms behind every record that
// has others that close behind it, so that two records are in one window if they
// are not further apart than difference. Records before the time difference share
// the window [0, difference]. [Grace] must be given.
//
// Records without a value are dropped ("null-value").
func Sliding(difference time.Duration, opts ...WindowOption) Windows {
	return newWindows(processors.Windows{Kind: processors.SlidingWindows, Size: difference}, 2*difference, opts)
}

// Session windows are the sessions of a key: [start, end] are the times of its
// first and its last record, both inclusive, and no record is further than gap
// from the next one. A record that connects sessions merges them: the old ones are
// deleted, then the new one is put. [Grace] must be given.
//
// Sessions do not depend on the order of records, within the grace: a session
// stays open until stream time has passed its end by more than gap + grace.
// (Kafka Streams overlooks a session that ended exactly gap + grace before stream
// time; here a record that is exactly the gap behind it extends it.)
func Session(gap time.Duration, opts ...WindowOption) Windows {
	return newWindows(processors.Windows{Kind: processors.SessionWindows, Size: gap}, gap, opts)
}

// Unlimited is one window that begins at start and never ends or closes: records
// before start are dropped ("early"). Its rows are kept forever, in a key-value
// store by their key alone. It has no [Grace], [Retention] or [EmitFinal].
func Unlimited(start time.Time, opts ...WindowOption) Windows {
	return newWindows(processors.Windows{Kind: processors.UnlimitedWindow, Size: UnlimitedSize, Start: start.UnixMilli()}, 0, opts)
}

// newWindows applies options; a window is kept for at least span + grace.
func newWindows(windows processors.Windows, span time.Duration, opts []WindowOption) Windows {
	w := Windows{Windows: windows}
	for _, opt := range opts {
		opt.window(&w)
	}
	if w.Retention == 0 && w.Kind != processors.UnlimitedWindow {
		w.Retention = span + w.Grace
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

// A GraceOption fits windows, joins of streams, and joins with a table that has a
// history.
type GraceOption interface {
	WindowOption
	JoinWindowOption
	JoinOption
}

type grace time.Duration

func (d grace) window(w *Windows)   { w.Grace, w.grace = time.Duration(d), true }
func (d grace) join(o *joinOptions) { o.grace = (*time.Duration)(&d) }

// Retention is how long, in stream time, the store keeps a window for queries and
// lookups: counted from its start at least size + grace, for sliding windows 2
// difference + grace, and from the end of a session at least gap + grace. Default:
// that.
func Retention(d time.Duration) WindowOption {
	return windowOption(func(w *Windows) { w.Retention = d })
}

// EmitFinal emits one result per key and window, when the window closes, instead
// of every update: ordered by window start, sessions by their end and their start,
// then by encoded key. A tumbling or hopping window closes when stream time reaches
// its end + grace, a sliding one when stream time passes it, a session when stream
// time passes its end + gap + grace. Only a record
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
	if w.Kind == processors.UnlimitedWindow {
		if w.Start < 0 {
			fail("an unlimited window that begins %d ms before 1970; begin it at 1970 or later", -w.Start)
		}
		if w.grace || w.Retention != 0 || w.Final {
			fail("an unlimited window never closes; leave Grace, Retention and EmitFinal out")
		}
		return errs
	}
	span, name, needs := w.Size, "a window size", "size + grace"
	switch w.Kind {
	case processors.SlidingWindows:
		span, name, needs = 2*w.Size, "a difference", "2 difference + grace"
	case processors.SessionWindows:
		name, needs = "a gap", "gap + grace"
	}
	if w.Size <= 0 || w.Size%time.Millisecond != 0 {
		fail("%s of %s; it must be a positive number of milliseconds", name, w.Size)
	} else if w.Kind == processors.TimeWindows && (w.Advance <= 0 || w.Advance > w.Size || w.Advance%time.Millisecond != 0) {
		fail("an advance of %s; it must be a positive number of milliseconds up to the size, %s", w.Advance, w.Size)
	}
	switch {
	case !w.grace:
		fail("no grace; pass topology.Grace, for example topology.Grace(0) to take no late records")
	case w.Grace < 0 || w.Grace%time.Millisecond != 0:
		fail("a grace of %s; it must be a number of milliseconds, 0 or more", w.Grace)
	case len(errs) == 0 && (w.Retention < span+w.Grace || w.Retention%time.Millisecond != 0):
		fail("a retention of %s; it must be a number of milliseconds, at least %s = %s", w.Retention, needs, span+w.Grace)
	}
	return errs
}

// closes is how long after its end in the key a window closes, in ms.
func (w Windows) closes() int64 {
	if w.Kind == processors.SessionWindows {
		return (w.Grace + w.Size).Milliseconds()
	}
	return w.Grace.Milliseconds()
}

// String describes the windows, for the fingerprint and Describe.
func (w Windows) String() string {
	var s string
	switch {
	case w.Kind == processors.UnlimitedWindow:
		return fmt.Sprintf("unlimited from %s", time.UnixMilli(w.Start).UTC().Format(time.RFC3339Nano))
	case w.Kind == processors.SlidingWindows:
		s = fmt.Sprintf("sliding %s", w.Size)
	case w.Kind == processors.SessionWindows:
		s = fmt.Sprintf("session, gap %s", w.Size)
	case w.Advance != w.Size:
		s = fmt.Sprintf("hopping %s by %s", w.Size, w.Advance)
	default:
		s = fmt.Sprintf("tumbling %s", w.Size)
	}
	s += fmt.Sprintf(", grace %s, retention %s", w.Grace, w.Retention)
	if w.Final {
		s += ", final"
	}
	return s
}
