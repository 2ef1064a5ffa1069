// Package bench measures what Keyweir costs, in one run on one machine, as
// ratios to the least that would do the same work.
//
// [Seal] compares sealing and opening with bare AES-256-GCM over the same bytes:
//
//	report, err := bench.Seal(ctx, bench.SealConfig{})
//	fmt.Print(report)
//
// [Relay] compares the gateway with itself without the seal and with the server's
// own copy, [Chaos] kills and freezes processes and looks for damage, [Soak] looks
// for leaks. They run servers and gateways as processes of their own, which
// [Worker] is the inside of; docs/benchmarks.md says how to read the results.
//
// Figures in nanoseconds belong to the machine they were taken on; the ratios
// are what can be compared.
package bench
