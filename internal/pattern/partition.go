package pattern

import (
	"fmt"
	"strconv"
	"strings"
)

// MaxPartitions is how many partitions a route may have. Each is a worker and a
// sealed stream.
const MaxPartitions = 256

// CheckPartitions reports why partitions, the filters of each, do not split
// subjects, which are patterns that do not overlap: every subject must be in
// exactly one partition. The error begins with the place, as "partition 2".
func CheckPartitions(subjects []string, partitions [][]string) error {
	if len(partitions) > MaxPartitions {
		return fmt.Errorf("%d partitions, at most %d", len(partitions), MaxPartitions)
	}
	var all []string
	var of []int
	for i, filters := range partitions {
		if len(filters) == 0 {
			return fmt.Errorf("partition %d has no filter", i)
		}
		for _, f := range filters {
			if err := Check(f); err != nil {
				return fmt.Errorf("partition %d: filter %q: %w", i, f, err)
			}
			for j, o := range all {
				if Overlap(f, o) {
					return fmt.Errorf("partition %d: filter %q overlaps %q of partition %d", i, f, o, of[j])
				}
			}
			if s := Uncovered(f, subjects); s != "" {
				return fmt.Errorf("partition %d: filter %q takes %s, which is none of the route's subjects", i, f, s)
			}
			all, of = append(all, f), append(of, i)
		}
	}
	for _, s := range subjects {
		if missing := Uncovered(s, all); missing != "" {
			return fmt.Errorf("no partition takes %s, which is one of the route's subjects (%s)", missing, s)
		}
	}
	return nil
}

// PartitionMark stands for a partition's number in the name of a sealed stream.
const PartitionMark = "{partition}"

// StreamNames returns the names of a route's sealed streams. Without partitions
// that is name; with n of them, one each, in which the number stands for
// PartitionMark or, if there is none, behind a hyphen at the end.
func StreamNames(name string, n int) []string {
	if n == 0 {
		return []string{name}
	}
	if !strings.Contains(name, PartitionMark) {
		name += "-" + PartitionMark
	}
	out := make([]string, n)
	for i := range out {
		out[i] = strings.ReplaceAll(name, PartitionMark, strconv.Itoa(i))
	}
	return out
}
