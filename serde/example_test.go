package serde_test

import (
	"fmt"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/millrace/millrace/serde"
)

func ExampleString() {
	data, _ := serde.String().Append(nil, "order-1")
	fmt.Printf("%q\n", data)
	// Output: "order-1"
}

func ExampleInt64() {
	s := serde.Int64()
	data, _ := s.Append(nil, 258)
	fmt.Printf("%x\n", data)
	_, err := s.Decode(data[:4])
	fmt.Println(err)
	// Output:
	// 0000000000000102
	// serde int64: 4 bytes, want 8
}

func ExampleJSON() {
	type order struct {
		Item  string `json:"item"`
		Count int    `json:"count"`
	}
	s := serde.JSON[order]()
	data, _ := s.Append(nil, order{"tea", 2})
	fmt.Printf("%s\n", data)
	back, _ := s.Decode([]byte(`{"item":"tea","count":3,"added later":true}`))
	fmt.Println(back.Count)
	// Output:
	// {"item":"tea","count":2}
	// 3
}

func ExampleProto() {
	s := serde.Proto[*durationpb.Duration]()
	data, _ := s.Append(nil, &durationpb.Duration{Seconds: 90})
	back, _ := s.Decode(data)
	fmt.Println(s.Name(), back.AsDuration())
	// Output: proto(google.protobuf.Duration) 1m30s
}
