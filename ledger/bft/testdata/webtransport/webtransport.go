// Package webtransport stands in for the module of this name, which go-libp2p links and which no version of fits the quic-go
// that link uses. CometBFT's package consensus links go-libp2p; Weft never starts it (p2p.libp2p is off), so that nothing
// here is ever called: everything answers with an error.
package webtransport

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/http"
	"time"

	"github.com/quic-go/quic-go"
	"github.com/quic-go/quic-go/http3"
)

var errAbsent = errors.New("WebTransport is not built in")

type (
	StreamErrorCode  uint32
	SessionErrorCode uint32
)

type StreamError struct {
	ErrorCode StreamErrorCode
	Remote    bool
}

func (e *StreamError) Error() string { return errAbsent.Error() }

type Stream struct{}

func (*Stream) Read([]byte) (int, error)         { return 0, errAbsent }
func (*Stream) Write([]byte) (int, error)        { return 0, errAbsent }
func (*Stream) Close() error                     { return errAbsent }
func (*Stream) CancelRead(StreamErrorCode)       {}
func (*Stream) CancelWrite(StreamErrorCode)      {}
func (*Stream) SetDeadline(time.Time) error      { return errAbsent }
func (*Stream) SetReadDeadline(time.Time) error  { return errAbsent }
func (*Stream) SetWriteDeadline(time.Time) error { return errAbsent }

type Session struct{}

func (*Session) LocalAddr() net.Addr                             { return nil }
func (*Session) RemoteAddr() net.Addr                            { return nil }
func (*Session) Context() context.Context                        { return context.Background() }
func (*Session) OpenStreamSync(context.Context) (*Stream, error) { return nil, errAbsent }
func (*Session) AcceptStream(context.Context) (*Stream, error)   { return nil, errAbsent }
func (*Session) CloseWithError(SessionErrorCode, string) error   { return errAbsent }

type Dialer struct {
	DialAddr   func(context.Context, string, *tls.Config, *quic.Config) (*quic.Conn, error)
	QUICConfig *quic.Config
}

func (*Dialer) Dial(context.Context, string, http.Header) (*http.Response, *Session, error) {
	return nil, nil, errAbsent
}

type Server struct {
	H3          *http3.Server
	CheckOrigin func(*http.Request) bool
}

func (*Server) Upgrade(http.ResponseWriter, *http.Request) (*Session, error) { return nil, errAbsent }
func (*Server) ServeQUICConn(*quic.Conn) error                               { return errAbsent }
func (*Server) Close() error                                                 { return nil }

func ConfigureHTTP3Server(*http3.Server) {}
