package llm

import (
	"math"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// maxRetryAfter bounds what is believed of a provider, so that times stay in range.
const maxRetryAfter = 365 * 24 * time.Hour

// ParseRetryAfter returns the least time to wait that an HTTP answer asks for, 0 if
// it asks for none or nothing that can be read. It knows retry-after-ms (OpenAI) and
// x-ms-retry-after-ms (Azure), both in milliseconds, and Retry-After in seconds,
// whole or not, or as a date, which is counted from now.
func ParseRetryAfter(h http.Header, now time.Time) time.Duration {
	for _, name := range []string{"Retry-After-Ms", "X-Ms-Retry-After-Ms"} {
		if d, ok := parseUnits(h.Get(name), time.Millisecond); ok {
			return d
		}
	}
	v := h.Get("Retry-After")
	if d, ok := parseUnits(v, time.Second); ok {
		return d
	}
	if t, err := http.ParseTime(v); err == nil {
		return min(max(t.Sub(now), 0), maxRetryAfter)
	}
	return 0
}

// parseUnits reads a decimal count of units that is not negative.
func parseUnits(s string, unit time.Duration) (time.Duration, bool) {
	n, err := strconv.ParseFloat(strings.TrimSpace(s), 64)
	if err != nil || math.IsNaN(n) || n < 0 {
		return 0, false
	}
	if ns := math.Ceil(n * float64(unit)); ns < float64(maxRetryAfter) {
		return time.Duration(ns), true
	}
	return maxRetryAfter, true
}
