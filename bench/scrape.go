package bench

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// vitals is what a process says of itself in its metrics.
type vitals struct {
	RSS         int64   // bytes
	Goroutines  int     //
	Descriptors int     // open
	CPU         float64 // seconds used since its start
}

var metricsAddr = regexp.MustCompile(`serving /metrics.* addr=(\S+)`)

// metricsURL waits until the log of p says where its metrics are served.
func (p *process) metricsURL(ctx context.Context) (string, error) {
	if err := p.logged(ctx, "serving /metrics"); err != nil {
		return "", err
	}
	b, err := os.ReadFile(p.log)
	if err != nil {
		return "", fmt.Errorf("reading log: %w", err)
	}
	m := metricsAddr.FindSubmatch(b)
	if m == nil {
		return "", fmt.Errorf("%s does not say where it serves metrics\n%s", p.name, p.tail())
	}
	return "http://" + string(m[1]) + "/metrics", nil
}

// scrape reads the vitals of a process.
func scrape(ctx context.Context, url string) (v vitals, err error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, http.NoBody)
	if err != nil {
		return v, fmt.Errorf("reading metrics: %w", err)
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return v, fmt.Errorf("reading metrics: %w", err)
	}
	defer func() { _ = res.Body.Close() }()
	if res.StatusCode != http.StatusOK {
		return v, fmt.Errorf("reading metrics: %s", res.Status)
	}
	return parseVitals(res.Body)
}

// parseVitals reads four metrics of the Prometheus text format.
func parseVitals(r io.Reader) (vitals, error) {
	got := map[string]float64{
		"process_resident_memory_bytes": -1, "go_goroutines": -1, "process_open_fds": -1, "process_cpu_seconds_total": -1,
	}
	for sc := bufio.NewScanner(r); sc.Scan(); {
		name, value, ok := strings.Cut(sc.Text(), " ")
		if _, wanted := got[name]; !ok || !wanted {
			continue
		}
		f, err := strconv.ParseFloat(value, 64)
		if err != nil {
			return vitals{}, fmt.Errorf("reading metrics: %s is %q", name, value)
		}
		got[name] = f
	}
	for _, f := range got {
		if f < 0 {
			return vitals{}, errors.New("reading metrics: a process does not know its memory or descriptors on this system")
		}
	}
	return vitals{
		RSS: int64(got["process_resident_memory_bytes"]), Goroutines: int(got["go_goroutines"]),
		Descriptors: int(got["process_open_fds"]), CPU: got["process_cpu_seconds_total"],
	}, nil
}
