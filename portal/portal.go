// Package portal is the page on which the owner sees what the node does: the
// node itself, the internet that it shares or uses, its neighbours, a map, the
// ways to other nodes. It is plain HTML
// that works without JavaScript; with it the page keeps itself up to date. It
// loads nothing from elsewhere and changes nothing.
//
// node mounts the Handler on a port of the own device; nobody else imports
// portal, and it imports api alone. A Handler may be called by any number of
// goroutines. It starts none: all pages share one look at the node, at most one
// a second, taken by whichever request needs it.
package portal

import (
	"bytes"
	"context"
	"embed"
	"encoding/json"
	"fmt"
	"html/template"
	"io/fs"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"time"

	"weft/api"
)

//go:embed page.html style.css live.js
var files embed.FS

// Bounds: what a page shows of a large network, and how many pages stay live.
const (
	maxRows    = 200
	maxNodes   = 150
	maxStreams = 32
	samples    = 60
)

// fresh is how old a look at the node may be, and how often live pages are told.
const fresh = time.Second

// policy lets the page load what this handler serves and nothing else.
const policy = "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; img-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"

// View is what the page looks at; any api.Backend has it.
type View interface {
	api.Viewer
	Gateway(ctx context.Context) (api.Gateway, error)
	Meter(ctx context.Context) (api.Meter, error)
	Guests(ctx context.Context) (api.Guests, error)
}

type portal struct {
	view View
	tmpl *template.Template

	mu      sync.Mutex
	taken   time.Time
	last    look
	traffic history
	outside history // of it, through gateways
	streams int
}

// look is what the page shows.
type look struct {
	Err     string
	Hint    string
	Status  api.Status
	Gateway api.Gateway
	Guests  api.Guests
	Peers   []api.Peer
	Routes  []api.Route
	Heard   []api.Heard
	More    int // routes that are not shown
	Map     picture
	Graph   graph
	Outside *graph // traffic through gateways, nil while there is nothing to see
}

// Handler serves the page of a node.
func Handler(view View) http.Handler {
	p := &portal{view: view}
	p.tmpl = template.Must(template.New("").Funcs(template.FuncMap{
		"ms": ms, "size": size, "span": span, "who": who, "rate": rate, "price": price, "percent": func(f float64) string { return fmt.Sprintf("%.0f %%", f*100) },
		"since": func(t time.Time) string {
			if t.IsZero() {
				return "–"
			}
			return span(int64(time.Since(t).Seconds()))
		},
	}).ParseFS(files, "page.html"))
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", p.page)
	mux.HandleFunc("GET /live", p.live)
	mux.HandleFunc("GET /style.css", static("style.css", "text/css; charset=utf-8"))
	mux.HandleFunc("GET /live.js", static("live.js", "text/javascript; charset=utf-8"))
	return guard(mux)
}

func static(name, kind string) http.HandlerFunc {
	b, err := fs.ReadFile(files, name)
	if err != nil {
		panic(err) // the file is part of the program
	}
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", kind)
		w.Write(b)
	}
}

// guard sets the headers that keep the page to itself, and refuses requests
// that came by a name of someone else's: a page elsewhere can point its own
// name at this device (DNS rebinding), but it cannot make an address or
// "localhost" its origin.
func guard(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Content-Security-Policy", policy)
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Referrer-Policy", "no-referrer")
		h.Set("Cross-Origin-Resource-Policy", "same-origin")
		h.Set("Cross-Origin-Opener-Policy", "same-origin")
		h.Set("Cache-Control", "no-store")
		if !ownHost(r.Host) {
			http.Error(w, "This page answers to http://localhost and to addresses only, not to the name "+fmt.Sprintf("%.80q", r.Host)+".", http.StatusMisdirectedRequest)
			return
		}
		next.ServeHTTP(w, r)
	})
}

func ownHost(host string) bool {
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	if strings.EqualFold(host, "localhost") {
		return true
	}
	_, err := netip.ParseAddr(strings.Trim(host, "[]"))
	return err == nil
}

