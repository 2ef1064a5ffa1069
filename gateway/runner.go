package gateway

import (
	"context"
	"errors"
	"log/slog"
	"reflect"
	"sync"
	"time"
)

// relay is what runs a route, or one partition of it: today a worker.
type relay interface {
	// run works until ctx ends (nil) or the route stops (*RouteError). When ctx
	// ends it drains, so that a successor may begin as soon as run has returned.
	run(ctx context.Context) error
	// stats is safe for concurrent use, before, during and after run.
	stats() RouteStats
}

// runner is one route from its start to its end. A route that changes gets a new
// runner once the old one has ended.
type runner struct {
	route Route         // with defaults
	parts []*partRunner // one for each partition
	share *share        // nil: the route is not partitioned

	cancel context.CancelFunc // set by start
	done   chan struct{}      // closed when every relay.run returned
	err    error              // what they returned; set before done is closed
}

// partRunner is one partition.
type partRunner struct {
	relay relay
	catch catchUp
}

// start runs the relays. wake is signalled when they ended.
func (r *runner) start(ctx context.Context, wake chan<- struct{}) {
	ctx, r.cancel = context.WithCancel(ctx)
	go func() {
		errs := make([]error, len(r.parts))
		var wg sync.WaitGroup
		for i, p := range r.parts {
			wg.Go(func() { errs[i] = p.relay.run(ctx) })
		}
		if r.share != nil {
			wg.Go(func() { r.share.run(ctx) })
		}
		wg.Wait()
		r.err = errors.Join(errs...)
		close(r.done)
		select {
		case wake <- struct{}{}:
		default:
		}
	}()
}

func (r *runner) ended() bool {
	select {
	case <-r.done:
		return true
	default:
		return false
	}
}

// stopped reports whether the route ended, or a partition of it stopped by itself.
func (r *runner) stopped() bool {
	for _, p := range r.parts {
		if s := p.relay.stats(); s.State == StateStopped {
			return true
		}
	}
	return r.ended()
}

// stats is what the relays say, and how they catch up.
func (r *runner) stats() []RouteStats {
	out := make([]RouteStats, len(r.parts))
	for i, p := range r.parts {
		out[i] = p.relay.stats()
		p.catch.fill(&out[i])
	}
	return out
}

// look is called every now and then to see how the relays catch up.
func (r *runner) look(now time.Time, log *slog.Logger) {
	for _, p := range r.parts {
		s := p.relay.stats()
		p.catch.look(s, now, log.With("route", s.Label()))
	}
}

// sameRoute reports whether a running route a, with defaults, is what b asks for.
// ResumeFrom does not count: it answers a route that stopped, and does nothing to
// one that runs. Connections are compared by identity.
func sameRoute(a, b Route) bool {
	if a.Source.Conn != b.Source.Conn || a.Sealed.Conn != b.Sealed.Conn || !a.unseal.alike(b.unseal) {
		return false
	}
	for _, r := range []*Route{&a, &b} {
		r.Source.Conn, r.Sealed.Conn, r.unseal, r.ResumeFrom, r.ResumePartitions = nil, nil, nil, nil, nil
	}
	return reflect.DeepEqual(a, b)
}
