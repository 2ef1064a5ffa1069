// Package streams reads sealed streams: it is what an application imports to
// open what a Keyweir gateway sealed. It links nats.go and the standard library
// only.
//
// Two names are enough: [NewFromProfile], with the profile file that the platform
// team hands out, and [Opener.Consume] (or [Opener.Messages], an iterator):
//
//	opener, err := streams.NewFromProfile(ctx, nc, "/etc/keyweir/billing.json")
//	if err != nil {
//		return err
//	}
//	defer opener.Close()
//	return opener.Consume(ctx, consumer, func(ctx context.Context, m *streams.Message) error {
//		return handle(m.Subject(), m.Headers(), m.Data()) // nil acknowledges
//	})
//
// # Failure
//
// A message that does not open gives an [*OpenError] and no data: never
// ciphertext, never part of a plaintext. [Verdict] says what to do:
//
//   - Hold (denied, suspended, unavailable, clock skew): Messages and Consume stop
//     fetching, keep what they fetched alive and try again until access is back.
//     They never Nak: that would burn MaxDeliver, after which the server skips the
//     message.
//   - Retry (a key nobody knows yet): held likewise, but not for ever: see
//     Config.UnknownKeyWait.
//   - Reject (plaintext, tampered, relocated, not accepted, destroyed,
//     unsupported): Config.OnUndecryptable decides. It is [Stop] unless the
//     program says [Park] or [Deliver].
//
// No message is acknowledged silently, and none is tried for ever in a loop. Give
// consumers MaxDeliver -1, or a reader that is started again and again over the
// same broken message runs into the limit.
//
// # What a reader checks
//
// Messages never choose. A reader pins, in its profile or in [Accept], which
// scopes, schemes and ordered sets of authorities it accepts, and the rules that
// give a subject its scope; it compares the delivered subject with the sealed one
// and the scope with the one its own rules give, and asks for no key it would not
// accept. The key ID in the message is the hash of the record's core, the core
// commits to the key, and the key authenticates the rest.
//
// Keys are kept within their lease only, counted from the sending of the request
// and measured by the monotonic clock. Key, sessions and ciphers are dropped
// together: at the end of the lease, at once when a refresh is refused, and on
// [Opener.Close].
//
// # What it does not prove
//
// Order evidence: a message carries its place on a chain and its predecessor's
// ([Message.Sequence], [Message.Previous], [Message.Gap]), so that somebody who
// reads a whole chain can tell gaps, duplicates and reordering. Open, Messages
// and Consume do not check that themselves; a [Verifier] does. The end of a chain
// proves nothing: what was cut off after the last message read is not missed.
//
// Sealing is symmetric: whoever may open messages of a scope could also forge
// them, as far as the broker lets him publish. A message proves that somebody
// with access to the key sealed it, not who. Readers who collude with the broker
// can forge order evidence, too.
//
// Sizes, times and the sealed subject are readable by the broker.
//
// # Compatibility
//
// Exported names keep their meaning within a major version; new fields and
// sentinels may be added. What version 1 of the envelope sealed, every later
// release opens.
package streams
