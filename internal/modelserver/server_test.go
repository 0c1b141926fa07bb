package modelserver

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"
	"time"
)

// client is the tests' own: closing any httptest server closes the idle
// connections of the default one, which the ledger would take for hanging up.
var client = &http.Client{Transport: &http.Transport{}}

// serve starts a server over real connections. Closing it waits for every call.
func serve(t *testing.T, h http.Handler) *httptest.Server {
	t.Helper()
	ts := httptest.NewUnstartedServer(h)
	ts.Config = HTTPServer(h)
	ts.Start()
	t.Cleanup(ts.Close)
	return ts
}

func newServer(t *testing.T, cfg Config) (*Server, *httptest.Server) {
	t.Helper()
	s, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return s, serve(t, s)
}

const jsonFormat = `,"response_format":{"type":"json_schema","json_schema":{"name":"s","strict":true,"schema":{"type":"object",` +
	`"properties":{"label":{"type":"string","enum":["positive","neutral","negative"]},"score":{"type":"number"}},"required":["label","score"]}}}`

func body(text, extra string) string {
	t, _ := json.Marshal(text)
	return `{"model":"vader","messages":[{"role":"system","content":"Score it."},{"role":"user","content":` + string(t) + `}]` + extra + `}`
}

func post(ctx context.Context, url, body string, id CallID) (*http.Response, []byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url+"/v1/chat/completions", strings.NewReader(body))
	if err != nil {
		return nil, nil, err
	}
	if id.Entry != "" {
		req.Header.Set(HeaderEntry, id.Entry)
		req.Header.Set(HeaderRound, strconv.Itoa(id.Round))
		req.Header.Set(HeaderAttempt, strconv.Itoa(id.Attempt))
		req.Header.Set(HeaderOwner, id.Owner)
	}
	resp, err := client.Do(req)
	if err != nil {
		return nil, nil, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return resp, b, err
}

func TestCompletion(t *testing.T) {
	t.Parallel()
	_, ts := newServer(t, Config{})
	tests := []struct{ name, text, extra, want string }{
		{"plain", "i love it!", "", "The sentiment is positive (0.6696)."},
		{"json object", "i hate it.", `,"response_format":{"type":"json_object"}`, `{"label":"negative","score":-0.5719,"positive":0,"neutral":0.3509,"negative":0.6491}`},
		{"json schema", "it is a player.", jsonFormat, `{"label":"neutral","score":0}`},
		{"empty text", "", jsonFormat, `{"label":"neutral","score":0}`},
		{
			"spelling of the enum", "i love it!",
			`,"response_format":{"type":"json_schema","json_schema":{"schema":{"properties":{"sentiment":{"enum":[0,"SENTIMENT_LABEL_NEGATIVE","SENTIMENT_LABEL_POSITIVE"]},"note":true}}}}`,
			`{"sentiment":"SENTIMENT_LABEL_POSITIVE"}`,
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			resp, b, err := post(t.Context(), ts.URL, body(tt.text, tt.extra), CallID{})
			if err != nil || resp.StatusCode != http.StatusOK {
				t.Fatalf("%v %s", err, b)
			}
			var c completion
			if err := json.Unmarshal(b, &c); err != nil {
				t.Fatal(err)
			}
			if got := c.Choices[0].Message.Content; got != tt.want {
				t.Errorf("content %s, want %s", got, tt.want)
			}
			if c.Object != "chat.completion" || c.Choices[0].FinishReason != "stop" || c.Model != ModelName || c.Usage.Total != c.Usage.Prompt+c.Usage.Completion || c.Usage.Prompt == 0 && tt.text != "" {
				t.Errorf("completion %s", b)
			}
		})
	}
}

func TestContentParts(t *testing.T) {
	t.Parallel()
	_, ts := newServer(t, Config{})
	_, b, err := post(t.Context(), ts.URL, `{"model":"vader","messages":[{"role":"user","content":[{"type":"text","text":"i love "},{"type":"image_url"},{"type":"text","text":"it!"}]}]}`, CallID{})
	if err != nil || !bytes.Contains(b, []byte("positive (0.6696)")) {
		t.Fatalf("%v %s", err, b)
	}
}

