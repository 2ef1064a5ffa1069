package config

import (
	"fmt"
	"strconv"
	"time"
)

// Start is a parsed [Source.Start]. Exactly one field is set.
type Start struct {
	First, New bool
	Sequence   uint64 // from 1
	Time       time.Time
}

// ParseStart parses "first", "new", a stream sequence or a time.
func ParseStart(s string) (Start, error) {
	switch s {
	case "first":
		return Start{First: true}, nil
	case "new":
		return Start{New: true}, nil
	}
	if n, err := strconv.ParseUint(s, 10, 64); err == nil && n > 0 {
		return Start{Sequence: n}, nil
	}
	var t Time
	if err := t.UnmarshalText([]byte(s)); err == nil {
		return Start{Time: t.Time}, nil
	}
	return Start{}, fmt.Errorf("invalid start %q: use first, new, a stream sequence or a time (2027-01-01T12:00:00Z)", s)
}
