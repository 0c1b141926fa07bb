package reviews

import (
	"errors"
	"io"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"buf.build/go/protovalidate"
)

func TestData(t *testing.T) {
	t.Parallel()
	products, err := Products()
	if err != nil {
		t.Fatal(err)
	}
	if len(products) != 309 {
		t.Errorf("%d reviews have a product, want 309", len(products))
	}
	n, ids, reviews := 0, map[string]bool{}, map[string]bool{}
	for l, err := range Lines(Sentences()) {
		if err != nil || l.Err != nil {
			t.Fatal(err, l.Err)
		}
		n++
		e := l.Event
		if err := protovalidate.Validate(e.Sentence()); err != nil {
			t.Errorf("line %d: %v", l.Number, err)
		}
		if products[e.Review] == nil || e.Rating == nil || *e.Rating < -4 || *e.Rating > 4 || strings.HasSuffix(e.Text, "\r") {
			t.Errorf("line %d: %+v", l.Number, e)
		}
		ids[e.ID], reviews[e.Review] = true, true
	}
	if n != 3708 || len(ids) != n || len(reviews) != 300 {
		t.Errorf("%d lines, %d ids, %d reviews; want 3708, 3708, 300", n, len(ids), len(reviews))
	}
}

func TestLines(t *testing.T) {
	t.Parallel()
	rating := -1.5
	tests := []struct {
		name, line string
		want       Event
		bad        string // part of the error
	}{
		{"TSV", "7_2\t-1.5\tit broke", Event{ID: "7_2", Review: "7", Text: "it broke", Rating: &rating}, ""},
		{"TSV, no rating", "7_2\t\tit\tbroke", Event{ID: "7_2", Review: "7", Text: "it\tbroke"}, ""},
		{"TSV, rating is a word", "7_2\tgood\tit broke", Event{}, `rating "good"`},
		{"TSV, rating is infinite", "7_2\tinf\tit broke", Event{}, `rating "inf"`},
		{"two fields", "7_2\tit broke", Event{}, "2 fields"},
		{"prose", "it broke", Event{}, "1 fields"},
		{"JSON", ` {"id":"a_1","review":"r","text":"it broke","rating":-1.5,"line":9}`, Event{ID: "a_1", Review: "r", Text: "it broke", Rating: &rating}, ""},
		{"JSON, text only", `{"text":"it broke"}`, Event{ID: "1", Review: "1", Text: "it broke"}, ""},
		{"JSON, cut", `{"text":"it br`, Event{}, "not an event"},
		{"JSON, wrong type", `{"text":7}`, Event{}, "not an event"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			for l, err := range Lines(strings.NewReader(tt.line + "\r\n")) {
				if err != nil || l.Number != 1 || string(l.Raw) != tt.line || l.Time() != Start {
					t.Fatalf("%+v, %v", l, err)
				}
				if tt.bad != "" {
					if l.Err == nil || !strings.Contains(l.Err.Error(), tt.bad) {
						t.Errorf("error %v, want %q", l.Err, tt.bad)
					}
					continue
				}
				tt.want.Line = 1
				got := l.Event
				if l.Err != nil || (got.Rating == nil) != (tt.want.Rating == nil) || got.Rating != nil && *got.Rating != *tt.want.Rating {
					t.Fatalf("%+v, %v", got, l.Err)
				}
				got.Rating = tt.want.Rating
				if got != tt.want {
					t.Errorf("got %+v, want %+v", got, tt.want)
				}
			}
		})
	}
}

func TestLinesNumbersAndEnds(t *testing.T) {
	t.Parallel()
	var numbers []int64
	for l, err := range Lines(strings.NewReader("{}\n\n \r\n{}\nx")) {
		if err != nil {
			t.Fatal(err)
		}
		numbers = append(numbers, l.Number)
		if want := Start.Add(time.Duration(l.Number-1) * time.Second); l.Time() != want {
			t.Errorf("line %d at %v", l.Number, l.Time())
		}
	}
	if want := []int64{1, 4, 5}; !slices.Equal(numbers, want) {
		t.Errorf("lines %v, want %v", numbers, want)
	}
	broken := errors.New("broken")
	for name, r := range map[string]io.Reader{
		"long":   strings.NewReader(strings.Repeat("x", MaxLine+1)),
		"broken": iotest.ErrReader(broken),
	} {
		var last error
		for _, err := range Lines(r) {
			last = err
		}
		if last == nil || name == "broken" && !errors.Is(last, broken) || !strings.Contains(last.Error(), "line 1") {
			t.Errorf("%s: error %v", name, last)
		}
	}
}

func FuzzLines(f *testing.F) {
	f.Add([]byte("1_1\t-0.9\tno picture\r\n{\"text\":\"x\"}\n\nbad"))
	f.Fuzz(func(t *testing.T, data []byte) {
		for l, err := range Lines(strings.NewReader(string(data))) {
			if err == nil && (l.Number < 1 || len(l.Raw) == 0 || l.Err == nil && l.Event.Line != l.Number) {
				t.Errorf("%+v", l)
			}
		}
	})
}
