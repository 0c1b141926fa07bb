package llmtest

import (
	"fmt"
	"hash/fnv"
	"math"
	"math/rand/v2"
	"net/http"
	"strconv"
	"time"

	"github.com/millrace/millrace/llm"
)

// A Step decides what happens to a call. It is called concurrently.
type Step func(*Call) Reply

// A Reply is what a call is answered with. Its zero value is an empty answer.
type Reply struct {
	Delay time.Duration // before anything is sent
	// Text is the model's answer, Finish why it ended ("" means stop), and Usage what
	// it cost (zero means an estimate by words).
	Text   string
	Finish llm.Finish
	Usage  llm.Usage
	// Fault, if set, makes it an error of the class in the form of the provider, with
	// the status that belongs to it, or Status.
	Fault   llm.Class
	Status  int
	Message string // of the fault; empty means a usual one
	Header  http.Header
	Body    []byte // sent instead of everything above, if not nil
	Hang    bool   // no answer until the caller gives up
	Cut     bool   // the connection ends in the middle of the answer
	Pad     int64  // bytes of white space sent before the answer
	// Unusable says that the caller will have to reject Text, for the statistics.
	Unusable bool
}

// Answer answers with a text.
func Answer(text string) Step { return func(*Call) Reply { return Reply{Text: text} } }

// AnswerWith answers with what f makes of the call.
func AnswerWith(f func(*Call) string) Step { return func(c *Call) Reply { return Reply{Text: f(c)} } }

// Fail answers with a failure of the class: an HTTP error in the form of the provider, or
// for Refused, Truncated and Violation an answer of that kind, for Timeout none, and
// for TooLarge one of 100 MB.
func Fail(class llm.Class) Step {
	switch class {
	case llm.Refused:
		return Refusal()
	case llm.Truncated:
		return Truncated()
	case llm.Violation:
		return WrongSchema()
	case llm.Timeout:
		return Hang()
	case llm.TooLarge:
		return Huge(100 << 20)
	}
	return func(*Call) Reply { return Reply{Fault: class} }
}

// RateLimited answers 429 and says how long to wait, in all the headers providers
// use.
func RateLimited(wait time.Duration) Step {
	h := http.Header{}
	h.Set("Retry-After-Ms", strconv.FormatInt(wait.Milliseconds(), 10))
	h.Set("Retry-After", strconv.FormatInt(int64((wait+time.Second-1)/time.Second), 10))
	h.Set("X-Ratelimit-Limit-Requests", "60")
	h.Set("X-Ratelimit-Remaining-Requests", "0")
	h.Set("X-Ratelimit-Reset-Requests", wait.String())
	return func(*Call) Reply { return Reply{Fault: llm.Throttled, Header: h} }
}

// Status answers with an error of that HTTP status in the form of the provider.
func Status(code int) Step {
	return func(*Call) Reply { return Reply{Fault: llm.Unavailable, Status: code} }
}

// Hang does not answer until the caller gives up.
func Hang() Step { return func(*Call) Reply { return Reply{Hang: true} } }

// Cut ends the connection in the middle of a good answer.
func Cut(text string) Step { return func(*Call) Reply { return Reply{Text: text, Cut: true} } }

// BadJSON answers with a text that only begins like JSON.
func BadJSON() Step {
	return func(*Call) Reply {
		return Reply{Text: `I would rather talk about the weather. {"rain": `, Unusable: true}
	}
}

// WrongSchema answers with a JSON object that no sensible schema allows.
func WrongSchema() Step {
	return func(*Call) Reply { return Reply{Text: `{"no_schema_has_this": [true, 7.5]}`, Unusable: true} }
}

// Refusal declines to answer.
func Refusal() Step {
	return func(*Call) Reply {
		return Reply{Text: "I'm sorry, I can't help with that.", Finish: llm.FinishRefusal, Unusable: true}
	}
}

