package bench

import "strconv"

// topics are the subjects of a run: subject i belongs to partition i modulo the
// partitions and to scope i modulo the scopes.
type topics struct {
	subjects, scopes, partitions int
}

// subject is the origin subject of a number, chaos.p<partition>.t<scope>.s<number>.
func (t topics) subject(i int) string {
	return chaosPrefix + "p" + strconv.Itoa(i%t.partitions) + "." + scopeName(i%t.scopes) + ".s" + strconv.Itoa(i)
}

// scopeName is a scope, and the token of subjects that names it.
func scopeName(scope int) string { return "t" + strconv.Itoa(scope) }

// topicFilter matches the subjects of a partition, topicRule those of all, with
// the scope as its second wildcard.
func topicFilter(partition int) string { return chaosPrefix + "p" + strconv.Itoa(partition) + ".*.*" }

const topicRule = chaosPrefix + "*.*.*"
