//go:build integration

package registry_test

import (
	"testing"

	"github.com/millrace/millrace/internal/broker"
	"github.com/millrace/millrace/internal/broker/brokertest"
)

func TestChangesOnKafka(t *testing.T) {
	crowd(t, brokertest.Kafka(t, broker.KafkaConfig{}).Addr(), 6)
}
