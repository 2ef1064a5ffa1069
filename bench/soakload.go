package bench

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// publish sends one more message.
func (s *soak) publish(payload []byte) error {
	n := s.sent.Add(1)
	if _, err := s.js.PublishAsync(soakTopics.subject(int(n%soakSubjects)), payload, jetstream.WithStallWait(chaosPatience)); err != nil {
		return fmt.Errorf("publishing: %w", err)
	}
	return nil
}

// trial publishes as fast as the gateway seals, and returns how many messages per
// second that are, in the second half of the time.
func (s *soak) trial(ctx context.Context) (float64, error) {
	payload := make([]byte, s.Size)
	begin, half := time.Now(), time.Time{}
	sealed := int64(0)
	for time.Since(begin) < s.Trial {
		if half.IsZero() && time.Since(begin) > s.Trial/2 {
			half, sealed = time.Now(), s.sealed.now()
		}
		if err := s.sealed.wait(ctx, s.sent.Load()-soakAhead); err != nil {
			return 0, err
		}
		for range 100 {
			if err := s.publish(payload); err != nil {
				return 0, err
			}
		}
	}
	rate := float64(s.sealed.now()-sealed) / time.Since(half).Seconds()
	if rate <= 0 {
		return 0, fmt.Errorf("nothing was sealed in %v\n%s", s.Trial, s.fleet.tails())
	}
	return rate, s.drained(ctx)
}

// drained waits until all that was published is acknowledged and sealed, or nothing
// happens any more.
func (s *soak) drained(ctx context.Context) error {
	select {
	case <-s.js.PublishAsyncComplete():
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	for moved, at := time.Now(), int64(-1); s.sealed.now() < s.acked.Load() && time.Since(moved) < chaosQuiet; {
		if n := s.sealed.now(); n != at {
			moved, at = time.Now(), n
		}
		if err := pauseFor(ctx, 10*time.Millisecond); err != nil {
			return err
		}
	}
	return nil
}

// soak publishes at the rate for the whole time, and samples.
func (s *soak) soak(ctx context.Context, r *SoakReport, rate float64) error {
	s.fleet.mu.Lock()
	processes := append(slices.Clone(s.fleet.gateways), s.fleet.keysvc)
	s.fleet.mu.Unlock()
	urls := make([]string, len(processes))
	r.Processes = make([]SoakProcess, len(processes))
	for i, p := range processes {
		var err error
		if urls[i], err = p.metricsURL(ctx); err != nil {
			return err
		}
		r.Processes[i].Name = p.name
	}
	payload := make([]byte, s.Size)
	before := s.sent.Load()
	begin := time.Now()
	every, next := max(s.Time/soakSamples, 100*time.Millisecond), time.Duration(0)
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for now := time.Duration(0); now < s.Time; now = time.Since(begin) {
		for due := before + int64(now.Seconds()*rate); s.sent.Load() < due; {
			if err := s.publish(payload); err != nil {
				return err
			}
		}
		if now >= next {
			next += every
			if err := s.sample(ctx, r, urls, now); err != nil {
				return err
			}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	r.Seconds = time.Since(begin).Seconds()
	r.MessagesPerSecond = float64(s.sent.Load()-before) / r.Seconds
	if err := s.drained(ctx); err != nil {
		return err
	}
	r.Messages = s.acked.Load()
	r.Unsealed = r.Messages - s.sealed.now()
	for i := range r.Processes {
		r.Processes[i].sum()
	}
	return nil
}

func (s *soak) sample(ctx context.Context, r *SoakReport, urls []string, now time.Duration) error {
	for i, url := range urls {
		v, err := scrape(ctx, url)
		if err != nil {
			return fmt.Errorf("%s: %w", r.Processes[i].Name, err)
		}
		r.Processes[i].Samples = append(r.Processes[i].Samples, SoakSample{now.Seconds(), v.RSS, v.Goroutines, v.Descriptors, v.CPU})
	}
	r.MaxBehind = max(r.MaxBehind, s.sent.Load()-s.sealed.now())
	if s.Progress != nil {
		s.Progress(int64(now.Seconds()))
	}
	return nil
}

// sum compares the end with the beginning.
func (p *SoakProcess) sum() {
	n := len(p.Samples)
	start, end := p.Samples[n/10:max(n/5, n/10+1)], p.Samples[min(n-n/10, n-1):]
	rss := func(s SoakSample) float64 { return float64(s.RSS) }
	goroutines := func(s SoakSample) float64 { return float64(s.Goroutines) }
	descriptors := func(s SoakSample) float64 { return float64(s.Descriptors) }
	p.RSSStart, p.RSSEnd = int64(median(start, rss)), int64(median(end, rss))
	p.GoroutinesStart, p.GoroutinesEnd = int(median(start, goroutines)), int(median(end, goroutines))
	p.DescriptorsStart, p.DescriptorsEnd = int(median(start, descriptors)), int(median(end, descriptors))
	p.RSSGrowthPercent = 100 * float64(p.RSSEnd-p.RSSStart) / float64(p.RSSStart)
	first, last := p.Samples[0], p.Samples[n-1]
	if d := last.Seconds - first.Seconds; d > 0 {
		p.CPUPercent = 100 * (last.cpu - first.cpu) / d
	}
}
