package api

import (
	"bytes"
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"
)

//go:embed openapi.json
var openAPI []byte

// maxBody bounds a request's body.
const maxBody = 1 << 20

// socketMode lets the owner and the group of the socket talk to the node.
const socketMode = 0o660

// endpoint is one route of the API: what serves it and what describes it in
// openapi.json.
type endpoint struct {
	method, path string
	summary      string
	request      any    // body, nil when there is none
	query        string // name of the query parameter that is required
	response     any    // body, nil when there is none
	stream       bool   // the response is one JSON value per line, or SSE
	changes      bool   // alters the node, or tells what is the owner's business alone: never offered by the portal
	serve        func(b Backend, w http.ResponseWriter, r *http.Request) error
}

// endpoints is the whole API.
var endpoints = []endpoint{
	{method: "GET", path: "/v1/status", summary: "The node at a glance.", response: Status{},
		serve: one(func(b Backend, r *http.Request) (Status, error) {
			s, err := b.Status(r.Context())
			s.Listen, s.Sessions = full(s.Listen), full(s.Sessions)
			return s, err
		})},
	{method: "GET", path: "/v1/peers", summary: "Neighbours and configured peers.", response: []Peer{},
		serve: list(func(b Backend, r *http.Request) ([]Peer, error) { return b.Peers(r.Context()) })},
	{method: "POST", path: "/v1/peers", summary: "Add a peer.", request: PeerRequest{}, response: Peer{}, changes: true,
		serve: with(func(b Backend, r *http.Request, req PeerRequest) (Peer, error) { return b.AddPeer(r.Context(), req) })},
	{method: "DELETE", path: "/v1/peers", summary: "Remove a peer, by URI, key or id.", query: "peer", changes: true,
		serve: func(b Backend, w http.ResponseWriter, r *http.Request) error {
			if err := b.RemovePeer(r.Context(), r.FormValue("peer")); err != nil {
				return err
			}
			w.WriteHeader(http.StatusNoContent)
			return nil
		}},
	{method: "GET", path: "/v1/heard", summary: "Nodes heard on local networks.", response: []Heard{},
		serve: list(func(b Backend, r *http.Request) ([]Heard, error) { return b.Heard(r.Context()) })},
	{method: "GET", path: "/v1/routes", summary: "The best path to every node.", response: []Route{},
		serve: list(func(b Backend, r *http.Request) ([]Route, error) { return b.Routes(r.Context()) })},
	{method: "GET", path: "/v1/lsdb", summary: "The link-state database.", response: []LSDBEntry{},
		serve: list(func(b Backend, r *http.Request) ([]LSDBEntry, error) {
			entries, err := b.LSDB(r.Context())
			for i := range entries {
				entries[i].Neighbours = full(entries[i].Neighbours)
			}
			return entries, err
		})},
	{method: "GET", path: "/v1/events", summary: "What happens from now on; SSE when asked for text/event-stream.", response: Event{}, stream: true,
		serve: func(b Backend, w http.ResponseWriter, r *http.Request) error {
			return stream(w, r, b.Events(r.Context()))
		}},
	{method: "POST", path: "/v1/ping", summary: "Ping a node.", request: PingRequest{}, response: PingReply{}, stream: true, changes: true,
		serve: func(b Backend, w http.ResponseWriter, r *http.Request) error {
			req, err := decode[PingRequest](r)
			if err != nil {
				return err
			}
			if req.Count < 0 || req.IntervalMs < 0 {
				return Errorf(CodeBadRequest, "count and interval_ms must not be negative")
			}
			return stream(w, r, b.Ping(r.Context(), req))
		}},
	{method: "POST", path: "/v1/trace", summary: "The path to a node.", query: "target", response: []TraceHop{}, changes: true,
		serve: list(func(b Backend, r *http.Request) ([]TraceHop, error) {
			return b.Trace(r.Context(), r.FormValue("target"))
		})},
	{method: "GET", path: "/v1/firewall", summary: "Who may reach this device.", response: Firewall{},
		serve: one(func(b Backend, r *http.Request) (Firewall, error) { return b.Firewall(r.Context()) })},
	{method: "PUT", path: "/v1/firewall", summary: "Replace rules and groups until the next start.", request: FirewallRequest{}, response: Firewall{}, changes: true,
		serve: with(func(b Backend, r *http.Request, req FirewallRequest) (Firewall, error) {
			return b.SetFirewall(r.Context(), req)
		})},
	{method: "POST", path: "/v1/invites", summary: "Make an invitation.", request: InviteRequest{}, response: Invite{}, changes: true,
		serve: with(func(b Backend, r *http.Request, req InviteRequest) (Invite, error) { return b.Invite(r.Context(), req) })},
	{method: "POST", path: "/v1/join", summary: "Take up an invitation.", request: JoinRequest{}, response: Joined{}, changes: true,
		serve: with(func(b Backend, r *http.Request, req JoinRequest) (Joined, error) { return b.Join(r.Context(), req) })},
	{method: "GET", path: "/v1/gateway", summary: "How the internet is shared: this node's line, and whose line it uses.", response: Gateway{},
		serve: one(func(b Backend, r *http.Request) (Gateway, error) { return shared(b.Gateway(r.Context())) })},
	{method: "PUT", path: "/v1/gateway/offer", summary: "Share this node's line, or stop.", request: OfferRequest{}, response: Gateway{}, changes: true,
		serve: with(func(b Backend, r *http.Request, req OfferRequest) (Gateway, error) {
			return shared(b.OfferGateway(r.Context(), req))
		})},
	{method: "PUT", path: "/v1/gateway/use", summary: "Choose the gateway to take the internet from.", request: UseRequest{}, response: Gateway{}, changes: true,
		serve: with(func(b Backend, r *http.Request, req UseRequest) (Gateway, error) {
			return shared(b.UseGateway(r.Context(), req))
		})},
	{method: "GET", path: "/v1/meter", summary: "Who carried what for whom.", response: Meter{},
		serve: one(func(b Backend, r *http.Request) (Meter, error) {
			m, err := b.Meter(r.Context())
			m.Sessions, m.Links = full(m.Sessions), full(m.Links)
			return m, err
		})},
	{method: "GET", path: "/v1/guests", summary: "Devices without Weft behind this node.", response: Guests{}, changes: true, // who is here is nobody else's business
		serve: one(func(b Backend, r *http.Request) (Guests, error) {
			g, err := b.Guests(r.Context())
			g.Clients = full(g.Clients)
			return g, err
		})},
	{method: "GET", path: "/v1/vouchers", summary: "All vouchers.", response: []Voucher{}, changes: true, // codes are as good as keys
		serve: list(func(b Backend, r *http.Request) ([]Voucher, error) { return b.Vouchers(r.Context()) })},
	{method: "POST", path: "/v1/vouchers", summary: "Make vouchers.", request: VoucherRequest{}, response: []Voucher{}, changes: true,
		serve: with(func(b Backend, r *http.Request, req VoucherRequest) ([]Voucher, error) {
			return b.MakeVouchers(r.Context(), req)
		})},
	{method: "DELETE", path: "/v1/vouchers", summary: "Revoke a voucher.", query: "code", changes: true,
		serve: func(b Backend, w http.ResponseWriter, r *http.Request) error {
			if err := b.RevokeVoucher(r.Context(), r.FormValue("code")); err != nil {
				return err
			}
			w.WriteHeader(http.StatusNoContent)
			return nil
		}},
	{method: "POST", path: "/v1/vouchers/import", summary: "Take vouchers from a file.", request: VoucherFile{}, response: VoucherImport{}, changes: true,
		serve: with(func(b Backend, r *http.Request, req VoucherFile) (VoucherImport, error) {
			return b.ImportVouchers(r.Context(), req)
		})},
	{method: "POST", path: "/v1/vouchers/export", summary: "All vouchers as a file.", response: VoucherFile{}, changes: true,
		serve: one(func(b Backend, r *http.Request) (VoucherFile, error) { return b.ExportVouchers(r.Context()) })},
	{method: "GET", path: "/v1/coop", summary: "This node's community.", response: Coop{}, changes: true, // balances are the owner's
		serve: one(func(b Backend, r *http.Request) (Coop, error) { return b.Coop(r.Context()) })},
	{method: "POST", path: "/v1/coop/found", summary: "Found a community.", request: CoopFound{}, response: Coop{}, changes: true,
		serve: with(func(b Backend, r *http.Request, req CoopFound) (Coop, error) { return b.FoundCoop(r.Context(), req) })},
	{method: "POST", path: "/v1/coop/join", summary: "Follow a community's ledger.", request: CoopJoin{}, response: Coop{}, changes: true,
		serve: with(func(b Backend, r *http.Request, req CoopJoin) (Coop, error) { return b.JoinCoop(r.Context(), req) })},
	{method: "POST", path: "/v1/coop/tx", summary: "Sign and send a transaction.", request: CoopTx{}, response: CoopResult{}, changes: true,
		serve: with(func(b Backend, r *http.Request, req CoopTx) (CoopResult, error) { return b.Transact(r.Context(), req) })},
	{method: "POST", path: "/v1/coop/sponsor", summary: "Sign for a key that wants to become a member.", request: CoopSponsor{}, response: CoopWord{}, changes: true,
		serve: with(func(b Backend, r *http.Request, req CoopSponsor) (CoopWord, error) {
			return b.Sponsor(r.Context(), req)
		})},
	{method: "GET", path: "/v1/wallet", summary: "What this node pays and earns.", response: Wallet{}, changes: true, // it is the owner's alone
		serve: one(func(b Backend, r *http.Request) (Wallet, error) { return purse(b.Wallet(r.Context())) })},
	{method: "PUT", path: "/v1/wallet", summary: "Set what it may spend.", request: WalletRequest{}, response: Wallet{}, changes: true,
		serve: with(func(b Backend, r *http.Request, req WalletRequest) (Wallet, error) {
			return purse(b.SetWallet(r.Context(), req))
		})},
	{method: "POST", path: "/v1/wallet/settle", summary: "Claim now what others have promised.", response: Wallet{}, changes: true,
		serve: one(func(b Backend, r *http.Request) (Wallet, error) { return purse(b.SettleWallet(r.Context())) })},
	{method: "GET", path: "/v1/wallet/bill", summary: "The bill of a month, such as ?month=2026-11.", response: []BillLine{}, changes: true,
		serve: list(func(b Backend, r *http.Request) ([]BillLine, error) { return b.Bill(r.Context(), r.FormValue("month")) })},
	{method: "GET", path: "/v1/wallet/audit", summary: "Check the bills again.", response: WalletAudit{}, changes: true,
		serve: one(func(b Backend, r *http.Request) (WalletAudit, error) {
			a, err := b.AuditWallet(r.Context())
			a.Findings = full(a.Findings)
			return a, err
		})},
	{method: "POST", path: "/v1/coop/agree", summary: "Sign that this node's key agrees to what a member sends.", request: CoopAgree{}, response: CoopAgreement{}, changes: true,
		serve: with(func(b Backend, r *http.Request, req CoopAgree) (CoopAgreement, error) {
			return b.Agree(r.Context(), req)
		})},
}

