package gateway

import (
	"context"
	"errors"
	"fmt"
	"maps"
)

// ErrNotRunning: Run has returned, so that nothing can be reconfigured.
var ErrNotRunning = errors.New("gateway: not running")

// Changes says what [Gateway.Reconfigure] did, by route name in the order of the
// new configuration; Removed in that of the old one.
type Changes struct {
	Unchanged []string // went on untouched
	Restarted []string // drained and begun anew, or stopped before and begun again
	Started   []string // were not there before
	Removed   []string // drained and gone
}

// Reconfigure replaces the routes of a running gateway. Routes whose settings and
// connections are the same go on untouched. One that is gone from routes, or
// differs, drains as at a shutdown; when all of those have ended, changed and new
// routes start. A route that had stopped by itself, or a partition of which had,
// starts again even if it is unchanged, and a changed ResumeFrom alone changes nothing else.
//
// A ResumeFrom that a route of that name, or a partition, was given before, by [New]
// or here, is ignored, since the position has moved on.
//
// keys replaces the key service's client, and then every route starts anew; nil
// keeps it.
//
// No message is lost or doubled by it: each route goes on from its position as
// after any restart. Connections of routes that were removed or changed are no
// longer in use when it returns.
//
// With an error nothing was changed: one that wraps [ErrConfig], [ErrNotRunning],
// or ctx's. It blocks until Run is called, and while routes drain. It is safe for
// concurrent use; ctx bounds the waiting before it begins.
func (g *Gateway) Reconfigure(ctx context.Context, keys Keys, routes []Route) (Changes, error) {
	if g.opens {
		return Changes{}, fmt.Errorf("%w: what opens cannot begin to seal", ErrConfig)
	}
	return g.request(ctx, keys, routes)
}

// ReconfigureUnseal is [Gateway.Reconfigure] for what [NewUnseal] made. Of cfg,
// Routes, Opener and Keys count. Nil Keys keep those in use; with others, or with
// another Opener, every route starts anew. The Opener before it is no longer in use
// when this returns without an error.
func (g *Gateway) ReconfigureUnseal(ctx context.Context, cfg UnsealConfig) (Changes, error) {
	if !g.opens {
		return Changes{}, fmt.Errorf("%w: what seals cannot begin to open", ErrConfig)
	}
	if cfg.Opener == nil || len(cfg.Routes) == 0 {
		return Changes{}, fmt.Errorf("%w: unsealing needs an opener and at least one route", ErrConfig)
	}
	var keys Keys
	if cfg.Keys != nil {
		keys = routeKeysOnly{cfg.Keys}
	}
	var routes []Route
	for _, u := range cfg.Routes {
		routes = append(routes, u.route(cfg.Opener))
	}
	return g.request(ctx, keys, routes)
}

// request has Run's goroutine reconfigure.
func (g *Gateway) request(ctx context.Context, keys Keys, routes []Route) (Changes, error) {
	q := reconfiguration{keys, routes, make(chan reconfigured, 1)}
	select {
	case g.requests <- q:
	case <-g.ended:
		return Changes{}, ErrNotRunning
	case <-ctx.Done():
		return Changes{}, fmt.Errorf("waiting to reconfigure: %w", context.Cause(ctx))
	}
	r := <-q.answer
	return r.changes, r.err
}

type reconfiguration struct {
	keys   Keys
	routes []Route
	answer chan reconfigured // capacity 1
}

type reconfigured struct {
	changes Changes
	err     error
}

// reconfigure runs in Run's goroutine, the only one that changes g.runners.
func (g *Gateway) reconfigure(ctx context.Context, q reconfiguration) (c Changes, err error) {
	routes, err := checkRoutes(q.routes)
	if err != nil {
		return c, err
	}
	keys := g.keys
	if q.keys != nil {
		keys = q.keys
	}
	old := make(map[string]*runner)
	for _, r := range g.runners {
		old[r.route.Name] = r
	}
	next := make([]*runner, len(routes))
	var fresh []*runner
	var asked []Route
	for i, route := range routes {
		was := old[route.Name]
		if was != nil && q.keys == nil && !was.stopped() && sameRoute(was.route, route) {
			next[i] = was
			c.Unchanged = append(c.Unchanged, route.Name)
			delete(old, route.Name)
			continue
		}
		asked = append(asked, route)
		g.unanswered(&route)
		if next[i], err = g.newRunner(keys, route); err != nil {
			return Changes{}, err
		}
		fresh = append(fresh, next[i])
		if was != nil {
			c.Restarted = append(c.Restarted, route.Name)
		} else {
			c.Started = append(c.Started, route.Name)
		}
	}
	for i := range asked { // from here on nothing fails
		g.answered(&asked[i])
	}
	// Old ones first, all of them: a new route may take over the sealed stream,
	// the source consumers or the subjects of an old one under another name.
	for _, r := range old {
		r.cancel()
	}
	for _, r := range g.runners {
		if old[r.route.Name] != r {
			continue
		}
		<-r.done
		kept := false
		for _, n := range next {
			kept = kept || n.route.Name == r.route.Name
		}
		if !kept {
			c.Removed = append(c.Removed, r.route.Name)
		}
	}
	g.mu.Lock()
	g.runners, g.keys = next, keys
	g.mu.Unlock()
	g.guardReplies()
	for _, r := range fresh {
		r.start(ctx, g.wake)
	}
	return c, nil
}

// unanswered takes away what the route was told about resuming before, each value
// once in the life of the process: to resume from there again would seal what came
// after it twice.
func (g *Gateway) unanswered(r *Route) {
	if last, ok := g.answers[r.Name]; ok && r.ResumeFrom != nil && last == *r.ResumeFrom {
		r.ResumeFrom = nil
	}
	r.ResumePartitions = maps.Clone(r.ResumePartitions)
	maps.DeleteFunc(r.ResumePartitions, func(i int, seq uint64) bool { return g.answers[partitionLabel(r.Name, i)] == seq })
}

// answered notes where the route, or partitions of it, were told to resume.
func (g *Gateway) answered(r *Route) {
	if r.ResumeFrom != nil {
		g.answers[r.Name] = *r.ResumeFrom
	}
	for i, seq := range r.ResumePartitions {
		g.answers[partitionLabel(r.Name, i)] = seq
	}
}
