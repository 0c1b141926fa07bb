// Package kafka is the transport: everything that knows franz-go's protocol
// details or goka's extension points.
//
// It holds the goka processor of one task whose input and output are replaced
// ([Feed]), the transactional commit ([Ledger]), the assignor of whole tasks
// ([Balancer]), client options ([Config]), internal topics ([Ensure], [Changes]),
// direct read_committed readers ([Reader]) and the adapters with which goka.View
// runs on franz-go ([ViewSource]). Nothing here opens a sarama connection.
package kafka
