package limit

import (
	"math"
	"sync"

	"github.com/millrace/millrace/llm"
)

const (
	bytesPerToken = 3.5
	// perMessage is what the provider's template adds to each message.
	perMessage = 8
	// weight is that of the newest usage in what is learned.
	weight = 0.1
	// unboundedOutput is the estimate of an answer of which nothing is known.
	unboundedOutput = 1024
	// maxOutput is the longest answer that is believed.
	maxOutput = 1 << 18
)

// estimator guesses the tokens of requests and learns from their usage.
type estimator struct {
	mu     sync.Mutex
	ratio  float64 // of real to plain input tokens; 0: nothing learned
	output float64 // tokens of an answer; 0: nothing learned
}

// estimate is a guess.
type estimate struct {
	plain         float64 // bytes/3.5: what ratios refer to
	input, output int64
	max           int64 // MaxTokens, or the output if that is not set
	limit         int64 // MaxTokens
}

func (e estimate) need() amounts {
	return amounts{requests: 1, input: float64(e.input), output: float64(e.output), tokens: float64(e.input + e.max)}
}

func (s *estimator) estimate(req *llm.Request) estimate {
	plain := float64(req.Bytes())/bytesPerToken + perMessage*float64(len(req.Messages))
	s.mu.Lock()
	defer s.mu.Unlock()
	ratio, out := s.ratio, s.output
	if ratio == 0 {
		ratio = 1
	}
	limit := int64(req.MaxTokens)
	if out == 0 {
		out = unboundedOutput
		if limit > 0 {
			out = float64(limit)
		}
	}
	e := estimate{plain: plain, limit: limit, input: int64(math.Ceil(plain * ratio)), output: int64(math.Ceil(out)), max: limit}
	if limit <= 0 {
		e.max = e.output
	}
	e.output = min(e.output, e.max)
	return e
}

// learn moves what is known towards a usage, as far as it makes sense: no token is
// shorter than a byte, and no answer longer than it may be.
func (s *estimator) learn(e estimate, u llm.Usage) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if u.Input > 0 && e.plain > 0 {
		s.ratio = towards(s.ratio, min(max(float64(u.Input)/e.plain, 0.1), bytesPerToken))
	}
	if u.Output > 0 {
		out := u.Output
		if e.limit > 0 {
			out = min(out, e.limit)
		}
		s.output = towards(s.output, min(float64(out), maxOutput))
	}
}

func towards(known, seen float64) float64 {
	if known == 0 {
		return seen
	}
	return known + weight*(seen-known)
}
