package sealedcheck

import (
	"strconv"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/keyweir/keyweir/internal/checkpoint"
)

// shared is what is known of a stream that several partitions write to, by their
// checkpoints. Methods do what is right for nil, which is any other stream.
type shared struct {
	stream     string // that the checkpoints belong to
	partitions uint64
	seen       map[uint32]uint64 // sequence of the checkpoint, by partition
}

func newShared(c *jetstream.StreamConfig) *shared {
	n, err := strconv.ParseUint(c.Metadata[metadataShared], 10, 32)
	if err != nil || n == 0 || n > checkpoint.MaxPartitions {
		return nil
	}
	s := &shared{stream: c.Name, partitions: n, seen: make(map[uint32]uint64)}
	if c.Mirror != nil {
		s.stream = c.Mirror.Name
	}
	return s
}

// add takes in the message at seq if it stands among the checkpoints, and reports
// whether it does. Checkpoints are seen in their order among the messages, so one
// whose chain was read must name the last message of it.
func (s *shared) add(c *checker, seq uint64, subject string, h nats.Header, data []byte) bool {
	if s == nil {
		return false
	}
	if _, _, ok := checkpoint.ParseSubject(subject); !ok {
		return false
	}
	r := c.r
	r.Checkpoints++
	partition, p, err := checkpoint.Read(s.stream, subject, h, data)
	if err != nil {
		r.find(Checkpoint, seq, "%d bytes on %s are not a checkpoint of stream %s", len(data), subject, s.stream)
		return true
	}
	if uint64(partition) >= s.partitions {
		r.find(Checkpoint, seq, "it is of partition %d, and the stream has %d", partition, s.partitions)
		return true
	}
	if other, ok := s.seen[partition]; ok {
		r.find(Checkpoint, seq, "it did not replace the one of partition %d at %d", partition, other)
	}
	s.seen[partition] = seq
	t := c.chains.byID[p.Chain]
	switch {
	case t == nil, t.Last < c.chains.gone: // messages of it left the stream before
	case t.created != p.Created:
		r.find(Checkpoint, seq, "it belongs to a source stream of another creation time than its chain %s", t.ID)
	case t.LastSource != p.Last:
		r.find(Checkpoint, seq, "it says that source message %d was sealed last on chain %s, and the last one before it is %d", p.Last, t.ID, t.LastSource)
	}
	return true
}
