// Package devstack runs all of Keyweir in one process: nats-servers, a local
// authority, a key service, a gateway and a reader's profile. It is what
// "keyweir demo" and "keyweir dev" are made of, and what scripts test against.
//
//	s, err := devstack.Start(ctx, devstack.Options{Subjects: []string{"orders.>"}, ...})
//	...
//	defer s.Close(ctx)
//	opener, err := s.Opener(ctx)
//
// Every part is the real one; only the keys are not worth protecting. NOT FOR
// PRODUCTION: keys, plaintext and sealed data share one process.
package devstack
