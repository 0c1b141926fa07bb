package llmtest

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
)

// RecordVariable is the environment variable that, set to 1, makes [Cassette]
// record.
const RecordVariable = "MILLRACE_RECORD"

// Cassette plays the answers of a provider from a file of the test's own, so that a
// test of a prompt needs neither network nor money. What it returns is for the
// Transport of an [llm.Endpoint].
//
// With MILLRACE_RECORD=1 in the environment, requests go to the endpoint, and the
// file is written when the test ends without failing. Else the file is played: a
// request it does not know fails the call, with what to do. Equal requests get the
// answers in the order they were recorded in, the last one again and again. Requests
// are told apart by method, path, query and body; white space and the order of
// members in a body do not count.
//
// The file holds no key: of a request's headers nothing is kept, of an answer's only
// those that say something about limits and content, and where a body quotes the key
// of its request, it is replaced.
func Cassette(t testing.TB, path string) func(http.RoundTripper) http.RoundTripper {
	t.Helper()
	d := &deck{path: path, next: map[string]int{}}
	if os.Getenv(RecordVariable) == "1" {
		d.record = true
		t.Cleanup(func() {
			if t.Failed() {
				return // the file is left as it was
			}
			if err := d.save(); err != nil {
				t.Errorf("llmtest: %v", err)
			}
		})
	} else if err := d.load(); err != nil {
		t.Fatalf("llmtest: %v", err)
	}
	return func(next http.RoundTripper) http.RoundTripper { return &player{d, next} }
}

// A track is one recorded exchange.
type track struct {
	Request struct {
		Hash string          `json:"hash"`
		URL  string          `json:"url"` // path and query
		Body json.RawMessage `json:"body"`
	} `json:"request"`
	Response struct {
		Status int             `json:"status"`
		Header http.Header     `json:"header,omitempty"`
		Body   json.RawMessage `json:"body,omitempty"` // if it is JSON
		Text   string          `json:"text,omitempty"` // if it is not
	} `json:"response"`
}

type deck struct {
	path   string
	record bool

	mu     sync.Mutex
	tracks []track
	next   map[string]int // by hash: how many were played
}

func (d *deck) load() error {
	b, err := os.ReadFile(d.path)
	if errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("cassette %s does not exist; record it with %s=1 and the provider's key", d.path, RecordVariable)
	}
	if err != nil {
		return fmt.Errorf("cassette: %w", err)
	}
	if err := json.Unmarshal(b, &d.tracks); err != nil {
		return fmt.Errorf("cassette %s is damaged: %w; record it again with %s=1", d.path, err, RecordVariable)
	}
	return nil
}

// save writes the tracks sorted by hash, so that a file recorded again differs only
// where something changed.
func (d *deck) save() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	slices.SortStableFunc(d.tracks, func(a, b track) int { return strings.Compare(a.Request.Hash, b.Request.Hash) })
	var out bytes.Buffer
	enc := json.NewEncoder(&out)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	if err := enc.Encode(d.tracks); err != nil {
		return fmt.Errorf("cassette %s: %w", d.path, err)
	}
	if err := os.MkdirAll(filepath.Dir(d.path), 0o755); err != nil {
		return fmt.Errorf("cassette: %w", err)
	}
	if err := os.WriteFile(d.path, out.Bytes(), 0o644); err != nil {
		return fmt.Errorf("cassette: %w", err)
	}
	return nil
}

// play returns the next answer to a request, or nil.
func (d *deck) play(hash string) *track {
	d.mu.Lock()
	defer d.mu.Unlock()
	var found *track
	n := 0
	for i := range d.tracks {
		if d.tracks[i].Request.Hash == hash {
			found = &d.tracks[i]
			if n == d.next[hash] {
				break
			}
			n++
		}
	}
	d.next[hash]++
	return found
}

// A player is the transport of a cassette.
type player struct {
	deck *deck
	next http.RoundTripper
}

