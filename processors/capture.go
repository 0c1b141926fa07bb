package processors

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"

	millracev1 "github.com/millrace/millrace/proto/millrace/v1"
)

// Capture says how much of an answer that was refused is kept, in dead letters and
// in the topic of refused answers.
type Capture uint8

const (
	// CaptureFull keeps it, up to 64 KiB; of a longer one also its length and hash.
	CaptureFull Capture = iota
	// CaptureShort keeps the first 256 bytes, the length and the hash.
	CaptureShort
	// CaptureHash keeps the length and the hash only.
	CaptureHash
	// CaptureOff keeps nothing, and has no topic of refused answers.
	CaptureOff
)

const shortAnswer = 256

// of returns what is kept of the last answer in p.
func (c Capture) of(p *millracev1.Enrichment) []byte {
	return c.text(p.Answer, p.AnswerBytes, p.AnswerSha256)
}

// text returns what is kept of an answer of so many bytes, of which kept may be the
// beginning: then sum is the hash of the whole.
func (c Capture) text(kept []byte, bytes int64, sum []byte) []byte {
	switch {
	case c == CaptureOff:
		return []byte{}
	case c == CaptureFull && sum == nil, c == CaptureShort && bytes <= shortAnswer:
		return kept
	}
	if sum == nil {
		all := sha256.Sum256(kept)
		sum = all[:]
	}
	switch c {
	case CaptureShort:
		kept = kept[:min(len(kept), shortAnswer)]
	case CaptureHash:
		kept = nil
	}
	return fmt.Appendf(append([]byte{}, kept...), "... (%d bytes, SHA-256 %s)", bytes, hex.EncodeToString(sum))
}
