package bench

import (
	"testing"
	"time"
)

// A message that is published late has waited since it was due.
func TestLatencies(t *testing.T) {
	l := newLatencies(time.Unix(1000, 0), 1000)
	if got := l.due(1500); !got.Equal(time.Unix(1001, 500e6)) {
		t.Errorf("message 1500 of 1,000 per second is due at %v", got)
	}
	// A stall of one second, in which nothing arrives: 1,000 messages are late,
	// though each was published and read within a moment after it.
	stall := l.due(10_000)
	for n := range 12_000 {
		at := l.due(n).Add(200 * time.Microsecond)
		if n >= 10_000 && n < 11_000 {
			at = stall.Add(time.Second)
		}
		if err := l.arrived(n, at); err != nil {
			t.Fatal(err)
		}
	}
	r := l.result()
	near := func(got, want int64) bool { return got > want*99/100 && got < want*101/100 }
	if r.Messages != 12_000 || !near(r.P50, 200) || !near(r.P99, 880_000) || !near(r.Max, 1_000_000) {
		t.Errorf("latencies of a second's stall: %+v", r)
	}
	if err := l.arrived(0, l.due(0).Add(-time.Hour)); err != nil {
		t.Errorf("arrival before it is due: %v", err)
	}
	if err := l.arrived(0, l.due(0).Add(time.Hour)); err != nil || l.result().Max < time.Minute.Microseconds()*9/10 {
		t.Errorf("arrival after an hour: %v, %+v", err, l.result())
	}
}
