package answer_test

import (
	"errors"
	"fmt"

	"google.golang.org/protobuf/proto"

	"github.com/millrace/millrace/llm/answer"
	corpusv1 "github.com/millrace/millrace/llm/internal/corpus/millrace/corpus/v1"
	"github.com/millrace/millrace/llm/schema"
)

func ExampleParse() {
	var triage corpusv1.Triage
	s, err := schema.For(triage.ProtoReflect().Descriptor(), schema.OpenAI)
	if err != nil {
		fmt.Println(err)
		return
	}
	noFire := func(m proto.Message) error {
		if m.(*corpusv1.Triage).GetEvidence() == "fire" {
			return errors.New("call the fire brigade instead")
		}
		return nil
	}
	for _, text := range []string{
		"Here you are:\n```json\n{\"evidence\":\"it crashes\",\"urgency\":\"URGENCY_HIGH\",\"confidence\":0.9,\"tags\":[\"crash\"],}\n```",
		`{"evidence":"it crashes","urgency":"HIGH","tags":["crash"]}`,
		`{"evidence":"","urgency":"URGENCY_HIGH","confidence":9,"tags":["Crash!"]}`,
	} {
		err := answer.Parse(text, s, &triage, noFire)
		bad, ok := errors.AsType[*answer.Violations](err)
		if !ok {
			fmt.Println(triage.GetUrgency(), triage.GetTags())
			continue
		}
		fmt.Println(bad.Prompt())
	}
	// Output:
	// URGENCY_HIGH [crash]
	// Your answer does not follow the required format:
	// - urgency: "HIGH" is not one of URGENCY_LOW, URGENCY_HIGH, URGENCY_CRITICAL [json.enum]
	// - confidence: is required and missing or null [json.missing]
	// Answer again: one complete JSON object that follows the schema, and nothing else.
	// Your answer does not follow the required format:
	// - confidence: must be greater than or equal to 0 and less than or equal to 1 [double.gte_lte]
	// - evidence: must be at least 1 characters [string.min_len]
	// - tags[0]: does not match regex pattern `^[a-z-]{2,20}$` [string.pattern]
	// Answer again: one complete JSON object that follows the schema, and nothing else.
}
