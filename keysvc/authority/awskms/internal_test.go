package awskms

import (
	"testing"
	"time"

	"pgregory.net/rapid"
)

func TestPause(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		most := time.Duration(rapid.Int64Range(1, int64(time.Hour)).Draw(t, "most"))
		attempt := rapid.IntRange(1, 100).Draw(t, "attempt")
		throttled := rapid.Bool().Draw(t, "throttled")
		if d := pause(most, attempt, throttled); d < 0 || d > most {
			t.Fatalf("pause(%v, %d, %v) = %v", most, attempt, throttled, d)
		}
	})
	seen := map[time.Duration]bool{}
	for range 64 {
		d := pause(2*time.Second, 3, true)
		if d < 400*time.Millisecond || d > 800*time.Millisecond {
			t.Fatalf("third pause when throttled = %v, want 400 to 800 ms", d)
		}
		seen[d] = true
	}
	if len(seen) < 32 {
		t.Errorf("64 pauses have %d lengths: no jitter", len(seen))
	}
}

func TestParseKey(t *testing.T) {
	const arn = "arn:aws:kms:eu-west-1:111122223333:"
	for s, want := range map[string]keyRef{
		"1234abcd":            {id: "1234abcd"},
		"mrk-1234abcd":        {id: "mrk-1234abcd"},
		"alias/a/b_c-d":       {id: "alias/a/b_c-d", alias: true},
		arn + "key/1234abcd":  {partition: "aws", region: "eu-west-1", account: "111122223333", id: "1234abcd"},
		arn + "alias/keyweir": {partition: "aws", region: "eu-west-1", account: "111122223333", id: "alias/keyweir", alias: true},
		"arn:aws-us-gov:kms:us-gov-west-1:111122223333:key/1": {partition: "aws-us-gov", region: "us-gov-west-1", account: "111122223333", id: "1"},
	} {
		want.text = s
		got, err := parseKey(s)
		if err != nil || got != want {
			t.Errorf("parseKey(%q) = %+v, %v, want %+v", s, got, err, want)
		}
	}
	for _, s := range []string{"", "alias/", "alias", "key/1", arn, arn + "key/", arn + "key/alias/x", arn + "1234", arn + "alias/", "1\n", "1 ", arn + "key/1\n"} {
		if got, err := parseKey(s); err == nil && got.id != "alias" {
			t.Errorf("parseKey(%q) = %+v, want an error", s, got)
		}
	}
}

func TestParseKeyNeverPanics(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := rapid.StringMatching(`(arn:aws:kms:[a-z0-9-]{0,4}:[0-9]{0,12}:)?(key/|alias/)?.{0,8}`).Draw(t, "key")
		ref, err := parseKey(s)
		if err == nil && (ref.text != s || ref.id == "") {
			t.Fatalf("parseKey(%q) = %+v", s, ref)
		}
		if err == nil && !ref.answers(ref) {
			t.Fatalf("%q does not answer itself", s)
		}
	})
}
