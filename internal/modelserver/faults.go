package modelserver

import (
	"errors"
	"fmt"
	"hash/fnv"
	"math"
	"math/rand/v2"
	"time"
)

// A fault is what the server does instead of answering well.
type fault uint8

const (
	faultNone        fault = iota
	faultRateLimited       // 429 with Retry-After
	faultServerError       // 500
	faultHang              // no answer until the caller gives up
	faultCut               // the connection ends in the middle of the answer
	faultMalformed         // the content is not JSON, or only its beginning
	faultWrongSchema       // the content is JSON that breaks the schema's rules
)

// Faults are the probabilities, from 0 to 1, with which a call meets each kind
// of fault. Their sum is at most 1.
type Faults struct {
	RateLimited float64 // 429 with Retry-After
	ServerError float64 // 500
	Hang        float64 // no answer until the caller gives up
	Cut         float64 // the connection ends in the middle of the answer
	Malformed   float64 // the content is not JSON
	WrongSchema float64 // the content is JSON that breaks the schema's rules
}

// Mix spreads a rate from 0 to 1 over all kinds of fault; hangs are the rarest.
func Mix(rate float64) Faults {
	return Faults{
		RateLimited: 0.25 * rate,
		ServerError: 0.25 * rate,
		Hang:        0.04 * rate,
		Cut:         0.16 * rate,
		Malformed:   0.15 * rate,
		WrongSchema: 0.15 * rate,
	}
}

func (f Faults) list() []float64 {
	return []float64{f.RateLimited, f.ServerError, f.Hang, f.Cut, f.Malformed, f.WrongSchema}
}

// Validate reports a probability outside of [0, 1] or a sum above 1.
func (f Faults) Validate() error {
	sum := 0.0
	for _, p := range f.list() {
		if !(p >= 0 && p <= 1) {
			return fmt.Errorf("fault probability %v: must be from 0 to 1", p)
		}
		sum += p
	}
	if sum > 1+1e-9 {
		return fmt.Errorf("fault probabilities add up to %.3g: at most 1", sum)
	}
	return nil
}

func (f Faults) pick(r *rand.Rand) fault {
	x := r.Float64()
	for i, p := range f.list() {
		if x < p {
			return faultRateLimited + fault(i)
		}
		x -= p
	}
	return faultNone
}

// Latency is the distribution of the time a call takes: log-normal around
// Median, and exactly Median when Sigma is 0. Sigma is the standard deviation of
// the logarithm: with 0.5, one call in forty takes longer than 2.7 medians.
type Latency struct {
	Median time.Duration
	Sigma  float64
}

// Validate reports a negative median or sigma.
func (l Latency) Validate() error {
	if l.Median < 0 || !(l.Sigma >= 0 && l.Sigma <= 5) {
		return errors.New("latency: the median must not be negative, and sigma from 0 to 5")
	}
	return nil
}

func (l Latency) sample(r *rand.Rand) time.Duration {
	return time.Duration(float64(l.Median) * math.Exp(l.Sigma*r.NormFloat64()))
}

// dice returns the random numbers of the n-th request with that body. They
// depend on nothing else, so that a run repeats whatever the order of its calls.
func dice(seed uint64, body []byte, n int) *rand.Rand {
	h := fnv.New64a()
	h.Write(body)
	return rand.New(rand.NewPCG(seed^uint64(n)*0x9e3779b97f4a7c15, h.Sum64()))
}
