package safehttp

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	"github.com/millrace/millrace/llm"
)

func TestEndpointMistakes(t *testing.T) {
	t.Parallel()
	const canary = "sk-canary-7Qx"
	proxy := func(*http.Request) (*url.URL, error) { return url.Parse("http://proxy.example.com:3128") }
	for _, row := range []struct {
		name string
		e    llm.Endpoint
		want string
	}{
		{"password", llm.Endpoint{URL: "https://user:" + canary + "@api.example.com"}, "use Endpoint.Key"},
		{"query", llm.Endpoint{URL: "https://api.example.com?key=" + canary}, "has a query"},
		{"fragment", llm.Endpoint{URL: "https://api.example.com#" + canary}, "fragment"},
		{"scheme", llm.Endpoint{URL: "ftp://api.example.com"}, "must begin with https://"},
		{"no scheme", llm.Endpoint{URL: "api.example.com/v1"}, "must begin with https://"},
		{"no host", llm.Endpoint{URL: "https:///v1"}, "names no host"},
		{"unreadable", llm.Endpoint{URL: "https://user:" + canary + "@api.example.com:port"}, "cannot be read"},
		{"negative size", llm.Endpoint{URL: "https://api.example.com", MaxAnswer: -1}, "MaxAnswer -1"},
		{"plain through a proxy", llm.Endpoint{URL: "http://api.example.com", Proxy: proxy}, "unencrypted through a proxy"},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			_, err := New(row.e, "https://api.example.com", Auth{Header: "Authorization"})
			if err == nil || !strings.Contains(err.Error(), row.want) {
				t.Errorf("got %v, want %q", err, row.want)
			}
			if err != nil && strings.Contains(err.Error(), canary) {
				t.Errorf("the secret shows: %v", err)
			}
		})
	}
}

func post(t *testing.T, c *Client, ctx context.Context, path string) (*Exchange, error) {
	t.Helper()
	ctx, x := c.Begin(ctx)
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, c.BaseURL()+path, strings.NewReader("{}"))
	if err != nil {
		t.Fatal(err)
	}
	resp, err := c.HTTP().Do(req)
	if err == nil {
		_ = resp.Body.Close()
	}
	return x, err
}

func TestClient(t *testing.T) {
	t.Parallel()
	var elsewhere *httptest.Server
	mux := http.NewServeMux()
	mux.HandleFunc("/redirect", func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, elsewhere.URL+"/stolen", http.StatusTemporaryRedirect)
	})
	mux.HandleFunc("/large", func(w http.ResponseWriter, _ *http.Request) {
		_, _ = w.Write(make([]byte, 2000))
	})
	mux.HandleFunc("/endless", func(w http.ResponseWriter, _ *http.Request) {
		for {
			if _, err := w.Write(make([]byte, 1000)); err != nil {
				return
			}
		}
	})
	mux.HandleFunc("/echo", func(w http.ResponseWriter, r *http.Request) {
		for _, name := range []string{"Authorization", "X-Label", "X-Gateway", "X-Api-Key"} {
			w.Header().Set("Got-"+name, r.Header.Get(name))
		}
		_, _ = w.Write([]byte("{}"))
	})
	ts := httptest.NewServer(mux)
	defer ts.Close()
	elsewhere = httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("the redirect was followed") }))
	defer elsewhere.Close()

	keys := []string{"first", "second"}
	next := func() (llm.Secret, error) {
		k := keys[0]
		keys = keys[1:]
		return llm.NewSecret(k), nil
	}
	c, err := New(llm.Endpoint{URL: ts.URL, MaxAnswer: 1000, Header: http.Header{"X-Gateway": {"g"}, "Authorization": {"mine"}}}, "", Auth{"Authorization", "Bearer "})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := post(t, c, t.Context(), "redirect"); !errors.Is(err, errRedirect) {
		t.Errorf("redirect: %v", err)
	}
	for _, path := range []string{"large", "endless"} {
		if _, err := post(t, c, t.Context(), path); !errors.Is(err, ErrTooLarge) {
			t.Errorf("%s: %v", path, err)
		}
	}
	foreign, err := http.NewRequestWithContext(t.Context(), http.MethodGet, elsewhere.URL, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.HTTP().Do(foreign); !errors.Is(err, errForeign) {
		t.Errorf("foreign: %v", err)
	}
	x, err := post(t, c, t.Context(), "echo")
	if err != nil || x.Header().Get("Got-Authorization") != "" {
		t.Errorf("a key that is not ours was sent: %v, %v", err, x.Header())
	}

	c, err = New(llm.Endpoint{URL: ts.URL, Key: next, Header: http.Header{"x-gateway": {"g"}}}, "", Auth{"Authorization", "Bearer "})
	if err != nil {
		t.Fatal(err)
	}
	ctx := llm.WithHeader(t.Context(), http.Header{"X-Label": {"l"}, "X-Api-Key": {"bad"}})
	for _, key := range []string{"first", "second"} {
		x, err := post(t, c, ctx, "echo")
		if err != nil {
			t.Fatal(err)
		}
		h := x.Header()
		if h.Get("Got-Authorization") != "Bearer "+key || h.Get("Got-X-Label") != "l" || h.Get("Got-X-Gateway") != "g" || h.Get("Got-X-Api-Key") != "" {
			t.Errorf("headers %v", h)
		}
	}
}

// A proxy is asked for the endpoint's connection, and the addresses behind it are
// its own to check.
func TestProxy(t *testing.T) {
	t.Parallel()
	asked := make(chan string, 1)
	proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked <- r.Method + " " + r.Host
		w.WriteHeader(http.StatusBadGateway)
	}))
	defer proxy.Close()
	c, err := New(llm.Endpoint{URL: "https://api.example.com/v1", Proxy: func(r *http.Request) (*url.URL, error) {
		if r.URL.Host != "api.example.com" {
			t.Errorf("asked for %s", r.URL)
		}
		return url.Parse(proxy.URL)
	}}, "", Auth{Header: "Authorization"})
	if err != nil {
		t.Fatal(err)
	}
	x, err := post(t, c, t.Context(), "chat")
	if err == nil {
		t.Fatal("an answer from nowhere")
	}
	if got := <-asked; got != "CONNECT api.example.com:443" {
		t.Errorf("the proxy was asked %q", got)
	}
	if e := x.Fail(t.Context(), llm.ID{}, func([]byte) Fault { return Fault{} }, func(_ Fault, c llm.Class) llm.Class { return c }); e.Class != llm.Unavailable {
		t.Errorf("class %s", e.Class)
	}
}
