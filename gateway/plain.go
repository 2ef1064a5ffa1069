package gateway

import (
	"errors"
	"fmt"

	"github.com/keyweir/keyweir/internal/plainrelay"
)

// RelayPlain switches the seal off, before Run: the payload is published as it
// came, with everything else as it is. Only the benchmark of this module can get a
// permit, which holds for its own streams; for any other route this is an error
// and nothing changes.
func (g *Gateway) RelayPlain(p plainrelay.Permit) error {
	if g.started.Load() {
		return errors.New("gateway: RelayPlain was called after Run")
	}
	var workers []*worker
	for _, r := range g.runners {
		for _, part := range r.parts {
			stream := part.relay.stats().SealedStream
			w, ok := part.relay.(*worker)
			if !ok || !p.Holds(stream) {
				return &RouteError{r.route.Name, fmt.Errorf("%w: nothing is relayed to %s unsealed", ErrConfig, stream)}
			}
			workers = append(workers, w)
		}
	}
	for _, w := range workers {
		w.plain = true
		w.log.Warn("relaying without sealing, for a benchmark")
	}
	return nil
}

// passOn is seal without the seal.
func (s *sealer) passOn(it *item, previous uint64, subject string) *outgoing {
	o := &s.out
	o.subject, o.source, o.previous, o.timestamp, o.payload = subject, it.seq, previous, it.timestamp, len(it.msg.Data)
	s.clearHeaders(it.msg)
	o.data = it.msg.Data
	return o
}
