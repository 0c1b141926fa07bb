package processors

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	millracev1 "github.com/millrace/millrace/proto/millrace/v1"
)

// ControlHeader makes a record of a step's input a control record: it does something
// to the conversation of its key, as [ResetConversation] and [CutConversation] say, in
// the order of the key's events, and has no result. No model sees its value, which may
// be null. A step without conversations drops it.
const ControlHeader = "millrace.conversation"

const (
	controlReset = "reset"
	controlCut   = "cut "
)

// ResetConversation returns the header of a record that ends the conversation of its
// key: the events behind it begin a new one.
func ResetConversation() Header { return Header{Key: ControlHeader, Value: []byte(controlReset)} }

// CutConversation returns the header of a record that takes what an event said, and
// the answer to it, out of the conversation of its key: the events behind it are
// answered without. The event is topic/partition/offset of its source record, or the
// Event of a turn. A summary in which it may be is dropped. The answer leaves the step's
// cache too, unless the turn had left the conversation before: then its TTL ends it. Topics
// (source, results, refused answers, dead letters) keep what they hold.
func CutConversation(event string) Header {
	return Header{Key: ControlHeader, Value: []byte(controlCut + event)}
}

// controlIn returns the last control header.
func controlIn(headers []Header) (command string, ok bool) {
	for _, h := range slices.Backward(headers) {
		if h.Key == ControlHeader {
			return string(h.Value), true
		}
	}
	return "", false
}

func isControl(e *millracev1.Entry) bool {
	return slices.ContainsFunc(e.Event.Headers, func(h *millracev1.Header) bool { return string(h.Key) == ControlHeader })
}

// control returns the command of a control record.
func (s *enrichRun[K, In, Out]) control(headers []Header, noKey bool) (command string, ok bool, err error) {
	command, ok = controlIn(headers)
	if !ok {
		return "", false, nil
	}
	event, cut := strings.CutPrefix(command, controlCut)
	switch {
	case noKey:
		err = fmt.Errorf("header %s: a record without a key has no conversation", ControlHeader)
	case cut:
		_, err = s.events(event)
	case command != controlReset:
		err = fmt.Errorf("header %s: %.100q is neither reset nor cut and an event; make it with processors.ResetConversation or CutConversation", ControlHeader, command)
	}
	if err != nil {
		return "", true, &Error{Class: ClassDecode, Step: s.Step, Err: err}
	}
	return command, true, nil
}

// events returns the test for the entries of an event.
func (s *enrichRun[K, In, Out]) events(event string) (func(id string) bool, error) {
	parts := strings.Split(event, "/")
	n := len(parts)
	if n != 3 && n != 5 || slices.Contains(parts, "") {
		return nil, fmt.Errorf("header %s: %.200q is no event: take topic/partition/offset, or the Event of a turn", ControlHeader, event)
	}
	if n == 5 {
		return func(id string) bool { return id == event }, nil
	}
	for _, number := range parts[1:] {
		if _, err := strconv.ParseUint(number, 10, 63); err != nil {
			return nil, errors.Join(fmt.Errorf("header %s: %.200q is no event", ControlHeader, event), err)
		}
	}
	prefix := strings.Join([]string{s.Step, s.task.TopicID(parts[0]), parts[1], parts[2], ""}, "/")
	return func(id string) bool { return strings.HasPrefix(id, prefix) }, nil
}

// input is what admits records.
func (s *enrichRun[K, In, Out]) input(a *Async) Forward[K, In] {
	admit := s.async.input(a)
	return func(r Record[K, In]) error {
		_, ok, err := s.control(r.Headers, r.NoKey)
		switch {
		case ok && s.talk == nil:
			s.task.Drop(s.Step, "control")
			return nil
		case err != nil:
			return err
		}
		return admit(r)
	}
}

// controlled does what a control record says.
func (s *enrichRun[K, In, Out]) controlled(e *millracev1.Entry, command string) error {
	if s.talk == nil { // the program that admitted it had conversations
		s.task.Drop(s.Step, "control")
		return nil
	}
	var requests [][]byte
	var err error
	if event, cut := strings.CutPrefix(command, controlCut); cut {
		var is func(string) bool
		if is, err = s.events(event); err == nil {
			requests, err = s.talk.cut(e.Event.Key, is)
		}
	} else {
		requests, err = s.talk.reset(e.Event.Key)
	}
	for _, key := range requests {
		if err == nil && s.cache != nil {
			err = s.cache.rows.delete(key)
		}
	}
	if err != nil {
		return &Error{Class: ClassState, Step: s.Step, Err: err}
	}
	return nil
}
