// Package keysvc is the contract of the Keyweir key service and its client:
// subjects, requests and replies, errors, identities, the exchange that keeps
// keys from the broker, and the rules that give a subject its scope. The server
// is package keyserver; docs/keysvc.md specifies the wire for other languages.
//
// A program needs an enrolled [Identity] and a [Client]:
//
//	id, err := keysvc.LoadIdentity("/run/keyweir/billing.nk")
//	client, err := keysvc.NewClient(keysvc.ClientConfig{
//		Conn: nc, Service: "prod", Pins: []string{"NB7..."}, Identity: id,
//	})
//	keys, err := client.OpenKeys(ctx, []keysvc.Record{{KeyID: id}})
//
// The broker is not trusted. Requests are signed by the identity; replies,
// errors too, are signed by a pinned service over the hash of the request, and
// results are sealed with HPKE to a key of that request. Whatever does not
// verify is ignored, so a fake responder can delay an answer but never give one.
// So is a refusal that somebody provoked by sending a copy of the request.
// Without an answer in time every call fails with [ErrUnavailable].
//
// Operations of version 1 never gain fields; a new need becomes a new operation.
package keysvc
