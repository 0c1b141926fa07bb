// Command model stands for a provider in the benchmarks of model calls: it serves
// OpenAI's chat completions with one answer, with latencies, failures and a rate limit
// by flags, and counts what it serves.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"log"
	"math"
	"math/rand/v2"
	"net/http"
	"os/signal"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

func main() {
	addr := flag.String("addr", "", "loopback `address` to listen on")
	latency := flag.String("latency", "500ms", "of an answer: a duration, or lognormal:P50,P99")
	s := &server{}
	flag.StringVar(&s.answer, "answer", "", "`text` of every answer")
	flag.Float64Var(&s.fail, "fail", 0, "share of calls that end in 500")
	flag.Float64Var(&s.hang, "hang", 0, "share of calls that are never answered")
	flag.Float64Var(&s.limit, "limit", 0, "calls a second, others get a 429; 0 for no limit")
	flag.BoolVar(&s.greedy, "greedy", false, "every answer uses as many tokens as its request allows: one for each byte, and all of max_tokens")
	flag.Parse()
	var err error
	if s.latency, err = parseLatency(*latency); err != nil {
		log.Fatal(err)
	}
	s.last, s.filled = time.Now(), time.Now()
	mux := http.NewServeMux()
	mux.HandleFunc("POST /v1/chat/completions", s.complete)
	mux.HandleFunc("GET /stats", s.serveStats)
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	srv := &http.Server{Addr: *addr, Handler: mux, ReadHeaderTimeout: 10 * time.Second}
	go func() { // ends with the process
		<-ctx.Done()
		_ = srv.Close()
	}()
	fmt.Println("ready")
	if err := srv.ListenAndServe(); !errors.Is(err, http.ErrServerClosed) {
		log.Fatal(err)
	}
}

// parseLatency returns what draws latencies.
func parseLatency(s string) (func() time.Duration, error) {
	list, ok := strings.CutPrefix(s, "lognormal:")
	if !ok {
		d, err := time.ParseDuration(s)
		return func() time.Duration { return d }, err
	}
	half, tail, _ := strings.Cut(list, ",")
	p50, err1 := time.ParseDuration(half)
	p99, err2 := time.ParseDuration(tail)
	sigma := math.Log(p99.Seconds()/p50.Seconds()) / 2.3263 // the 99th percentile of a normal distribution
	return func() time.Duration {
		return time.Duration(p50.Seconds() * math.Exp(sigma*rand.NormFloat64()) * 1e9)
	}, errors.Join(err1, err2)
}

type server struct {
	answer            string
	latency           func() time.Duration
	fail, hang, limit float64
	greedy            bool

	mu     sync.Mutex
	stats  stats
	last   time.Time // of the latest change of stats.Running
	tokens float64   // of the limit
	filled time.Time
}

// stats are what the server has served so far.
type stats struct {
	Answered int `json:"answered"`
	Failed   int `json:"failed"`
	Refused  int `json:"refused"` // with a 429
	Running  int `json:"running"`
	Most     int `json:"most"`   // calls at once
	Tokens   int `json:"tokens"` // of all answers
	// Busy is the sum of the times of all calls so far, in seconds.
	Busy float64 `json:"busy"`
	// At is when, in seconds since the epoch.
	At float64 `json:"at"`
}

// change changes the number of running calls.
func (s *server) change(by int, count *int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	s.stats.Busy += float64(s.stats.Running) * now.Sub(s.last).Seconds()
	s.last = now
	s.stats.Running += by
	s.stats.Most = max(s.stats.Most, s.stats.Running)
	if count != nil {
		*count++
	}
}

func (s *server) serveStats(w http.ResponseWriter, _ *http.Request) {
	s.change(0, nil)
	s.mu.Lock()
	st := s.stats
	st.At = float64(s.last.UnixNano()) / 1e9
	s.mu.Unlock()
	_ = json.NewEncoder(w).Encode(st)
}

// take takes a token of the limit, or says when there will be one. A tenth of a
// second's tokens may be taken at once.
func (s *server) take() (wait time.Duration, ok bool) {
	if s.limit == 0 {
		return 0, true
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	s.tokens = min(s.tokens+now.Sub(s.filled).Seconds()*s.limit, max(s.limit/10, 1))
	s.filled = now
	if s.tokens < 1 {
		return time.Duration((1 - s.tokens) / s.limit * 1e9), false
	}
	s.tokens--
	return 0, true
}

func (s *server) complete(w http.ResponseWriter, r *http.Request) {
	var count *int
	s.change(1, nil)
	defer func() { s.change(-1, count) }()
	if wait, ok := s.take(); !ok {
		count = &s.stats.Refused
		w.Header().Set("Retry-After-Ms", strconv.FormatInt(max(wait.Milliseconds(), 1), 10))
		http.Error(w, `{"error":{"message":"slow down","type":"rate_limit_exceeded","code":"rate_limit_exceeded"}}`, http.StatusTooManyRequests)
		return
	}
	input, output := 200, 20
	if s.greedy {
		var err error
		if input, output, err = allowed(r); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
	}
	wait := s.latency()
	chance := rand.Float64()
	if chance < s.hang {
		wait = time.Hour
	}
	select {
	case <-time.After(wait):
	case <-r.Context().Done():
		count = &s.stats.Failed
		return
	}
	if chance < s.hang+s.fail {
		count = &s.stats.Failed
		http.Error(w, `{"error":{"message":"try again","type":"server_error"}}`, http.StatusInternalServerError)
		return
	}
	s.mu.Lock()
	s.stats.Tokens += input + output
	s.mu.Unlock()
	count = &s.stats.Answered
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(map[string]any{
		"id": "bench", "object": "chat.completion", "created": 1, "model": "bench",
		"choices": []any{map[string]any{
			"index": 0, "finish_reason": "stop",
			"message": map[string]any{"role": "assistant", "content": s.answer},
		}},
		"usage": map[string]any{"prompt_tokens": input, "completion_tokens": output, "total_tokens": input + output},
	})
}

// allowed returns the most tokens that a request can use: no token is shorter than a
// byte.
func allowed(r *http.Request) (input, output int, err error) {
	var body struct {
		Messages []struct {
			Content string `json:"content"`
		} `json:"messages"`
		MaxTokens           int             `json:"max_tokens"`
		MaxCompletionTokens int             `json:"max_completion_tokens"`
		Format              json.RawMessage `json:"response_format"`
	}
	if err := json.NewDecoder(r.Body).Decode(&body); err != nil {
		return 0, 0, err
	}
	var format struct {
		Schema struct {
			Schema json.RawMessage `json:"schema"`
		} `json:"json_schema"`
	}
	if len(body.Format) > 0 {
		if err := json.Unmarshal(body.Format, &format); err != nil {
			return 0, 0, err
		}
	}
	for _, m := range body.Messages {
		input += len(m.Content)
	}
	if output = max(body.MaxTokens, body.MaxCompletionTokens); output <= 0 {
		return 0, 0, errors.New("the request does not bound its answer")
	}
	return input + len(format.Schema.Schema), output, nil
}
