package cli

import (
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/keyweir/keyweir/internal/config"
)

// wholeRoute stands for the number of a partition where a route is meant.
const wholeRoute = -1

// resumeFrom is what --resume-from says: sequences by route and partition.
type resumeFrom map[string]map[int]uint64

// parseResume reads ROUTE=SEQUENCE and ROUTE/PARTITION=SEQUENCE.
func parseResume(pairs []string) (resumeFrom, error) {
	out := resumeFrom{}
	for _, p := range pairs {
		label, seq, ok := strings.Cut(p, "=")
		n, err := strconv.ParseUint(seq, 10, 64)
		name, number, divided := strings.Cut(label, "/")
		part := wholeRoute
		if divided && err == nil {
			part, err = strconv.Atoi(number)
			ok = ok && part >= 0
		}
		if !ok || name == "" || err != nil || n == 0 {
			return nil, usagef("--resume-from %q is not ROUTE=SEQUENCE or ROUTE/PARTITION=SEQUENCE", p)
		}
		if out[name] == nil {
			out[name] = map[int]uint64{}
		}
		if _, twice := out[name][part]; twice {
			return nil, usagef("--resume-from names route %q twice", label)
		}
		out[name][part] = n
		if _, whole := out[name][wholeRoute]; whole && len(out[name]) > 1 {
			return nil, usagef("--resume-from names both route %q and partitions of it", name)
		}
	}
	return out, nil
}

// check finds what no route of the configuration answers to.
func (r resumeFrom) check(f *config.File) error {
	for name, parts := range r {
		i := slices.IndexFunc(f.Gateway.Routes, func(o config.Route) bool { return o.Name == name })
		if i < 0 {
			return usagef("--resume-from: the configuration has no route %q", name)
		}
		have := len(f.Gateway.Routes[i].Source.Partitions)
		for _, part := range slices.Sorted(maps.Keys(parts)) {
			switch {
			case part == wholeRoute:
			case have == 0:
				return usagef("--resume-from: route %q has no partitions; name it as %s=SEQUENCE", name, name)
			case part >= have:
				return usagef("--resume-from: route %q has the partitions 0 to %d", name, have-1)
			}
		}
	}
	return nil
}

// of returns what is said about a route, or else about partitions of it.
func (r resumeFrom) of(name string) (whole *uint64, parts map[int]uint64) {
	if seq, ok := r[name][wholeRoute]; ok {
		return &seq, nil
	}
	return nil, r[name]
}
