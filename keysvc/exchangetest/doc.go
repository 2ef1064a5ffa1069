// Package exchangetest holds no code: its tests attack the key exchange between
// package keysvc's client and the real key service over a real nats-server, as
// every other user of that server, the server itself, and a sealer that may not
// open could.
package exchangetest
