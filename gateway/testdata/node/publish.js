// Publishes to the server of the first argument as any application does with the
// NATS client for Node, and prints what it was told as JSON.
import { connect, headers } from "@nats-io/transport-node";
import { jetstream } from "@nats-io/jetstream";

const nc = await connect({ servers: process.argv[2] });
const js = jetstream(nc);
const out = { acks: [], duplicate: false, refused: null };
const payload = "published by node ";
for (let i = 0; i < 20; i += 1) {
  const h = headers();
  h.set("App", "node");
  const ack = await js.publish("in.a.x", payload + i, { msgID: `id-${i}`, headers: h });
  out.acks.push([ack.stream, ack.seq]);
}
// Many at once, as an application that does not wait.
const many = [];
for (let i = 20; i < 200; i += 1) {
  many.push(js.publish("in.b.x", payload + i, { msgID: `id-${i}` }));
}
out.acks.push(...(await Promise.all(many)).map((a) => [a.stream, a.seq]));
out.duplicate = (await js.publish("in.a.x", payload + 0, { msgID: "id-0" })).duplicate;
try {
  await js.publish("in.a.x", "no", { expect: { lastSequence: 1 } });
} catch (err) {
  out.refused = { code: err.code ?? err.api_error?.err_code ?? 0, message: err.message };
}
await nc.drain();
console.log(JSON.stringify(out));
