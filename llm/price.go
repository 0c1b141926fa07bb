package llm

import (
	"bytes"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"
)

// Micros is an amount of money in millionths of a US dollar. Sums of money are whole
// numbers, so that they are exact.
type Micros int64

// Dollars returns the amount of n whole dollars.
func Dollars(n int64) Micros { return Micros(n) * 1_000_000 }

// String returns the amount in dollars, as "$0.000125".
func (m Micros) String() string {
	sign, n := "", uint64(m)
	if m < 0 {
		sign, n = "-", -n
	}
	return fmt.Sprintf("%s$%d.%06d", sign, n/1_000_000, n%1_000_000)
}

// Rates are prices in micro-dollars for a million tokens.
type Rates struct {
	Input Micros
	// Cached is for input read from a prompt cache, Written for input written to one.
	Cached, Written Micros
	Output          Micros
	// Reasoning is for the tokens of the output that only the model sees.
	Reasoning Micros
}

// A Price is what a model costs from a day on.
type Price struct {
	From time.Time
	Rates
	// LongOver, if not 0, is the number of input tokens above which Long applies to
	// the whole request.
	LongOver int64
	Long     Rates
}

// Cost returns what an attempt cost, rounded up to a whole micro-dollar. Counts that
// make no sense (more cached than input, negative) are cut to what does.
func (p Price) Cost(u Usage) Micros {
	r := p.Rates
	u = u.believed()
	if p.LongOver > 0 && u.Input > p.LongOver {
		r = p.Long
	}
	var s sum
	s.add(u.Input-u.Cached-u.Written, r.Input)
	s.add(u.Cached, r.Cached)
	s.add(u.Written, r.Written)
	s.add(u.Output-u.Reasoning, r.Output)
	s.add(u.Reasoning, r.Reasoning)
	return s.micros()
}

// sum adds token counts times rates without overflow: whole micro-dollars, and
// millionths of one.
type sum struct{ whole, rest int64 }

func (s *sum) add(tokens int64, rate Micros) {
	const million = 1_000_000
	// tokens*rate = (a*million+b)*rate
	a, b := tokens/million, tokens%million
	s.whole += a * int64(rate)
	s.whole += b * (int64(rate) / million)
	s.rest += b * (int64(rate) % million)
	s.whole += s.rest / million
	s.rest %= million
}

func (s *sum) micros() Micros {
	if s.rest > 0 {
		return Micros(s.whole + 1)
	}
	return Micros(s.whole)
}

// Worst returns the most that an attempt at req can cost: no token is shorter than a
// byte, and the answer ends at MaxTokens. It fails if MaxTokens is not set, as the
// answer is then unbounded. What the provider's own template adds is covered by 16
// tokens for each message.
func (p Price) Worst(req *Request) (Micros, error) {
	if req.MaxTokens <= 0 {
		return 0, errors.New("llm: the cost of a request without MaxTokens has no bound; set MaxTokens")
	}
	input := req.worstInput()
	worst := Micros(0)
	short := p
	short.LongOver = 0
	// The dearest split of the tokens, each taken whole, long or not.
	for _, q := range []Price{p, short} {
		for _, u := range []Usage{{}, {Cached: input}, {Written: input}} {
			for _, reasoning := range []int64{0, int64(req.MaxTokens)} {
				u.Input, u.Output, u.Reasoning = input, int64(req.MaxTokens), reasoning
				worst = max(worst, q.Cost(u))
			}
		}
	}
	return worst, nil
}

// worstInput is the most tokens that the input can have.
func (r *Request) worstInput() int64 { return int64(r.Bytes() + 16*(len(r.Messages)+1)) }

// Worst returns the most that an attempt at a request can take, as [Price.Worst] says;
// without a price no money. It fails, and returns 0, if MaxTokens is not set. t may be
// nil.
func (t *PriceTable) Worst(id ID, req *Request, at time.Time) (Amount, error) {
	price := Price{}
	if t != nil {
		price, _ = t.At(id, at)
	}
	money, err := price.Worst(req)
	if err != nil {
		return Amount{}, err
	}
	return Amount{money, req.worstInput() + int64(req.MaxTokens)}, nil
}

// Bytes returns the size of what is sent of a request: its texts and its schema.
func (r *Request) Bytes() int {
	n := len(r.Schema) + len(r.SchemaName)
	for _, m := range r.Messages {
		n += len(m.Text)
	}
	return n
}

// A PriceTable says what models cost, by date. It does not change; safe for
// concurrent use.
type PriceTable struct {
	models map[string][]Price // by provider/model or a prefix of it and *; by date
}

//go:embed prices.json
var defaultPrices []byte

// DefaultPrices returns the list prices of well-known models that come with this
// version: standard tier, short cache lifetime, US dollars. They age: replace or
// overlay them with [LoadPrices] where money matters.
func DefaultPrices() *PriceTable {
	t, err := LoadPrices(bytes.NewReader(defaultPrices))
	if err != nil {
		panic("llm: prices.json: " + err.Error()) // checked by a test
	}
	return t
}

