package execplug

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"time"

	"github.com/keyweir/keyweir/keysvc/authority"
)

// Scheme is the URI scheme of this provider.
const Scheme = "exec"

// Config describes one authority. Only Path has no default.
type Config struct {
	// Path is the program, absolute. Only its owner may be able to write to it.
	Path string
	// Args are its arguments. They can be seen by every user of the machine.
	Args []string
	// Env names further variables of the environment that are passed on.
	Env []string
	// Key is the key of ""; "" leaves the choice to the program.
	Key string
	// Limits bound calls; zero fields mean the defaults.
	Limits Limits
	// Logger gets the program's standard error and its ends (info), and refused
	// replies (warning); nil discards.
	Logger *slog.Logger
}

// Limits bound what one call and one start may cost.
type Limits struct {
	Call     time.Duration // one call, a start included; then the program is killed; 0: 10 s
	Start    time.Duration // from the start to the program's hello; 0: 10 s
	Stop     time.Duration // from the end of its input to its exit; 0: 2 s
	Pause    time.Duration // before the first restart; doubles; 0: 100 ms
	MaxPause time.Duration // longest pause; 0: 30 s
}

func (l Limits) withDefaults() (Limits, error) {
	for _, f := range []struct {
		d   *time.Duration
		def time.Duration
	}{
		{&l.Call, 10 * time.Second},
		{&l.Start, 10 * time.Second},
		{&l.Stop, 2 * time.Second},
		{&l.Pause, 100 * time.Millisecond},
		{&l.MaxPause, 30 * time.Second},
	} {
		if *f.d < 0 {
			return l, errors.New("negative limit")
		}
		if *f.d == 0 {
			*f.d = f.def
		}
	}
	return l, nil
}

// New makes an authority from c. The program is started by the first call. A
// wrong configuration, a program that is missing or that others may change
// included, is authority.ErrInvalid.
func New(_ context.Context, c Config) (*Authority, error) {
	const op = "opening"
	var err error
	if c.Limits, err = c.Limits.withDefaults(); err != nil {
		return nil, invalid(op, "%v", err)
	}
	if err := c.check(); err != nil {
		return nil, invalid(op, "%v", err)
	}
	if err := checkProgram(c.Path); err != nil {
		return nil, invalid(op, "%v", err)
	}
	a := &Authority{c: c, log: c.Logger, sem: make(chan struct{}, 1)}
	if a.log == nil {
		a.log = slog.New(slog.DiscardHandler)
	}
	a.life, a.close = context.WithCancel(context.Background())
	return a, nil
}

var envPattern = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)

func (c Config) check() error {
	if !filepath.IsAbs(c.Path) || filepath.Clean(c.Path) != c.Path {
		return errors.New("the program is no clean absolute path")
	}
	if c.Key != "" && !validName(c.Key, authority.MaxKeyID) {
		return errors.New("malformed key ID")
	}
	for _, a := range c.Args {
		if strings.ContainsRune(a, 0) {
			return errors.New("an argument with a zero byte")
		}
	}
	for _, name := range c.Env {
		if !envPattern.MatchString(name) {
			return errors.New("a malformed name of an environment variable")
		}
	}
	return nil
}

// checkProgram refuses what others than its owner could replace.
func checkProgram(path string) error {
	fi, err := os.Stat(path)
	if err != nil {
		return fmt.Errorf("the program: %v", err)
	}
	mode := fi.Mode()
	switch {
	case !mode.IsRegular():
		return errors.New("the program is not a regular file")
	case runtime.GOOS == "windows":
	case mode.Perm()&0o111 == 0:
		return errors.New("the program is not executable")
	case mode.Perm()&0o022 != 0:
		return fmt.Errorf("the program has mode %04o, others may change it: chmod go-w it", mode.Perm())
	}
	return nil
}

// Open opens an authority by URI; it is an authority.Opener.
//
//	exec:///ABSOLUTE/PATH?key=KEY&arg=FIRST&arg=SECOND&env=NAME
//
// Parameters are all optional. arg is repeated for each argument, env for each
// variable of the environment to pass on by name; a secret belongs into neither
// the URI nor an argument. A malformed URI is authority.ErrInvalid; errors never
// show it.
func Open(ctx context.Context, uri string, o authority.Options) (authority.Authority, error) {
	c, err := parseURI(uri)
	if err != nil {
		return nil, err
	}
	c.Logger = o.Logger
	a, err := New(ctx, c)
	if err != nil {
		return nil, err
	}
	return a, nil
}

// CheckURI reports what is wrong with a URI without looking at the program.
// Errors are authority.ErrInvalid and never show it.
func CheckURI(uri string) error {
	_, err := parseURI(uri)
	return err
}

func parseURI(uri string) (Config, error) {
	const op = "reading the uri"
	u, err := url.Parse(uri)
	if err != nil { // the text repeats the URI
		return Config{}, invalid(op, "malformed")
	}
	if u.Scheme != Scheme || u.User != nil || u.Host != "" || u.Opaque != "" || u.Fragment != "" || u.Path == "" {
		return Config{}, invalid(op, "want exec:///ABSOLUTE/PATH")
	}
	params, err := url.ParseQuery(u.RawQuery)
	if err != nil {
		return Config{}, invalid(op, "malformed parameters")
	}
	c := Config{Path: filepath.FromSlash(u.Path)}
	for name, values := range params {
		switch {
		case name == "arg":
			c.Args = values
		case name == "env":
			c.Env = values
		case name == "key" && len(values) == 1 && values[0] != "":
			c.Key = values[0]
		case name == "key":
			return Config{}, invalid(op, "parameter \"key\" empty or given twice")
		default:
			return Config{}, invalid(op, "unknown parameter %.40q", name)
		}
	}
	if err := c.check(); err != nil {
		return Config{}, invalid(op, "%v", err)
	}
	return c, nil
}
