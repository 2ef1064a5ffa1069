package gateway

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"log/slog"
	mathrand "math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// share keeps this instance to its even share of a route's partitions. Every
// instance that runs the route keeps an entry instance.<route>.<id> in
// ClaimsBucket, which expires like a claim. Ordered by when they joined, the first
// ones may hold one partition more than the others where they do not divide
// evenly; so everybody computes the same quotas, which add up to the number of
// partitions, a newcomer takes from as few as possible, and nobody gives anything
// up when one leaves.
//
// Quotas only say who should try. Views may differ for a moment, or for a TTL
// after a kill; the claims decide, and below them the fence.
type share struct {
	route    string
	id       string
	instance string
	total    int // partitions
	log      *slog.Logger

	stream jetstream.Stream // of the bucket; run's alone
	joined chan struct{}    // closed by join
	ended  chan struct{}    // closed when no worker is left

	mu      sync.Mutex // guards what follows
	b       *bucket
	quota   int // partitions that this instance may hold; 0 until the others are known
	live    int // instances, this one included
	used    map[uint32]*holding
	workers int // not ended
}

// holding is a partition held, or being tried for.
type holding struct {
	handOver func() // nil: only tried for
	leaving  bool
}

// member is the value of an instance's entry.
type member struct {
	Instance string `json:"instance"`
	Joined   int64  `json:"joined"` // unix nanoseconds by that instance's clock, for the order only
	id       string
}

func newShare(route, instance string, partitions int, log *slog.Logger) *share {
	return &share{
		route: route, id: rand.Text(), instance: instance, total: partitions, log: log, workers: partitions,
		joined: make(chan struct{}), ended: make(chan struct{}), used: make(map[uint32]*holding),
	}
}

// quotaOf is the share of the instance that joined as number rank, from 0.
func quotaOf(rank, instances, partitions int) int {
	q := partitions / instances
	if rank < partitions%instances {
		q++
	}
	return q
}

// join makes this instance count from now on. Later calls do nothing.
func (s *share) join(b *bucket) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.b == nil {
		s.b = b
		close(s.joined)
	}
}

// workerEnded says that a worker will not hold its partition any more.
func (s *share) workerEnded() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.workers--; s.workers == 0 {
		close(s.ended)
	}
}

// take waits until this instance may hold one partition more and this one is
// free, and takes its claim. The caller then calls holds and, in the end, gone.
func (s *share) take(ctx context.Context, b *bucket, partition uint32, key string, value []byte) (*claim, error) {
	if b.ttl <= 0 {
		return nil, errNoTTL
	}
	s.join(b)
	poll := min(max(b.ttl/40, 25*time.Millisecond), 250*time.Millisecond)
	for {
		if s.reserve(partition) {
			c, err := tryClaim(ctx, b, key, value)
			if c != nil {
				return c, nil
			}
			s.gone(partition)
			if err != nil {
				return nil, err
			}
		}
		// Jitter, so that the workers do not keep the last free place from each other.
		if err := sleep(ctx, poll/2+mathrand.N(poll)); err != nil {
			return nil, err
		}
	}
}

func (s *share) reserve(partition uint32) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.used) >= s.quota {
		return false
	}
	s.used[partition] = &holding{}
	return true
}

// holds says how to make the holder of a partition give it up.
func (s *share) holds(partition uint32, handOver func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.used[partition].handOver = handOver
	s.balance() // the share may have shrunk meanwhile
}

func (s *share) gone(partition uint32) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.used, partition)
}

// balance hands over what exceeds the quota; s.mu is held.
func (s *share) balance() {
	var stay []uint32
	for p, h := range s.used {
		if h.handOver != nil && !h.leaving {
			stay = append(stay, p)
		}
	}
	slices.Sort(stay)
	for len(stay) > s.quota {
		p := stay[len(stay)-1]
		stay = stay[:len(stay)-1]
		s.used[p].leaving = true
		s.used[p].handOver()
	}
}

// run keeps the entry and the quota until ctx ends or no worker is left, and then
// takes the entry away at once, so that the others make ready to take over.
func (s *share) run(ctx context.Context) {
	select {
	case <-s.joined:
	case <-s.ended:
		return
	case <-ctx.Done():
		return
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		select {
		case <-s.ended:
			cancel()
		case <-ctx.Done():
		}
	}()
	key := fmt.Sprintf("instance.%s.%s", s.route, s.id)
	me := member{Instance: s.instance, Joined: time.Now().UnixNano(), id: s.id}
	value, err := json.Marshal(me)
	if err != nil {
		panic("gateway: internal error: " + err.Error()) // a string and a number
	}
	defer func() {
		lctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), requestTimeout/2)
		defer cancel()
		if err := s.b.remove(lctx, key); err != nil {
			s.log.Debug("leaving this instance's entry to expire", "error", err)
		}
	}()
	var renewed time.Time
	for {
		if now := time.Now(); now.Sub(renewed) >= s.b.ttl/3 {
			if err := s.b.write(ctx, key, value); err == nil {
				renewed = now
			} else if ctx.Err() == nil {
				s.log.Warn("renewing this instance's entry failed, trying again", "error", err)
			}
		}
		members, err := s.members(ctx)
		if err == nil {
			s.setQuota(me, members)
		} else if ctx.Err() == nil {
			s.log.Warn("counting instances failed, trying again", "error", err)
		}
		if sleep(ctx, min(s.b.ttl/10, 500*time.Millisecond)) != nil {
			return
		}
	}
}

// members lists the instances that run this route.
func (s *share) members(ctx context.Context) ([]member, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	prefix := fmt.Sprintf("instance.%s.", s.route)
	if s.stream == nil {
		var err error
		if s.stream, err = s.b.js.Stream(ctx, "KV_"+s.b.name); err != nil {
			return nil, fmt.Errorf("listing instances: %w", err)
		}
	}
	info, err := s.stream.Info(ctx, jetstream.WithSubjectFilter(s.b.subject(prefix+"*")))
	if err != nil {
		return nil, fmt.Errorf("listing instances: %w", err)
	}
	var out []member
	for subject := range info.State.Subjects {
		id := strings.TrimPrefix(subject, s.b.subject(prefix))
		raw, _, err := s.b.get(ctx, prefix+id)
		if err != nil {
			return nil, fmt.Errorf("listing instances: %w", err)
		}
		m := member{id: id}
		if raw == nil || json.Unmarshal(raw, &m) != nil {
			continue // gone by now, or not of a gateway
		}
		out = append(out, m)
	}
	return out, nil
}

func (s *share) setQuota(me member, members []member) {
	members = slices.DeleteFunc(members, func(m member) bool { return m.id == me.id })
	rank := 0
	for _, m := range members {
		if cmp.Or(cmp.Compare(m.Joined, me.Joined), cmp.Compare(m.id, me.id)) < 0 {
			rank++
		}
	}
	live := len(members) + 1
	quota := quotaOf(rank, live, s.total)
	s.mu.Lock()
	defer s.mu.Unlock()
	if quota != s.quota || live != s.live {
		s.log.Info("share of partitions", "instances", live, "partitions", quota, "of", s.total)
	}
	s.quota, s.live = quota, live
	s.balance()
}
