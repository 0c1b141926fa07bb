package topology_test

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/millrace/millrace/topology"
	"github.com/millrace/millrace/topologytest"
)

// joinModel joins streams with lists: side 0 is the right one, 1 the left one.
type joinModel struct {
	reach     [2]int64 // a record of the side joins what is up to reach older
	ahead     [2]int64 // and up to ahead newer
	alone     [2]bool
	grace     int64
	retention int64

	now    int64
	clocks [2]int64
	kept   [2][]joinRecord
	waits  []joinRecord
	out    []string
}

type joinRecord struct {
	side    int
	key     string
	value   string
	at      int64
	partner bool
}

func (m *joinModel) pipe(r joinRecord) {
	m.now = max(m.now, r.at)
	if r.at == m.now {
		m.close()
	}
	other := 1 - r.side
	slices.SortStableFunc(m.kept[other], func(a, b joinRecord) int { return cmp.Compare(a.at, b.at) })
	for _, o := range m.kept[other] {
		if o.key != r.key || o.at < r.at-m.reach[r.side] || o.at > r.at+m.ahead[r.side] || o.at <= m.clocks[other]-m.retention {
			continue
		}
		r.partner = true
		m.waits = slices.DeleteFunc(m.waits, func(w joinRecord) bool { return w.value == o.value })
		left, right := r.value, o.value
		if r.side == 0 {
			left, right = right, left
		}
		m.out = append(m.out, fmt.Sprintf("%s:%s+%s@%d", r.key, left, right, max(r.at, o.at)))
	}
	if m.alone[r.side] && !r.partner {
		if r.at+m.ahead[r.side] < m.now {
			m.emit(r)
		} else {
			m.waits = append(m.waits, r)
		}
	}
	m.clocks[r.side] = max(m.clocks[r.side], r.at)
	m.kept[r.side] = append(m.kept[r.side], r)
}

func (m *joinModel) close() {
	slices.SortStableFunc(m.waits, func(a, b joinRecord) int {
		return cmp.Or(cmp.Compare(a.at, b.at), cmp.Compare(a.side, b.side), cmp.Compare(a.key, b.key))
	})
	m.waits = slices.DeleteFunc(m.waits, func(w joinRecord) bool {
		closed := w.at+m.ahead[w.side]+m.grace < m.now
		if closed {
			m.emit(w)
		}
		return closed
	})
}

func (m *joinModel) emit(r joinRecord) {
	text := fmt.Sprintf("%s:%s+@%d", r.key, r.value, r.at)
	if r.side == 0 {
		text = fmt.Sprintf("%s:+%s@%d", r.key, r.value, r.at)
	}
	m.out = append(m.out, text)
}

// TestStreamJoinsMatchModel feeds records out of order and late, with restarts.
func TestStreamJoinsMatchModel(t *testing.T) {
	t.Parallel()
	seeds(t, func(t *testing.T, r *rand.Rand) {
		before, after, grace := r.Int64N(15)-3, r.Int64N(15)+3, r.Int64N(10)
		w := topology.Between(ms(before), ms(after), topology.Grace(ms(grace)))
		kind := r.IntN(3)
		b := topology.New("app")
		left, right := streamOf(b, "left"), streamOf(b, "right")
		var joined *stream
		switch kind {
		case 0:
			joined = topology.StreamJoin(left, right, "j", w, func(l, r string) string { return l + "+" + r })
		case 1:
			joined = topology.StreamLeftJoin(left, right, "j", w, func(l, r string, _ bool) string { return l + "+" + r })
		default:
			joined = topology.StreamOuterJoin(left, right, "j", w, func(l string, _ bool, r string, _ bool) string { return l + "+" + r })
		}
		joined.To("out")
		d := topologytest.New(t, b)
		m := &joinModel{
			reach: [2]int64{after, before}, ahead: [2]int64{before, after}, alone: [2]bool{kind == 2, kind > 0},
			grace: grace, retention: max(1, before+after+grace), now: -1, clocks: [2]int64{-1, -1},
		}
		for i := range 300 {
			one := joinRecord{side: r.IntN(2), key: fmt.Sprint("k", r.IntN(3)), value: fmt.Sprint(i), at: max(0, m.now-r.Int64N(12)+r.Int64N(10))}
			topologytest.Input(d, [...]string{"right", "left"}[one.side], str, str).Pipe(one.key, one.value, one.at)
			m.pipe(one)
			if r.IntN(30) == 0 {
				d.Restart()
			}
		}
		if got := topologytest.Output(d, "out", str, str).Text(); !slices.Equal(got, m.out) {
			at := 0
			for at < min(len(got), len(m.out)) && got[at] == m.out[at] {
				at++
			}
			t.Errorf("kind %d, %s: after %d results got\n%s\nwant\n%s", kind, w, at,
				strings.Join(got[at:min(at+5, len(got))], " "), strings.Join(m.out[at:min(at+5, len(m.out))], " "))
		}
	})
}
