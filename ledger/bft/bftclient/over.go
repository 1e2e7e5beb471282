package bftclient

import (
	"context"
	"net"
	"net/http"
	"time"
)

// Over returns a client of an engine that is reached through something else: dial connects to it, and base, such as /v1/ledger, is
// where its questions are answered there.
func Over(dial func(ctx context.Context) (net.Conn, error), base string) *Client {
	t := &http.Transport{
		DialContext:  func(ctx context.Context, _, _ string) (net.Conn, error) { return dial(ctx) },
		MaxIdleConns: 4, IdleConnTimeout: 30 * time.Second,
	}
	return &Client{http: &http.Client{Transport: &below{t, base}}}
}

// below puts a path in front of every request's.
type below struct {
	*http.Transport
	base string
}

// RoundTrip implements http.RoundTripper.
func (b *below) RoundTrip(r *http.Request) (*http.Response, error) {
	if b.base != "" {
		r = r.Clone(r.Context())
		r.URL.Path = b.base + r.URL.Path
	}
	return b.Transport.RoundTrip(r)
}
