package openai_test

import (
	"context"
	"fmt"
	"net/http/httptest"

	"github.com/millrace/millrace/llm"
	"github.com/millrace/millrace/llm/llmtest"
	"github.com/millrace/millrace/llm/openai"
)

// A server in the operator's own network, and OpenAI itself.
func ExampleNew() {
	local, err := openai.New("qwen3:8b", openai.Config{
		Endpoint: llm.Endpoint{URL: "http://ollama.models:11434/v1", AllowPrivate: true},
		Provider: "ollama",
	})
	fmt.Println(local.ID(), err)
	hosted, err := openai.New("gpt-5-mini", openai.Config{
		Endpoint: llm.Endpoint{Key: llm.KeyFromFile("/run/secrets/openai")},
		Extra:    map[string]any{"reasoning_effort": "low"},
	})
	fmt.Println(hosted.ID(), err)
	// Output:
	// ollama/qwen3:8b <nil>
	// openai/gpt-5-mini <nil>
}

func ExampleEmbedder_Embed() {
	h := llmtest.NewHandler(llmtest.Config{})
	defer h.Close()
	server := httptest.NewServer(h)
	defer server.Close()

	e, err := openai.NewEmbedder("text-embedding-3-small", 0, openai.Config{Endpoint: llm.Endpoint{URL: server.URL + "/v1"}})
	if err != nil {
		fmt.Println(err)
		return
	}
	vectors, usage, err := e.Embed(context.Background(), []string{"a good film", "a bad one"})
	fmt.Println(len(vectors), len(vectors[0]), usage.Input, err)
	// Output: 2 8 6 <nil>
}
