package bench

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestParseVitals(t *testing.T) {
	const text = "# HELP go_goroutines Number\n# TYPE go_goroutines gauge\ngo_goroutines 23\n" +
		"process_open_fds 17\nprocess_open_fds_other 3\nprocess_cpu_seconds_total 1.25\nprocess_resident_memory_bytes 2.5165824e+07\n"
	v, err := parseVitals(strings.NewReader(text))
	if want := (vitals{RSS: 24 << 20, Goroutines: 23, Descriptors: 17, CPU: 1.25}); err != nil || v != want {
		t.Errorf("parseVitals = %+v, %v, want %+v", v, err, want)
	}
	for _, bad := range []string{"", "go_goroutines 23\n", strings.Replace(text, "17", "many", 1)} {
		if v, err := parseVitals(strings.NewReader(bad)); err == nil {
			t.Errorf("parseVitals(%q) = %+v", bad, v)
		}
	}
}

func TestSoakSum(t *testing.T) {
	p := SoakProcess{Name: "p"}
	for i := range 100 {
		s := SoakSample{float64(i), 1000 + int64(i), 10, 5, float64(i) / 4}
		if i < 10 {
			s.RSS = 100 // caches are still filling
		}
		if i == 99 {
			s.RSS, s.Goroutines = 1e6, 500 // one outlier is no growth
		}
		p.Samples = append(p.Samples, s)
	}
	p.sum()
	p.Samples = nil
	want := SoakProcess{
		Name: "p", RSSStart: 1015, RSSEnd: 1095, RSSGrowthPercent: 100 * 80.0 / 1015,
		GoroutinesStart: 10, GoroutinesEnd: 10, DescriptorsStart: 5, DescriptorsEnd: 5, CPUPercent: 25,
	}
	if diff := cmp.Diff(want, p); diff != "" {
		t.Errorf("sum (-want +got):\n%s", diff)
	}
	one := SoakProcess{Samples: []SoakSample{{0, 10, 1, 1, 0}}}
	if one.sum(); one.RSSEnd != 10 || one.RSSGrowthPercent != 0 {
		t.Errorf("sum of one sample: %+v", one)
	}
}
