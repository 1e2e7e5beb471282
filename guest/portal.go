package guest

import (
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"html/template"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"golang.org/x/time/rate"
)

const (
	apiPath     = "/captive/api" // RFC 8908
	maxBody     = 4096
	maxRequests = 50 // a second, of all guests
)

//go:embed page.html
var pageHTML string

// Real answers of the servers that phones and computers ask whether they are online. A probe that gets exactly this believes
// it is. The paths are asked of many hosts, so only the path counts.
func probeAnswer(path string) (status int, typ, body string, known bool) {
	const plain, html = "text/plain", "text/html"
	switch path {
	case "/generate_204", "/gen_204", "/generate204": // Android, ChromeOS, Chrome
		return http.StatusNoContent, "", "", true
	case "/hotspot-detect.html", "/library/test/success.html": // Apple
		return http.StatusOK, html, "<HTML><HEAD><TITLE>Success</TITLE></HEAD><BODY>Success</BODY></HTML>", true
	case "/connecttest.txt": // Windows 10 and later
		return http.StatusOK, plain, "Microsoft Connect Test", true
	case "/ncsi.txt": // Windows 7 and 8
		return http.StatusOK, plain, "Microsoft NCSI", true
	case "/redirect": // where Windows opens its browser
		return 0, "", "", true
	case "/success.txt": // Firefox
		return http.StatusOK, plain, "success\n", true
	case "/canonical.html": // Firefox
		return http.StatusOK, html, `<meta http-equiv="refresh" content="0;url=https://support.mozilla.org/kb/captive-portal"/>`, true
	case "/check_network_status.txt": // GNOME, NetworkManager
		return http.StatusOK, plain, "NetworkManager is online\n", true
	case "/nm-check.txt":
		return http.StatusOK, plain, "NetworkManager is online", true
	case "/kindle-wifi/wifistub.html", "/kindle-wifi/wifiredirect.html": // Kindle
		return http.StatusOK, html, "<html><head><title>Kindle Reachability Probe Page</title></head><body>81ce4465-7167-4dcb-835b-dcc9e44c112a</body></html>", true
	}
	return 0, "", "", false
}

// portal is the page, the probes' answers and the API. It is an http.Handler for requests that come from guests, directly or
// because the kernel led their port 80 here.
type portal struct {
	cfg    *Config
	desk   *desk
	uplink func() (up4, up6 bool)
	page   *template.Template
	limit  *rate.Limiter
}

func newPortal(cfg *Config, d *desk, uplink func() (bool, bool)) (*portal, error) {
	t, err := template.New("page").Parse(pageHTML)
	if err != nil {
		return nil, err
	}
	return &portal{cfg: cfg, desk: d, uplink: uplink, page: t, limit: rate.NewLimiter(maxRequests, 2*maxRequests)}, nil
}

// Handler returns the portal's page, probes and API, for tests and for servers that are not ours. A request's remote address
// says who asks.
func (g *Guests) Handler() http.Handler { return g.portal }

// url is the page's address for someone who reached us at local.
func (p *portal) url(local netip.Addr) string {
	switch {
	case p.cfg.TLS != nil:
		return "https://" + p.cfg.Host + "/"
	case p.cfg.Host != "":
		return "http://" + p.cfg.Host + "/"
	case local.Is6():
		return "http://[" + local.WithZone("").String() + "]/"
	}
	return "http://" + local.String() + "/"
}

// localOf returns our address that a request came to.
func (p *portal) localOf(r *http.Request) netip.Addr {
	if a, ok := r.Context().Value(http.LocalAddrContextKey).(net.Addr); ok {
		if ap, err := netip.ParseAddrPort(a.String()); err == nil {
			return ap.Addr().Unmap()
		}
	}
	if a := p.cfg.Addr4(); a.IsValid() {
		return a
	}
	return p.cfg.Addr6()
}

// ours reports whether a request is meant for us, and not led here from somewhere else.
func (p *portal) ours(host string) bool {
	h := host
	if hh, _, err := net.SplitHostPort(host); err == nil {
		h = hh
	}
	h = strings.TrimSuffix(strings.TrimPrefix(h, "["), "]")
	if p.cfg.Host != "" && strings.EqualFold(h, p.cfg.Host) {
		return true
	}
	a, err := netip.ParseAddr(h)
	return err == nil && a.IsValid() && (a == p.cfg.Addr4() || a == p.cfg.Addr6())
}

