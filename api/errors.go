package api

import (
	"errors"
	"fmt"
	"net/http"
)

// Code names a kind of error. Codes are stable: programs may depend on them.
type Code string

// The codes.
const (
	CodeBadRequest        Code = "bad_request"        // the request cannot be read
	CodeBadTarget         Code = "bad_target"         // not an address, key, id or name
	CodeTargetUnknown     Code = "target_unknown"     // no such node is known
	CodeTargetAmbiguous   Code = "target_ambiguous"   // several nodes have the name
	CodeTargetUnreachable Code = "target_unreachable" // the node is known but there is no path
	CodeBadURI            Code = "bad_uri"            // not a URI that can be dialled
	CodePeerExists        Code = "peer_exists"        // the peer is there already
	CodePeerUnknown       Code = "peer_unknown"       // there is no such peer
	CodePeerFixed         Code = "peer_fixed"         // the peer stands in the config file
	CodeBadRule           Code = "bad_rule"           // a firewall rule cannot be read
	CodeInviteInvalid     Code = "invite_invalid"     // the link is damaged or forged
	CodeInviteExpired     Code = "invite_expired"     // the link has lapsed
	CodeInviteOther       Code = "invite_other"       // the link is for another closed network
	CodeRefused           Code = "refused"            // the community's ledger does not take it
	CodeTooMany           Code = "too_many"           // a limit is reached
	CodeNotFound          Code = "not_found"          // no such route in the API
	CodeNotRunning        Code = "not_running"        // no node answers at the socket
	CodeAlreadyRunning    Code = "already_running"    // a node answers at the socket already
	CodePermission        Code = "permission"         // the socket is another user's
	CodeInternal          Code = "internal"           // anything else
)

var codeStatus = map[Code]int{
	CodeBadRequest: 400, CodeBadTarget: 400, CodeBadURI: 400, CodeBadRule: 400,
	CodeInviteInvalid: 400, CodeInviteExpired: 410, CodeInviteOther: 409,
	CodeTargetUnknown: 404, CodePeerUnknown: 404, CodeNotFound: 404,
	CodeTargetAmbiguous: 409, CodePeerExists: 409, CodePeerFixed: 409, CodeAlreadyRunning: 409,
	CodePermission: 403, CodeTooMany: 429,
	CodeTargetUnreachable: 503, CodeNotRunning: 503,
}

// Error is what every route answers when it fails (RFC 9457) and what Client
// returns. Detail says what is wrong with this request, Hint what to do.
type Error struct {
	Code   Code   `json:"code"`           // stable name of the kind of error
	Status int    `json:"status"`         // HTTP status
	Title  string `json:"title"`          // the status in words
	Detail string `json:"detail"`         // what is wrong
	Hint   string `json:"hint,omitempty"` // what to do about it
}

// Errorf makes an Error of a code; the hint is added with WithHint.
func Errorf(code Code, format string, args ...any) *Error {
	status := codeStatus[code]
	if status == 0 {
		status = http.StatusInternalServerError
	}
	return &Error{Code: code, Status: status, Title: http.StatusText(status), Detail: fmt.Sprintf(format, args...)}
}

// WithHint returns a copy of e that says what to do.
func (e *Error) WithHint(format string, args ...any) *Error {
	c := *e
	c.Hint = fmt.Sprintf(format, args...)
	return &c
}

func (e *Error) Error() string { return e.Detail }

// Is reports whether target is an Error of the same code, for errors.Is.
func (e *Error) Is(target error) bool {
	t, ok := target.(*Error)
	return ok && t.Code == e.Code
}

// AsError returns the Error in err's chain, or wraps err as CodeInternal.
func AsError(err error) *Error {
	if e, ok := errors.AsType[*Error](err); ok {
		return e
	}
	return Errorf(CodeInternal, "%v", err)
}
