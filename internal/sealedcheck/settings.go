package sealedcheck

import (
	"strings"

	"github.com/nats-io/nats.go/jetstream"
)

// Metadata of a sealed stream.
const (
	metadataMode  = "keyweir-mode"
	metadataRoute = "keyweir-route"

	metadataShared = "keyweir-shared"

	modeRelayed = "relayed"
	modeOpen    = "open"
	modeHold    = "hold" // of a gateway: read by nobody else

	fenceSuffix = ".fence-fence-fenc.fence" // of subjects in a hold stream
)

// refusals are the settings under which a gateway does not write to a stream. One
// that only ends writing, or that makes a stream a copy of a sealed one, does not
// harm what is in it: a note.
var refusals = []struct {
	setting string
	has     func(*jetstream.StreamConfig) bool
	note    bool
	why     string
}{
	{"allow_msg_schedules", func(c *jetstream.StreamConfig) bool { return c.AllowMsgSchedules }, false, "the server writes scheduled messages of its own"},
	{"subject_delete_marker_ttl", func(c *jetstream.StreamConfig) bool { return c.SubjectDeleteMarkerTTL != 0 }, false, "the server writes delete markers, which nobody sealed"},
	{"sources", func(c *jetstream.StreamConfig) bool { return len(c.Sources) > 0 }, false, "the sources are further writers"},
	{"mirror", func(c *jetstream.StreamConfig) bool { return c.Mirror != nil }, true, "it is a copy, as complete as its server made it; check the stream it mirrors"},
	{"subject_transform", func(c *jetstream.StreamConfig) bool { return c.SubjectTransform != nil }, false, "messages are stored under another subject than the one that is sealed"},
	{"allow_msg_counter", func(c *jetstream.StreamConfig) bool { return c.AllowMsgCounter }, false, "the server replaces payloads by sums"},
	{"persist_mode: async", func(c *jetstream.StreamConfig) bool { return c.PersistMode == jetstream.AsyncPersistMode }, false, "messages are acknowledged before they are written"},
	{"no_ack", func(c *jetstream.StreamConfig) bool { return c.NoAck }, false, "nothing is acknowledged"},
	{"sealed", func(c *jetstream.StreamConfig) bool { return c.Sealed }, true, "it takes no more messages"},
	{"retention", func(c *jetstream.StreamConfig) bool { return c.Retention != jetstream.LimitsPolicy }, false, "reading removes messages, or keeps them out"},
	{"discard_new_per_subject", func(c *jetstream.StreamConfig) bool { return c.DiscardNewPerSubject }, false, "one full subject holds up all others"},
}

// checkSettings reports on the configuration of the stream.
func checkSettings(r *Report, c *jetstream.StreamConfig) {
	r.Settings = Settings{
		Mode: c.Metadata[metadataMode], Route: c.Metadata[metadataRoute], Shared: c.Metadata[metadataShared], Subjects: c.Subjects,
		Replicas: c.Replicas, Storage: strings.ToLower(c.Storage.String()),
	}
	if r.Settings.Subjects == nil {
		r.Settings.Subjects = []string{} // [] in JSON
	}
	if c.Mirror != nil {
		r.Settings.Mirror = c.Mirror.Name
	}
	for _, f := range refusals {
		switch {
		case !f.has(c):
		case f.note:
			r.note("the stream has %s: %s", f.setting, f.why)
		default:
			r.find(Setting, 0, "the stream has %s: %s", f.setting, f.why)
		}
	}
	switch mode := r.Settings.Mode; {
	case mode == modeRelayed, mode == modeOpen, mode == modeHold:
	case mode == "" && c.Mirror != nil:
	default:
		r.find(Setting, 0, "the metadata %s is %q, want %s or %s: no gateway made this stream", metadataMode, mode, modeRelayed, modeOpen)
	}
	if c.MaxMsgsPerSubject > 0 || c.AllowMsgTTL {
		r.note("max_msgs_per_subject or allow_msg_ttl let the server remove messages in the middle of the stream: holes cannot be told from deletions")
	}
	switch {
	case c.Storage == jetstream.MemoryStorage:
		r.note("the stream lives in memory: it does not survive its servers")
	case c.Replicas < 3:
		r.note("%d replica(s): unless the server has sync_interval: always, which no client can see, a power failure can lose acknowledged messages", c.Replicas)
	}
}

// subjects counts messages per subject of the stream's configuration.
type subjects struct {
	patterns [][]string
	names    []string
	counts   []uint64
	outside  uint64
}

func newSubjects(patterns []string) *subjects {
	s := &subjects{names: patterns, counts: make([]uint64, len(patterns))}
	for _, p := range patterns {
		s.patterns = append(s.patterns, strings.Split(p, "."))
	}
	return s
}

func (s *subjects) add(subject string) {
	for i, p := range s.patterns {
		if matches(p, subject) {
			s.counts[i]++
			return
		}
	}
	s.outside++
}

func (s *subjects) report(r *Report) {
	r.Subjects = make([]Tally, len(s.names))
	for i, n := range s.names {
		r.Subjects[i] = Tally{Name: n, Messages: s.counts[i]}
	}
	if s.outside > 0 && len(s.names) > 0 { // a mirror has no subjects of its own
		r.note("%d messages are on subjects that the stream does not take today: its configuration was changed", s.outside)
	}
}

// matches reports whether a subject matches a pattern, split into tokens.
func matches(pattern []string, subject string) bool {
	for i, p := range pattern {
		if p == ">" {
			return subject != ""
		}
		token, rest, more := strings.Cut(subject, ".")
		if p != "*" && p != token || more != (i < len(pattern)-1) {
			return false
		}
		subject = rest
	}
	return true
}