func (p *portal) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	h.Set("Cache-Control", "no-store, no-cache, must-revalidate, max-age=0")
	h.Set("Pragma", "no-cache")
	h.Set("Expires", "0")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("X-Frame-Options", "DENY")
	h.Set("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; base-uri 'none'")
	h.Set("Referrer-Policy", "no-referrer")
	if !p.limit.Allow() {
		h.Set("Retry-After", "2")
		http.Error(w, "busy", http.StatusServiceUnavailable)
		return
	}
	from, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		http.Error(w, "no address", http.StatusBadRequest)
		return
	}
	r.Body = http.MaxBytesReader(w, r.Body, maxBody)
	who, here := from.Addr(), p.localOf(r)
	if r.Method != http.MethodGet && r.Method != http.MethodHead && r.Method != http.MethodPost {
		http.Error(w, "network authentication required: open "+p.url(here), http.StatusNetworkAuthenticationRequired)
		return
	}
	if !p.ours(r.Host) || r.URL.IsAbs() {
		p.led(w, r, who, here)
		return
	}
	switch r.URL.Path {
	case "/":
		c, err := p.desk.visit(who)
		p.show(w, r, here, c, err)
	case "/voucher", "/tap", "/stay":
		p.act(w, r, who, here)
	case apiPath:
		p.api(w, who, here)
	default:
		p.led(w, r, who, here)
	}
}

// led answers what was meant for someone else, or for nobody: probes of the devices that may stay get the answer they hope
// for, everything else is shown the way to the page.
func (p *portal) led(w http.ResponseWriter, r *http.Request, who, here netip.Addr) {
	w.Header().Set("Connection", "close") // or the browser would go on asking us on it after it was let in
	if status, typ, body, ok := probeAnswer(r.URL.Path); ok && status != 0 && r.Method != http.MethodPost {
		if c, err := p.desk.visit(who); err == nil && (c.Stay || c.State == StateAllowed) {
			if typ != "" {
				w.Header().Set("Content-Type", typ)
				w.Header().Set("Content-Length", strconv.Itoa(len(body)))
			}
			w.WriteHeader(status)
			if r.Method == http.MethodGet && body != "" {
				_, _ = w.Write([]byte(body))
			}
			return
		}
	}
	if r.Method == http.MethodPost { // nothing that was meant for others is to be sent to us again
		http.Error(w, "network authentication required: open "+p.url(here), http.StatusNetworkAuthenticationRequired)
		return
	}
	http.Redirect(w, r, p.url(here), http.StatusFound)
}

// act is one of the three buttons. After success the browser is sent back to the page, so that reloading does it not again.
func (p *portal) act(w http.ResponseWriter, r *http.Request, who, here netip.Addr) {
	if r.Method != http.MethodPost {
		http.Redirect(w, r, "/", http.StatusSeeOther)
		return
	}
	var c Client
	var err error
	switch r.URL.Path {
	case "/voucher":
		if perr := r.ParseForm(); perr != nil {
			http.Error(w, "the form cannot be read", http.StatusBadRequest)
			return
		}
		c, err = p.desk.redeem(who, r.PostForm.Get("code"))
	case "/tap":
		c, err = p.desk.tap(who)
	case "/stay":
		c, err = p.desk.stay(who)
	}
	if err != nil {
		p.show(w, r, here, c, err)
		return
	}
	http.Redirect(w, r, "/", http.StatusSeeOther)
}

// captiveAPI is RFC 8908 section 5.
type captiveAPI struct {
	Captive   bool    `json:"captive"`
	Portal    string  `json:"user-portal-url,omitempty"`
	Venue     string  `json:"venue-info-url,omitempty"`
	Seconds   *int64  `json:"seconds-remaining,omitempty"`
	Bytes     *uint64 `json:"bytes-remaining,omitempty"`
	CanExtend bool    `json:"can-extend-session"`
}

