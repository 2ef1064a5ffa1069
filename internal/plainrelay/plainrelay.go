// Package plainrelay holds the permit for a relay that does not seal, which the
// benchmark compares the sealed one with. There is no other use, and no way to it
// for anybody else: nothing outside this module can import the package, within it
// only gateway and bench do (internal/deptest), no configuration leads here, and
// the permit holds for streams of the benchmark only.
package plainrelay

import "strings"

// Permit is asked for by gateway.Gateway.RelayPlain. The zero Permit permits
// nothing.
type Permit struct{ given bool }

// ForBenchmark returns the permit.
func ForBenchmark() Permit { return Permit{given: true} }

// prefix begins the names of all streams that may take unsealed messages.
const prefix = "KEYWEIR_BENCH_PLAIN"

// Stream is the name of stream n that may take unsealed messages.
func Stream(n string) string { return prefix + "_" + n }

// Holds reports whether messages may be relayed to stream unsealed.
func (p Permit) Holds(stream string) bool { return p.given && strings.HasPrefix(stream, prefix+"_") }