func (p *player) RoundTrip(r *http.Request) (*http.Response, error) {
	var body []byte
	if r.Body != nil {
		var err error
		body, err = io.ReadAll(r.Body)
		_ = r.Body.Close()
		if err != nil {
			return nil, err
		}
	}
	canonical := canonicalJSON(body)
	url := r.URL.RequestURI()
	sum := sha256.Sum256([]byte(r.Method + "\n" + url + "\n" + string(canonical)))
	hash := hex.EncodeToString(sum[:])
	if !p.deck.record {
		t := p.deck.play(hash)
		if t == nil {
			return nil, fmt.Errorf("llmtest: cassette %s knows no request %s %s with hash %s; the prompt, the model or the schema changed: record it again with %s=1",
				p.deck.path, r.Method, url, hash[:12], RecordVariable)
		}
		return t.response(r), nil
	}
	out := r.Clone(r.Context())
	out.Body = io.NopCloser(bytes.NewReader(body))
	resp, err := p.next.RoundTrip(out)
	if err != nil {
		return nil, err // no answer, nothing to record
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(resp.Body, 64<<20))
	if err != nil {
		return nil, err
	}
	t := track{}
	hide := hider(r.Header)
	t.Request.Hash, t.Request.URL, t.Request.Body = hash, hide(url), asJSON(hide(string(canonical)))
	t.Response.Status, t.Response.Header = resp.StatusCode, kept(resp.Header, hide)
	if clean := hide(string(answer)); json.Valid([]byte(clean)) {
		t.Response.Body = json.RawMessage(clean)
	} else {
		t.Response.Text = clean
	}
	p.deck.mu.Lock()
	p.deck.tracks = append(p.deck.tracks, t)
	p.deck.mu.Unlock()
	resp.Body = io.NopCloser(bytes.NewReader(answer))
	return resp, nil
}

func (t *track) response(r *http.Request) *http.Response {
	body := []byte(t.Response.Text)
	if len(t.Response.Body) > 0 {
		body = t.Response.Body
	}
	h := t.Response.Header.Clone()
	if h == nil {
		h = http.Header{}
	}
	return &http.Response{
		Status: strconv.Itoa(t.Response.Status) + " " + http.StatusText(t.Response.Status), StatusCode: t.Response.Status,
		Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, Header: h, ContentLength: int64(len(body)),
		Body: io.NopCloser(bytes.NewReader(body)), Request: r,
	}
}

// canonicalJSON has members in the order of the alphabet and no white space; what is
// no JSON stays as it is.
func canonicalJSON(b []byte) []byte {
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.UseNumber()
	var v any
	if err := dec.Decode(&v); err != nil {
		return b
	}
	out, err := json.Marshal(v)
	if err != nil {
		return b
	}
	return out
}

func asJSON(s string) json.RawMessage {
	if json.Valid([]byte(s)) {
		return json.RawMessage(s)
	}
	b, err := json.Marshal(s)
	if err != nil {
		panic(err) // a string
	}
	return b
}

// hider returns a function that replaces the keys in a request's headers.
func hider(h http.Header) func(string) string {
	var pairs []string
	for _, name := range append([]string{"Cookie", "Proxy-Authorization"}, keyHeaders...) {
		for _, v := range h.Values(name) {
			for _, secret := range append(strings.Fields(v), v) {
				if len(secret) > 6 { // not the word Bearer
					pairs = append(pairs, secret, "***")
				}
			}
		}
	}
	return strings.NewReplacer(pairs...).Replace
}

// kept are the headers of an answer that a recording needs.
func kept(h http.Header, hide func(string) string) http.Header {
	out := http.Header{}
	for name, values := range h {
		l := strings.ToLower(name)
		if l == "content-type" || strings.Contains(l, "retry-after") || strings.Contains(l, "ratelimit") {
			for _, v := range values {
				out.Add(name, hide(v))
			}
		}
	}
	return out
}
