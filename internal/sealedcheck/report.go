package sealedcheck

import (
	"fmt"
	"slices"
	"strings"
)

// Kind is a class of findings. Every finding makes a report not OK.
type Kind string

const (
	Plaintext   Kind = "plaintext"   // not an envelope at all
	Unsupported Kind = "unsupported" // an envelope of an unknown version or suite
	Malformed   Kind = "malformed"   // an envelope that breaks the format
	Header      Kind = "header"      // an envelope without well-formed headers
	Record      Kind = "record"      // a key record that is broken, or not that of its key
	Link        Kind = "link"        // a message that does not follow the one before on its chain
	Missing     Kind = "hole"        // messages removed in the middle of the stream
	NonceReuse  Kind = "nonce_reuse" // one nonce, two ciphertexts
	NonceOrder  Kind = "nonce_order" // a counter that does not rise: moved, repeated or used again
	Copy        Kind = "copy"        // one ciphertext, stored twice
	Checkpoint  Kind = "checkpoint"  // a checkpoint that is malformed, or denies the messages before it
	Setting     Kind = "setting"     // a stream configuration a gateway refuses
)

// titles name kinds in the order of a summary, for one and for several.
var titles = []struct {
	kind      Kind
	one, many string
}{
	{Plaintext, "message is plaintext", "messages are plaintext"},
	{Unsupported, "envelope is of an unknown version or suite", "envelopes are of an unknown version or suite"},
	{Malformed, "envelope is malformed", "envelopes are malformed"},
	{NonceReuse, "nonce was used twice", "nonces were used twice"},
	{NonceOrder, "nonce counter does not rise", "nonce counters do not rise"},
	{Copy, "message is a copy", "messages are copies"},
	{Header, "message has bad headers", "messages have bad headers"},
	{Record, "key record is wrong", "key records are wrong"},
	{Link, "link of a chain is broken", "links of chains are broken"},
	{Missing, "hole", "holes"},
	{Checkpoint, "checkpoint is wrong", "checkpoints are wrong"},
	{Setting, "setting of the stream is unfit", "settings of the stream are unfit"},
}

// MaxFindings is how many findings of one kind a report describes; it counts all.
const MaxFindings = 10

// Finding is one thing that is wrong.
type Finding struct {
	Kind     Kind   `json:"kind"`
	Sequence uint64 `json:"sequence,omitempty"` // in the sealed stream; 0: of the stream
	Detail   string `json:"detail"`
}

// Chain is one chain as its headers tell it.
type Chain struct {
	ID          string `json:"id"`
	Messages    uint64 `json:"messages"`
	First       uint64 `json:"first"` // sequences in the sealed stream
	Last        uint64 `json:"last"`
	FirstSource uint64 `json:"first_source"` // sequences in the source stream
	LastSource  uint64 `json:"last_source"`
	// FromStart is true if the first message that was read is the chain's first.
	FromStart bool `json:"from_start"`
	// Released is true for messages that the gateway had held back: a chain that
	// runs beside the others.
	Released bool `json:"released,omitempty"`

	created int64
}

// Keys counts data keys.
type Keys struct {
	Total  int `json:"total"`
	Inline int `json:"inline"` // with a record in what was read
	// ReferenceOnly were named by ID only; IDs are the first ten of them.
	ReferenceOnly    int      `json:"reference_only"`
	ReferenceOnlyIDs []string `json:"reference_only_ids,omitempty"`
	// Rewrapped had records with different wraps, as after a rotation.
	Rewrapped int `json:"rewrapped"`
	// Untracked is how many messages have keys beyond the bound of memory.
	Untracked uint64 `json:"untracked_messages,omitempty"`
}

// Tally counts the keys and messages that share a name.
type Tally struct {
	Name     string `json:"name"`
	Keys     int    `json:"keys"`
	Messages uint64 `json:"messages"`
}

// Nonces counts them. Counters are checked against all of their session, random
// ones against the Window messages before.
type Nonces struct {
	Sessions uint64 `json:"sessions"`
	Counter  uint64 `json:"counter"`
	Random   uint64 `json:"random"`
	Window   int    `json:"window"`
	// Forgotten is how many sessions left the memory: a repetition in those would
	// not have been found.
	Forgotten uint64 `json:"forgotten_sessions,omitempty"`
}

