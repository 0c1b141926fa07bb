package openai

import (
	"context"
	"errors"
	"fmt"

	sdk "github.com/openai/openai-go/v3"
	"github.com/openai/openai-go/v3/packages/param"

	"github.com/millrace/millrace/llm"
)

// An Embedder turns texts into vectors. It is safe for concurrent use.
type Embedder struct {
	*client
	service    sdk.EmbeddingService
	dimensions int
}

// NewEmbedder returns an embedder. dimensions shortens the vectors of models that
// can do so; 0 leaves them as they are. It makes no connection; it returns an error
// for a configuration that cannot work.
func NewEmbedder(model string, dimensions int, cfg Config) (*Embedder, error) {
	c, err := newClient(model, cfg)
	if err != nil {
		return nil, err
	}
	if dimensions < 0 {
		return nil, fmt.Errorf("openai: model %s: %d dimensions; 0 leaves them to the model", model, dimensions)
	}
	return &Embedder{client: c, service: sdk.NewEmbeddingService(c.options...), dimensions: dimensions}, nil
}

// ID names the provider and the model.
func (e *Embedder) ID() llm.ID { return e.id }

// Embed makes one attempt to turn texts into vectors, one for each text, in their
// order, all of one length. Its error is an [*llm.Error]. No texts need no call.
// Providers bound the number of texts of one call (OpenAI: 2048) and their tokens.
func (e *Embedder) Embed(ctx context.Context, texts []string) ([][]float32, llm.Usage, error) {
	if len(texts) == 0 {
		return nil, llm.Usage{}, nil
	}
	p := sdk.EmbeddingNewParams{
		Model: e.id.Model, Input: sdk.EmbeddingNewParamsInputUnion{OfArrayOfStrings: texts},
		EncodingFormat: sdk.EmbeddingNewParamsEncodingFormatFloat,
	}
	if e.dimensions > 0 {
		p.Dimensions = param.NewOpt(int64(e.dimensions))
	}
	ctx, x := e.http.Begin(ctx)
	r, err := e.service.New(ctx, p)
	if err != nil || r == nil || len(r.Data) == 0 {
		return nil, llm.Usage{}, x.Fail(ctx, e.id, readFault, judge)
	}
	usage := llm.Usage{Input: r.Usage.PromptTokens}
	vectors, err := collect(r.Data, len(texts))
	if err != nil {
		return nil, usage, &llm.Error{Class: llm.Violation, Model: e.id, Status: x.Status(), Usage: usage, Err: err}
	}
	return vectors, usage, nil
}

func collect(data []sdk.Embedding, n int) ([][]float32, error) {
	vectors := make([][]float32, n)
	for _, d := range data {
		if d.Index < 0 || d.Index >= int64(n) || vectors[d.Index] != nil {
			return nil, fmt.Errorf("a vector for text %d of %d, or a second one", d.Index, n)
		}
		v := make([]float32, len(d.Embedding))
		for i, f := range d.Embedding {
			v[i] = float32(f)
		}
		vectors[d.Index] = v
	}
	for i, v := range vectors {
		switch {
		case len(v) == 0:
			return nil, fmt.Errorf("no vector for text %d of %d", i, n)
		case len(v) != len(vectors[0]):
			return nil, errors.New("vectors of unequal length")
		}
	}
	return vectors, nil
}