func (p *portal) api(w http.ResponseWriter, who, here netip.Addr) {
	c, err := p.desk.visit(who)
	if err != nil {
		http.Error(w, "not a guest", http.StatusForbidden)
		return
	}
	a := captiveAPI{Captive: c.State != StateAllowed && !c.Stay, Portal: p.url(here), Venue: p.cfg.Venue, CanExtend: p.cfg.Access != AccessOpen}
	if c.State == StateAllowed {
		a.Bytes = c.BytesLeft
		if !c.Ends.IsZero() {
			s := int64(c.Left / time.Second)
			a.Seconds = &s
		}
	}
	w.Header().Set("Cache-Control", "private, no-store") // RFC 8908 section 4.1: answers are about one device
	w.Header().Set("Content-Type", "application/captive+json")
	_ = json.NewEncoder(w).Encode(a)
}

// view is what the page shows.
type view struct {
	Lang, Name, Welcome, Problem, MeshText, URL string
	T                                           words
	Allowed, Uplink, Tap, Code, Expired, Stay   bool
	Bars                                        []bar
}

type bar struct {
	Text    string
	Bar     bool
	Percent int
}

func (p *portal) show(w http.ResponseWriter, r *http.Request, here netip.Addr, c Client, problem error) {
	up4, up6 := p.uplink()
	lang, t := wordsFor(r.Header.Get("Accept-Language"))
	v := view{Lang: lang, T: t, Name: p.cfg.Name, Welcome: p.cfg.Welcome, URL: p.url(here), MeshText: t.MeshFree,
		Allowed: c.State == StateAllowed, Uplink: up4 || up6, Expired: c.State == StateExpired, Stay: c.Stay}
	if p.cfg.Mesh != MeshFree {
		v.MeshText = t.MeshNone
	}
	v.Tap = p.cfg.Access == AccessTap && !v.Allowed
	v.Code = p.cfg.Access != AccessOpen
	status := http.StatusOK
	switch {
	case problem == nil:
	case errors.Is(problem, ErrNoVoucher):
		v.Problem = t.Unknown
	case errors.Is(problem, ErrVoucherOver):
		v.Problem = t.Used
	case errors.Is(problem, ErrVoucherTaken):
		v.Problem = t.Taken
	case errors.Is(problem, errTooFast):
		v.Problem, status = t.Fast, http.StatusTooManyRequests
	case errors.Is(problem, errStranger):
		v.Problem, status = t.Stranger, http.StatusForbidden
		v.Tap, v.Code = false, false
	default:
		v.Problem, status = t.Broken, http.StatusInternalServerError
		p.cfg.Log.Warn("guest's request failed", "err", problem)
	}
	if v.Allowed {
		v.Bars = bars(c, t)
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.Header().Set("Vary", "Accept-Language")
	w.Header().Set("Content-Language", lang)
	w.WriteHeader(status)
	if r.Method == http.MethodHead {
		return
	}
	if err := p.page.Execute(w, v); err != nil {
		p.cfg.Log.Debug("page not sent", "err", err)
	}
}

func bars(c Client, t words) []bar {
	var out []bar
	if !c.Ends.IsZero() {
		b := bar{Text: fmt.Sprintf(t.Left, amountOfTime(c.Left, t))}
		if c.Minutes > 0 {
			b.Bar, b.Percent = true, percent(float64(c.Left), float64(c.Minutes)*float64(time.Minute))
		}
		out = append(out, b)
	}
	if c.BytesLeft != nil {
		out = append(out, bar{Text: fmt.Sprintf(t.BytesLeft, amountOfBytes(*c.BytesLeft)), Bar: true, Percent: percent(float64(*c.BytesLeft), float64(c.Bytes))})
	}
	if len(out) == 0 {
		out = append(out, bar{Text: t.Endless})
	}
	return out
}

func percent(part, whole float64) int {
	if whole <= 0 {
		return 0
	}
	return int(min(max(part/whole*100+.5, 1), 100))
}

func amountOfTime(d time.Duration, t words) string {
	m := int64((d + time.Minute - 1) / time.Minute)
	if m < 120 {
		return fmt.Sprintf("%d %s", m, t.Minutes)
	}
	return fmt.Sprintf("%d %s %d %s", m/60, t.Hours, m%60, t.Minutes)
}

func amountOfBytes(n uint64) string {
	switch {
	case n >= 10e9:
		return fmt.Sprintf("%.0f GB", float64(n)/1e9)
	case n >= 1e9:
		return fmt.Sprintf("%.1f GB", float64(n)/1e9)
	case n >= 1e6:
		return fmt.Sprintf("%.0f MB", float64(n)/1e6)
	}
	return fmt.Sprintf("%d kB", (n+999)/1000)
}
