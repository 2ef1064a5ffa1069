package streams

import (
	"slices"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/keyweir/keyweir/internal/checkpoint"
)

// isCheckpoint reports whether a message of a stream is a checkpoint of it: on one of
// the subjects that are for those of this stream alone, without a body and with what
// a gateway writes. Its MAC is for the gateway. To take a forged one for genuine does
// no harm here, since nothing is taken from it; but anything else there, above all a
// body, is handled like every message that is not sealed.
func (o *Opener) isCheckpoint(stream, subject string, header nats.Header, data []byte) bool {
	of, _, ok := checkpoint.ParseSubject(subject)
	if !ok || of != stream && !slices.Contains(o.accept.Checkpoints, of) {
		return false
	}
	_, _, err := checkpoint.Read(of, subject, header, data)
	return err == nil
}

// streamOf is the stream that delivered a message; "" where unknown.
func streamOf(m jetstream.Msg) string {
	meta, err := m.Metadata()
	if err != nil {
		return ""
	}
	return meta.Stream
}
