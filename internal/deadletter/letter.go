// Package deadletter reads the dead letters of an application on a cluster and writes
// their events back to where they came from, once.
package deadletter

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/millrace/millrace/llm/answer"
	"github.com/millrace/millrace/processors"
)

// A Position is the place of a record: topic/partition/offset.
type Position struct {
	Topic     string
	Partition int32
	Offset    int64
}

// String returns topic/partition/offset.
func (p Position) String() string { return fmt.Sprintf("%s/%d/%d", p.Topic, p.Partition, p.Offset) }

// ParsePosition reads what String returns.
func ParsePosition(s string) (Position, error) {
	parts := strings.Split(s, "/")
	if len(parts) == 3 && parts[0] != "" {
		partition, perr := strconv.ParseInt(parts[1], 10, 32)
		offset, oerr := strconv.ParseInt(parts[2], 10, 64)
		if perr == nil && oerr == nil && partition >= 0 && offset >= 0 {
			return Position{parts[0], int32(partition), offset}, nil
		}
	}
	return Position{}, fmt.Errorf("position %q: write it as topic/partition/offset", s)
}

// A Letter is a dead letter: an event and why it was given up.
type Letter struct {
	Position
	// Key, Value and Headers are the event's, as it was read; nil is Kafka's null.
	Key, Value []byte
	Headers    []processors.Header
	// Source is the record that the event is, EventTime its time.
	Source    Position
	EventTime time.Time
	// FailedAt is when it was given up.
	FailedAt time.Time
	// Step, Class and Message say what failed.
	Step, Class, Message string
	// Details are all headers that say what failed and what was tried. Of what follows,
	// a step with model calls has filled in what it knew.
	Details                                 []processors.Header
	Attempts                                int
	Prompt, PromptVersion, Schema, Model    string
	InputTokens, CachedTokens, OutputTokens int64
	CostMicros                              int64 // only if CostKnown
	CostKnown                               bool
	Answer                                  []byte // the last one, as far as it was kept
	Violations                              []answer.Violation
	// ReplayOf is the letter that this event was replayed of, if it was replayed.
	ReplayOf string
	// Replayed is when the letter was replayed; zero if it was not.
	Replayed time.Time
}

// headers that say where the event of a letter came from.
const (
	topicHeader     = "millrace.topic"
	partitionHeader = "millrace.partition"
	offsetHeader    = "millrace.offset"
	timestampHeader = "millrace.timestamp"
)

// parse reads a record of a dead-letter topic.
func parse(r *kgo.Record) (*Letter, error) {
	l := &Letter{Position: Position{r.Topic, r.Partition, r.Offset}, Key: r.Key, Value: r.Value, EventTime: r.Timestamp, FailedAt: r.Timestamp}
	headers := make([]processors.Header, len(r.Headers))
	from := -1
	for i, h := range r.Headers {
		headers[i] = processors.Header{Key: h.Key, Value: h.Value}
		if h.Key == topicHeader {
			from = i // the event may have been a dead letter before, and keep those headers
		}
	}
	if from < 0 {
		return l, errors.New("it has no header " + topicHeader + ": no application of ours wrote it")
	}
	l.Headers, l.Details = headers[:from:from], headers[from:]
	l.ReplayOf = last(l.Headers, processors.ReplayOfHeader)
	text := func(key string) string { return last(l.Details, key) }
	var errs []error
	number := func(key string) int64 {
		s := text(key)
		if s == "" {
			return 0
		}
		n, err := strconv.ParseInt(s, 10, 64)
		if err != nil {
			errs = append(errs, fmt.Errorf("header %s: %q is no number", key, s))
		}
		return n
	}
	l.Source = Position{text(topicHeader), int32(number(partitionHeader)), number(offsetHeader)}
	l.EventTime = time.UnixMilli(number(timestampHeader))
	if text(processors.FailedAtHeader) != "" {
		l.FailedAt = time.UnixMilli(number(processors.FailedAtHeader))
	}
	l.Step, l.Class, l.Message = text("millrace.step"), text("millrace.class"), text("millrace.message")
	l.Attempts = int(number(processors.AttemptsHeader))
	l.Prompt, l.PromptVersion = text(processors.PromptHeader), text(processors.PromptVersionHeader)
	l.Schema, l.Model = text(processors.SchemaHeader), text(processors.ModelHeader)
	l.InputTokens, l.CachedTokens, l.OutputTokens = number(processors.InputTokensHeader), number(processors.CachedTokensHeader), number(processors.OutputTokensHeader)
	l.CostKnown, l.CostMicros = text(processors.CostHeader) != "", number(processors.CostHeader)
	if a := text(processors.AnswerHeader); a != "" {
		l.Answer = []byte(a)
	}
	if v := text(processors.ViolationsHeader); v != "" {
		if err := json.Unmarshal([]byte(v), &l.Violations); err != nil {
			errs = append(errs, fmt.Errorf("header %s: %w", processors.ViolationsHeader, err))
		}
	}
	return l, errors.Join(errs...)
}

// last returns the value of the last header of that key.
func last(headers []processors.Header, key string) string {
	for _, h := range slices.Backward(headers) {
		if h.Key == key {
			return string(h.Value)
		}
	}
	return ""
}

// A Filter chooses letters. Its zero value chooses all.
type Filter struct {
	// Step and Class, if not empty, are those of the letter.
	Step, Class string
	// Since and Until, if not zero, bound when the event was given up: [Since, Until).
	Since, Until time.Time
	// At, if not empty, lists the letters.
	At []Position
	// Fresh leaves out letters that were replayed.
	Fresh bool
	// Limit bounds the number of letters; 0 is no bound.
	Limit int
}

func (f *Filter) takes(l *Letter) bool {
	return (f.Step == "" || f.Step == l.Step) && (f.Class == "" || f.Class == l.Class) &&
		(f.Since.IsZero() || !l.FailedAt.Before(f.Since)) && (f.Until.IsZero() || l.FailedAt.Before(f.Until)) &&
		(len(f.At) == 0 || slices.Contains(f.At, l.Position)) && (!f.Fresh || l.Replayed.IsZero())
}
