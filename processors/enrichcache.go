package processors

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"slices"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/millrace/millrace/llm"
	millracev1 "github.com/millrace/millrace/proto/millrace/v1"
	"github.com/millrace/millrace/serde"
)

// CacheConfig says how a step keeps accepted answers for equal requests. All fields
// are required.
type CacheConfig struct {
	// Store is the key-value store, of *millracev1.CachedAnswer by the SHA-256 of the
	// request.
	Store string
	// TTL is how long an answer is kept, by the task's clock.
	TTL time.Duration
	// MaxEntries bounds the answers of a partition: the oldest go first.
	MaxEntries int
	// Flights are shared by the tasks of the step in a process.
	Flights *Flights
}

// answerCache is the cache of a task.
type answerCache struct {
	cfg    *CacheConfig
	rows   *aged[*millracev1.CachedAnswer]
	maxRow int
}

func newAnswerCache(t AsyncTask, cfg *CacheConfig) (*answerCache, error) {
	rows, err := newAged(t, cfg.Store, serde.Proto[*millracev1.CachedAnswer](), cfg.TTL, (*millracev1.CachedAnswer).GetCreated)
	return &answerCache{cfg, rows, t.MaxRowBytes() - rowReserve}, err
}

// add keeps an accepted answer, unless one is there or it does not fit into a row.
func (c *answerCache) add(e *millracev1.Entry, p *millracev1.Enrichment) error {
	if len(p.Request) == 0 || len(p.AnswerSha256) > 0 || len(p.Answer) > c.maxRow {
		return nil
	}
	if _, ok, err := c.rows.get(p.Request); ok || err != nil {
		return err
	}
	if c.rows.held() >= int64(c.cfg.MaxEntries) {
		if err := c.rows.evict(max(1, c.cfg.MaxEntries/100)); err != nil {
			return err
		}
	}
	now := c.rows.now()
	return c.rows.put(p.Request, &millracev1.CachedAnswer{
		Text: p.Answer, Model: p.Model, InputTokens: p.InputTokens, OutputTokens: p.OutputTokens, CostMicros: p.CostMicros,
		Entry: e.Id, Created: now,
	}, now)
}

// question returns an entry's call without its rounds.
func (s *enrichRun[K, In, Out]) question(q *millracev1.Question) *enrichCall[K, In, Out] {
	return &enrichCall[K, In, Out]{enrichRun: s, q: &request{}, question: q, p: &millracev1.Enrichment{}}
}

// first returns the model that a round begins with.
func (s *enrichRun[K, In, Out]) first(p *millracev1.Enrichment) llm.ID {
	models := s.Caller.Models()
	return models[max(slices.Index(models, modelID(p.GetNextModel())), 0)]
}

// digest returns the SHA-256 of what a model is asked: messages, schema, parameters
// and the model. It is nil if there is nothing to ask.
func (c *enrichCall[K, In, Out]) digest(id llm.ID) []byte {
	r, err := c.request(id)
	if err != nil {
		return nil
	}
	r.CacheKey = "" // changes no answer
	data, err := json.Marshal(struct {
		Model   llm.ID
		Request *llm.Request
	}{id, r})
	if err != nil {
		return nil
	}
	sum := sha256.Sum256(data)
	return sum[:]
}

// lookup adds to a question an answer that the cache holds.
func (s *enrichRun[K, In, Out]) lookup(q *millracev1.Question) (err error) {
	if s.cache == nil {
		return nil
	}
	key := s.question(q).digest(s.first(nil))
	if key == nil {
		return nil
	}
	q.Cached, _, err = s.cache.rows.get(key)
	return err
}

// cached answers from the cache. If what it holds does not follow the contract any more,
// or is of a model that the step does not have any more, the next round asks a model.
func (c *enrichCall[K, In, Out]) cached() *millracev1.Outcome {
	before := proto.CloneOf(c.p)
	a := c.question.Cached
	if id := modelID(a.Model); c.Schemas[id] != nil {
		c.reuse(millracev1.CacheHit_CACHE_HIT_CACHE, id)
		if o := c.judge(id, string(a.Text), llm.Usage{Output: a.OutputTokens}); o.GetAnswer() != nil {
			return o
		}
	}
	c.p = before
	o := c.q.outcome()
	o.Kind = &millracev1.Outcome_Again{Again: &millracev1.Again{}}
	return c.with(o)
}

// reuse accounts for an answer that costs nothing.
func (c *enrichCall[K, In, Out]) reuse(hit millracev1.CacheHit, id llm.ID) {
	c.add(&llm.Result{Model: id, CostKnown: c.Caller.Prices != nil})
	c.p.CacheHit = hit
}

// shared answers with what an equal request got at the same time.
func (c *enrichCall[K, In, Out]) shared() *millracev1.Outcome {
	if c.Cache == nil || c.q.flight == "" {
		return nil
	}
	a, ok := c.Cache.Flights.find(c.q.flight, c.q.asked)
	if !ok {
		return nil
	}
	c.reuse(millracev1.CacheHit_CACHE_HIT_SHARED, a.model)
	return c.judge(a.model, a.text, a.usage)
}

