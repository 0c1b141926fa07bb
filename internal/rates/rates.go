// Package rates counts events over a sliding window, and compares what a prompt
// version does there with what came before. Its types are not safe for concurrent use,
// and take the time from outside.
package rates

import "time"

// slices is how many parts a window has: it slides by one of them.
const slices = 10

// A Window sums N counts over the last part of time.
type Window struct {
	length time.Duration
	parts  [slices][]int64
	number int64 // of the newest part
	n      int
	old    func([]int64, time.Time) // takes a part that leaves; may be nil
}

// NewWindow returns a window of a length over n counts.
func NewWindow(length time.Duration, n int) *Window {
	w := &Window{length: length, n: n}
	for i := range w.parts {
		w.parts[i] = make([]int64, n)
	}
	return w
}

// Add adds to a count at a time.
func (w *Window) Add(i int, delta int64, now time.Time) {
	w.slide(now)
	w.parts[w.number%slices][i] += delta
}

// Sums returns the counts of the window that ends now.
func (w *Window) Sums(now time.Time) []int64 {
	w.slide(now)
	sums := make([]int64, w.n)
	for _, p := range w.parts {
		for i, v := range p {
			sums[i] += v
		}
	}
	return sums
}

func (w *Window) slide(now time.Time) {
	part := max(int64(w.length)/slices, 1)
	current := now.UnixNano() / part
	if w.number == 0 {
		w.number = current
	}
	if current <= w.number {
		return
	}
	for n := max(w.number+1, current-slices+1); n <= current; n++ {
		p := w.parts[n%slices]
		if w.old != nil {
			w.old(p, time.Unix(0, n*part))
		}
		clear(p)
	}
	w.number = current
}

// Rate returns part/whole, 0 of nothing.
func Rate(part, whole float64) float64 {
	if whole <= 0 {
		return 0
	}
	return part / whole
}
