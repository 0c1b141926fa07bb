package llmtest

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/millrace/millrace/llm"
)

// An Evaluation says how a prompt is tried on a data set of T.
type Evaluation[T any] struct {
	// Request makes the request for a datum, as the program under test does. Required.
	Request func(T) (*llm.Request, error)
	// Check judges an answer: nil if it is as it should be. Errors of class
	// [llm.Violation] break the contract, others are wrong answers. nil accepts all.
	Check func(T, *llm.Response) error
	// Name names a datum in the report; nil means its number.
	Name func(T) string
	// Parallel is how many calls run at once, 4 if 0; Timeout bounds one, 1 minute if
	// 0.
	Parallel int
	Timeout  time.Duration
}

// A Failure is a datum that went wrong.
type Failure struct {
	N     int // its number in the data set, from 0
	Name  string
	Class llm.Class // "" for a wrong answer
	Text  string    // the answer, if there was one
	Err   error
}

// A Report tells how a prompt did.
type Report struct {
	Total, Passed int
	// Wrong counts answers that Check found wrong; Failed the others by their class,
	// [llm.Violation] among them.
	Wrong    int
	Failed   map[llm.Class]int
	Usage    llm.Usage // of all calls
	P50, P95 time.Duration
	Failures []Failure // in the order of the data set
}

// PassRate is the share of data that passed, from 0 to 1; 1 without any.
func (r Report) PassRate() float64 {
	if r.Total == 0 {
		return 1
	}
	return float64(r.Passed) / float64(r.Total)
}

// Rate is the share of data that ended in a class, from 0 to 1.
func (r Report) Rate(c llm.Class) float64 {
	if r.Total == 0 {
		return 0
	}
	return float64(r.Failed[c]) / float64(r.Total)
}

// String is a summary, and a line for each of the first ten failures.
func (r Report) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%d of %d passed (%.1f %%), %d wrong", r.Passed, r.Total, 100*r.PassRate(), r.Wrong)
	for _, class := range slices.Sorted(maps.Keys(r.Failed)) {
		fmt.Fprintf(&b, ", %d %s", r.Failed[class], class)
	}
	fmt.Fprintf(&b, "; %d tokens in, %d out; p50 %s, p95 %s", r.Usage.Input, r.Usage.Output, r.P50.Round(time.Millisecond), r.P95.Round(time.Millisecond))
	for i, f := range r.Failures {
		if i == 10 {
			fmt.Fprintf(&b, "\n... and %d more", len(r.Failures)-i)
			break
		}
		fmt.Fprintf(&b, "\n%s: %v", f.Name, f.Err)
	}
	return b.String()
}

// Evaluate runs a prompt over a data set, one attempt for each datum, and reports
// how it did. It returns an error only if the evaluation itself cannot go on: a
// request that cannot be made, or the end of ctx.
func Evaluate[T any](ctx context.Context, m llm.Model, data []T, e Evaluation[T]) (Report, error) {
	parallel, timeout := cmp.Or(e.Parallel, 4), cmp.Or(e.Timeout, time.Minute)
	requests := make([]*llm.Request, len(data))
	for i, datum := range data {
		req, err := e.Request(datum)
		if err != nil {
			return Report{}, fmt.Errorf("evaluation: request for %s: %w", e.name(datum, i), err)
		}
		requests[i] = req
	}
	results := make([]result, len(data))
	numbers := make(chan int)
	var wg sync.WaitGroup
	for range min(parallel, len(data)) {
		wg.Go(func() { // ends when numbers is closed
			for i := range numbers {
				results[i] = e.try(ctx, m, data[i], requests[i], timeout)
			}
		})
	}
	for i := range data {
		numbers <- i
	}
	close(numbers)
	wg.Wait()
	if err := ctx.Err(); err != nil {
		return Report{}, fmt.Errorf("evaluation: %w", err)
	}
	return e.report(data, results), nil
}

type result struct {
	took  time.Duration
	usage llm.Usage
	text  string
	class llm.Class
	err   error
}

func (e *Evaluation[T]) try(ctx context.Context, m llm.Model, datum T, req *llm.Request, timeout time.Duration) (r result) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	start := time.Now()
	resp, err := m.Generate(ctx, req)
	r.took = time.Since(start)
	if err != nil {
		r.err, r.class = err, llm.ClassOf(err)
		if le, ok := errors.AsType[*llm.Error](err); ok {
			r.usage, r.text = le.Usage, le.Raw
		}
		return r
	}
	r.usage, r.text = resp.Usage, resp.Text
	if e.Check != nil {
		r.err = e.Check(datum, resp)
		if le, ok := errors.AsType[*llm.Error](r.err); ok {
			r.class = le.Class
		}
	}
	return r
}

func (e *Evaluation[T]) name(datum T, i int) string {
	if e.Name == nil {
		return fmt.Sprintf("#%d", i)
	}
	return e.Name(datum)
}

func (e *Evaluation[T]) report(data []T, results []result) Report {
	out := Report{Total: len(data), Failed: map[llm.Class]int{}}
	var times []time.Duration
	for i, r := range results {
		out.Usage = out.Usage.Add(r.usage)
		times = append(times, r.took)
		switch {
		case r.err == nil:
			out.Passed++
			continue
		case r.class == "":
			out.Wrong++
		default:
			out.Failed[r.class]++
		}
		out.Failures = append(out.Failures, Failure{N: i, Name: e.name(data[i], i), Class: r.class, Text: r.text, Err: r.err})
	}
	if len(times) > 0 {
		slices.Sort(times)
		out.P50, out.P95 = times[(len(times)-1)/2], times[(len(times)-1)*95/100]
	}
	return out
}
