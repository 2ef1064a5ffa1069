package gateway

import "time"

// Tuning lets tests shorten a gateway's waits.
type Tuning struct {
	ClaimTTL, Heartbeat, AckTimeout, Tick, Key, KeySlow, Drain time.Duration
	NoClaim                                                    bool
}

// Tune applies t before Run; zero fields stay as they are.
func (g *Gateway) Tune(t Tuning) {
	set := func(to *time.Duration, v time.Duration) {
		if v != 0 {
			*to = v
		}
	}
	for _, w := range g.workers {
		set(&w.tune.claimTTL, t.ClaimTTL)
		set(&w.tune.heartbeat, t.Heartbeat)
		set(&w.tune.ackTimeout, t.AckTimeout)
		set(&w.tune.tick, t.Tick)
		set(&w.tune.key, t.Key)
		set(&w.tune.keySlow, t.KeySlow)
		set(&w.tune.drain, t.Drain)
		w.noClaim = t.NoClaim
	}
}

// Refusal is one row of the table of settings a sealed stream must not have.
var RefusalSettings = func() (names []string) {
	for _, r := range refusals {
		names = append(names, r.setting)
	}
	return names
}()
