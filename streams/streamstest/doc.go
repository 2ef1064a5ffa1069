// Package streamstest makes sealed messages and opens their keys in memory, for
// the tests of programs that import package streams. It needs no gateway, no key
// service and no network; a test that wants the whole path publishes the sealed
// messages to a real or in-process JetStream itself.
//
//	keys := streamstest.NewKeys()
//	sealer := keys.NewSealer(t, streamstest.Sealing{Scope: "tenant/acme"})
//	opener, err := streams.New(streams.Config{Keys: keys, Accept: sealer.Accept()})
//	js.PublishMsg(ctx, sealer.Seal(t, "orders.acme.new", nil, []byte("hello")))
//
// [Keys.Refuse] and [Keys.Hook] play suspended keys, revoked access and outages.
// Nothing here is fit for data that matters: the keys are not protected.
package streamstest
