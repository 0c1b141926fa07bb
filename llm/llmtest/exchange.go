package llmtest

import (
	"encoding/json"
	"maps"
	"net/http"
	"strconv"
	"time"

	"github.com/millrace/millrace/internal/modelserver"
	"github.com/millrace/millrace/llm"
)

// An exchange answers one call.
type exchange struct {
	api   *api
	call  *Call
	reply Reply
	w     http.ResponseWriter
	r     *http.Request
	quit  chan struct{}
	end   func(modelserver.Outcome)
}

func (x *exchange) run() {
	if !x.wait(x.reply.Delay) {
		x.end(modelserver.Gone)
		return
	}
	if x.reply.Hang {
		select {
		case <-x.r.Context().Done():
		case <-x.quit:
		}
		x.end(modelserver.Gone)
		panic(http.ErrAbortHandler)
	}
	status, body := x.render()
	maps.Copy(x.w.Header(), x.reply.Header)
	if x.w.Header().Get("Content-Type") == "" {
		x.w.Header().Set("Content-Type", "application/json")
	}
	if x.reply.Pad > 0 {
		x.pad(status)
		return
	}
	x.w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	outcome := modelserver.Answered
	switch {
	case status >= 300:
		outcome = modelserver.Refused
	case x.reply.Cut:
		outcome = modelserver.Broken
	case x.reply.Unusable:
		outcome = modelserver.Unusable
	}
	if x.reply.Cut {
		body = body[:len(body)/2]
	}
	// The answer counts as sent before its last byte can arrive: a caller that has it
	// never finds the call still running.
	x.end(outcome)
	x.w.WriteHeader(status)
	_, err := x.w.Write(body)
	if x.reply.Cut || err != nil {
		_ = http.NewResponseController(x.w).Flush() // the caller sees the cut anyway
		panic(http.ErrAbortHandler)
	}
}

// pad sends white space until enough is sent or the caller has had enough.
func (x *exchange) pad(status int) {
	x.end(modelserver.Broken)
	x.w.WriteHeader(status)
	chunk := make([]byte, 64<<10)
	for i := range chunk {
		chunk[i] = ' '
	}
	for left := x.reply.Pad; left > 0; {
		n, err := x.w.Write(chunk[:min(left, int64(len(chunk)))])
		if err != nil {
			panic(http.ErrAbortHandler)
		}
		left -= int64(n)
	}
}

// wait returns false if the caller or the server is gone before d is over.
func (x *exchange) wait(d time.Duration) bool {
	if d <= 0 {
		return true
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-x.r.Context().Done():
	case <-x.quit:
	}
	return false
}

// render returns the status and the body of the reply.
func (x *exchange) render() (int, []byte) {
	reply := x.reply
	status := reply.Status
	if reply.Body != nil {
		return max(status, http.StatusOK), reply.Body
	}
	if reply.Usage == (llm.Usage{}) {
		reply.Usage = estimate(x.call, reply.Text)
	}
	var v any
	if reply.Fault != "" {
		code, body := x.api.fault(reply)
		if status == 0 {
			status = code
		}
		v = body
	} else {
		status = max(status, http.StatusOK)
		v = x.api.answer(x.call, reply)
	}
	b, err := json.Marshal(v)
	if err != nil {
		panic(err) // strings and numbers only
	}
	return status, b
}
