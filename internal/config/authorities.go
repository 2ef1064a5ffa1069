package config

import "errors"

// CheckAuthorities lets check look at the URI of every authority. This package
// knows no provider, so [Load] sees to the shape of a URI only. The error joins
// every problem; check's errors must not repeat the URI.
func (f *File) CheckAuthorities(check func(uri string) error) error {
	if f.Keysvc == nil {
		return nil
	}
	c := checker{File: f}
	for _, name := range sorted(f.Keysvc.Authorities) {
		if err := check(f.Keysvc.Authorities[name]); err != nil {
			c.fail("keysvc.authorities."+name, "%v", err)
		}
	}
	return errors.Join(c.errs...)
}
