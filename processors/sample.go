package processors

import (
	"crypto/sha256"
	"encoding/binary"
	"math"

	"github.com/millrace/millrace/llm"
	millracev1 "github.com/millrace/millrace/proto/millrace/v1"
)

// sampled reports whether an entry is of the part rate of all. It is the same for
// every call and replay of the entry.
func sampled(entry string, rate float64) bool {
	if rate <= 0 {
		return false
	}
	sum := sha256.Sum256([]byte("sample/" + entry))
	return float64(binary.BigEndian.Uint64(sum[:]))/math.MaxUint64 < rate
}

// sampleOf keeps an answer, cut as refused ones are.
func sampleOf(text string) *millracev1.Sample {
	s := &millracev1.Sample{Answer: []byte(text), Bytes: int64(len(text))}
	if len(text) > maxAnswer {
		sum := sha256.Sum256(s.Answer)
		s.Answer, s.Sha256 = s.Answer[:maxAnswer], sum[:]
	}
	return s
}

// sample writes an accepted answer to the raw topic if it is one of the sample.
func (s *enrichRun[K, In, Out]) sample(e *millracev1.Entry, p *millracev1.Enrichment) error {
	if p.Sample == nil || s.RawTopic == "" {
		return nil
	}
	text := s.Capture.text(p.Sample.Answer, p.Sample.Bytes, p.Sample.Sha256)
	return s.raw(e, enrichHeaders(p, enrichStatus(p)), Header{SampleHeader, []byte("true")}, text)
}

// enrichStatus is the status of an accepted answer.
func enrichStatus(p *millracev1.Enrichment) string {
	if p.Refused > 0 {
		return StatusReasked
	}
	return StatusOK
}

// report adds to the report of an entry's end what its rounds came to. A control record
// is no event: there is none.
func (s *enrichRun[K, In, Out]) report(r *Report, e *millracev1.Entry, o *millracev1.Outcome) {
	if r.Status == StatusOK && isControl(e) {
		r.Status = ""
		return
	}
	p := progressOf(e, o)
	if r.Status == StatusOK {
		r.Status = enrichStatus(p)
	}
	r.Prompt, r.PromptVersion, r.Round, r.Declined = p.Prompt, p.PromptVersion, int(e.Round), p.Declined > 0
	if p.Model != nil {
		r.Model = modelID(p.Model)
	}
	if p.CacheHit != millracev1.CacheHit_CACHE_HIT_UNSPECIFIED {
		r.CacheHit = cacheHits[p.CacheHit]
	}
}

// refused is the report of a refused answer.
func (s *enrichRun[K, In, Out]) refused(e *millracev1.Entry, o *millracev1.Outcome, p *millracev1.Enrichment) Report {
	r := Report{Step: s.Step, Status: StatusRefused, Class: Class(llm.Violation), Rules: rulesOf(p), Again: o.GetAgain() != nil}
	if f := o.GetFailure(); f != nil {
		r.Class = Class(f.Class)
	} else if class := o.GetAgain().GetClass(); class != "" {
		r.Class = Class(class)
	}
	s.report(&r, e, o)
	return r
}