// Settings are those of the stream that matter here.
type Settings struct {
	Mode     string   `json:"mode"`
	Route    string   `json:"route,omitempty"`
	Subjects []string `json:"subjects"`
	Shared   string   `json:"shared,omitempty"` // how many partitions share the stream
	Replicas int      `json:"replicas"`
	Storage  string   `json:"storage"`
	Mirror   string   `json:"mirror,omitempty"`
}

// Report is the result of a check.
type Report struct {
	Stream string `json:"stream"`
	// First and Last are the sequences that were looked at, both included; Last
	// below First: none. StreamFirst and StreamLast are those the stream had.
	First       uint64 `json:"first"`
	Last        uint64 `json:"last"`
	StreamFirst uint64 `json:"stream_first"`
	StreamLast  uint64 `json:"stream_last"`

	Messages    uint64 `json:"messages"`
	Envelopes   uint64 `json:"envelopes"`
	Foreign     uint64 `json:"foreign"` // plaintext, unsupported or malformed
	Layered     uint64 `json:"layered"` // whose payload is itself an envelope
	BadHeaders  uint64 `json:"bad_headers"`
	BadRecords  uint64 `json:"bad_records"`
	BrokenLinks uint64 `json:"broken_links"`
	Holes       uint64 `json:"holes"`
	MissingMsgs uint64 `json:"missing_messages"` // in holes
	// Checkpoints are those of a stream that partitions share. Replaced are the
	// sequences there that hold nothing: those of earlier checkpoints. A message that
	// was removed shows as a broken link instead.
	Checkpoints uint64 `json:"checkpoints,omitempty"`
	Replaced    uint64 `json:"replaced,omitempty"`
	NonceReuse  uint64 `json:"nonce_reuse"`
	NonceOrder  uint64 `json:"nonce_order"`
	Copies      uint64 `json:"copies"`

	Chains       []Chain           `json:"chains"`
	ChainsMore   uint64            `json:"chains_not_listed,omitempty"`
	Keys         Keys              `json:"keys"`
	Scopes       []Tally           `json:"scopes"`
	Schemes      []Tally           `json:"schemes"`
	Authorities  []Tally           `json:"authorities"`
	Subjects     []Tally           `json:"subjects"` // messages per subject of the stream's configuration; Keys is 0
	ClearHeaders map[string]uint64 `json:"clear_headers"`
	Nonces       Nonces            `json:"nonces"`
	Settings     Settings          `json:"settings"`

	Findings []Finding       `json:"findings"`
	Counts   map[Kind]uint64 `json:"counts"` // of findings, all of them
	Notes    []string        `json:"notes"`
	NotShown []string        `json:"not_shown"` // see Unshown
	OK       bool            `json:"ok"`
}

// find counts a finding, and keeps it if it is among the first of its kind.
func (r *Report) find(k Kind, seq uint64, format string, args ...any) {
	r.Counts[k]++
	if r.Counts[k] <= MaxFindings {
		r.Findings = append(r.Findings, Finding{k, seq, fmt.Sprintf(format, args...)})
	}
}

func (r *Report) note(format string, args ...any) {
	r.Notes = append(r.Notes, fmt.Sprintf(format, args...))
}

// Wrong says in one line what is wrong, "" if nothing is.
func (r *Report) Wrong() string {
	var parts []string
	for _, t := range titles {
		switch n := r.Counts[t.kind]; {
		case n == 1:
			parts = append(parts, "1 "+t.one)
		case n > 1:
			parts = append(parts, fmt.Sprintf("%d %s", n, t.many))
		}
	}
	return strings.Join(parts, ", ")
}

// finish fills in what follows from the counts.
func (r *Report) finish() {
	c := r.Counts
	r.Foreign = c[Plaintext] + c[Unsupported] + c[Malformed]
	r.BadHeaders, r.BadRecords, r.BrokenLinks, r.Holes = c[Header], c[Record], c[Link], c[Missing]
	r.NonceReuse, r.NonceOrder, r.Copies = c[NonceReuse], c[NonceOrder], c[Copy]
	slices.SortStableFunc(r.Findings, func(a, b Finding) int {
		switch {
		case a.Sequence < b.Sequence:
			return -1
		case a.Sequence > b.Sequence:
			return 1
		}
		return 0
	})
	r.OK = len(c) == 0
}
