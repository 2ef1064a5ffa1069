package streams

import "fmt"

// OrderKind is what an [OrderEvent] says. The zero OrderKind is invalid.
type OrderKind uint8

const (
	// OrderGap: messages are missing before this one. If they come later, each is
	// an OrderReorder.
	OrderGap OrderKind = iota + 1
	// OrderDuplicate: a message was observed that stood before already.
	OrderDuplicate
	// OrderReorder: a message comes later than its place.
	OrderReorder
	// OrderSplice: a message of a chain that another one had replaced, or one that
	// contradicts what its own chain said before.
	OrderSplice
	// OrderChainChange: another chain begins. That is right where the source stream
	// was made again or the operator resumed a route by hand, and worth a question
	// everywhere else. Messages missing at the end of the old chain do not show.
	OrderChainChange
	// OrderSourceLoss: the gateway itself states, under the seal, that limits of the
	// source stream removed messages before it could read them. Nothing was lost
	// behind the gateway.
	OrderSourceLoss
)

var orderKinds = [...]string{
	OrderGap: "gap", OrderDuplicate: "duplicate", OrderReorder: "reorder", OrderSplice: "splice",
	OrderChainChange: "chain change", OrderSourceLoss: "source loss",
}

func (k OrderKind) String() string {
	if k == 0 || int(k) >= len(orderKinds) {
		return fmt.Sprintf("OrderKind(%d)", uint8(k))
	}
	return orderKinds[k]
}

// Alarm reports whether the kind says that somebody behind the gateway lost,
// repeated, moved or replaced messages. Chain changes and losses of the source are
// stated by the gateway.
func (k OrderKind) Alarm() bool { return k >= OrderGap && k <= OrderSplice }

// OrderEvent is what a [Verifier] found at one message.
type OrderEvent struct {
	Kind OrderKind
	// Stream is the message's sequence in the sealed stream, 0 where unknown.
	Stream uint64
	// Chain, Sequence and Previous are the message's own: its chain, its sequence
	// on it, and the sequence that it says came before.
	Chain              ChainID
	Sequence, Previous uint64
	// Before and Last are the chain, and the highest sequence on this message's own
	// chain, observed before it; Last is 0 if there was none.
	Before ChainID
	Last   uint64
	// Count of a gap is at most how many messages are missing, and at least one
	// is: exactly so many, where the route relays every message of its source. Of a
	// loss of the source it is how many messages the gateway missed. Otherwise 0.
	Count uint64
}

// String describes the event without anything that was sealed besides order.
func (e OrderEvent) String() string {
	at := fmt.Sprintf("%v at %d of chain %v", e.Kind, e.Sequence, e.Chain)
	switch e.Kind {
	case OrderGap:
		return fmt.Sprintf("%s: follows %d, %d was the last read, 1 to %d missing", at, e.Previous, e.Last, e.Count)
	case OrderDuplicate, OrderReorder:
		return fmt.Sprintf("%s: read after %d", at, e.Last)
	case OrderSplice:
		return fmt.Sprintf("%s: follows %d, read after %d of its chain, in chain %v", at, e.Previous, e.Last, e.Before)
	case OrderChainChange:
		return fmt.Sprintf("%s: chain %v before", at, e.Before)
	case OrderSourceLoss:
		return fmt.Sprintf("%s: the source lost %d", at, e.Count)
	}
	return at
}