// Truncated answers with the beginning of an answer.
func Truncated() Step {
	return func(*Call) Reply { return Reply{Text: `{"label": "posi`, Finish: llm.FinishLength, Unusable: true} }
}

// Huge sends an answer of n bytes.
func Huge(n int64) Step { return func(*Call) Reply { return Reply{Pad: n, Unusable: true} } }

// Raw sends a status, a header and a body as they are.
func Raw(status int, h http.Header, body string) Step {
	return func(*Call) Reply { return Reply{Status: status, Header: h, Body: []byte(body)} }
}

// Each makes steps happen in their order to every request by itself: the first to a
// request's first call, and the last to all further ones.
func Each(steps ...Step) Step {
	return func(c *Call) Reply { return steps[min(c.Times, len(steps)-1)](c) }
}

// A Latency is a distribution of times.
type Latency func(*rand.Rand) time.Duration

// Fixed is always d.
func Fixed(d time.Duration) Latency { return func(*rand.Rand) time.Duration { return d } }

// Lognormal is a lognormal distribution with that median and 99th percentile, as
// model servers have.
func Lognormal(p50, p99 time.Duration) Latency {
	const z99 = 2.3263478740408408
	sigma := math.Log(float64(p99)/float64(p50)) / z99
	return func(r *rand.Rand) time.Duration {
		return time.Duration(float64(p50) * math.Exp(sigma*r.NormFloat64()))
	}
}

// Delay lets a step take a time of the distribution. It depends on nothing but the
// seed, the call's key and how often that was seen before.
func Delay(seed uint64, l Latency, step Step) Step {
	return func(c *Call) Reply {
		reply := step(c)
		reply.Delay += l(dice(seed, "delay", c))
		return reply
	}
}

// A Fault is a step and its probability.
type Fault struct {
	P    float64
	Step Step
}

// Mix makes every call meet one of the faults with its probability, and otherwise
// good. Which one depends on nothing but the seed, the call's key and how often that
// was seen before, so that a run can be repeated whatever the order of its calls. It
// panics if probabilities are negative or add up to more than 1.
func Mix(seed uint64, good Step, faults ...Fault) Step {
	sum := 0.0
	for _, f := range faults {
		if !(f.P >= 0) {
			panic(fmt.Sprintf("llmtest: probability %v of a fault", f.P))
		}
		sum += f.P
	}
	if sum > 1+1e-9 {
		panic(fmt.Sprintf("llmtest: probabilities of faults add up to %v", sum))
	}
	return func(c *Call) Reply {
		x := dice(seed, "mix", c).Float64()
		for _, f := range faults {
			if x < f.P {
				return f.Step(c)
			}
			x -= f.P
		}
		return good(c)
	}
}

// Faults spreads a rate over all kinds of fault that pass by themselves: 429 with
// headers, 5xx, hangs, cut bodies, bad JSON, wrong schemas, refusals, answers that
// are cut at their limit and answers of 100 MB. Hangs and huge answers, which cost
// most, are the rarest.
func Faults(rate float64) []Fault {
	return []Fault{
		{0.20 * rate, RateLimited(200 * time.Millisecond)},
		{0.12 * rate, Status(http.StatusInternalServerError)},
		{0.08 * rate, Status(http.StatusServiceUnavailable)},
		{0.03 * rate, Hang()},
		{0.16 * rate, Cut(`{"cut": "in the middle"}`)},
		{0.14 * rate, BadJSON()},
		{0.14 * rate, WrongSchema()},
		{0.06 * rate, Refusal()},
		{0.06 * rate, Truncated()},
		{0.01 * rate, Huge(100 << 20)},
	}
}

func dice(seed uint64, use string, c *Call) *rand.Rand {
	h := fnv.New64a()
	_, _ = h.Write([]byte(use + "\n" + c.Key)) // never fails
	return rand.New(rand.NewPCG(seed^uint64(c.Times)*0x9e3779b97f4a7c15, h.Sum64()))
}
