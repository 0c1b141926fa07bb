package limit

import (
	"net/http"
	"strconv"
)

// remaining is what a provider says is left of its limits; -1 where it says nothing.
type remaining amounts

func (r remaining) of(i int) (float64, bool) { return r[i], r[i] >= 0 }

// remainingHeaders names the headers of OpenAI (and Azure, vLLM, gateways that copy
// it) and of Anthropic. The limits they tell are not taken: providers differ in
// whether those are for a second, a minute or a day.
var remainingHeaders = [dimensions][]string{
	requests: {"X-Ratelimit-Remaining-Requests", "Anthropic-Ratelimit-Requests-Remaining"},
	input:    {"Anthropic-Ratelimit-Input-Tokens-Remaining"},
	output:   {"Anthropic-Ratelimit-Output-Tokens-Remaining"},
	tokens:   {"X-Ratelimit-Remaining-Tokens", "Anthropic-Ratelimit-Tokens-Remaining"},
}

// parseRemaining reads the headers of an answer. Where several speak of one limit the
// least counts; what cannot be read is left out.
func parseRemaining(h http.Header) remaining {
	var r remaining
	for i, names := range remainingHeaders {
		r[i] = -1
		for _, name := range names {
			n, err := strconv.ParseInt(h.Get(name), 10, 64)
			if err == nil && n >= 0 && (r[i] < 0 || float64(n) < r[i]) {
				r[i] = float64(n)
			}
		}
	}
	return r
}
