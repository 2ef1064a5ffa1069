// Package sealedcheck audits a sealed stream without any key: that everything in
// it is an envelope, that its chains are intact, that nothing is missing in the
// middle, that no nonce was used twice, and that the stream is set up as a gateway
// demands.
//
//	report, err := sealedcheck.Check(ctx, nc, sealedcheck.Options{Stream: "SEALED_ORDERS"})
//	if err == nil && !report.OK { ... report.Findings ... }
//
// It reads every message once, in order, and keeps a bounded amount of memory
// whatever the stream holds; where a bound was reached the report says so.
//
// What it reads in clear is not authenticated: the broker could have written all
// of it. [Unshown] lists what only a holder of keys can show.
package sealedcheck

// Unshown is what a check without keys cannot show.
var Unshown = []string{
	"that the seals open: only readers with keys can try",
	"that headers in clear are genuine: their MAC needs the route's key, and readers check the order that is under the seal",
	"that nothing was cut off at the end, or removed before the first message: that takes a position from elsewhere",
	"what was sealed under a key whose record is not in the stream: it names only the key's ID",
}
