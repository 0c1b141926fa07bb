package limit

import (
	"math"
	"time"
)

const (
	// A learned rate grows by slow in a second, and by fast when there was no 429 for
	// the time of patience. It is given up when that was so for forget.
	slow, fast       = 0.05, 0.5
	patience, forget = 5 * time.Second, time.Minute
	// more makes up for the attempts that are refused while the rate is looked for.
	more = 1.1
	// keep is what a 429 leaves of a rate, if less was answered.
	keep = 0.7
	// least is the lowest rate that is learned, in requests a second.
	least = 1
	// signal is how long 429 answers tell one and the same thing.
	signal = time.Second
	// learnedBurst is for how many seconds a learned rate may be saved up: what a
	// pause held back may follow it.
	learnedBurst = 10
	// slot is the length of the spans that answers are counted in.
	slot = 5 * time.Second
)

// learned is the rate of requests that a provider took when it last refused some:
// what holds where no limit is set, or too high a one, or others use the same key.
type learned struct {
	perSecond float64   // 0: nothing learned
	at        time.Time // of perSecond
	throttled time.Time // when the last 429 came, or ended the wait it asked for
	// Attempts that were admitted and answered, in this slot and the one before.
	began              time.Time
	admitted, answered [2]float64
}

// advance brings the rate and the counts up to now.
func (l *learned) advance(now time.Time) {
	if s := now.Sub(l.at).Seconds(); l.perSecond > 0 && s > 0 {
		growth := 1 + slow
		calm := now.Sub(l.throttled)
		if calm > patience {
			growth = 1 + fast
		}
		l.perSecond, l.at = min(l.perSecond*math.Pow(growth, s), 1e9), now
		if calm > forget {
			l.perSecond = 0
		}
	}
	switch since := now.Sub(l.began); {
	case since >= 2*slot:
		l.began = now
		l.admitted, l.answered = [2]float64{}, [2]float64{}
	case since >= slot:
		l.began = l.began.Add(slot)
		l.admitted, l.answered = [2]float64{1: l.admitted[0]}, [2]float64{1: l.answered[0]}
	}
}

// lower learns from a 429 at now that asks to wait until a time: what was answered
// lately is what the provider takes, unless much more was tried.
func (l *learned) lower(now, until time.Time) {
	l.advance(now)
	if now.Sub(l.throttled) < signal {
		return
	}
	seconds := max(now.Sub(l.began).Seconds(), 1)
	if l.answered[1] > 0 || l.admitted[1] > 0 {
		seconds = (now.Sub(l.began) + slot).Seconds()
	}
	tried := l.perSecond
	if tried == 0 {
		tried = (l.admitted[0] + l.admitted[1]) / seconds
	}
	l.perSecond = max(more*(l.answered[0]+l.answered[1])/seconds, keep*tried, least)
	l.at, l.throttled = until, until
}