// LoadPrices reads a price table in JSON:
//
//	{"models": {
//	  "openai/gpt-5-mini": [
//	    {"from": "2025-08-07", "input": 0.25, "cached": 0.025, "output": 2}
//	  ],
//	  "local/*": [{"from": "2020-01-01", "input": 0, "output": 0}]
//	}}
//
// Prices are in US dollars for a million tokens, with at most six decimals. A price
// holds from its day (UTC) until that of the next. Left out, cached and written take
// the price of input, reasoning that of output. "long": {"over": 272000, "input": ...}
// has the prices for requests of more input tokens than that. A name that ends in *
// stands for all that begin so; the longest that fits counts.
//
// All that is wrong is reported.
func LoadPrices(r io.Reader) (*PriceTable, error) {
	dec := json.NewDecoder(r)
	dec.DisallowUnknownFields()
	var file struct {
		Models map[string][]priceJSON `json:"models"`
	}
	if err := dec.Decode(&file); err != nil {
		return nil, fmt.Errorf("llm: prices: %w", err)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("llm: prices: there is more after the table")
	}
	t := &PriceTable{models: make(map[string][]Price, len(file.Models))}
	var errs []error
	for name, list := range file.Models {
		if !strings.Contains(name, "/") && name != "*" || strings.Contains(strings.TrimSuffix(name, "*"), "*") {
			errs = append(errs, fmt.Errorf("llm: prices: model %q: the name has to be provider/model, with * only at its end", name))
		}
		if len(list) == 0 {
			errs = append(errs, fmt.Errorf("llm: prices: model %q has no price", name))
		}
		for _, j := range list {
			p, err := j.price()
			if err != nil {
				errs = append(errs, fmt.Errorf("llm: prices: model %q: %w", name, err))
				continue
			}
			if slices.ContainsFunc(t.models[name], func(o Price) bool { return o.From.Equal(p.From) }) {
				errs = append(errs, fmt.Errorf("llm: prices: model %q has two prices from %s", name, j.From))
			}
			t.models[name] = append(t.models[name], p)
		}
		slices.SortFunc(t.models[name], func(a, b Price) int { return a.From.Compare(b.From) })
	}
	return t, errors.Join(errs...)
}

type ratesJSON struct {
	Input     json.Number `json:"input"`
	Cached    json.Number `json:"cached"`
	Written   json.Number `json:"written"`
	Output    json.Number `json:"output"`
	Reasoning json.Number `json:"reasoning"`
}

type priceJSON struct {
	From string `json:"from"`
	ratesJSON
	Long *struct {
		Over int64 `json:"over"`
		ratesJSON
	} `json:"long"`
}

func (j priceJSON) price() (p Price, err error) {
	if p.From, err = time.Parse(time.DateOnly, j.From); err != nil {
		return p, fmt.Errorf("from %q is no day like 2026-01-31", j.From)
	}
	if p.Rates, err = j.rates(); err != nil || j.Long == nil {
		return p, err
	}
	if p.LongOver = j.Long.Over; p.LongOver <= 0 {
		return p, fmt.Errorf("from %s: long has to say over how many tokens", j.From)
	}
	if p.Long, err = j.Long.rates(); err != nil {
		return p, fmt.Errorf("long: %w", err)
	}
	return p, nil
}

func (j ratesJSON) rates() (r Rates, err error) {
	if j.Input == "" || j.Output == "" {
		return r, errors.New("input and output have to be given")
	}
	for _, f := range []struct {
		name string
		from json.Number
		to   *Micros
		def  *Micros
	}{
		{"input", j.Input, &r.Input, nil},
		{"cached", j.Cached, &r.Cached, &r.Input},
		{"written", j.Written, &r.Written, &r.Input},
		{"output", j.Output, &r.Output, nil},
		{"reasoning", j.Reasoning, &r.Reasoning, &r.Output},
	} {
		if f.from == "" {
			*f.to = *f.def
		} else if *f.to, err = parseDollars(string(f.from)); err != nil {
			return r, fmt.Errorf("%s: %w", f.name, err)
		}
	}
	return r, nil
}

// parseDollars reads an amount below a million dollars as it is written.
func parseDollars(s string) (Micros, error) {
	whole, rest, _ := strings.Cut(s, ".")
	digits := whole + rest
	if len(rest) > 6 || len(whole) == 0 || len(whole) > 6 || strings.Trim(digits, "0123456789") != "" {
		return 0, fmt.Errorf("%q is no amount from 0 to 999999.999999 dollars with at most six decimals", s)
	}
	n := Micros(0)
	for _, d := range digits + strings.Repeat("0", 6-len(rest)) {
		n = n*10 + Micros(d-'0')
	}
	return n, nil
}

// With returns a table in which the models of over take the place of those of t.
func (t *PriceTable) With(over *PriceTable) *PriceTable {
	u := &PriceTable{models: make(map[string][]Price, len(t.models)+len(over.models))}
	maps.Copy(u.models, t.models)
	maps.Copy(u.models, over.models)
	return u
}

// At returns what a model costs at a time, and false if the table does not say.
func (t *PriceTable) At(id ID, at time.Time) (Price, bool) {
	name := id.String()
	list, ok := t.models[name]
	for n := len(name); !ok && n >= 0; n-- { // the longest prefix that the table has
		list, ok = t.models[name[:n]+"*"]
	}
	for _, p := range slices.Backward(list) {
		if !p.From.After(at) {
			return p, true
		}
	}
	return Price{}, false
}

// Cost returns what an attempt at a time cost; known is false if the table does not
// say, and the cost then 0. t may be nil: it has no prices.
func (t *PriceTable) Cost(id ID, u Usage, at time.Time) (cost Micros, known bool) {
	if t == nil {
		return 0, false
	}
	p, ok := t.At(id, at)
	if !ok {
		return 0, false
	}
	return p.Cost(u), true
}

// Check reports the models that have no price at a time: what a configuration with
// budgets is checked by. t may be nil: it has no prices.
func (t *PriceTable) Check(at time.Time, ids ...ID) error {
	if t == nil {
		t = &PriceTable{}
	}
	var errs []error
	for _, id := range ids {
		if _, ok := t.At(id, at); !ok {
			errs = append(errs, fmt.Errorf("llm: no price of %q on %s; add it to the price table (0 for a model of your own)", id, at.UTC().Format(time.DateOnly)))
		}
	}
	return errors.Join(errs...)
}
