package processors

import (
	"fmt"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	millracev1 "github.com/millrace/millrace/proto/millrace/v1"
	"github.com/millrace/millrace/serde"
	"github.com/millrace/millrace/state"
)

// ConversationConfig says what a step keeps of the conversation of a key. All fields
// are required.
type ConversationConfig struct {
	// Store is the key-value store, of *millracev1.Conversation by the event's key.
	Store string
	// MaxTurns and MaxTokens bound what is kept and shown: the oldest exchanges go first.
	MaxTurns  int
	MaxTokens int64
	// SessionGap ends a conversation when the next event is later by more.
	SessionGap time.Duration
}

// conversations are those of a task. Keys are encoded already.
type conversations struct {
	cfg  ConversationConfig
	rows state.KeyValueStore[[]byte, *millracev1.Conversation]
}

func newConversations(s *state.Store, cfg ConversationConfig) *conversations {
	return &conversations{cfg, state.NewKeyValueStore(s, serde.Bytes(), serde.Proto[*millracev1.Conversation]())}
}

// load returns the conversation that an event at a time (ms) belongs to.
func (c *conversations) load(key []byte, at int64) (*millracev1.Conversation, error) {
	talk, ok, err := c.rows.Get(key)
	if err != nil {
		return nil, fmt.Errorf("conversation: %w", err)
	}
	if !ok || at-talk.Updated > c.cfg.SessionGap.Milliseconds() {
		return &millracev1.Conversation{}, nil
	}
	return talk, nil
}

// add adds an event and its accepted answer.
func (c *conversations) add(e *millracev1.Entry, p *millracev1.Enrichment) error {
	q := &millracev1.Question{}
	if err := proto.Unmarshal(e.Resolved, q); err != nil {
		return fmt.Errorf("conversation: what was asked: %w", err)
	}
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
			tokens = int64(len(text))*2/7 + 1
		}
		return &millracev1.Turn{Role: role, Text: text, Tokens: tokens, Event: e.Id, Timestamp: at, Prompt: q.Prompt, PromptVersion: q.PromptVersion}
	}
	said := turn(millracev1.Role_ROLE_ASSISTANT, strings.ToValidUTF8(string(p.Answer), ""), p.AnswerTokens)
	said.Model = p.Model
	talk.Turns = append(talk.Turns, turn(millracev1.Role_ROLE_USER, q.Messages[len(q.Messages)-1].Text, 0), said)
	c.trim(talk)
	talk.Updated = max(talk.Updated, at)
	if err := c.rows.Put(e.Event.Key, talk, at); err != nil {
		return fmt.Errorf("conversation: %w", err)
	}
	return nil
}

// trim drops the oldest exchanges, an event and its answer, that exceed the window.
func (c *conversations) trim(talk *millracev1.Conversation) {
	tokens := int64(0)
	for _, t := range talk.Turns {
		tokens += t.Tokens
	}
	for len(talk.Turns) >= 2 && (len(talk.Turns) > c.cfg.MaxTurns || tokens > c.cfg.MaxTokens) {
		tokens -= talk.Turns[0].Tokens + talk.Turns[1].Tokens
		talk.Turns = talk.Turns[2:]
		talk.Dropped += 2
	}
}
