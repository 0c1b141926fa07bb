package audit

import (
	"fmt"
	"math"
	"slices"
	"strconv"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"google.golang.org/protobuf/proto"

	reviewsv1 "github.com/millrace/millrace/examples/reviews/proto/reviews/v1"
)

// A Tally is what an audit found. An event counts once, by its first outcome.
type Tally struct {
	Events       int // in the source topic
	Enriched     int
	DeadLettered int
	Fallbacks    int
	Duplicates   int // outcomes beyond the first of their event
	Lost         int // events without an outcome, so far
	Stray        int // outcomes of events that are not in the source
	Problems     int // invalid messages, dead letters of no event, repeated lines, counts out of order

	// Correlation is Pearson's between the human ratings and the model's scores,
	// NaN where it is not defined: fewer than two ratings, or all the same.
	Correlation float64
	Rated       int // events behind Correlation
	P50, P99    time.Duration
}

// Done is the number of events that have an outcome.
func (t Tally) Done() int { return t.Enriched + t.DeadLettered + t.Fallbacks }

// Tally returns the figures so far.
func (a *Audit) Tally() Tally {
	a.mu.Lock()
	defer a.mu.Unlock()
	t := a.tally
	for _, e := range a.events {
		switch {
		case e.inSource && e.outcomes == 0:
			t.Lost++
		case !e.inSource && e.outcomes > 0:
			t.Stray++
		}
	}
	for _, n := range a.early {
		t.Stray += n
	}
	t.Correlation, t.Rated = pearson(a.pairs), len(a.pairs)
	sorted := slices.Clone(a.latencies)
	slices.Sort(sorted)
	t.P50, t.P99 = percentile(sorted, 0.50), percentile(sorted, 0.99)
	return t
}

// Problems describes the first things found that must not be.
func (a *Audit) Problems() []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.Clone(a.problems)
}

// pearson is the correlation of the pairs, NaN if it is not defined.
func pearson(pairs []pair) float64 {
	n := float64(len(pairs))
	var mr, ms float64
	for _, p := range pairs {
		mr += p.rating / n
		ms += p.score / n
	}
	var cov, vr, vs float64
	for _, p := range pairs {
		dr, ds := p.rating-mr, p.score-ms
		cov += dr * ds
		vr += dr * dr
		vs += ds * ds
	}
	if len(pairs) < 2 || vr == 0 || vs == 0 {
		return math.NaN()
	}
	return cov / math.Sqrt(vr*vs)
}

// percentile returns the smallest value of a sorted slice that at least the
// share q of the values does not exceed, 0 if there is none.
func percentile(sorted []time.Duration, q float64) time.Duration {
	if len(sorted) == 0 {
		return 0
	}
	i := int(math.Ceil(q*float64(len(sorted)))) - 1
	return sorted[max(0, min(i, len(sorted)-1))]
}

// Minute is the size of the windows in the per-minute counts.
const Minute = time.Minute

// window names a product's window; start is -1 for all time.
type window struct {
	product string
	start   int64 // ms since the epoch
}

// counts compares the counts that the application wrote with those of the
// enriched sentences.
type counts struct {
	want, got map[window]int64
}

func newCounts() counts { return counts{want: map[window]int64{}, got: map[window]int64{}} }

// expect counts an enriched sentence of a product.
func (c *counts) expect(product string, at time.Time) {
	c.want[window{product, -1}]++
	c.want[window{product, at.Truncate(Minute).UnixMilli()}]++
}

// take reads a count that the application wrote: each must be above the one
// before it.
func (c *counts) take(r *kgo.Record, windowed bool) error {
	var m reviewsv1.ProductCount
	if err := proto.Unmarshal(r.Value, &m); err != nil {
		return fmt.Errorf("not a ProductCount: %w", err)
	}
	w := window{m.GetProductId(), -1}
	if windowed {
		w.start = m.GetWindowStartMs()
	}
	before := c.got[w]
	c.got[w] = m.GetSentences()
	if m.GetSentences() <= before {
		return fmt.Errorf("the count of %s went from %d to %d", w, before, m.GetSentences())
	}
	return nil
}

func (w window) String() string {
	if w.start < 0 {
		return fmt.Sprintf("product %q", w.product)
	}
	return fmt.Sprintf("product %q in the minute of %s", w.product, time.UnixMilli(w.start).UTC().Format(time.RFC3339))
}

// WrongCounts returns how many counts per product and per minute differ from the
// enriched sentences, so far, and an example.
func (a *Audit) WrongCounts() (n int, example string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	wrong := func(w window) {
		n++
		example = fmt.Sprintf("%s: counted %d, there are %d", w, a.counts.got[w], a.counts.want[w])
	}
	for w, want := range a.counts.want {
		if a.counts.got[w] != want {
			wrong(w)
		}
	}
	for w := range a.counts.got {
		if a.counts.want[w] == 0 {
			wrong(w)
		}
	}
	return n, example
}

// A ProductCount is the number of enriched sentences of a product.
type ProductCount struct {
	Product   string
	Sentences int64
}

// PerProduct returns the counts per product as the application wrote them, in
// order of product.
func (a *Audit) PerProduct() []ProductCount {
	a.mu.Lock()
	defer a.mu.Unlock()
	var out []ProductCount
	for w, n := range a.counts.got {
		if w.start < 0 {
			out = append(out, ProductCount{w.product, n})
		}
	}
	slices.SortFunc(out, func(x, y ProductCount) int {
		if x.Product < y.Product {
			return -1
		}
		return 1
	})
	return out
}

func header(r *kgo.Record, key string) string {
	for _, h := range slices.Backward(r.Headers) { // the last one counts
		if h.Key == key {
			return string(h.Value)
		}
	}
	return ""
}

func headerInt(r *kgo.Record, key string) (int64, bool) {
	n, err := strconv.ParseInt(header(r, key), 10, 64)
	return n, err == nil
}
