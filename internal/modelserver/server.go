// Package modelserver is an HTTP server that speaks OpenAI's chat completions
// API around a real, classical sentiment model, [VADER], and can be told to
// misbehave in the ways model servers do: slow, rate limited, failing, hanging,
// cut off, malformed. It keeps a [Ledger] of who asked what, and so can say
// whether a caller paid for the same answer twice.
package modelserver

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// ModelName is the name under which the model is served.
const ModelName = "vader"

// maxBody is the largest request body accepted, in bytes.
const maxBody = 4 << 20

// Config sets up a [Server]. Its zero value answers at once and never fails.
type Config struct {
	Latency Latency
	Faults  Faults
	// Seed makes latencies and faults repeatable: they depend only on the seed,
	// the body of a request, and how often that body was seen before.
	Seed uint64
	// RetryAfter is what a rate-limited caller is told to wait, 200 ms if 0. It
	// is sent as Retry-After-Ms and, in whole seconds rounded up, as Retry-After.
	RetryAfter time.Duration
	// Ledger counts the calls; nil means a new one.
	Ledger *Ledger
}

// A Server is an [http.Handler] with these routes:
//
//	POST /v1/chat/completions   a sentiment for the last user message, or the data in it
//	GET  /v1/models             the one model, "vader"
//	GET  /stats                 the ledger's figures as JSON
//	POST /owners/{owner}/died   tells the ledger that a process died
//
// It is safe for concurrent use.
type Server struct {
	cfg    Config
	model  *VADER
	ledger *Ledger
	mux    *http.ServeMux
	start  int64

	mu     sync.Mutex
	seen   map[string]int // requests by body, when a run has to be repeatable
	served int
}

// New returns a server, or an error naming what is wrong with cfg.
func New(cfg Config) (*Server, error) {
	if err := errors.Join(cfg.Latency.Validate(), cfg.Faults.Validate()); err != nil {
		return nil, fmt.Errorf("model server: %w", err)
	}
	if cfg.RetryAfter <= 0 {
		cfg.RetryAfter = 200 * time.Millisecond
	}
	if cfg.Ledger == nil {
		cfg.Ledger = NewLedger(nil)
	}
	s := &Server{cfg: cfg, model: NewVADER(), ledger: cfg.Ledger, mux: http.NewServeMux(), start: time.Now().Unix(), seen: map[string]int{}}
	s.mux.HandleFunc("POST /v1/chat/completions", s.complete)
	s.mux.HandleFunc("GET /v1/models", s.models)
	s.mux.HandleFunc("GET /stats", func(w http.ResponseWriter, _ *http.Request) { writeJSON(w, http.StatusOK, s.ledger.Stats()) })
	s.mux.HandleFunc("POST /owners/{owner}/died", func(w http.ResponseWriter, r *http.Request) {
		s.ledger.OwnerDied(r.PathValue("owner"))
		w.WriteHeader(http.StatusNoContent)
	})
	s.mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		writeError(w, http.StatusNotFound, "invalid_request_error", "unknown_url", fmt.Sprintf("Unknown request URL: %s %s.", r.Method, r.URL.Path))
	})
	return s, nil
}

// Ledger returns the server's ledger.
func (s *Server) Ledger() *Ledger { return s.ledger }

func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) { s.mux.ServeHTTP(w, r) }

// HTTPServer returns a server for h with limits and time-outs, which tells the
// ledger of calls made through h when a caller hangs up after its answer.
func HTTPServer(h http.Handler) *http.Server {
	var phones sync.Map // by connection: net/http hands ConnState nothing else
	return &http.Server{
		Handler:           h,
		ReadHeaderTimeout: 10 * time.Second,
		IdleTimeout:       5 * time.Minute,
		MaxHeaderBytes:    64 << 10,
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			p := &phone{}
			phones.Store(c, p)
			return context.WithValue(ctx, phoneKey{}, p)
		},
		ConnState: func(c net.Conn, state http.ConnState) {
			if state != http.StateClosed {
				return
			}
			if p, ok := phones.LoadAndDelete(c); ok {
				p.(*phone).hangUp()
			}
		},
	}
}

type phoneKey struct{}

// A phone is a connection and the last call that was answered on it.
type phone struct {
	mu   sync.Mutex
	last *Call
}

func (p *phone) answered(c *Call) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.last = c
}

func (p *phone) hangUp() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.last != nil {
		p.last.HungUp()
	}
}

// track begins a call for r and returns the function that ends it.
func track(l *Ledger, r *http.Request) (end func(Outcome)) {
	return Track(l, IDFromHeader(r.Header), r)
}