// purse fills in lists that are empty.
func purse(w Wallet, err error) (Wallet, error) {
	w.Days, w.Accounts = full(w.Days), full(w.Accounts)
	return w, err
}

// shared fills in lists that are empty.
func shared(g Gateway, err error) (Gateway, error) {
	g.Clients, g.Use.Candidates, g.DNS.Listen, g.DNS.Upstreams = full(g.Clients), full(g.Use.Candidates), full(g.DNS.Listen), full(g.DNS.Upstreams)
	return g, err
}

// Handler serves the whole API of b.
func Handler(b Backend, log *slog.Logger) http.Handler { return handler(b, log, true) }

// ReadOnly serves what changes nothing, for the portal.
func ReadOnly(b Backend, log *slog.Logger) http.Handler { return handler(b, log, false) }

func handler(b Backend, log *slog.Logger, changes bool) http.Handler {
	mux := http.NewServeMux()
	for _, e := range endpoints {
		if e.changes && !changes {
			continue
		}
		mux.HandleFunc(e.method+" "+e.path, func(w http.ResponseWriter, r *http.Request) {
			r.Body = http.MaxBytesReader(w, r.Body, maxBody)
			if e.query != "" && r.URL.Query().Get(e.query) == "" {
				writeError(w, Errorf(CodeBadRequest, "%s %s needs the query parameter %s", e.method, e.path, e.query))
				return
			}
			if err := e.serve(b, w, r); err != nil && r.Context().Err() == nil {
				p := AsError(err)
				if p.Code == CodeInternal {
					log.Error("API request failed", "method", e.method, "path", e.path, "err", err)
				}
				writeError(w, p)
			}
		})
	}
	if l, ok := b.(Ledger); ok && changes {
		mux.Handle(LedgerPath+"/", http.StripPrefix(LedgerPath, l.LedgerHandler()))
	}
	mux.HandleFunc("GET /v1/openapi.json", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		w.Write(openAPI)
	})
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		writeError(w, Errorf(CodeNotFound, "there is no %s %s", r.Method, r.URL.Path).WithHint("GET /v1/openapi.json lists what there is"))
	})
	return mux
}

