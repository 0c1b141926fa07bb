package llm

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// TestBreaker plays scripts of attempts: a letter is an attempt that succeeds (s),
// is unavailable (u), times out (t), is throttled (h), too long (l), without money
// (m), refused for its key (a), cancelled (c); a digit lets that many seconds pass, R
// resets. Capital O and C check that the breaker refuses or admits.
func TestBreaker(t *testing.T) {
	t.Parallel()
	classes := map[rune]Class{'u': Unavailable, 't': Timeout, 'h': Throttled, 'l': ContextTooLong, 'm': NoMoney, 'a': Auth}
	for _, row := range []struct{ name, script, states string }{
		{"too few attempts", "uuuC", ""},
		{"half of the attempts", "ssuuO", "open"},
		{"fewer than half", "sssuuC", ""},
		{"timeouts", "ttttO", "open"},
		{"many in a row after more successes", "ssssssssss" + "uuuhuO", "open"},
		{"not in a row after more successes", "ssssssssss" + "uuusuuuC", ""},
		{"other answers are successes", "lllluuuC", ""},
		{"throttled ones do not count", "hhhhhhuuuuO", "open"},
		{"old failures are forgotten", "uuu9" + "9C" + "uuuC", ""},
		{"failures within the window", "uu5uuO", "open"},
		{"probes close it", "uuuu4O1CsCsCuuuC", "open half_open closed"},
		{"a failed probe opens it again", "uuuu5Cs" + "uO4O1C", "open half_open open"},
		{"a throttled probe decides nothing", "uuuu5hhhhCssC", "open half_open closed"},
		{"a cancelled probe is given back", "uuuu5ccccCssC", "open half_open closed"},
		{"no money at once, until told", "sssmO99999ORC", "open closed"},
		{"auth at once, until told", "aO99999OR", "open closed"},
		{"no money while probing", "uuuu5mO9999O", "open half_open open"},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				var states []string
				b, err := NewBreakers(BreakerConfig{
					MinAttempts: 4, Window: 15 * sec, OpenFor: 5 * sec,
					OnChange: func(c BreakerChange) { states = append(states, string(c.To)) },
				})
				if err != nil {
					t.Fatal(err)
				}
				for i, r := range row.script {
					open, _ := b.Admit(small)
					switch {
					case r >= '0' && r <= '9':
						pass(time.Duration(r-'0') * sec)
					case r == 'R':
						b.Reset(small)
					case r == 'O' || r == 'C':
						if open != (r == 'O') {
							t.Fatalf("%q at %d: open is %v", row.script, i, open)
						}
					default:
						p, refused := b.enter(small)
						if refused != nil {
							t.Fatalf("%q at %d: %v", row.script, i, refused)
						}
						var e *Error
						if class := classes[r]; class != "" {
							e = &Error{Class: class, Model: small, Err: errors.New("scripted")}
						}
						p.leave(e, r != 'c')
					}
				}
				if got := strings.Join(states, " "); got != row.states {
					t.Errorf("states %q, want %q", got, row.states)
				}
			})
		})
	}
}

// TestProbesAreFew checks that a half-open breaker lets only its probes out at once,
// and that what was asked before it opened says nothing about it.
func TestProbesAreFew(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b, _ := NewBreakers(BreakerConfig{MinAttempts: 1, Probes: 2, OpenFor: 5 * sec})
		down := &Error{Class: Unavailable, Err: errors.New("scripted")}
		late, _ := b.enter(small)
		first, _ := b.enter(small)
		first.leave(down, true)
		pass(5 * sec)
		one, _ := b.enter(small)
		two, _ := b.enter(small)
		if one == nil || two == nil {
			t.Fatal("a probe was refused")
		}
		if p, open := b.enter(small); p != nil || open.RetryAt != (time.Time{}) {
			t.Error("a third probe was let out")
		}
		late.leave(down, true)
		one.leave(nil, true)
		if state, _ := b.State(small); state != BreakerHalfOpen {
			t.Errorf("state %s after a late result and one good probe", state)
		}
		two.leave(nil, true)
		if state, cause := b.State(small); state != BreakerClosed || cause != nil {
			t.Errorf("state %s, %v after two good probes", state, cause)
		}
		if state, _ := b.State(big); state != BreakerClosed || !slices.Equal(b.Models(), []ID{big, small}) {
			t.Error("models share a breaker")
		}
	})
}

// TestRetryAfterKeepsBreakerOpen checks that a provider's Retry-After outlasts OpenFor.
func TestRetryAfterKeepsBreakerOpen(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b, _ := NewBreakers(BreakerConfig{MinAttempts: 1})
		p, _ := b.enter(small)
		p.leave(&Error{Class: Unavailable, RetryAfter: time.Minute, Err: errors.New("maintenance")}, true)
		if open, at := b.Admit(small); !open || time.Until(at) != time.Minute {
			t.Errorf("open %v until %v", open, at)
		}
	})
}

// TestBreakerNeverSticks plays random attempts against a model that recovers: from
// whatever state, it is admitted again.
func TestBreakerNeverSticks(t *testing.T) {
	t.Parallel()
	for seed := range uint64(100) {
		synctest.Test(t, func(t *testing.T) {
			rnd := rand.New(rand.NewPCG(seed, 0))
			b, _ := NewBreakers(BreakerConfig{MinAttempts: 3})
			var out []*permit
			for range 300 {
				switch rnd.IntN(4) {
				case 0:
					pass(rand.N(8 * sec))
				case 1, 2:
					if p, _ := b.enter(small); p != nil {
						out = append(out, p)
					}
				case 3:
					if len(out) == 0 {
						continue
					}
					i := rnd.IntN(len(out))
					classes := []Class{"", Unavailable, Throttled, Timeout, Refused}
					var e *Error
					if class := classes[rnd.IntN(len(classes))]; class != "" {
						e = &Error{Class: class, Err: errors.New("random")}
					}
					out[i].leave(e, rnd.IntN(5) > 0)
					out = slices.Delete(out, i, i+1)
				}
			}
			for _, p := range out {
				p.leave(nil, false)
			}
			pass(10 * sec)
			for range 2 {
				p, open := b.enter(small)
				if open != nil {
					t.Fatalf("seed %d: %v", seed, open)
				}
				p.leave(nil, true)
			}
			if state, _ := b.State(small); state != BreakerClosed {
				t.Fatalf("seed %d: state %s", seed, state)
			}
		})
	}
}

func TestBreakerConfiguration(t *testing.T) {
	t.Parallel()
	for _, c := range []BreakerConfig{{FailureRate: 1.5}, {FailureRate: -1}, {Window: -1}, {Probes: -1}} {
		if _, err := NewBreakers(c); err == nil {
			t.Errorf("%s is no error", fmt.Sprintf("%+v", c))
		}
	}
}