func (p *portal) page(w http.ResponseWriter, r *http.Request) {
	var b bytes.Buffer
	if err := p.tmpl.ExecuteTemplate(&b, "page", p.look(r.Context())); err != nil {
		http.Error(w, "The page could not be made: "+err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.Write(b.Bytes())
}

// live sends the changing part of the page, as HTML in a JSON string, whenever
// it differs from what was sent before.
func (p *portal) live(w http.ResponseWriter, r *http.Request) {
	if !p.enter() {
		w.Header().Set("Retry-After", "60")
		http.Error(w, "Too many pages are open.", http.StatusServiceUnavailable)
		return
	}
	defer p.leave()
	w.Header().Set("Content-Type", "text/event-stream")
	rc := http.NewResponseController(w)
	tick := time.NewTicker(fresh)
	defer tick.Stop()
	var sent, now bytes.Buffer
	for {
		now.Reset()
		if err := p.tmpl.ExecuteTemplate(&now, "live", p.look(r.Context())); err != nil {
			return
		}
		msg := []byte(": still here\n\n") // so that a page that is gone is noticed
		if !bytes.Equal(sent.Bytes(), now.Bytes()) {
			text, err := json.Marshal(now.String())
			if err != nil {
				return
			}
			msg = fmt.Appendf(nil, "data: %s\n\n", text)
			sent, now = now, sent
		}
		if _, err := w.Write(msg); err != nil || rc.Flush() != nil {
			return
		}
		select {
		case <-r.Context().Done():
			return
		case <-tick.C:
		}
	}
}

func (p *portal) enter() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.streams == maxStreams {
		return false
	}
	p.streams++
	return true
}

func (p *portal) leave() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.streams--
}

// look returns what the node looks like, from at most a second ago.
func (p *portal) look(ctx context.Context) look {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.taken.IsZero() && time.Since(p.taken) < fresh-50*time.Millisecond { // less a margin, or two tickers in step would show each second's look a second late
		return p.last
	}
	l, err := p.take(ctx)
	if err != nil {
		if ctx.Err() != nil {
			return p.last // the reader left, not the node
		}
		e := api.AsError(err)
		l = look{Err: e.Detail, Hint: e.Hint}
	}
	p.last, p.taken = l, time.Now()
	return l
}

func (p *portal) take(ctx context.Context) (l look, err error) {
	if l.Status, err = p.view.Status(ctx); err != nil {
		return l, err
	}
	if l.Peers, err = p.view.Peers(ctx); err != nil {
		return l, err
	}
	if l.Heard, err = p.view.Heard(ctx); err != nil {
		return l, err
	}
	if l.Routes, err = p.view.Routes(ctx); err != nil {
		return l, err
	}
	lsdb, err := p.view.LSDB(ctx)
	if err != nil {
		return l, err
	}
	if err := p.takeSharing(ctx, &l); err != nil {
		return l, err
	}
	if n := len(l.Routes); n > maxRows {
		l.Routes, l.More = l.Routes[:maxRows], n-maxRows
	}
	l.Peers = l.Peers[:min(len(l.Peers), maxRows)]
	l.Heard = l.Heard[:min(len(l.Heard), maxRows)]
	l.Map = draw(l.Status.ID, l.Status.Name, lsdb)
	p.traffic.add(time.Now(), l.Status.Counters.RxBytes, l.Status.Counters.TxBytes)
	l.Graph = p.traffic.graph()
	return l, nil
}

// takeSharing looks at the internet: whose line is used, and who uses this one.
func (p *portal) takeSharing(ctx context.Context, l *look) (err error) {
	if l.Gateway, err = p.view.Gateway(ctx); err != nil {
		return err
	}
	if l.Guests, err = p.view.Guests(ctx); err != nil {
		return err
	}
	m, err := p.view.Meter(ctx)
	if err != nil {
		return err
	}
	var in, out uint64
	for _, s := range m.Sessions {
		in += s.RecvBps / 8
		out += s.SentBps / 8
	}
	p.outside.put(time.Now(), float64(in), float64(out))
	if l.Gateway.Use.State != "off" || l.Gateway.Offer.On {
		g := p.outside.graph()
		l.Outside = &g
	}
	l.Gateway.Clients = l.Gateway.Clients[:min(len(l.Gateway.Clients), maxRows)]
	l.Gateway.Use.Candidates = l.Gateway.Use.Candidates[:min(len(l.Gateway.Use.Candidates), maxRows)]
	return nil
}