// land shares an answer with equal requests.
func (c *enrichCall[K, In, Out]) land(r *llm.Result, o *millracev1.Outcome) {
	if c.Cache != nil && c.q.flight != "" {
		c.Cache.Flights.land(c.q.flight, flown{
			landed: time.Now(), accepted: o.GetAnswer() != nil, ttl: min(c.Cache.TTL, flightMemory),
			model: r.Model, text: r.Response.Text, usage: r.Response.Usage,
		})
	}
}

// admit says what a call waits for besides a slot.
func (s *enrichRun[K, In, Out]) admit(q *request, call *Call) {
	if q.unresolved != "" {
		return
	}
	question, p := &millracev1.Question{}, decodeProgress(q.progress)
	if s.talk != nil || s.cache != nil {
		if proto.Unmarshal(q.resolved, question) != nil || question.Control != "" {
			return // it asks no model
		}
	}
	caller, from := s.Caller, max(slices.Index(s.Caller.Models(), modelID(p.GetNextModel())), 0)
	if question.Summarize > 0 {
		if caller, from = s.summarizer(), 0; caller == nil {
			return
		}
	} else if s.cache != nil {
		if question.Cached != nil && q.round == 0 {
			return
		}
		c := s.question(question)
		c.p = p
		q.flight, q.asked = string(c.digest(s.first(p))), time.Now()
		call.Flight = q.flight
	}
	if s.OnOpen == OpenWait {
		call.Gate = func() (int, time.Time) { return caller.Admit(from) }
	}
}

// call makes the calls of a round. It returns nil if ctx ended before there was an
// outcome, or if no model may be asked now. A panic of a user's function ends it: what
// had been reserved for it stays spent then, as nobody knows what it cost.
func (s *enrichRun[K, In, Out]) call(ctx context.Context, q *request) (o *millracev1.Outcome) {
	defer func() {
		if v := recover(); v != nil {
			q.paused = nil
			o = q.failure(millracev1.Failure_REASON_ERROR, ClassAsync, Panicked(ClassAsync, s.Step, v).Error())
		}
	}()
	if c, ok := q.paused.(*enrichCall[K, In, Out]); ok {
		if c.question.Summarize > 0 {
			return c.summarize(ctx)
		}
		return c.run(ctx)
	}
	c := &enrichCall[K, In, Out]{enrichRun: s, q: q, p: decodeProgress(q.progress), question: &millracev1.Question{}}
	if q.unresolved != "" {
		return q.failure(millracev1.Failure_REASON_ERROR, ClassAsync, q.unresolved)
	}
	if err := proto.Unmarshal(q.resolved, c.question); err != nil {
		return q.failure(millracev1.Failure_REASON_ERROR, ClassDecode, err.Error())
	}
	switch {
	case c.question.Control != "":
		o := q.outcome()
		o.Kind = &millracev1.Outcome_Answer{Answer: &millracev1.Answer{}}
		return o
	case c.question.Summarize > 0:
		return c.summarize(ctx)
	}
	rec, err := s.async.decode(q.event)
	if err != nil {
		return q.failure(millracev1.Failure_REASON_ERROR, ClassDecode, err.Error())
	}
	c.event = rec.Value
	return c.run(ctx)
}

// Flights hold the answers of a step's last calls in a process, for equal requests
// that were asked at the same time: one call is made for all of them. They are safe
// for concurrent use. The zero value is ready.
type Flights struct {
	mu   sync.Mutex
	last map[string]flown
}

type flown struct {
	landed   time.Time
	accepted bool
	ttl      time.Duration
	model    llm.ID
	text     string
	usage    llm.Usage
}

// An accepted answer is shared as long as it may take to come back through the loop,
// and to the cache. Memory holds so many.
const (
	flightMemory = time.Minute
	maxFlown     = 1024
)

// find returns the answer to an equal request. One that was refused is for requests
// that were asked before it came.
func (f *Flights) find(key string, asked time.Time) (flown, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	a, ok := f.last[key]
	if !ok || time.Since(a.landed) >= a.ttl || !a.accepted && asked.After(a.landed) {
		return flown{}, false
	}
	return a, true
}

func (f *Flights) land(key string, a flown) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.last == nil {
		f.last = map[string]flown{}
	}
	if len(f.last) >= maxFlown {
		oldest := key
		for k, b := range f.last {
			if a.landed.Sub(b.landed) >= b.ttl {
				delete(f.last, k)
			} else if o, ok := f.last[oldest]; !ok || b.landed.Before(o.landed) {
				oldest = k
			}
		}
		if len(f.last) >= maxFlown {
			delete(f.last, oldest)
		}
	}
	f.last[key] = a
}
