// Command sampleplugin is a plug-in for exec: authorities that keeps its keys in a
// file. It shows the contract of package execplug; keys in a file are worth what
// the file is, so put an HSM or a key service in the place of store.go.
//
//	exec:///opt/keyweir/sampleplugin?arg=/etc/keyweir/keys.json&key=orders
//
// The file holds, for each key, its versions, oldest first, each 32 bytes:
//
//	{"orders": {"versions": ["BASE64", ...], "disabled": false}}
//
// It is read for every request, so a change counts at once.
package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
)

// The lines of the contract.
type (
	request struct {
		ID        uint64            `json:"id"`
		Op        string            `json:"op"`
		Protocol  int               `json:"protocol"`
		Key       string            `json:"key"`
		Version   string            `json:"version"`
		Blob      []byte            `json:"blob"`
		Plaintext []byte            `json:"plaintext"`
		Context   map[string]string `json:"context"`
	}
	reply struct {
		ID        uint64 `json:"id"`
		Error     string `json:"error,omitempty"`
		Protocol  int    `json:"protocol,omitempty"`
		Key       string `json:"key,omitempty"`
		Version   string `json:"version,omitempty"`
		Blob      []byte `json:"blob,omitempty"`
		Plaintext []byte `json:"plaintext,omitempty"`
	}
)

// failure is an error that has a word of the contract.
type failure string

func (f failure) Error() string { return string(f) }

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: sampleplugin KEYFILE")
		os.Exit(2)
	}
	if err := serve(os.Stdin, os.Stdout, store{os.Args[1]}); err != nil {
		fmt.Fprintln(os.Stderr, "sampleplugin:", err)
		os.Exit(1)
	}
}

// serve answers one request after another until the input ends.
func serve(in io.Reader, out io.Writer, s store) error {
	lines := bufio.NewScanner(in)
	lines.Buffer(make([]byte, 0, 128<<10), 128<<10)
	for lines.Scan() {
		var q request
		if err := json.Unmarshal(lines.Bytes(), &q); err != nil {
			return errors.New("a line that is no request") // the line may hold a key
		}
		r, err := answer(q, s)
		clear(q.Plaintext)
		clear(lines.Bytes())
		if err != nil {
			word, ok := errors.AsType[failure](err)
			if !ok {
				fmt.Fprintf(os.Stderr, "sampleplugin: %s: %v\n", q.Op, err)
				word = "unavailable"
			}
			r = reply{Error: string(word)}
		}
		r.ID = q.ID
		line, err := json.Marshal(r)
		clear(r.Plaintext)
		if err != nil {
			return fmt.Errorf("encoding a reply: %w", err)
		}
		_, err = out.Write(append(line, '\n'))
		clear(line)
		if err != nil {
			return fmt.Errorf("writing a reply: %w", err)
		}
	}
	return lines.Err()
}

func answer(q request, s store) (reply, error) {
	switch q.Op {
	case "hello":
		if q.Protocol != 1 {
			return reply{}, failure("invalid")
		}
		return reply{Protocol: 1}, nil
	case "wrap":
		return s.wrap(q.Key, q.Plaintext, q.Context)
	case "unwrap":
		return s.unwrap(q.Key, q.Version, q.Blob, q.Context)
	case "generate":
		return s.generate(q.Key, q.Context)
	}
	return reply{}, failure("invalid")
}