// Track begins a call that r made, labelled id, and returns the function that ends
// it; only the first end counts. If r came over a [HTTPServer], the ledger also
// learns whether its caller hung up after the answer.
func Track(l *Ledger, id CallID, r *http.Request) (end func(Outcome)) {
	call := l.Begin(id)
	p, _ := r.Context().Value(phoneKey{}).(*phone)
	if p != nil {
		p.answered(nil)
	}
	return func(o Outcome) {
		call.End(o)
		if p != nil && (o == Answered || o == Sent) {
			p.answered(call)
		}
	}
}

type request struct {
	Model    string `json:"model"`
	Messages []struct {
		Role    string          `json:"role"`
		Content json.RawMessage `json:"content"`
	} `json:"messages"`
	Stream         bool            `json:"stream"`
	N              *int            `json:"n"`
	ResponseFormat *responseFormat `json:"response_format"`
}

type responseFormat struct {
	Type       string `json:"type"`
	JSONSchema struct {
		Schema schema `json:"schema"`
	} `json:"json_schema"`
}

// text is what is to be judged: the last text in data marks of the last user message
// that has one, else the last user message. So a request to answer again is about
// what the first one was.
func (q *request) text() (string, bool) {
	last, found := "", false
	for _, m := range slices.Backward(q.Messages) {
		if m.Role != "user" {
			continue
		}
		s, ok := plainText(m.Content)
		if !ok {
			return "", false
		}
		if text, ok := marked(s); ok {
			return text, true
		}
		if !found {
			last, found = s, true
		}
	}
	return last, found
}

// plainText returns the content of a message: a string, or parts of which the text
// counts.
func plainText(content json.RawMessage) (string, bool) {
	var s string
	if json.Unmarshal(content, &s) == nil {
		return s, true
	}
	var parts []struct {
		Type string `json:"type"`
		Text string `json:"text"`
	}
	if json.Unmarshal(content, &parts) != nil {
		return "", false
	}
	var b strings.Builder
	for _, p := range parts {
		if p.Type == "text" {
			b.WriteString(p.Text)
		}
	}
	return b.String(), true
}

// marked returns the last text between <data> and </data>, the marks that
// millrace's prompts put around data.
func marked(s string) (string, bool) {
	const open, end = "<data>", "</data>"
	from := strings.LastIndex(s, open)
	if from < 0 {
		return "", false
	}
	text, _, ok := strings.Cut(s[from+len(open):], end)
	return strings.ReplaceAll(text, "&lt;", "<"), ok
}

// refusal is why a request cannot be answered at all.
type refusal struct {
	status        int
	code, message string
}

func (s *Server) parse(body []byte) (*request, *refusal) {
	var q request
	if err := json.Unmarshal(body, &q); err != nil {
		return nil, &refusal{400, "invalid_json", "We could not parse the JSON body of your request: " + err.Error()}
	}
	switch {
	case q.Model == "":
		return nil, &refusal{400, "missing_model", "you must provide a model parameter"}
	case q.Model != ModelName:
		return nil, &refusal{404, "model_not_found", fmt.Sprintf("The model `%s` does not exist; this server has `%s`.", q.Model, ModelName)}
	case q.Stream:
		return nil, &refusal{400, "unsupported_value", "stream: this server sends whole answers only"}
	case q.N != nil && *q.N != 1:
		return nil, &refusal{400, "unsupported_value", "n: this server gives one answer"}
	}
	if _, ok := q.text(); !ok {
		return nil, &refusal{400, "invalid_messages", "messages: needs a user message with text content"}
	}
	return &q, nil
}

func (s *Server) complete(w http.ResponseWriter, r *http.Request) {
	end := track(s.ledger, r)
	defer end(Broken) // a panic; every other way out has ended the call already
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	if err != nil {
		end(Refused)
		writeError(w, http.StatusBadRequest, "invalid_request_error", "unreadable_body", "the request body could not be read: "+err.Error())
		return
	}
	q, no := s.parse(body)
	if no != nil {
		end(Refused)
		writeError(w, no.status, "invalid_request_error", no.code, no.message)
		return
	}
	number, times := s.count(body)
	random := dice(s.cfg.Seed, body, times)
	what := s.cfg.Faults.pick(random)
	if !pause(r.Context(), s.cfg.Latency.sample(random)) {
		end(Gone)
		return
	}
	switch what {
	case faultRateLimited:
		end(Refused)
		w.Header().Set("Retry-After-Ms", strconv.FormatInt(s.cfg.RetryAfter.Milliseconds(), 10))
		w.Header().Set("Retry-After", strconv.FormatInt(int64((s.cfg.RetryAfter+time.Second-1)/time.Second), 10))
		writeError(w, http.StatusTooManyRequests, "requests", "rate_limit_exceeded", "Rate limit reached for requests.")
	case faultServerError:
		end(Refused)
		writeError(w, http.StatusInternalServerError, "server_error", "internal_error", "The server had an error while processing your request.")
	case faultHang:
		<-r.Context().Done()
		end(Gone)
	default:
		s.answer(w, q, number, what, random, end)
	}
}