// history is the traffic of the last minute.
type history struct {
	at     time.Time
	rx, tx uint64
	rates  [][2]float64 // bytes per second, in and out
}

func (h *history) add(now time.Time, rx, tx uint64) {
	dt := now.Sub(h.at).Seconds()
	if !h.at.IsZero() && dt > 0 && rx >= h.rx && tx >= h.tx {
		h.put(now, float64(rx-h.rx)/dt, float64(tx-h.tx)/dt)
	}
	h.at, h.rx, h.tx = now, rx, tx
}

// put notes rates that are known already.
func (h *history) put(now time.Time, in, out float64) {
	if now.Sub(h.at) > 10*fresh { // nobody looked: old rates would stand beside new ones
		h.rates = nil
	}
	h.rates = append(h.rates, [2]float64{in, out})
	h.rates = h.rates[max(len(h.rates)-samples, 0):]
	h.at = now
}

// graph is the traffic as two lines in a box of 240 by 40.
type graph struct {
	In, Out         string // points of the lines
	InRate, OutRate string // the newest values
}

func (h *history) graph() graph {
	var g graph
	top := 1000.0 // so that a few pings are no mountain
	for _, r := range h.rates {
		top = max(top, r[0], r[1])
	}
	var in, out strings.Builder
	for i, r := range h.rates {
		x := 240 * float64(samples-len(h.rates)+i) / (samples - 1)
		fmt.Fprintf(&in, "%.1f,%.1f ", x, 39-38*r[0]/top)
		fmt.Fprintf(&out, "%.1f,%.1f ", x, 39-38*r[1]/top)
	}
	g.In, g.Out = in.String(), out.String()
	g.InRate, g.OutRate = "–", "–"
	if n := len(h.rates); n > 0 {
		g.InRate, g.OutRate = size(uint64(h.rates[n-1][0]))+"/s", size(uint64(h.rates[n-1][1]))+"/s"
	}
	return g
}

// ms prints microseconds, which templates bring in several widths.
func ms(us any) string {
	var f float64
	switch v := us.(type) {
	case int64:
		f = float64(v)
	case uint32:
		f = float64(v)
	}
	if f == 0 {
		return "–"
	}
	return fmt.Sprintf("%.2f ms", f/1000)
}

func size(n uint64) string {
	v := float64(n)
	for _, u := range []string{"B", "kB", "MB", "GB", "TB"} {
		if v < 1000 {
			if u == "B" {
				return fmt.Sprintf("%.0f B", v)
			}
			return fmt.Sprintf("%.1f %s", v, u)
		}
		v /= 1000
	}
	return fmt.Sprintf("%.1f PB", v)
}

// rate prints bits a second.
func rate(bps uint64) string {
	if bps == 0 {
		return "no limit"
	}
	v := float64(bps) / 1000
	for _, u := range []string{"kbit/s", "Mbit/s"} {
		if v < 1000 {
			return fmt.Sprintf("%.4g %s", v, u)
		}
		v /= 1000
	}
	return fmt.Sprintf("%.4g Gbit/s", v)
}

// price prints ncredit per MiB as people say it: credits per GB.
func price(ncredit any) string {
	var v float64
	switch n := ncredit.(type) {
	case uint32:
		v = float64(n)
	case uint64:
		v = float64(n)
	}
	if v == 0 {
		return "free"
	}
	return fmt.Sprintf("%.3g credits/GB", v/(1<<20))
}

func span(seconds int64) string {
	switch {
	case seconds < 0:
		return "never"
	case seconds < 60:
		return fmt.Sprintf("%d s", seconds)
	case seconds < 3600:
		return fmt.Sprintf("%d min", seconds/60)
	case seconds < 48*3600:
		return fmt.Sprintf("%d h %d min", seconds/3600, seconds/60%60)
	}
	return fmt.Sprintf("%d days", seconds/86400)
}

func who(name, id string) string {
	if name != "" {
		return name
	}
	return id
}
