package link

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/quic-go/quic-go"
)

// The reasons for which a connection is closed, as QUIC application error codes (docs/spec/link.md section 4). Both ends
// show the reason that goes with the code.
const (
	codeLeaving   quic.ApplicationErrorCode = 0 // this node stops, or the operator removed the link
	codeProtocol  quic.ApplicationErrorCode = 1
	codeSelf      quic.ApplicationErrorCode = 2
	codeDuplicate quic.ApplicationErrorCode = 3 // there is a link already, or one that wins
	codeClosed    quic.ApplicationErrorCode = 4 // wrong community
	codePin       quic.ApplicationErrorCode = 5
	codeBusy      quic.ApplicationErrorCode = 6
	codeSlow      quic.ApplicationErrorCode = 7
	codeDead      quic.ApplicationErrorCode = 8
	codeReplaced  quic.ApplicationErrorCode = 9
	codeUnneeded  quic.ApplicationErrorCode = 10
)

// Error says why a link was closed or refused.
type Error struct {
	Reason string
	Remote bool // the neighbour said so

	code quic.ApplicationErrorCode
}

func (e *Error) Error() string {
	if e.Remote {
		return "the neighbour says: " + e.Reason
	}
	return e.Reason
}

func localError(code quic.ApplicationErrorCode, reason string) *Error {
	return &Error{Reason: reason, code: code}
}

func protocolError(what string) error {
	return localError(codeProtocol, "the neighbour broke the link protocol: "+what)
}

var (
	errLeaving   = localError(codeLeaving, "this node is stopping")
	errRemoved   = localError(codeLeaving, "the operator removed this peer")
	errSelf      = localError(codeSelf, "this address is this node itself")
	errDuplicate = localError(codeDuplicate, "there is a link with this neighbour already")
	errBusy      = localError(codeBusy, "too many links")
	errSlow      = localError(codeSlow, "the neighbour takes its control messages too slowly")
	errReplaced  = localError(codeReplaced, "a newer link with this neighbour took over")
	errUnneeded  = localError(codeUnneeded, "this LAN has enough links without this one")
	errNoStreams = errors.New("no answer, and no other way is known: is UDP blocked?")
	errUnmet     = localError(codeUnneeded, "this link is not needed: nothing flows over it")
	errSilent    = localError(codeDead, "the neighbour went silent")
	errCarrier   = localError(codeDead, "the interface went down")
	errStream    = localError(codeDead, "the connection below the link broke")
	errNoProbe   = localError(codeDead, "probes do not come back: is UDP filtered on the way?")

	errStranger = localError(codeClosed, "this network is closed; ask a member for an invite")
	errOpenNet  = localError(codeClosed, "your network is closed and this node is not a member; invite it, or leave the closed network")
	errOtherNet = localError(codeClosed, "this node belongs to another closed network")
)

// closeReason turns what ended a connection into an Error where the neighbour gave a reason.
func closeReason(err error) error {
	var app *quic.ApplicationError
	if errors.As(err, &app) && app.Remote {
		reason := cleanReason(app.ErrorMessage)
		if reason == "" {
			reason = fmt.Sprintf("closed with code %d", app.ErrorCode)
		}
		return &Error{Reason: reason, Remote: true, code: app.ErrorCode}
	}
	var idle *quic.IdleTimeoutError
	var hs *quic.HandshakeTimeoutError
	if errors.As(err, &idle) || errors.As(err, &hs) ||
		errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, context.DeadlineExceeded) {
		return errors.New("no answer")
	}
	var reset *quic.StatelessResetError
	if errors.As(err, &reset) {
		return errors.New("the neighbour restarted")
	}
	return err
}

// codeOf returns the code to close a connection with.
func codeOf(err error) (quic.ApplicationErrorCode, string) {
	var e *Error
	if errors.As(err, &e) && !e.Remote {
		return e.code, e.Reason
	}
	return codeLeaving, ""
}

func hasCode(err error, code quic.ApplicationErrorCode) bool {
	var e *Error
	return errors.As(err, &e) && e.code == code
}
