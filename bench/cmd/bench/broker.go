package main

import (
	"context"

	kafka "github.com/millrace/millrace/internal/broker"
)

// broker returns the broker to measure on: the one the flags name, or an Apache
// Kafka started for the run.
func broker(ctx context.Context, cfg config) (addr string, pid int, stop func(), err error) {
	if cfg.brokers != "" {
		return cfg.brokers, cfg.brokerPID, func() {}, nil
	}
	logf("start the broker")
	k, err := kafka.StartKafka(ctx, kafka.KafkaConfig{HeapMB: 1024})
	if err != nil {
		return "", 0, nil, err
	}
	return k.Addr(), k.PID(), func() {
		if err := k.Close(); err != nil {
			logf("close the broker: %v", err)
		}
	}, nil
}
