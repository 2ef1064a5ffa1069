package plainrelay_test

import (
	"testing"

	"github.com/keyweir/keyweir/internal/plainrelay"
)

func TestPermit(t *testing.T) {
	stream := plainrelay.Stream("1")
	if (plainrelay.Permit{}).Holds(stream) {
		t.Error("the zero permit holds")
	}
	if p := plainrelay.ForBenchmark(); !p.Holds(stream) || p.Holds("SEALED_ORDERS") || p.Holds("KEYWEIR_BENCH_PLAIN") || p.Holds("") {
		t.Errorf("the permit holds for %s: %v, or for streams of others", stream, p.Holds(stream))
	}
}
