// Package reviews is an example application: it reads sentences of product
// reviews, asks a model for the sentiment of each, which sees the sentences before it
// in the review, joins the answers with the products, and writes validated Protobuf
// messages and counts. Run it with "millrace demo".
package reviews

import (
	"bufio"
	"bytes"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"math"
	"strconv"
	"strings"
	"time"

	reviewsv1 "github.com/millrace/millrace/examples/reviews/proto/reviews/v1"
)

//go:embed data/amazon-review-sentences.tsv
var sentences []byte

//go:embed data/products.tsv
var products []byte

// Sentences returns the data of the example as an input for [Lines]: 3,708
// sentences of 309 product reviews.
func Sentences() io.Reader { return bytes.NewReader(sentences) }

// Start is the event time of the first line of an input; each further line is
// one second later.
var Start = time.Date(2003, 1, 1, 0, 0, 0, 0, time.UTC)

// An Event is a sentence as the source topic carries it, as JSON.
type Event struct {
	ID     string   `json:"id"`
	Review string   `json:"review"`
	Text   string   `json:"text"`
	Rating *float64 `json:"rating,omitempty"`
	Line   int64    `json:"line"`
}

// Sentence returns the event as a message. It is not validated.
func (e Event) Sentence() *reviewsv1.Sentence {
	return &reviewsv1.Sentence{Id: e.ID, Review: e.Review, Text: e.Text, Rating: e.Rating, Line: e.Line}
}

// MaxLine is the length in bytes of the longest line of an input: with its
// headers it fits into a record of Kafka's default size.
const MaxLine = 900_000

// A Line is one line of an input.
type Line struct {
	Number int64  // from 1, empty lines counted
	Raw    []byte // without the end of line
	Event  Event  // if Err is nil
	Err    error  // why Raw is not an event
}

// Time is the event time of the line.
func (l Line) Time() time.Time { return Start.Add(time.Duration(l.Number-1) * time.Second) }

// Lines reads an input: each line is a JSON object with the members of [Event],
// or the three fields id, rating and text with tabs between them. In JSON, id
// defaults to the line's number; the review defaults to the part of the id
// before its first "_". Empty lines are passed over. A line that is neither has
// an Err; a failure of r, or a line longer than [MaxLine], ends the iteration.
func Lines(r io.Reader) iter.Seq2[Line, error] {
	return func(yield func(Line, error) bool) {
		in := bufio.NewReaderSize(r, 64<<10)
		for n := int64(1); ; n++ {
			raw, err := readLine(in)
			if err != nil && !errors.Is(err, io.EOF) {
				yield(Line{}, fmt.Errorf("input line %d: %w", n, err))
				return
			}
			if len(bytes.TrimSpace(raw)) > 0 {
				l := Line{Number: n, Raw: raw}
				l.Event, l.Err = parse(raw, n)
				if !yield(l, nil) {
					return
				}
			}
			if err != nil {
				return
			}
		}
	}
}

func readLine(in *bufio.Reader) ([]byte, error) {
	var line []byte
	for {
		part, err := in.ReadSlice('\n')
		line = append(line, part...)
		if len(line) > MaxLine {
			return nil, fmt.Errorf("longer than %d bytes; split it or leave it out", MaxLine)
		}
		if errors.Is(err, bufio.ErrBufferFull) {
			continue
		}
		return bytes.TrimRight(line, "\r\n"), err
	}
}

func parse(raw []byte, n int64) (Event, error) {
	var e Event
	if trimmed := bytes.TrimSpace(raw); trimmed[0] == '{' {
		if err := json.Unmarshal(trimmed, &e); err != nil {
			return Event{}, fmt.Errorf("not an event in JSON: %w", err)
		}
		if e.ID == "" {
			e.ID = strconv.FormatInt(n, 10)
		}
	} else {
		fields := strings.SplitN(string(raw), "\t", 3)
		if len(fields) < 3 {
			return Event{}, fmt.Errorf("neither a JSON object nor id, rating and text with tabs between them (%d fields)", len(fields))
		}
		e.ID, e.Text = fields[0], fields[2]
		if fields[1] != "" {
			rating, err := strconv.ParseFloat(fields[1], 64)
			if err != nil || math.IsNaN(rating) || math.IsInf(rating, 0) {
				return Event{}, fmt.Errorf("rating %q is not a number", fields[1])
			}
			e.Rating = &rating
		}
	}
	if e.Review == "" {
		e.Review, _, _ = strings.Cut(e.ID, "_")
	}
	e.Line = n
	return e, nil
}

// Products returns the product of every review of the example, by review.
func Products() (map[string]*reviewsv1.Product, error) {
	out := map[string]*reviewsv1.Product{}
	rows := strings.Split(strings.TrimSpace(string(products)), "\n")
	for i, row := range rows[1:] {
		f := strings.Split(strings.TrimSpace(row), "\t")
		if len(f) != 5 {
			return nil, fmt.Errorf("products.tsv line %d: %d fields, want 5", i+2, len(f))
		}
		first, err1 := strconv.Atoi(f[0])
		last, err2 := strconv.Atoi(f[1])
		if err := errors.Join(err1, err2); err != nil {
			return nil, fmt.Errorf("products.tsv line %d: %w", i+2, err)
		}
		for review := first; review <= last; review++ {
			out[strconv.Itoa(review)] = &reviewsv1.Product{Id: f[2], Name: f[3], Category: f[4]}
		}
	}
	return out, nil
}