// Of a request by a prompt the data is judged, also when it is to be answered again.
func TestMarkedData(t *testing.T) {
	t.Parallel()
	_, ts := newServer(t, Config{})
	_, b, err := post(t.Context(), ts.URL, `{"model":"vader","messages":[`+
		`{"role":"user","content":"Sentence: <data>i hate it</data>"},{"role":"assistant","content":"{}"},`+
		`{"role":"user","content":"A great product: <data>great</data> Sentence: <data>i love it!</data> Be positive."},`+
		`{"role":"assistant","content":"bad"},{"role":"user","content":"Your answer is bad, terrible."}]}`, CallID{})
	if err != nil || !bytes.Contains(b, []byte("positive (0.6696)")) {
		t.Fatalf("%v %s", err, b)
	}
}

func TestRefusals(t *testing.T) {
	t.Parallel()
	s, ts := newServer(t, Config{})
	tests := []struct {
		name, body, code string
		status           int
	}{
		{"not JSON", `{"model":`, "invalid_json", 400},
		{"no model", `{"messages":[]}`, "missing_model", 400},
		{"other model", `{"model":"gpt-5","messages":[]}`, "model_not_found", 404},
		{"stream", `{"model":"vader","stream":true}`, "unsupported_value", 400},
		{"two answers", `{"model":"vader","n":2}`, "unsupported_value", 400},
		{"no user message", `{"model":"vader","messages":[{"role":"system","content":"x"}]}`, "invalid_messages", 400},
		{"content is a number", `{"model":"vader","messages":[{"role":"user","content":1}]}`, "invalid_messages", 400},
		{"unknown property", body("x", `,"response_format":{"type":"json_schema","json_schema":{"schema":{"properties":{"mood":{}},"required":["mood"]}}}`), "unsupported_schema", 400},
		{"too long", strings.Repeat(" ", maxBody+1), "unreadable_body", 400},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			resp, b, err := post(t.Context(), ts.URL, tt.body, CallID{})
			if err != nil {
				t.Fatal(err)
			}
			var e struct {
				Error struct{ Message, Type, Code string }
			}
			if err := json.Unmarshal(b, &e); err != nil || resp.StatusCode != tt.status || e.Error.Code != tt.code || e.Error.Message == "" || e.Error.Type == "" {
				t.Errorf("status %d, body %s, want %d and %s", resp.StatusCode, b, tt.status, tt.code)
			}
		})
	}
	if got := s.Ledger().Stats(); got.Refused != len(tests) || got.Calls != len(tests) || got.Running != 0 {
		t.Errorf("stats %+v", got)
	}
}

func TestRoutes(t *testing.T) {
	t.Parallel()
	s, ts := newServer(t, Config{})
	get := func(path string, status int, want string) {
		t.Helper()
		resp, err := client.Get(ts.URL + path)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		b, _ := io.ReadAll(resp.Body)
		if resp.StatusCode != status || !strings.Contains(string(b), want) {
			t.Errorf("GET %s: %d %s", path, resp.StatusCode, b)
		}
	}
	get("/v1/models", 200, `"id":"vader"`)
	get("/stats", 200, `"paid_twice":0`)
	get("/v2", 404, "unknown_url")
	s.Ledger().Begin(CallID{Entry: "e", Owner: "w1"}).End(Answered)
	resp, err := client.Post(ts.URL+"/owners/w1/died", "", nil)
	if err != nil || resp.StatusCode != http.StatusNoContent {
		t.Fatal(resp, err)
	}
	defer resp.Body.Close()
	s.Ledger().Begin(CallID{Entry: "e", Owner: "w2"})
	get("/stats", 200, `"interrupted":1`)
}

