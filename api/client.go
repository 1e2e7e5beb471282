package api

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"net"
	"net/http"
	"net/url"
)

// Client is a Backend that is a node behind its socket. It keeps no connection
// between calls, so it needs no closing.
type Client struct {
	socket string
	http   http.Client
}

var _ Backend = (*Client)(nil)

// NewClient returns a client of the node whose socket is at path. Nothing is
// dialled until the first call.
func NewClient(path string) *Client {
	c := &Client{socket: path}
	c.http.Transport = &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", path)
		},
	}
	return c
}

func (c *Client) Status(ctx context.Context) (Status, error) {
	return call[Status](ctx, c, "GET", "/v1/status", nil)
}

func (c *Client) Peers(ctx context.Context) ([]Peer, error) {
	return call[[]Peer](ctx, c, "GET", "/v1/peers", nil)
}

func (c *Client) Heard(ctx context.Context) ([]Heard, error) {
	return call[[]Heard](ctx, c, "GET", "/v1/heard", nil)
}

func (c *Client) Routes(ctx context.Context) ([]Route, error) {
	return call[[]Route](ctx, c, "GET", "/v1/routes", nil)
}

func (c *Client) LSDB(ctx context.Context) ([]LSDBEntry, error) {
	return call[[]LSDBEntry](ctx, c, "GET", "/v1/lsdb", nil)
}

func (c *Client) Events(ctx context.Context) iter.Seq2[Event, error] {
	return lines[Event](ctx, c, "GET", "/v1/events", nil)
}

func (c *Client) Ping(ctx context.Context, req PingRequest) iter.Seq2[PingReply, error] {
	return lines[PingReply](ctx, c, "POST", "/v1/ping", req)
}

func (c *Client) Trace(ctx context.Context, target string) ([]TraceHop, error) {
	return call[[]TraceHop](ctx, c, "POST", "/v1/trace?target="+url.QueryEscape(target), nil)
}

func (c *Client) AddPeer(ctx context.Context, req PeerRequest) (Peer, error) {
	return call[Peer](ctx, c, "POST", "/v1/peers", req)
}

func (c *Client) RemovePeer(ctx context.Context, peer string) error {
	resp, err := c.do(ctx, "DELETE", "/v1/peers?peer="+url.QueryEscape(peer), nil)
	if err != nil {
		return err
	}
	return resp.Body.Close()
}

func (c *Client) Invite(ctx context.Context, req InviteRequest) (Invite, error) {
	return call[Invite](ctx, c, "POST", "/v1/invites", req)
}

func (c *Client) Join(ctx context.Context, req JoinRequest) (Joined, error) {
	return call[Joined](ctx, c, "POST", "/v1/join", req)
}

func (c *Client) Firewall(ctx context.Context) (Firewall, error) {
	return call[Firewall](ctx, c, "GET", "/v1/firewall", nil)
}

func (c *Client) SetFirewall(ctx context.Context, req FirewallRequest) (Firewall, error) {
	return call[Firewall](ctx, c, "PUT", "/v1/firewall", req)
}

// call does one request and decodes the answer.
func call[T any](ctx context.Context, c *Client, method, path string, body any) (T, error) {
	var v T
	resp, err := c.do(ctx, method, path, body)
	if err != nil {
		return v, err
	}
	defer resp.Body.Close()
	if err := json.NewDecoder(resp.Body).Decode(&v); err != nil {
		return v, fmt.Errorf("read the node's answer: %w", err)
	}
	return v, nil
}

// lines does one request and yields its answer line by line.
func lines[T any](ctx context.Context, c *Client, method, path string, body any) iter.Seq2[T, error] {
	return func(yield func(T, error) bool) {
		var zero T
		resp, err := c.do(ctx, method, path, body)
		if err != nil {
			yield(zero, err)
			return
		}
		defer resp.Body.Close()
		d := json.NewDecoder(resp.Body)
		for {
			var raw json.RawMessage
			if err := d.Decode(&raw); err != nil {
				if !errors.Is(err, io.EOF) && ctx.Err() == nil {
					yield(zero, Errorf(CodeNotRunning, "the node stopped: %v", err))
				}
				return
			}
			var p problem
			if json.Unmarshal(raw, &p) == nil && p.Type != "" {
				yield(zero, p.Error)
				return
			}
			var v T
			if err := json.Unmarshal(raw, &v); err != nil {
				yield(zero, fmt.Errorf("read the node's answer: %w", err))
				return
			}
			if !yield(v, nil) {
				return
			}
		}
	}
}

// do sends a request; an answer that is not a success comes back as *Error.
func (c *Client) do(ctx context.Context, method, path string, body any) (*http.Response, error) {
	var r io.Reader
	if body != nil {
		b, err := json.Marshal(body)
		if err != nil {
			return nil, fmt.Errorf("encode request: %w", err)
		}
		r = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://weft"+path, r)
	if err != nil {
		return nil, fmt.Errorf("make request: %w", err)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, c.dialError(err)
	}
	if resp.StatusCode/100 == 2 {
		return resp, nil
	}
	defer resp.Body.Close()
	var p problem
	if err := json.NewDecoder(io.LimitReader(resp.Body, 1<<20)).Decode(&p); err != nil || p.Error == nil || p.Code == "" {
		return nil, Errorf(CodeInternal, "the node answered %s", resp.Status)
	}
	return nil, p.Error
}

func (c *Client) dialError(err error) error {
	switch {
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return err
	case errors.Is(err, fs.ErrPermission):
		return Errorf(CodePermission, "you may not talk to the node at %s", c.socket).WithHint("it belongs to another user; try with sudo")
	case errors.Is(err, fs.ErrNotExist), refused(err):
		return Errorf(CodeNotRunning, "no node is running: nothing answers at %s", c.socket).
			WithHint("start one with: weft up (as root to get a network interface); for one with another state directory: weft --state DIR …")
	}
	return fmt.Errorf("talk to the node: %w", err)
}
