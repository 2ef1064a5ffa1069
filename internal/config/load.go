package config

import (
	"errors"
	"fmt"
	"io"
	"os"
)

// Load reads, decodes and checks a file. Its error joins every problem, each a
// [*Problem] with its place. Load does not read the secrets that the file refers
// to; see [File.CheckSecrets].
func Load(path string) (*File, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("reading configuration: %w", err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, MaxFile+1))
	if err != nil {
		return nil, fmt.Errorf("reading configuration: %w", err)
	}
	return Parse(path, data)
}

// Parse is Load for a file already read; name stands in its errors.
func Parse(name string, data []byte) (*File, error) {
	if len(data) > MaxFile {
		return nil, &Problem{File: name, Reason: fmt.Sprintf("the file has more than %d bytes", MaxFile)}
	}
	var f File
	at, err := decodeFile(name, data, &f)
	if err != nil {
		return nil, err
	}
	f.places = at
	if err := f.check(); err != nil {
		return nil, err
	}
	return &f, nil
}

// Problems takes an error of this package apart.
func Problems(err error) []*Problem {
	var out []*Problem
	switch e := err.(type) {
	case nil:
	case *Problem:
		out = append(out, e)
	case interface{ Unwrap() []error }:
		for _, err := range e.Unwrap() {
			out = append(out, Problems(err)...)
		}
	default:
		out = append(out, Problems(errors.Unwrap(err))...)
	}
	return out
}
