// Package envelope implements version 1 of the Keyweir envelope: one sealed
// message, and the key record that says how its data key can be obtained. The
// bytes are specified in docs/envelope.md, for implementations in other
// languages.
//
// A sealer turns a [DataKey] into a [Grant] and the grant into a [Session],
// which seals messages one after another; a reader parses an envelope with
// [Parse] and opens it with the [KeyReader] of its data key:
//
//	grant, err := envelope.NewGrant(key, record)
//	session, err := grant.Session(envelope.SessionConfig{})
//	sealed, err := session.Seal(nil, &envelope.Meta{SealedSubject: "s.a", OriginSubject: "a"}, payload)
//
//	reader, err := envelope.NewKeyReader(record, key, 0)
//	e, err := envelope.Parse(sealed)
//	opened, err := reader.Open(nil, &e)
//
// The package imports the standard library only, does no I/O, keeps no clock
// and never logs. No call takes a nonce. A failed open returns no data and
// never writes into its input. Secret types print as "[redacted]" under every
// verb and marshaller.
//
// What version 1 sealed, every later release opens.
package envelope
