// Package bench measures what Keyweir costs, in one run on one machine, as
// ratios to the least that would do the same work.
//
// [Seal] compares sealing and opening with bare AES-256-GCM over the same bytes:
//
//	report, err := bench.Seal(ctx, bench.SealConfig{})
//	fmt.Print(report)
//
// Figures in nanoseconds belong to the machine they were taken on; the ratios
// are what can be compared.
package bench
