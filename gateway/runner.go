package gateway

import (
	"context"
	"reflect"
)

// relay is what runs a route: today a worker.
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
	route Route // with defaults
	relay relay
	catch catchUp

	cancel context.CancelFunc // set by start
	done   chan struct{}      // closed when relay.run returned
	err    error              // what it returned; set before done is closed
}

// start runs the relay. wake is signalled when it ended.
func (r *runner) start(ctx context.Context, wake chan<- struct{}) {
	ctx, r.cancel = context.WithCancel(ctx)
	go func() {
		r.err = r.relay.run(ctx)
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

// stats is what the relay says, and how it catches up.
func (r *runner) stats() RouteStats {
	s := r.relay.stats()
	r.catch.fill(&s)
	return s
}

// sameRoute reports whether a running route a, with defaults, is what b asks for.
// ResumeFrom does not count: it answers a route that stopped, and does nothing to
// one that runs. Connections are compared by identity.
func sameRoute(a, b Route) bool {
	if a.Source.Conn != b.Source.Conn || a.Sealed.Conn != b.Sealed.Conn || a.unseal != b.unseal {
		return false
	}
	for _, r := range []*Route{&a, &b} {
		r.Source.Conn, r.Sealed.Conn, r.unseal, r.ResumeFrom = nil, nil, nil, nil
	}
	return reflect.DeepEqual(a, b)
}