// count numbers the request and returns how often its body was seen before.
func (s *Server) count(body []byte) (number, times int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.served++
	if s.cfg.Faults != (Faults{}) || s.cfg.Latency.Sigma > 0 {
		times = s.seen[string(body)]
		s.seen[string(body)]++
	}
	return s.served, times
}

// pause waits for d, or returns false when ctx ends first.
func pause(ctx context.Context, d time.Duration) bool {
	if d <= 0 {
		return ctx.Err() == nil
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return ctx.Err() == nil
	case <-ctx.Done():
		return false
	}
}

type completion struct {
	ID      string   `json:"id"`
	Object  string   `json:"object"`
	Created int64    `json:"created"`
	Model   string   `json:"model"`
	Choices []choice `json:"choices"`
	Usage   usage    `json:"usage"`
}

type choice struct {
	Index        int     `json:"index"`
	Message      message `json:"message"`
	FinishReason string  `json:"finish_reason"`
}

type message struct {
	Role    string  `json:"role"`
	Content string  `json:"content"`
	Refusal *string `json:"refusal"`
}

type usage struct {
	Prompt     int `json:"prompt_tokens"`
	Completion int `json:"completion_tokens"`
	Total      int `json:"total_tokens"`
}

// answer sends a completion, good or bad.
func (s *Server) answer(w http.ResponseWriter, q *request, number int, what fault, random *rand.Rand, end func(Outcome)) {
	text, _ := q.text()
	reply, err := content(s.model.Score(text), q.ResponseFormat)
	if err != nil {
		end(Refused)
		writeError(w, http.StatusBadRequest, "invalid_request_error", "unsupported_schema", err.Error())
		return
	}
	reason, outcome := "stop", Answered
	switch what {
	case faultMalformed:
		reply, reason = malformed(reply, random)
		outcome = Unusable
	case faultWrongSchema:
		reply = wrongSchema(random)
		outcome = Unusable
	}
	c := completion{
		ID: fmt.Sprintf("chatcmpl-%d-%d", s.start, number), Object: "chat.completion", Created: time.Now().Unix(), Model: ModelName,
		Choices: []choice{{Message: message{Role: "assistant", Content: reply}, FinishReason: reason}},
		Usage:   q.usage(reply),
	}
	body, err := json.Marshal(c)
	if err != nil {
		panic(err) // strings and numbers only
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	if what == faultCut {
		body = body[:len(body)/2]
		outcome = Broken
	}
	// The answer counts as sent before its last byte can arrive: a caller that has
	// it never finds the call still running.
	end(outcome)
	_, werr := w.Write(body)
	if what == faultCut || werr != nil {
		_ = http.NewResponseController(w).Flush() // the caller sees the cut anyway
		panic(http.ErrAbortHandler)
	}
}

// malformed returns content that is no JSON object, and its finish reason.
func malformed(good string, random *rand.Rand) (content, reason string) {
	if random.IntN(2) == 0 {
		return good[:len(good)/2], "length"
	}
	return "I am sorry, but I would rather talk about the weather.", "stop"
}

// wrongSchema returns JSON objects that no schema for a sentiment allows.
func wrongSchema(random *rand.Rand) string {
	bad := []string{
		`{"label":"positive","score":7.5}`,
		`{"label":"meh","score":0.1}`,
		`{"mood":"sunny"}`,
		`{"label":"negative","score":"very"}`,
	}
	return bad[random.IntN(len(bad))]
}

// usage estimates tokens as words, which is what this model reads.
func (q *request) usage(reply string) usage {
	n := 0
	for _, m := range q.Messages {
		n += len(strings.Fields(string(m.Content)))
	}
	out := len(strings.Fields(reply))
	return usage{Prompt: n, Completion: out, Total: n + out}
}

func (s *Server) models(w http.ResponseWriter, _ *http.Request) {
	writeJSON(w, http.StatusOK, map[string]any{
		"object": "list",
		"data":   []map[string]any{{"id": ModelName, "object": "model", "created": s.start, "owned_by": "govader"}},
	})
}

func writeJSON(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v) // the caller is gone: nobody to tell
}

// writeError answers in the form of OpenAI's errors.
func writeError(w http.ResponseWriter, status int, kind, code, message string) {
	writeJSON(w, status, map[string]any{"error": map[string]any{"message": message, "type": kind, "param": nil, "code": code}})
}
