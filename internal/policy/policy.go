// Package policy decides who may do what with which keys.
//
// A [Decider] answers one [Request] at a time; [Grants] is the one that follows
// a list of grants from the configuration:
//
//	people, err := policy.NewPrincipals(map[string]string{"billing": "UB..."})
//	grants, err := policy.NewGrants(people, []policy.Grant{
//		{To: []string{"billing"}, May: []string{"open"}, Scopes: []string{"tenant/*"}},
//	})
//	d := grants.Decide(policy.Request{Principal: "billing", Action: "open", Scope: "tenant/acme", Time: now})
//
// What no grant allows is denied. The package does no I/O and keeps no clock.
package policy

import "time"

// Request is one question. All of it was verified by the asker.
type Request struct {
	Principal string            // configured name of who asks
	Action    string            // operation, for example "open"
	Scope     string            // scope of a data key, or "route/<name>"
	Context   map[string]string // encryption context; nil if there is none
	Subject   string            // origin subject where the asker knows one, else ""
	Time      time.Time         // wall time of the question
}

// Decision is the answer. The zero Decision denies.
type Decision struct {
	Allow  bool
	Rule   string // what decided, "grant 2" for example; "" if nothing matched
	Reason string // one line for the audit log and the requester
}

// Decider answers requests. Implementations are safe for concurrent use, do not
// block and deny whatever they do not understand.
type Decider interface {
	Decide(Request) Decision
}

// Holder is the optional ability to say whether a principal holds any of some
// actions on anything at all at a time.
type Holder interface {
	Holds(principal string, at time.Time, actions ...string) bool
}
