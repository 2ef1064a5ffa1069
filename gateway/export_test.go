package gateway

import "time"

// Tuning lets tests shorten a gateway's waits.
type Tuning struct {
	ClaimTTL, Heartbeat, AckTimeout, Tick, Key, KeySlow, Drain, Progress time.Duration
	NoClaim                                                              bool
}

// Tune applies t before Run; zero fields stay as they are.
func (g *Gateway) Tune(t Tuning) {
	set := func(to *time.Duration, v time.Duration) {
		if v != 0 {
			*to = v
		}
	}
	set(&g.tune.claimTTL, t.ClaimTTL)
	set(&g.tune.heartbeat, t.Heartbeat)
	set(&g.tune.ackTimeout, t.AckTimeout)
	set(&g.tune.tick, t.Tick)
	set(&g.tune.key, t.Key)
	set(&g.tune.keySlow, t.KeySlow)
	set(&g.tune.drain, t.Drain)
	set(&g.tune.progress, t.Progress)
	for _, r := range g.runners {
		for _, p := range r.parts {
			switch w := p.relay.(type) {
			case *worker:
				w.tune, w.noClaim = g.tune, t.NoClaim
			case *ingest:
				w.tune = g.tune
				set(&w.recheck, t.Tick)
			}
		}
	}
}

// Refusal is one row of the table of settings a sealed stream must not have.
var RefusalSettings = func() (names []string) {
	for _, r := range refusals {
		names = append(names, r.setting)
	}
	return names
}()
