package llm

import (
	"net/http"
	"strconv"
	"testing"
	"time"
)

var noon = time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)

func TestParseRetryAfter(t *testing.T) {
	t.Parallel()
	for _, row := range []struct {
		name   string
		header map[string]string
		want   time.Duration
	}{
		{"none", nil, 0},
		{"seconds", map[string]string{"Retry-After": "20"}, 20 * time.Second},
		{"part of a second", map[string]string{"Retry-After": " 0.25 "}, 250 * time.Millisecond},
		{"longer than the 8 s of SDKs", map[string]string{"Retry-After": "7200"}, 2 * time.Hour},
		{"milliseconds", map[string]string{"Retry-After-Ms": "1500"}, 1500 * time.Millisecond},
		{"milliseconds are finer", map[string]string{"Retry-After-Ms": "1", "Retry-After": "2"}, time.Millisecond},
		{"Azure", map[string]string{"X-Ms-Retry-After-Ms": "40"}, 40 * time.Millisecond},
		{"unreadable milliseconds", map[string]string{"Retry-After-Ms": "soon", "Retry-After": "2"}, 2 * time.Second},
		{"date", map[string]string{"Retry-After": "Tue, 24 Nov 2026 12:01:30 GMT"}, 90 * time.Second},
		{"past date", map[string]string{"Retry-After": "Tue, 24 Nov 2026 11:00:00 GMT"}, 0},
		{"negative", map[string]string{"Retry-After": "-5"}, 0},
		{"no number", map[string]string{"Retry-After": "NaN"}, 0},
		{"endless", map[string]string{"Retry-After": "Inf"}, maxRetryAfter},
		{"far date", map[string]string{"Retry-After": "Fri, 31 Dec 9999 23:59:59 GMT"}, maxRetryAfter},
		{"rounded up", map[string]string{"Retry-After": "0.0000000001"}, 1},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			h := http.Header{}
			for k, v := range row.header {
				h.Set(k, v)
			}
			if got := ParseRetryAfter(h, noon); got != row.want {
				t.Errorf("got %s, want %s", got, row.want)
			}
		})
	}
}

func FuzzParseRetryAfter(f *testing.F) {
	for _, s := range []string{"1", "0.5", "1e400", "0x1p-2", "-1", "Tue, 24 Nov 2026 12:01:30 GMT", "Sunday, 06-Nov-94 08:49:37 GMT", "1_000", ""} {
		f.Add(s, s)
	}
	f.Fuzz(func(t *testing.T, ms, s string) {
		h := http.Header{"Retry-After-Ms": {ms}, "Retry-After": {s}}
		d := ParseRetryAfter(h, noon)
		if d < 0 || d > maxRetryAfter {
			t.Fatalf("%q, %q: %s is out of range", ms, s, d)
		}
		// Whole seconds are never shortened.
		if n, err := strconv.ParseUint(s, 10, 32); err == nil && ms == "" && d < min(time.Duration(n)*time.Second, maxRetryAfter) {
			t.Fatalf("%q: %s is less than asked for", s, d)
		}
	})
}
