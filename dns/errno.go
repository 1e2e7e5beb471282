package dns

import (
	"errors"
	"syscall"
)

// isRefused reports what a UDP socket says when a client that was answered is gone.
func isRefused(err error) bool {
	return errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, syscall.ECONNRESET)
}

// isExhausted reports that the system has no room for another connection now.
func isExhausted(err error) bool {
	return errors.Is(err, syscall.EMFILE) || errors.Is(err, syscall.ENFILE) || errors.Is(err, syscall.ECONNABORTED)
}
