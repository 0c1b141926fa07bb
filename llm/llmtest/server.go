// Package llmtest tests programs that call language models: a provider in the same
// process that answers over HTTP as scripted, also badly; cassettes that record a
// real provider and play it again; and [Evaluate], which runs prompts over a data set.
package llmtest

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"sync"
	"testing"

	"github.com/millrace/millrace/internal/modelserver"
	"github.com/millrace/millrace/llm"
)

// maxBody is the largest request body accepted, in bytes.
const maxBody = 16 << 20

// A Call is a request that a [Server] received.
type Call struct {
	N        int    // its number, from 0
	Times    int    // how many calls with the same Key came before it
	Key      string // what makes two calls the same request
	Provider string // whose API was called: "openai", "anthropic" or "gemini"
	Model    string
	// Messages are what was asked; for embeddings, one user message per text.
	Messages    []llm.Message
	Schema      json.RawMessage // nil: none was sent
	SchemaName  string
	MaxTokens   int
	Temperature *float64
	Embeddings  bool
	Header      http.Header // without keys
	Body        []byte
}

// Last returns the text of the last message of the user.
func (c *Call) Last() string {
	for _, m := range slices.Backward(c.Messages) {
		if m.Role == llm.RoleUser {
			return m.Text
		}
	}
	return ""
}

// Stats are figures of a server: how many calls came, how they ended, and how many
// were paid for twice.
type Stats = modelserver.Stats

// Ledger tells repeated calls apart: needless ones, interrupted ones and attempts.
type Ledger = modelserver.Ledger

// A Config sets up a [Handler].
type Config struct {
	// Steps are what happens to calls, in the order of their arrival; the last one is
	// for all that follow. None means an empty answer for every call.
	Steps []Step
	// Key says what makes two calls the same request, for which nobody needs to pay
	// twice. The default is the labels X-Millrace-Entry and -Round, or without them
	// the hash of path and body.
	Key func(*Call) string
	// Keep bounds how many calls are kept for [Handler.Calls], the first ones; 0 means
	// 10,000 and -1 none.
	Keep int
	// Secret, if set, is the key that calls must carry; others are answered as the
	// provider does, with class Auth.
	Secret string
	// Ledger counts the calls; nil means a new one.
	Ledger *Ledger
}

// A Handler is an [http.Handler] that speaks the APIs of the providers under any
// prefix of path: OpenAI's chat completions and embeddings, Anthropic's messages and
// Gemini's generateContent. It is safe for concurrent use.
type Handler struct {
	cfg  Config
	quit chan struct{}
	once sync.Once

	mu    sync.Mutex
	count int
	seen  map[string]int
	calls []Call
}

// NewHandler returns a handler.
func NewHandler(cfg Config) *Handler {
	if len(cfg.Steps) == 0 {
		cfg.Steps = []Step{Answer("")}
	}
	if cfg.Key == nil {
		cfg.Key = defaultKey
	}
	if cfg.Keep == 0 {
		cfg.Keep = 10_000
	}
	if cfg.Ledger == nil {
		cfg.Ledger = modelserver.NewLedger(nil)
	}
	return &Handler{cfg: cfg, quit: make(chan struct{}), seen: map[string]int{}}
}

func defaultKey(c *Call) string {
	if id := modelserver.IDFromHeader(c.Header); id.Entry != "" {
		return id.Entry + "/" + strconv.Itoa(id.Round)
	}
	sum := sha256.Sum256(append([]byte(c.Provider+"\n"+c.Model+"\n"), c.Body...))
	return hex.EncodeToString(sum[:])
}

// Close ends calls that hang. It is idempotent.
func (h *Handler) Close() { h.once.Do(func() { close(h.quit) }) }

// Calls returns the calls so far, as many as are kept. A caller that has its answer
// finds its call here.
func (h *Handler) Calls() []Call {
	h.mu.Lock()
	defer h.mu.Unlock()
	return append([]Call(nil), h.calls...)
}

// Stats returns the figures so far. PaidTwice counts calls with the key of an
// earlier one that was answered well, or still ran.
func (h *Handler) Stats() Stats { return h.cfg.Ledger.Stats() }

// Ledger returns the ledger, which can be told that a caller died.
func (h *Handler) Ledger() *Ledger { return h.cfg.Ledger }