func TestFaults(t *testing.T) {
	t.Parallel()
	good := func(resp *http.Response, b []byte, err error) string {
		var c completion
		if err != nil || resp.StatusCode != 200 || json.Unmarshal(b, &c) != nil {
			return ""
		}
		return c.Choices[0].Message.Content
	}
	tests := []struct {
		name   string
		faults Faults
		check  func(resp *http.Response, b []byte, err error) bool
		want   Stats
	}{
		{"429", Faults{RateLimited: 1}, func(resp *http.Response, _ []byte, err error) bool {
			return err == nil && resp.StatusCode == 429 && resp.Header.Get("Retry-After") == "2" && resp.Header.Get("Retry-After-Ms") == "1500"
		}, Stats{Calls: 1, Refused: 1}},
		{"500", Faults{ServerError: 1}, func(resp *http.Response, _ []byte, err error) bool {
			return err == nil && resp.StatusCode == 500
		}, Stats{Calls: 1, Refused: 1}},
		{"hang", Faults{Hang: 1}, func(_ *http.Response, _ []byte, err error) bool {
			return errors.Is(err, context.DeadlineExceeded)
		}, Stats{Calls: 1, Gone: 1}},
		{"cut", Faults{Cut: 1}, func(resp *http.Response, b []byte, err error) bool {
			return errors.Is(err, io.ErrUnexpectedEOF) && !json.Valid(b)
		}, Stats{Calls: 1, Broken: 1}},
		{"malformed", Faults{Malformed: 1}, func(resp *http.Response, b []byte, err error) bool {
			c := good(resp, b, err)
			return c != "" && !json.Valid([]byte(c))
		}, Stats{Calls: 1, Unusable: 1}},
		{"wrong schema", Faults{WrongSchema: 1}, func(resp *http.Response, b []byte, err error) bool {
			var v struct {
				Label string
				Score *float64
			}
			c := good(resp, b, err)
			err = json.Unmarshal([]byte(c), &v)
			return json.Valid([]byte(c)) && (err != nil || v.Score == nil || *v.Score > 1 || v.Label == "meh")
		}, Stats{Calls: 1, Unusable: 1}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s, ts := newServer(t, Config{Faults: tt.faults, RetryAfter: 1500 * time.Millisecond})
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			if tt.faults.Hang > 0 {
				ctx, cancel = context.WithTimeout(t.Context(), 50*time.Millisecond)
			}
			defer cancel()
			resp, b, err := post(ctx, ts.URL, body("i love it!", jsonFormat), CallID{})
			if !tt.check(resp, b, err) {
				t.Errorf("got %v, %s, %v", resp, b, err)
			}
			ts.Close()
			tt.want.Unlabeled = 1
			if got := s.Ledger().Stats(); got != tt.want {
				t.Errorf("stats %+v, want %+v", got, tt.want)
			}
		})
	}
}

// A run with the same seed meets the same faults, whatever the order of calls.
func TestFaultsRepeat(t *testing.T) {
	t.Parallel()
	texts := []string{"a", "b", "c", "d", "e", "f", "g", "h"}
	run := func(seed uint64, reverse bool) string {
		s, err := New(Config{Faults: Faults{RateLimited: 0.5}, Seed: seed})
		if err != nil {
			t.Fatal(err)
		}
		status := make([]string, len(texts))
		for i := range texts {
			n := i
			if reverse {
				n = len(texts) - 1 - i
			}
			for range 3 {
				w := httptest.NewRecorder()
				s.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/v1/chat/completions", strings.NewReader(body(texts[n], ""))))
				status[n] += strconv.Itoa(w.Code) + " "
			}
		}
		return strings.Join(status, "")
	}
	a, b, c := run(1, false), run(1, true), run(2, false)
	if a != b {
		t.Errorf("order changed the faults:\n%s\n%s", a, b)
	}
	if a == c || !strings.Contains(a, "200") || !strings.Contains(a, "429") {
		t.Errorf("seeds 1 and 2: %s, %s", a, c)
	}
}

