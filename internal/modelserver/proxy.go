package modelserver

import (
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httputil"
	"net/url"
)

// Proxy returns a handler that forwards everything to the OpenAI-compatible
// server at target (with or without the path /v1) and counts the chat
// completions in ledger, so that calls of a model that is not ours are counted
// the same way. Whether an answer is usable it cannot tell. The labels are not
// forwarded.
func Proxy(target string, ledger *Ledger) (http.Handler, error) {
	u, err := url.Parse(target)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		return nil, fmt.Errorf("model URL %q: must be http://host or https://host, with an optional path ending in /v1", target)
	}
	path := trimV1(u.Path)
	proxy := &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.Out.URL.Scheme, r.Out.URL.Host = u.Scheme, u.Host
			r.Out.URL.Path, r.Out.URL.RawPath = path+r.In.URL.Path, ""
			r.Out.Host = u.Host
			for _, h := range []string{HeaderEntry, HeaderRound, HeaderAttempt, HeaderOwner} {
				r.Out.Header.Del(h)
			}
		},
		ErrorLog: log.New(io.Discard, "", 0), // the caller sees what goes wrong
		ErrorHandler: func(w http.ResponseWriter, r *http.Request, err error) {
			if r.Context().Err() != nil {
				return // the caller is gone
			}
			writeError(w, http.StatusBadGateway, "server_error", "model_unreachable", fmt.Sprintf("model server %s: %v", u.Host, err))
		},
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodPost || r.URL.Path != "/v1/chat/completions" {
			proxy.ServeHTTP(w, r)
			return
		}
		end := track(ledger, r)
		defer end(Broken) // the proxy panics when the model's server cuts its answer
		sw := &statusWriter{ResponseWriter: w}
		proxy.ServeHTTP(sw, r)
		switch {
		case sw.status == http.StatusOK && r.Context().Err() == nil:
			end(Sent)
		case r.Context().Err() != nil:
			end(Gone)
		default:
			end(Refused)
		}
	}), nil
}

func trimV1(path string) string {
	for len(path) > 0 && path[len(path)-1] == '/' {
		path = path[:len(path)-1]
	}
	if len(path) >= 3 && path[len(path)-3:] == "/v1" {
		path = path[:len(path)-3]
	}
	return path
}

// statusWriter remembers the status of a response.
type statusWriter struct {
	http.ResponseWriter
	status int
}

func (w *statusWriter) WriteHeader(status int) {
	w.status = status
	w.ResponseWriter.WriteHeader(status)
}

// Unwrap gives http.ResponseController the writer underneath.
func (w *statusWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }
