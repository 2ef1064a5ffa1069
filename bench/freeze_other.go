//go:build !unix

package bench

import "errors"

const canFreeze = false

func (p *process) freeze() error { return errors.ErrUnsupported }
func (p *process) wake() error   { return errors.ErrUnsupported }