func TestMixAndLatency(t *testing.T) {
	t.Parallel()
	r := dice(7, nil, 0)
	n, hit := 20000, 0
	for range n {
		if Mix(0.3).pick(r) != faultNone {
			hit++
		}
	}
	if rate := float64(hit) / float64(n); rate < 0.28 || rate > 0.32 {
		t.Errorf("Mix(0.3) gave %v", rate)
	}
	if d := (Latency{Median: time.Second}).sample(r); d != time.Second {
		t.Errorf("fixed latency %v", d)
	}
	below := 0
	for range n {
		if (Latency{Median: time.Second, Sigma: 0.5}).sample(r) < time.Second {
			below++
		}
	}
	if share := float64(below) / float64(n); share < 0.48 || share > 0.52 {
		t.Errorf("%v of the samples are below the median", share)
	}
}

func TestConfigErrors(t *testing.T) {
	t.Parallel()
	for _, cfg := range []Config{
		{Faults: Faults{Hang: -0.1}},
		{Faults: Faults{Hang: 0.6, Cut: 0.6}},
		{Latency: Latency{Median: -1}},
		{Latency: Latency{Sigma: 9}},
	} {
		if _, err := New(cfg); err == nil {
			t.Errorf("%+v was accepted", cfg)
		}
	}
}

func TestProxy(t *testing.T) {
	t.Parallel()
	var labels int
	backend, err := New(Config{})
	if err != nil {
		t.Fatal(err)
	}
	inner := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get(HeaderEntry) != "" {
			labels++
		}
		if r.Header.Get("Authorization") != "Bearer k" && r.Method == http.MethodPost {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		backend.ServeHTTP(w, r)
	}))
	ledger := NewLedger(nil)
	h, err := Proxy(inner.URL+"/v1/", ledger)
	if err != nil {
		t.Fatal(err)
	}
	outer := serve(t, h)

	if resp, err := client.Get(outer.URL + "/v1/models"); err != nil || resp.StatusCode != 200 {
		t.Fatal(resp, err)
	}
	if resp, _, err := post(t.Context(), outer.URL, body("x", ""), CallID{Entry: "e", Attempt: 1}); err != nil || resp.StatusCode != 401 {
		t.Fatal(resp, err)
	}
	for range 2 {
		req, _ := http.NewRequestWithContext(t.Context(), http.MethodPost, outer.URL+"/v1/chat/completions", strings.NewReader(body("i love it!", "")))
		req.Header.Set("Authorization", "Bearer k")
		req.Header.Set(HeaderEntry, "e")
		req.Header.Set(HeaderAttempt, "2")
		resp, err := client.Do(req)
		if err != nil || resp.StatusCode != 200 {
			t.Fatal(resp, err)
		}
		_, err = io.Copy(io.Discard, resp.Body)
		if err := errors.Join(err, resp.Body.Close()); err != nil {
			t.Fatal(err)
		}
	}
	if got := ledger.Stats(); got.Calls != 3 || got.Refused != 1 || got.Answered != 2 || got.PaidTwice != 1 || got.Unlabeled != 0 {
		t.Errorf("stats %+v", got)
	}
	if labels != 0 {
		t.Error("the labels were forwarded")
	}
	inner.Close()
	if resp, b, err := post(t.Context(), outer.URL, body("x", ""), CallID{}); err != nil || resp.StatusCode != http.StatusBadGateway || !bytes.Contains(b, []byte("model_unreachable")) {
		t.Errorf("unreachable: %s %v", b, err)
	}
	for _, bad := range []string{"", "localhost:1", "ftp://x", "http://"} {
		if _, err := Proxy(bad, ledger); err == nil {
			t.Errorf("target %q was accepted", bad)
		}
	}
}

func FuzzRequest(f *testing.F) {
	f.Add([]byte(body("i love it!", jsonFormat)))
	f.Add([]byte(`{"model":"vader","messages":[{"role":"user","content":[]}],"response_format":{"type":"json_schema","json_schema":{"schema":{"properties":{"label":1}}}}}`))
	s, err := New(Config{})
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		w := httptest.NewRecorder()
		s.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/v1/chat/completions", bytes.NewReader(data)))
		if !json.Valid(w.Body.Bytes()) {
			t.Errorf("%d: %s", w.Code, w.Body)
		}
	})
}