func one[T any](f func(Backend, *http.Request) (T, error)) func(Backend, http.ResponseWriter, *http.Request) error {
	return func(b Backend, w http.ResponseWriter, r *http.Request) error {
		v, err := f(b, r)
		if err != nil {
			return err
		}
		return writeJSON(w, http.StatusOK, v)
	}
}

// list is one for slices: an empty list is [], never null.
func list[T any](f func(Backend, *http.Request) ([]T, error)) func(Backend, http.ResponseWriter, *http.Request) error {
	return one(func(b Backend, r *http.Request) ([]T, error) {
		v, err := f(b, r)
		return full(v), err
	})
}

// full makes an empty list of no list: JSON tells [] from null.
func full[T any](v []T) []T {
	if v == nil {
		return []T{}
	}
	return v
}

func with[Req, T any](f func(Backend, *http.Request, Req) (T, error)) func(Backend, http.ResponseWriter, *http.Request) error {
	return func(b Backend, w http.ResponseWriter, r *http.Request) error {
		req, err := decode[Req](r)
		if err != nil {
			return err
		}
		v, err := f(b, r, req)
		if err != nil {
			return err
		}
		return writeJSON(w, http.StatusOK, v)
	}
}

func decode[T any](r *http.Request) (T, error) {
	var v T
	d := json.NewDecoder(r.Body)
	d.DisallowUnknownFields()
	if err := d.Decode(&v); err != nil {
		return v, Errorf(CodeBadRequest, "cannot read the request: %v", err)
	}
	if _, err := d.Token(); err != io.EOF {
		return v, Errorf(CodeBadRequest, "cannot read the request: more than one JSON value")
	}
	return v, nil
}

