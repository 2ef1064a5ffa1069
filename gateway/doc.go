// Package gateway relays plaintext JetStream messages to sealed streams, each
// exactly once and in order.
//
// A [Gateway] runs one worker per [Route]. The worker reads the source stream,
// seals every message into an envelope under the key of its scope, publishes it to
// the sealed stream, and releases the source message once the sealed copy is safe:
//
//	g, err := gateway.New(gateway.Config{
//		Keys: client, // *keysvc.Client
//		Routes: []gateway.Route{{
//			Name:   "orders",
//			Source: gateway.Source{Conn: landing, Stream: "ORDERS", Subjects: []string{"orders.>"}, AfterSeal: gateway.AfterSealPurge, Start: gateway.StartFirst()},
//			Sealed: gateway.Sealed{Conn: hub, Stream: "SEALED_ORDERS", Subject: "sealed.orders.>", Create: &gateway.CreateSealed{Replicas: 3}},
//		}},
//	})
//	...
//	err = g.Run(ctx) // until ctx ends
//
// # How nothing is lost or doubled
//
// The sealed stream is the checkpoint. A worker reads the position from the
// message at the stream's last sequence, reads the source from there, and every
// publish names the sequence it must follow. Whoever else writes makes the next
// publish fail: the worker then discards what is not acknowledged, reads the
// position again, checks that the last messages follow each other, and goes on. No
// de-duplication window is involved.
//
// Several instances of a gateway may run; a claim in a key-value bucket lets one of
// them work on a route, or on a partition of it ([Source].Partitions), of which each
// takes an even share. A late holder is harmless.
//
// Partitions have a sealed stream each, or share one ([Sealed].Shared). Then the last
// sequence is nobody's fence: every batch is atomic and ends with a checkpoint on a
// subject of its partition, keyweir.checkpoint.<stream>.<partition>, which must follow
// the one before and says what the last message would say.
//
// # Core ingest
//
// A route with [CoreIngest] has no source stream: it takes plain publishes, seals
// them and has the sealed stream acknowledge them to their publishers, so that
// nothing unsealed is ever stored. What it promises is less, and stands in
// docs/operations.md.
//
// # Unsealing
//
// [NewUnseal] makes a gateway whose routes go the other way: they open sealed
// streams into plaintext ones, by the same fence and recovery.
//
// # Engines
//
// How messages are published is the route's [Engine]; what is published, and what
// happens after a failure, is the same, so it may change between runs.
// [EngineFast] writes batches under the server's flow control, [EngineDurable]
// atomic batches of up to 1,000 messages or 1 MiB, [EngineAsync] message by
// message. [EngineAuto] takes durable for one replica with sync_interval: always,
// else async; the log and [RouteStats] say which. Sealed streams that the gateway
// makes allow all of them.
//
// # What stops a route
//
// A route that cannot tell for certain where it stands, whose source changed or
// lost messages, or that meets a message it cannot seal, stops with a
// [*RouteError] that names the reason and what to do; the other routes go on.
// Everything else, missing keys among it, is waited for: nothing is skipped, and
// nothing is ever passed on unsealed.
//
// A route with a [Hold] does not wait for the key of a single scope: it puts the
// scope's messages aside, sealed, and releases them in order when the key is back.
// It needs [EngineDurable], which [EngineAuto] then is.
//
// # Limits of the promise
//
// JetStream must keep what it acknowledged: across a power failure it does so only
// with sync_interval: always. Subject names, sizes and times of messages stay
// visible. See docs/threat-model.md.
//
// # Permissions
//
// On the source: STREAM.INFO, STREAM.MSG.GET, CONSUMER.CREATE, CONSUMER.LIST,
// CONSUMER.INFO, CONSUMER.DELETE, CONSUMER.MSG.NEXT, STREAM.PURGE (after_seal:
// purge) and $JS.ACK (queues) of the stream. On the sealed side: STREAM.INFO,
// STREAM.MSG.GET and STREAM.CREATE of the stream and of KV_KEYWEIR_claims and
// KV_KEYWEIR_positions, CONSUMER.CREATE, CONSUMER.MSG.NEXT and CONSUMER.DELETE of
// the stream (after a crash its last messages are checked), and publishing to the
// sealed subjects, which nobody else should be allowed, and to
// $KV.KEYWEIR_claims.> and $KV.KEYWEIR_positions.>; where partitions share a stream,
// to keyweir.checkpoint.<stream>.* as well. A route with a Hold needs the same for its
// hold stream, and STREAM.PURGE of it.
//
// Core ingest needs STREAM.NAMES, the queue group [QueueGroup] on its subjects and
// allow_responses on the source, and STREAM.INFO, STREAM.CREATE and publishing to
// the sealed subjects on the sealed side, and no more.
package gateway
