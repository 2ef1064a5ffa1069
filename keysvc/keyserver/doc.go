// Package keyserver is the metadata key service: it answers the operations of
// package keysvc over NATS, so that neither the number of sealers nor that of
// readers multiplies calls to an authority.
//
//	srv, err := keyserver.New(ctx, keyserver.Config{
//		Conn: nc, Service: "prod", Identity: id, Store: store,
//		Authorities: map[string]authority.Authority{"aws": kms},
//		Scopes: []keyserver.ScopeRule{{Match: "orders.*.>", Scope: "tenant/{{wildcard(1)}}", Authorities: []string{"aws"}}},
//		Principals: map[string]string{"gateway": "UA..."}, Policy: grants,
//	})
//	...
//	err = srv.Close()
//
// # What it promises
//
// A request that did not verify costs a counter and a signed error, nothing
// else. One that did is decided by the policy for every key it names, and what
// was decided is in the audit log, on the disk, before the reply leaves; where
// that cannot be written nothing is released, and the server stops ([Server.Done]).
//
// A data key is used only after its wrap was opened again and matched, and after
// its record is in the key directory and in the store.
//
// # While an authority is away
//
// Throttled and unreachable are outages: keys go on serving until their stale
// limit and come back by themselves. Disabled, denied, destroyed and unknown are
// the authority's decisions: every key under that managed key is dropped at once.
//
// docs/keysvc.md specifies the wire, the directory and the failure table.
package keyserver
