// Package deptest holds tests of the whole tree: which package may depend on
// which (the table in deps_test.go is the rule, DESIGN.md explains it), and what
// no committed file may contain. It exports nothing.
package deptest
