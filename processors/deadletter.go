package processors

import (
	"slices"
	"strconv"
	"time"
)

// DeadLetterHeaders returns the headers of the dead letter of src: its own,
// followed by millrace.topic, .partition, .offset and .timestamp (ms since the
// epoch), which say where it came from, and millrace.step, .class, .message and
// .failed-at, which say what failed and when. Headers after the last millrace.topic
// are not the event's.
func DeadLetterHeaders(src *Raw, step string, class Class, message string, now time.Time) []Header {
	headers := slices.Grow(slices.Clone(src.Headers), 16)
	for _, h := range [...][2]string{
		{"millrace.topic", src.Topic},
		{"millrace.partition", strconv.Itoa(int(src.Partition))},
		{"millrace.offset", strconv.FormatInt(src.Offset, 10)},
		{"millrace.timestamp", strconv.FormatInt(src.Timestamp, 10)},
		{"millrace.step", step},
		{"millrace.class", string(class)},
		{"millrace.message", message},
		{FailedAtHeader, strconv.FormatInt(now.UnixMilli(), 10)},
	} {
		headers = append(headers, Header{Key: h[0], Value: []byte(h[1])})
	}
	return headers
}

// ErrorText returns the text of err for a dead letter: bounded to 8 KiB and valid
// UTF-8. The length and the hash of a longer one are kept.
func ErrorText(err error) string { return truncate(err.Error()) }
