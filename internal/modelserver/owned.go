package modelserver

import (
	"context"
	"net/http"

	"github.com/millrace/millrace/llm"
)

// Owned returns a model whose calls say which incarnation of a worker makes them: by
// the name that whoever kills it knows, rather than by that of the engine.
func Owned(m llm.Model, owner string) llm.Model { return owned{m, owner} }

type owned struct {
	llm.Model
	owner string
}

func (m owned) Generate(ctx context.Context, req *llm.Request) (*llm.Response, error) {
	labels := llm.HeaderFrom(ctx).Clone()
	if labels == nil {
		labels = http.Header{}
	}
	labels.Set(HeaderOwner, m.owner)
	return m.Model.Generate(llm.WithHeader(ctx, labels), req)
}
