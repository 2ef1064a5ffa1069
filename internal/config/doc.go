// Package config reads the one configuration file of Keyweir.
//
// The type [File] is the reference manual: its doc comments say what every key
// means, its unit, its default and what is refused, and the JSON schema of
// "keyweir config schema" is generated from them. [Load] is strict: an unknown
// key is an error with its place and the nearest known name, and all problems
// of a file are reported at once.
//
//	f, err := config.Load("keyweir.yaml")
//
// Secrets never stand in the file itself, only references to them; see
// [SecretRef]. The package knows none of the services it configures.
package config
