package demo

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"unicode"
	"unicode/utf8"
)

const (
	// MaxLine is the longest line in bytes.
	MaxLine = 4 << 20
	// MaxValues is how many different values the subject field may have: each is
	// a scope with a data key of its own.
	MaxValues = 4096

	maxToken = 64

	// AllToken is the subject token, and scope, of lines without a subject field.
	AllToken = "all"
)

// LineError is a line that cannot be published.
type LineError struct {
	Line   int // from 1
	Reason string
}

func (e *LineError) Error() string { return fmt.Sprintf("line %d: %s", e.Line, e.Reason) }

// line is one line of the input, or the error that ended it.
type line struct {
	n, subjects int // place, and different values so far
	payload     []byte
	token       string
	err         error
}

// readAhead reads lines in a goroutine of its own: a read from a terminal or a
// pipe cannot be interrupted, and must not keep the run from ending. The channel
// is closed after the last line, and little is read ahead.
func readAhead(ctx context.Context, l *lineReader) <-chan line {
	out := make(chan line, 4)
	go func() {
		defer close(out)
		for {
			b, token, err := l.next()
			if errors.Is(err, io.EOF) {
				return
			}
			select {
			case out <- line{l.n, len(l.tokens), bytes.Clone(b), token, err}:
			case <-ctx.Done():
				return
			}
			if err != nil {
				return
			}
		}
	}()
	return out
}

// lineReader reads NDJSON and finds the value of one field in each line.
type lineReader struct {
	r      *bufio.Reader
	field  string // "": every line has the token AllToken
	choose bool   // the first line decides whether it has the field
	n      int    // of the last line
	buf    []byte
	tokens map[string]struct{}
}

func newLineReader(r io.Reader, field string) *lineReader {
	l := &lineReader{r: bufio.NewReaderSize(r, 64<<10), field: field, tokens: map[string]struct{}{}}
	if field == "" {
		l.field, l.choose = BuiltInField, true
	}
	return l
}

// next returns the next line that is not blank, without its end, and the subject
// token of its field's value. The line is valid until the next call. io.EOF
// after the last.
func (l *lineReader) next() (line []byte, token string, err error) {
	for {
		line, err := l.read()
		if err != nil {
			return nil, "", err
		}
		if len(bytes.TrimSpace(line)) == 0 {
			continue
		}
		token, err := l.token(line)
		if err != nil {
			return nil, "", &LineError{l.n, err.Error()}
		}
		if _, ok := l.tokens[token]; !ok {
			if len(l.tokens) == MaxValues {
				return nil, "", &LineError{l.n, fmt.Sprintf("field %q has more than %d different values, and each gets a data key: name another field", l.field, MaxValues)}
			}
			l.tokens[token] = struct{}{}
		}
		return line, token, nil
	}
}

func (l *lineReader) read() ([]byte, error) {
	l.buf = l.buf[:0]
	l.n++
	for {
		part, err := l.r.ReadSlice('\n')
		l.buf = append(l.buf, part...)
		if len(l.buf) > MaxLine+2 {
			return nil, &LineError{l.n, fmt.Sprintf("longer than %d bytes", MaxLine)}
		}
		switch {
		case errors.Is(err, bufio.ErrBufferFull):
			continue
		case errors.Is(err, io.EOF) && len(l.buf) > 0:
			return l.buf, nil
		case err != nil && !errors.Is(err, io.EOF):
			return nil, fmt.Errorf("reading line %d: %w", l.n, err)
		case err != nil:
			return nil, io.EOF
		}
		return bytes.TrimSuffix(bytes.TrimSuffix(l.buf, []byte("\n")), []byte("\r")), nil
	}
}

// token returns the value of the subject field as one token of a subject:
// whatever a token may not hold becomes an underscore.
func (l *lineReader) token(line []byte) (string, error) {
	var object map[string]json.RawMessage
	if err := json.Unmarshal(line, &object); err != nil || object == nil {
		return "", errors.New("not a JSON object")
	}
	raw, ok := object[l.field]
	if l.choose {
		if l.choose = false; !ok {
			l.field = ""
		}
	}
	if l.field == "" {
		return AllToken, nil
	}
	if !ok {
		return "", fmt.Errorf("no field %q", l.field)
	}
	value := string(raw)
	switch raw[0] {
	case '"':
		if err := json.Unmarshal(raw, &value); err != nil {
			return "", fmt.Errorf("field %q is not a valid text", l.field)
		}
	case '{', '[', 'n':
		return "", fmt.Errorf("field %q is not a text, number or boolean", l.field)
	}
	if value == "" {
		return "", fmt.Errorf("field %q is empty", l.field)
	}
	if len(value) > maxToken {
		return "", fmt.Errorf("field %q has %d bytes, at most %d fit a subject", l.field, len(value), maxToken)
	}
	return sanitise(value), nil
}

func sanitise(value string) string {
	return strings.Map(func(r rune) rune {
		if r == '.' || r == '*' || r == '>' || r == utf8.RuneError || unicode.IsSpace(r) || !unicode.IsPrint(r) {
			return '_'
		}
		return r
	}, value)
}
