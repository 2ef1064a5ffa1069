package gateway_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/keyweir/keyweir/gateway"
)

func relayedConfig() jetstream.StreamConfig {
	return jetstream.StreamConfig{
		Name: sealed, Subjects: []string{"sealed.in.>"},
		Metadata: map[string]string{gateway.MetadataMode: gateway.ModeRelayed, gateway.MetadataRoute: "r"},
	}
}

func TestDestinationRefused(t *testing.T) {
	t.Parallel()
	cases := map[string]func(*jetstream.StreamConfig){
		"allow_msg_schedules":       func(c *jetstream.StreamConfig) { c.AllowMsgSchedules = true },
		"subject_delete_marker_ttl": func(c *jetstream.StreamConfig) { c.AllowMsgTTL, c.SubjectDeleteMarkerTTL = true, time.Minute },
		"sources":                   func(c *jetstream.StreamConfig) { c.Sources = []*jetstream.StreamSource{{Name: "OTHER"}} },
		"mirror":                    func(c *jetstream.StreamConfig) { c.Subjects, c.Mirror = nil, &jetstream.StreamSource{Name: "OTHER"} },
		"subject_transform": func(c *jetstream.StreamConfig) {
			c.SubjectTransform = &jetstream.SubjectTransformConfig{Source: "sealed.in.>", Destination: "moved.>"}
		},
		"allow_msg_counter":   func(c *jetstream.StreamConfig) { c.AllowMsgCounter, c.AllowDirect = true, true },
		"persist_mode: async": func(c *jetstream.StreamConfig) { c.PersistMode = jetstream.AsyncPersistMode },
		"no_ack":              func(c *jetstream.StreamConfig) { c.NoAck = true },
		"sealed":              func(c *jetstream.StreamConfig) { c.Sealed = true },
		"retention":           func(c *jetstream.StreamConfig) { c.Retention = jetstream.WorkQueuePolicy },
		"discard_new_per_subject": func(c *jetstream.StreamConfig) {
			c.Discard, c.DiscardNewPerSubject, c.MaxMsgsPerSubject = jetstream.DiscardNew, true, 1
		},
	}
	for _, setting := range gateway.RefusalSettings {
		t.Run(setting, func(t *testing.T) {
			change := cases[setting]
			if change == nil {
				t.Fatal("no test for this refusal")
			}
			f := newFixture(t, jetstream.StreamConfig{})
			f.create(jetstream.StreamConfig{Name: "OTHER", Subjects: []string{"elsewhere.>"}})
			cfg := relayedConfig()
			if setting != "sealed" {
				change(&cfg)
				f.create(cfg)
			} else { // only an existing stream can be sealed
				f.create(cfg)
				change(&cfg)
				if _, err := f.js.UpdateStream(t.Context(), cfg); err != nil {
					t.Fatal(err)
				}
			}
			f.publish(1, 3)
			err := f.start().stopped(gateway.ErrDestination)
			if !strings.Contains(err.Error(), "has "+setting+": ") {
				t.Errorf("Run = %v", err)
			}
			if n := f.info(sealed).State.LastSeq; n != 0 {
				t.Errorf("%d messages were published", n)
			}
		})
	}
	for name, change := range map[string]func(*jetstream.StreamConfig){
		"no metadata":   func(c *jetstream.StreamConfig) { c.Metadata = nil },
		"open mode":     func(c *jetstream.StreamConfig) { c.Metadata[gateway.MetadataMode] = "open" },
		"other route":   func(c *jetstream.StreamConfig) { c.Metadata[gateway.MetadataRoute] = "s" },
		"other subject": func(c *jetstream.StreamConfig) { c.Subjects = []string{"sealed.in.a.>"} },
	} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t, jetstream.StreamConfig{})
			cfg := relayedConfig()
			change(&cfg)
			f.create(cfg)
			f.start().stopped(gateway.ErrDestination)
		})
	}
	t.Run("missing and not created", func(t *testing.T) {
		f := newFixture(t, jetstream.StreamConfig{})
		f.route.Sealed.Create = nil
		f.start().stopped(gateway.ErrDestination)
	})
	t.Run("cannot be created", func(t *testing.T) {
		f := newFixture(t, jetstream.StreamConfig{})
		f.create(jetstream.StreamConfig{Name: "OTHER", Subjects: []string{"sealed.>"}})
		f.start().stopped(gateway.ErrDestination)
	})
}

// What does no harm is accepted.
func TestDestinationAccepted(t *testing.T) {
	t.Parallel()
	f := newFixture(t, jetstream.StreamConfig{})
	cfg := relayedConfig()
	cfg.Subjects = append(cfg.Subjects, "more.>")
	cfg.MaxAge, cfg.MaxMsgsPerSubject, cfg.AllowDirect, cfg.AllowRollup, cfg.FirstSeq = time.Hour, 1000, true, true, 1000
	cfg.RePublish = &jetstream.RePublish{Destination: "copy.>"}
	f.create(cfg)
	f.route.Sealed.Create = nil
	f.publish(1, 30)
	run := f.start()
	f.sealedCount(1029, 10*time.Second)
	run.stop()
	f.publish(31, 40)
	f.start()
	f.sealedCount(1039, 10*time.Second)
	f.verify(1, 40)
}

func TestCreateSettings(t *testing.T) {
	t.Parallel()
	f := newFixture(t, jetstream.StreamConfig{Subjects: []string{"in.>", "more.*"}})
	f.route.Source.Subjects = []string{"in.a.>", "more.*"}
	f.route.Sealed.Create = &gateway.CreateSealed{MaxAge: time.Hour, MaxBytes: 1 << 20, Storage: gateway.MemoryStorage}
	run := f.start()
	run.eventually("running", func(s gatewayStats) bool { return s.State == gateway.StateRunning })
	c := f.info(sealed).Config
	if !slices.Equal(c.Subjects, []string{"sealed.in.a.>", "sealed.more.*"}) || c.MaxAge != time.Hour || c.MaxBytes != 1<<20 || c.Storage != jetstream.MemoryStorage || c.Replicas != 1 {
		t.Errorf("created stream: %+v", c)
	}
	for _, bucket := range []string{gateway.ClaimsBucket, gateway.PositionsBucket} {
		if c := f.info("KV_" + bucket).Config; c.Storage != jetstream.MemoryStorage {
			t.Errorf("bucket %s: %+v", bucket, c)
		}
	}
	if ttl := f.info("KV_" + gateway.ClaimsBucket).Config.MaxAge; ttl != f.tune.ClaimTTL {
		t.Errorf("claims expire after %v, want %v", ttl, f.tune.ClaimTTL)
	}
}