func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	api := route(r.URL.Path)
	if api == nil || r.Method != http.MethodPost {
		http.NotFound(w, r)
		return
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	if err != nil {
		http.Error(w, "the request could not be read", http.StatusBadRequest)
		return
	}
	c := &Call{Provider: api.provider, Body: body, Header: r.Header.Clone()}
	for _, name := range keyHeaders {
		c.Header.Del(name)
	}
	err = api.parse(c, r.URL.Path)
	step := h.take(c)
	id := modelserver.IDFromHeader(r.Header)
	if id.Entry == "" {
		id.Entry = c.Key
	}
	end := modelserver.Track(h.cfg.Ledger, id, r)
	defer end(modelserver.Broken) // a panic; every other way out has ended the call already
	switch {
	case err != nil:
		step = Fail(llm.Invalid)
	case h.cfg.Secret != "" && !carries(r.Header, h.cfg.Secret):
		step = Fail(llm.Auth)
	}
	reply := step(c)
	x := &exchange{api: api, call: c, reply: reply, w: w, r: r, quit: h.quit, end: end}
	x.run()
}

// take numbers a call and returns what happens to it.
func (h *Handler) take(c *Call) Step {
	c.Key = h.cfg.Key(c)
	h.mu.Lock()
	defer h.mu.Unlock()
	c.N = h.count
	h.count++
	c.Times = h.seen[c.Key]
	h.seen[c.Key]++
	if len(h.calls) < h.cfg.Keep {
		h.calls = append(h.calls, *c)
	}
	return h.cfg.Steps[min(c.N, len(h.cfg.Steps)-1)]
}

var keyHeaders = []string{"Authorization", "X-Api-Key", "Api-Key", "X-Goog-Api-Key"}

func carries(h http.Header, secret string) bool {
	for _, name := range keyHeaders {
		if v := h.Get(name); v == secret || v == "Bearer "+secret {
			return true
		}
	}
	return false
}

// A Server is a provider that answers as scripted.
type Server struct {
	*Handler
	// URL is where it listens, without a path.
	URL  string
	dial func(context.Context, string, string) (net.Conn, error)
}

// NewServer starts a provider on a loopback address; it ends with the test. Steps
// are what happens to calls, in the order of their arrival; the last one is for all
// that follow.
func NewServer(t testing.TB, steps ...Step) *Server {
	t.Helper()
	return Start(t, Config{Steps: steps})
}

// Start is [NewServer] with a configuration.
func Start(t testing.TB, cfg Config) *Server {
	t.Helper()
	h := NewHandler(cfg)
	ts := httptest.NewUnstartedServer(h)
	ts.Config = modelserver.HTTPServer(h)
	ts.Start()
	t.Cleanup(func() {
		h.Close()
		ts.Close()
	})
	return &Server{Handler: h, URL: ts.URL}
}

// StartInMemory is [Start] without sockets, for [testing/synctest]: calls reach the
// server through [Server.Endpoint] only.
func StartInMemory(t testing.TB, cfg Config) *Server {
	t.Helper()
	h := NewHandler(cfg)
	l := &pipes{conns: make(chan net.Conn), closed: make(chan struct{})}
	s := modelserver.HTTPServer(h)
	s.ReadHeaderTimeout, s.IdleTimeout = 0, 0
	done := make(chan error, 1)
	go func() { done <- s.Serve(l) }() // ends with s.Close
	t.Cleanup(func() {
		h.Close()
		_ = s.Close()
		if err := <-done; !errors.Is(err, http.ErrServerClosed) {
			t.Errorf("llmtest: %v", err)
		}
	})
	return &Server{Handler: h, URL: "http://127.0.0.1:1", dial: l.dial}
}

// Endpoint returns the endpoint of the server. The path suits all adapters but
// OpenAI's customary /v1, which makes no difference here.
func (s *Server) Endpoint() llm.Endpoint { return llm.Endpoint{URL: s.URL, Dial: s.dial} }

// pipes is a listener without a network.
type pipes struct {
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.closed:
		return nil, net.ErrClosed
	}
}

func (p *pipes) Close() error {
	p.once.Do(func() { close(p.closed) })
	return nil
}

func (p *pipes) Addr() net.Addr { return &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 1} }

func (p *pipes) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	here, there := net.Pipe()
	select {
	case p.conns <- there:
		return here, nil
	case <-p.closed:
		return nil, fmt.Errorf("llmtest: the server has ended: %w", net.ErrClosed)
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}
