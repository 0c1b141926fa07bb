package processors

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/millrace/millrace/llm"
	"github.com/millrace/millrace/llm/prompt"
	millracev1 "github.com/millrace/millrace/proto/millrace/v1"
	"github.com/millrace/millrace/serde"
)

// ConversationConfig says what a step keeps of the conversation of a key. All fields
// but Summary are required.
type ConversationConfig struct {
	// Store is the key-value store, of *millracev1.Conversation by the event's key.
	Store string
	// MaxTurns and MaxTokens bound what is kept and shown: the oldest exchanges go first.
	MaxTurns  int
	MaxTokens int64
	// SessionGap ends a conversation when the next event is later by more.
	SessionGap time.Duration
	// TTL is how long after its last change a row is deleted, by the task's clock.
	TTL time.Duration
	// Summary, if not nil, has what no longer fits summarized instead of dropped.
	Summary *SummaryConfig
}

// SummaryConfig says who summarizes conversations, and how. All fields are required.
type SummaryConfig struct {
	Caller *llm.Caller
	// Prompt sees the conversation that is to be summarized as its Context.
	Prompt *prompt.Prompt
	// MaxTokens bounds the answer.
	MaxTokens int
}

// conversations are those of a task. Keys are encoded already.
type conversations struct {
	cfg    ConversationConfig
	rows   *aged[*millracev1.Conversation]
	maxRow int
}

func newConversations(t AsyncTask, cfg ConversationConfig) (*conversations, error) {
	rows, err := newAged(t, cfg.Store, serde.Proto[*millracev1.Conversation](), cfg.TTL, (*millracev1.Conversation).GetTouched)
	return &conversations{cfg: cfg, rows: rows, maxRow: t.MaxRowBytes() - rowReserve}, err
}

// load returns the conversation that an event at a time (ms) belongs to.
func (c *conversations) load(key []byte, at int64) (*millracev1.Conversation, error) {
	talk, ok, err := c.rows.get(key)
	if err != nil {
		return nil, fmt.Errorf("conversation: %w", err)
	}
	if !ok || at-talk.Updated > c.cfg.SessionGap.Milliseconds() {
		return &millracev1.Conversation{}, nil
	}
	return talk, nil
}

// add adds an event and its accepted answer.
func (c *conversations) add(e *millracev1.Entry, q *millracev1.Question, p *millracev1.Enrichment) error {
	if len(q.Messages) == 0 {
		return fmt.Errorf("conversation: the entry %s does not hold what was asked", e.Id)
	}
	at := e.Event.Timestamp
	talk, err := c.load(e.Event.Key, at)
	if err != nil {
		return err
	}
	turn := func(role millracev1.Role, text string, tokens int64) *millracev1.Turn {
		if tokens == 0 {
			tokens = estimate(text)
		}
		return &millracev1.Turn{Role: role, Text: text, Tokens: tokens, Event: e.Id, Timestamp: at, Prompt: q.Prompt, PromptVersion: q.PromptVersion}
	}
	said := turn(millracev1.Role_ROLE_ASSISTANT, strings.ToValidUTF8(string(p.Answer), ""), p.AnswerTokens)
	said.Model, said.Request = p.Model, p.Request
	talk.Turns = append(talk.Turns, turn(millracev1.Role_ROLE_USER, q.Messages[len(q.Messages)-1].Text, 0), said)
	talk.Updated = max(talk.Updated, at)
	if c.cfg.Summary == nil {
		c.trim(talk)
	}
	return c.put(e.Event.Key, talk)
}

// estimate returns how many tokens a text has, at 3.5 bytes each.
func estimate(text string) int64 { return int64(len(text))*2/7 + 1 }

// put writes the conversation of a key, without the oldest exchanges if it does not
// fit into a row.
func (c *conversations) put(key []byte, talk *millracev1.Conversation) error {
	talk.Touched = c.rows.now()
	for len(talk.Turns) >= 2 && len(key)+proto.Size(talk) > c.maxRow {
		c.drop(talk)
	}
	if err := c.rows.put(key, talk, talk.Updated); err != nil {
		return fmt.Errorf("conversation: %w", err)
	}
	return nil
}

// over reports whether a conversation exceeds its window.
func (c *conversations) over(talk *millracev1.Conversation) bool {
	return len(talk.Turns) >= 2 && (len(talk.Turns) > c.cfg.MaxTurns || tokensOf(talk) > c.cfg.MaxTokens)
}

func tokensOf(talk *millracev1.Conversation) int64 {
	tokens := talk.GetSummary().GetTokens()
	for _, t := range talk.Turns {
		tokens += t.Tokens
	}
	return tokens
}

// trim drops the oldest exchanges, an event and its answer, that exceed the window.
func (c *conversations) trim(talk *millracev1.Conversation) {
	for c.over(talk) {
		c.drop(talk)
	}
}

func (c *conversations) drop(talk *millracev1.Conversation) {
	talk.Turns = talk.Turns[2:]
	talk.Dropped += 2
}

// reset ends the conversation of a key. It returns the answers that were in it, by
// their keys in the cache.
func (c *conversations) reset(key []byte) (requests [][]byte, err error) {
	talk, ok, err := c.rows.get(key)
	if err != nil {
		return nil, fmt.Errorf("conversation: %w", err)
	}
	if ok {
		requests = requestsOf(talk.Turns)
	}
	return requests, c.rows.delete(key)
}

// cut takes the turns of events out of the conversation of a key, and the summary if
// it may stand for some of them. It returns what reset does.
func (c *conversations) cut(key []byte, is func(event string) bool) (requests [][]byte, err error) {
	talk, ok, err := c.rows.get(key)
	if err != nil || !ok {
		return nil, err
	}
	kept := make([]*millracev1.Turn, 0, len(talk.Turns))
	var gone []*millracev1.Turn
	for _, t := range talk.Turns {
		if is(t.Event) {
			gone = append(gone, t)
		} else {
			kept = append(kept, t)
		}
	}
	if s := talk.Summary; s != nil && (slices.ContainsFunc(s.Events, is) || s.Unnamed > 0 && len(gone) == 0) {
		talk.Dropped += s.Turns
		talk.Summary = nil
	} else if len(gone) == 0 {
		return nil, nil
	}
	talk.Turns = kept
	if len(kept) == 0 && talk.Summary == nil {
		return requestsOf(gone), c.rows.delete(key)
	}
	return requestsOf(gone), c.put(key, talk)
}

func requestsOf(turns []*millracev1.Turn) (requests [][]byte) {
	for _, t := range turns {
		if len(t.Request) > 0 {
			requests = append(requests, t.Request)
		}
	}
	return requests
}
