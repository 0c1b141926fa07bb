package safehttp

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/millrace/millrace/internal/netguard"
	"github.com/millrace/millrace/llm"
)

// maxRaw bounds what is kept of an answer that is an error, in bytes.
const maxRaw = 16 << 10

// An Exchange is what was seen of one attempt: an answer, or why there is none. It
// belongs to one goroutine.
type Exchange struct {
	status int
	header http.Header
	body   []byte
	at     time.Time
	err    error
	key    llm.Secret
}

// Header returns the header of the answer, without cookies; nil if there is none.
func (x *Exchange) Header() http.Header { return Header(x.header) }

// Status returns the HTTP status of the answer, 0 without one.
func (x *Exchange) Status() int { return x.status }

// Body returns the whole answer, nil without one. It must not be changed.
func (x *Exchange) Body() []byte { return x.body }

// A Fault is what a provider says went wrong, in its own words.
type Fault struct {
	Code, Type, Param string // names, as "insufficient_quota"
	Message           string // text; it may quote the request
	Status            int    // the status that counts, if the HTTP answer has another
	RetryAfter        time.Duration
}

// Says reports whether the message has one of the texts, given in lower case.
func (f Fault) Says(texts ...string) bool {
	message := strings.ToLower(f.Message)
	return slices.ContainsFunc(texts, func(t string) bool { return strings.Contains(message, t) })
}

// A Judge names the class of a provider's fault, given the class that the HTTP
// status suggests.
type Judge func(f Fault, suggested llm.Class) llm.Class

// Answered reports whether an answer with status 200 came in whole.
func (x *Exchange) Answered() bool { return x.err == nil && x.status >= 200 && x.status < 300 }

// Fail returns the error of an attempt: of its HTTP answer, if that was an error, or
// of the transport; if neither failed, the answer was no proper one. Its text is
// made of the names in the provider's answer only; the answer goes to Raw, without
// the key. read takes the fault from an answer's body.
func (x *Exchange) Fail(ctx context.Context, id llm.ID, read func(body []byte) Fault, judge Judge) *llm.Error {
	e := &llm.Error{Model: id, Status: x.status}
	switch {
	case x.err != nil:
		e.Class, e.Err = x.broken(ctx)
	case x.status == 0: // nothing was sent
		e.Class, e.Err = llm.Invalid, errors.New("the request could not be made")
		if ctx.Err() != nil {
			e.Class, e.Err = ended(ctx)
		}
	case x.Answered() && ctx.Err() != nil: // the SDK gave up on the answer
		e.Class, e.Err = ended(ctx)
	default:
		f := read(x.body)
		status := x.status
		if f.Status >= 300 {
			status = f.Status
		}
		e.Class = judge(f, suggest(status))
		e.Err = errors.New(x.scrub(describe(f, status)))
		e.RetryAfter = max(llm.ParseRetryAfter(x.header, x.at), f.RetryAfter)
		if e.Class != llm.Auth { // some quote part of the key
			e.Raw = clip(x.scrub(string(x.body)))
		}
	}
	return e
}

// suggest returns the class of an HTTP status.
func suggest(status int) llm.Class {
	switch {
	case status == http.StatusTooManyRequests:
		return llm.Throttled
	case status == http.StatusPaymentRequired:
		return llm.NoMoney
	case status == http.StatusUnauthorized, status == http.StatusForbidden, status == http.StatusProxyAuthRequired:
		return llm.Auth
	case status == http.StatusNotFound, status == http.StatusMethodNotAllowed, status == http.StatusGone:
		return llm.Auth // no such model, or not for this key, or no API here: nothing any event could change
	case status == http.StatusRequestEntityTooLarge:
		return llm.ContextTooLong
	case status == http.StatusRequestTimeout, status == http.StatusConflict, status == http.StatusTooEarly, status >= 500, status < 300:
		return llm.Unavailable
	}
	return llm.Invalid
}

// describe names a fault without any of its text.
func describe(f Fault, status int) string {
	var parts []string
	for _, p := range []struct{ name, value string }{{"code", f.Code}, {"type", f.Type}, {"param", f.Param}} {
		if name.MatchString(p.value) {
			parts = append(parts, p.name+" "+p.value)
		}
	}
	what := strings.Join(parts, ", ")
	switch {
	case what != "":
	case status < 300:
		what = "the answer is not one of a model"
	default:
		what = "an error answer without a name"
	}
	if status == http.StatusNotFound {
		what += "; check the model's name and Endpoint.URL"
	}
	return what
}

// name matches what providers call faults; a text is none.
var name = regexp.MustCompile(`^[A-Za-z0-9_.\[\]-]{1,64}$`)

// Name returns s if it is a name, and "unnamed" if it is a text.
func Name(s string) string {
	if name.MatchString(s) {
		return s
	}
	return "unnamed"
}

// broken classifies an attempt without an answer.
func (x *Exchange) broken(ctx context.Context) (llm.Class, error) {
	switch {
	case errors.Is(x.err, ErrTooLarge):
		return llm.TooLarge, ErrTooLarge
	case errors.Is(x.err, llm.ErrKey):
		return llm.Auth, x.err
	case errors.Is(x.err, errRedirect), errors.Is(x.err, errForeign), errors.Is(x.err, netguard.ErrAddress):
		return llm.Auth, x.plain() // a wrong configuration, or an attack: nothing any event could change
	case ctx.Err() != nil:
		return ended(ctx)
	}
	return llm.Unavailable, x.plain()
}

func ended(ctx context.Context) (llm.Class, error) {
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return llm.Timeout, ctx.Err()
	}
	return llm.Unavailable, ctx.Err() // cancelled
}

// plain returns the transport's error without URL and key.
func (x *Exchange) plain() error {
	err := x.err
	if u, ok := errors.AsType[*url.Error](err); ok {
		err = u.Err
	}
	if text := err.Error(); x.scrub(text) != text {
		return errors.New(x.scrub(text))
	}
	return err
}

// Text returns s without the key, for what a model said.
func (x *Exchange) Text(s string) string { return x.scrub(s) }

// scrub replaces the key of the attempt in a text.
func (x *Exchange) scrub(s string) string {
	key := x.key.Reveal()
	if key == "" || !strings.Contains(s, key) {
		return s
	}
	return strings.ReplaceAll(s, key, "***")
}

func clip(s string) string {
	if len(s) > maxRaw {
		return strings.ToValidUTF8(s[:maxRaw], "") + fmt.Sprintf("... (%d bytes)", len(s))
	}
	return s
}

// A Word is a JSON string or number, as codes of errors are; anything else is empty.
type Word string

// UnmarshalJSON takes any value.
func (w *Word) UnmarshalJSON(b []byte) error {
	var s string
	switch {
	case json.Unmarshal(b, &s) == nil:
		*w = Word(s)
	case len(b) > 0 && (b[0] == '-' || b[0] >= '0' && b[0] <= '9'):
		*w = Word(b)
	}
	return nil
}