func writeJSON(w http.ResponseWriter, status int, v any) error {
	var b bytes.Buffer
	if err := json.NewEncoder(&b).Encode(v); err != nil {
		return fmt.Errorf("encode response: %w", err)
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	w.Write(b.Bytes())
	return nil
}

// problem adds the type member that RFC 9457 gives every problem.
type problem struct {
	Type string `json:"type"`
	*Error
}

func writeError(w http.ResponseWriter, e *Error) {
	b, err := json.Marshal(problem{"urn:weft:error:" + string(e.Code), e})
	if err != nil {
		b = []byte(`{"code":"internal"}`)
	}
	w.Header().Set("Content-Type", "application/problem+json")
	w.WriteHeader(e.Status)
	w.Write(append(b, '\n'))
}

// stream sends one value a line, or as SSE. An error before the first value
// is an ordinary error response; a later one is the last line, as a problem.
func stream[T any](w http.ResponseWriter, r *http.Request, seq iter.Seq2[T, error]) error {
	sse := strings.Contains(r.Header.Get("Accept"), "text/event-stream")
	rc := http.NewResponseController(w)
	started := false
	start := func() {
		started = true
		w.Header().Set("Content-Type", "application/x-ndjson")
		if sse {
			w.Header().Set("Content-Type", "text/event-stream")
		}
		w.Header().Set("Cache-Control", "no-store")
		w.WriteHeader(http.StatusOK)
	}
	send := func(kind string, v any) error {
		b, err := json.Marshal(v)
		if err != nil {
			return fmt.Errorf("encode stream: %w", err)
		}
		if sse {
			_, err = fmt.Fprintf(w, "event: %s\ndata: %s\n\n", kind, b)
		} else {
			_, err = w.Write(append(b, '\n'))
		}
		return errors.Join(err, rc.Flush())
	}
	for v, err := range seq {
		if err != nil {
			if !started {
				return err
			}
			p := AsError(err)
			send("problem", problem{"urn:weft:error:" + string(p.Code), p})
			return nil
		}
		if !started {
			start()
		}
		if send("message", v) != nil {
			return nil // the reader has gone
		}
	}
	if !started {
		start()
	}
	return nil
}

// Listen opens the unix socket at path. A socket that a dead node left is
// replaced; one that answers is refused.
func Listen(path string) (net.Listener, error) {
	if fi, err := os.Lstat(path); err == nil {
		if fi.Mode().Type() != fs.ModeSocket {
			return nil, Errorf(CodeInternal, "%s exists and is not a socket", path).WithHint("move it away, or choose another path with socket in [api]")
		}
		c, err := net.DialTimeout("unix", path, 2*time.Second)
		if err == nil {
			c.Close()
			return nil, Errorf(CodeAlreadyRunning, "a node is running already: it answers at %s", path).
				WithHint("for a second node on this device use another state directory: weft --state DIR up")
		}
		if !refused(err) {
			return nil, fmt.Errorf("look whether a node answers at %s: %w", path, err)
		}
		if err := os.Remove(path); err != nil {
			return nil, fmt.Errorf("remove the socket of an earlier node: %w", err)
		}
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, fmt.Errorf("make the socket's directory: %w", err)
	}
	if max := 100; len(path) > max {
		return nil, Errorf(CodeInternal, "the socket path %s is longer than %d bytes, more than systems allow", path, max).
			WithHint("set a shorter one with socket in [api]")
	}
	ln, err := net.Listen("unix", path)
	if err != nil {
		return nil, fmt.Errorf("listen for commands: %w", err)
	}
	if err := os.Chmod(path, socketMode); err != nil {
		return nil, errors.Join(fmt.Errorf("set the socket's mode: %w", err), ln.Close())
	}
	return ln, nil
}

// refused reports whether nobody listens. Windows has a number of its own for it
// (WSAECONNREFUSED), which package syscall does not equate.
func refused(err error) bool {
	return errors.Is(err, syscall.ECONNREFUSED) || runtime.GOOS == "windows" && errors.Is(err, syscall.Errno(10061))
}

// Serve answers h on ln until ctx ends, then ends streams and waits for all
// requests. It closes ln.
func Serve(ctx context.Context, ln net.Listener, h http.Handler, log *slog.Logger) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	srv := &http.Server{
		Handler:           h,
		BaseContext:       func(net.Listener) context.Context { return ctx },
		ReadHeaderTimeout: 10 * time.Second,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    32 << 10,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		<-ctx.Done()
		late, stop := context.WithTimeout(context.WithoutCancel(ctx), 3*time.Second)
		defer stop()
		if srv.Shutdown(late) != nil {
			srv.Close()
		}
	}()
	err := srv.Serve(ln)
	cancel()
	<-done
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return err
}
