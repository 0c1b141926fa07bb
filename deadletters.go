package millrace

import (
	"context"

	"github.com/millrace/millrace/internal/deadletter"
)

// DeadLetters are the dead letters of an application, for a program that shows or
// replays them; "millrace dlq" is one. Its methods are safe for concurrent use.
type DeadLetters struct {
	store *deadletter.Store
}

// A DeadLetter is an event that was given up, and why.
type DeadLetter = deadletter.Letter

// A DeadLetterPosition is the place of a record: topic, partition and offset.
type DeadLetterPosition = deadletter.Position

// A DeadLetterFilter chooses dead letters; its zero value chooses all.
type DeadLetterFilter = deadletter.Filter

// A Replay says which dead letters to replay, and how.
type Replay = deadletter.ReplayConfig

// A ReplayResult counts the letters of a replay.
type ReplayResult = deadletter.ReplayResult

// Errors of [DeadLetters].
var (
	ErrNoDeadLetter    = deadletter.ErrNoLetter
	ErrReplayTakenOver = deadletter.ErrTakenOver
)

// NewDeadLetters returns the dead letters of the application app, in its topics
// <app>.dlq and <app>.<step>.dlq. Of the options it takes those about the brokers and the
// log, and [Replication] for the topic <app>.replays. Nothing is opened before the first
// call.
func NewDeadLetters(app string, opts ...Option) (*DeadLetters, error) {
	cfg, err := toolConfig("dead letters", app, opts)
	if err != nil {
		return nil, err
	}
	s := deadletter.New(app, &cfg.Kafka)
	if cfg.Replication != 0 {
		s.Replication = cfg.Replication
	}
	return &DeadLetters{s}, nil
}

// List returns the letters that a filter takes, in the order in which they were given
// up. With a Limit they are the last ones.
func (d *DeadLetters) List(ctx context.Context, f DeadLetterFilter) ([]*DeadLetter, error) {
	return d.store.List(ctx, f)
}

// Show returns one letter, or [ErrNoDeadLetter].
func (d *DeadLetters) Show(ctx context.Context, at DeadLetterPosition) (*DeadLetter, error) {
	return d.store.Show(ctx, at)
}

// Replay writes the events of letters back, bytes and headers as they were, with the
// headers [processors.ReplayOfHeader] and [processors.ReplaySourceHeader]. Each letter is
// replayed once, whatever ends a replay: an event and the record in <app>.replays that
// it was replayed are one transaction. Of two replays of an application at once the
// earlier ends with [ErrReplayTakenOver]. An event that fails again makes another
// letter.
func (d *DeadLetters) Replay(ctx context.Context, r Replay) (ReplayResult, error) {
	return d.store.Replay(ctx, r)
}
