package sealedcheck_test

import (
	"encoding/json"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/keyweir/keyweir/internal/sealedcheck"
)

func TestSettings(t *testing.T) {
	s := newServer(t)
	tests := []struct {
		name   string
		change func(*jetstream.StreamConfig)
		wrong  string // in a finding
		note   string
	}{
		{"memory", func(c *jetstream.StreamConfig) { c.Storage = jetstream.MemoryStorage }, "", "lives in memory"},
		{"one replica", func(*jetstream.StreamConfig) {}, "", "sync_interval"},
		{"no mode", func(c *jetstream.StreamConfig) { c.Metadata = nil }, "no gateway made this stream", ""},
		{"odd mode", func(c *jetstream.StreamConfig) { c.Metadata["keyweir-mode"] = "x" }, `"x"`, ""},
		{"open", func(c *jetstream.StreamConfig) { c.Metadata["keyweir-mode"] = "open" }, "", ""},
		{"one message per subject", func(c *jetstream.StreamConfig) { c.MaxMsgsPerSubject = 100 }, "", "max_msgs_per_subject"},
		{"retention", func(c *jetstream.StreamConfig) { c.Retention = jetstream.InterestPolicy }, "retention", ""},
		{"transform", func(c *jetstream.StreamConfig) {
			c.SubjectTransform = &jetstream.SubjectTransformConfig{Source: ">", Destination: "x.>"}
		}, "subject_transform", ""},
		{"marker", func(c *jetstream.StreamConfig) { c.SubjectDeleteMarkerTTL, c.AllowRollup = time.Minute, true }, "subject_delete_marker_ttl", ""},
		{"schedules", func(c *jetstream.StreamConfig) { c.AllowMsgSchedules = true }, "allow_msg_schedules", ""},
		{"sources", func(c *jetstream.StreamConfig) { c.Sources = []*jetstream.StreamSource{{Name: "S1"}} }, "sources", ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := s.check(s.stream(nil, tt.change))
			found := slices.ContainsFunc(r.Findings, func(f sealedcheck.Finding) bool {
				return f.Kind == sealedcheck.Setting && strings.Contains(f.Detail, tt.wrong)
			})
			if r.OK != (tt.wrong == "") || found != (tt.wrong != "") {
				t.Errorf("OK = %v, findings %+v, want %q", r.OK, r.Findings, tt.wrong)
			}
			if tt.note != "" && !strings.Contains(strings.Join(r.Notes, "\n"), tt.note) {
				t.Errorf("notes %q, want %q", r.Notes, tt.note)
			}
		})
	}
}

// TestMirror: a mirror of a sealed stream is checked like one.
func TestMirror(t *testing.T) {
	s := newServer(t)
	st := s.stream(messages(t))
	m, err := s.js.CreateStream(t.Context(), jetstream.StreamConfig{Name: "MIRROR", Mirror: &jetstream.StreamSource{Name: st.CachedInfo().Config.Name}})
	if err != nil {
		t.Fatal(err)
	}
	waitFor(t, m, count)
	r := s.check(m)
	if !r.OK || r.Messages != count || r.Settings.Mirror == "" || !strings.Contains(strings.Join(r.Notes, "\n"), "mirror") {
		t.Errorf("mirror: %d messages, %+v, notes %q", r.Messages, r.Findings, r.Notes)
	}
}

// TestClearHeaders: headers beside the gateway's own are counted, never their values.
func TestClearHeaders(t *testing.T) {
	s := newServer(t)
	ms := messages(t)
	ms[3].Header["traceparent"] = []string{"secret-value"}
	ms[4].Header["traceparent"] = []string{"secret-value"}
	r := s.check(s.stream(ms))
	if want := map[string]uint64{"traceparent": 2}; !r.OK || !maps.Equal(r.ClearHeaders, want) {
		t.Errorf("headers in clear %v, want %v", r.ClearHeaders, want)
	}
	if b, _ := json.Marshal(r); strings.Contains(string(b), "secret-value") {
		t.Error("the report has the value of a header")
	}
}
