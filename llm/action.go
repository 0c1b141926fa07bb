package llm

// An Action is what is done about a failed attempt.
type Action string

// The actions.
const (
	// ActionRetry makes another attempt after a back-off, as often as the policy
	// allows; then the next model of the chain that takes the class.
	ActionRetry Action = "retry"
	// ActionWait waits as long as the provider asks for and makes another attempt.
	// Only the deadline bounds how often: a call that ends so is to be asked again
	// later, never dead-lettered.
	ActionWait Action = "wait"
	// ActionNextModel goes to the next model of the chain that takes the class at once.
	ActionNextModel Action = "next_model"
	// ActionOpen opens the model's breaker until [Breakers.Reset], and goes to the
	// next model of the chain that takes the class.
	ActionOpen Action = "open"
	// ActionDeadLetter ends the call.
	ActionDeadLetter Action = "dead_letter"
	// ActionReask ends the call: whoever made it asks again in a round of its own,
	// with what was wrong with the answer.
	ActionReask Action = "reask"
)

// OverBudget is the class of a call whose reserved money does not cover another
// attempt. Nothing was sent.
const OverBudget Class = "over_budget"

// Action returns the default action of a class; that of an unknown one is
// ActionRetry.
func (c Class) Action() Action {
	switch c {
	case Throttled:
		return ActionWait
	case NoMoney, Auth:
		return ActionOpen
	case ContextTooLong, OverBudget:
		return ActionNextModel
	case Truncated, Violation:
		return ActionReask
	case Refused, Invalid, TooLarge:
		return ActionDeadLetter
	}
	return ActionRetry // Unavailable, Timeout
}
