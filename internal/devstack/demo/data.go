package demo

import (
	"bytes"
	"compress/gzip"
	_ "embed"
	"fmt"
	"io"
)

// quakes is the feed of the US Geological Survey: every earthquake it registered
// in the first week of February 2018, one JSON object per line. Works of the
// USGS are in the public domain.
//
//go:embed data/quakes.ndjson.gz
var quakes []byte

// What the built-in data is.
const (
	BuiltInName  = "earthquakes of the USGS"
	BuiltInField = "net"
	BuiltInLines = 1707
)

// BuiltIn returns the built-in data. Its subject field is BuiltInField.
func BuiltIn() (io.Reader, error) {
	r, err := gzip.NewReader(bytes.NewReader(quakes))
	if err != nil {
		return nil, fmt.Errorf("reading built-in data: %w", err)
	}
	return r, nil
}
