package api

import (
	"context"
	"net/netip"
	"net/url"
	"time"

	"weft/ident"
)

// Sharer shares the internet and counts what is carried.
type Sharer interface {
	Gateway(ctx context.Context) (Gateway, error)
	// OfferGateway begins, changes or ends sharing this node's line, now and after every start.
	OfferGateway(ctx context.Context, req OfferRequest) (Gateway, error)
	// UseGateway chooses where this node takes the internet from, now and after every start.
	UseGateway(ctx context.Context, req UseRequest) (Gateway, error)
	Meter(ctx context.Context) (Meter, error)
}

// Host serves devices without Weft.
type Host interface {
	Guests(ctx context.Context) (Guests, error)
	Vouchers(ctx context.Context) ([]Voucher, error)
	MakeVouchers(ctx context.Context, req VoucherRequest) ([]Voucher, error)
	RevokeVoucher(ctx context.Context, code string) error
	// ImportVouchers takes vouchers as ExportVouchers and pirania write them.
	ImportVouchers(ctx context.Context, req VoucherFile) (VoucherImport, error)
	ExportVouchers(ctx context.Context) (VoucherFile, error)
}

// Gateway is how this node shares the internet.
type Gateway struct {
	Offer   GatewayOffer    `json:"offer"`   // of this node's line
	Clients []GatewayClient `json:"clients"` // who has a lease from this node
	Use     GatewayUse      `json:"use"`     // of another's line
	DNS     DNS             `json:"dns"`     // how names are found
}

// GatewayOffer is the sharing of this node's line.
type GatewayOffer struct {
	On      bool              `json:"on"`                // the owner wants to share
	Active  bool              `json:"active"`            // and it is announced: the line works
	Why     string            `json:"why,omitempty"`     // why not, in plain words
	Mode    string            `json:"mode,omitempty"`    // kernel (NAT by the system) or userspace
	Price   uint32            `json:"price"`             // ncredit per MiB
	DownBps uint64            `json:"down_bps"`          // what clients may have together, bit/s; 0 is no limit
	UpBps   uint64            `json:"up_bps"`            // likewise for upload
	IPv4    bool              `json:"ipv4"`              // is shared now
	IPv6    bool              `json:"ipv6"`              // is shared now
	Members bool              `json:"members_only"`      // of the community
	Line    string            `json:"line,omitempty"`    // interface of the line
	Refused map[string]uint64 `json:"refused,omitempty"` // packets refused, by reason
}

// GatewayClient is a node with a lease.
type GatewayClient struct {
	ID        string          `json:"id"`             // node
	Key       ident.PublicKey `json:"key"`            // its key
	Name      string          `json:"name,omitempty"` // its name, if it has one
	IPv4      netip.Addr      `json:"ipv4,omitzero"`  // leased address
	Since     time.Time       `json:"since"`          // of the lease
	DownBytes uint64          `json:"down_bytes"`     // to the client, since the lease began
	UpBytes   uint64          `json:"up_bytes"`       // from the client
	DownBps   uint64          `json:"down_bps"`       // at present, bit/s
	UpBps     uint64          `json:"up_bps"`         // at present, bit/s
	Flows     int             `json:"flows"`          // open connections
	Member    bool            `json:"member"`         // of the community
}

// GatewayUse is where this node takes the internet from.
type GatewayUse struct {
	Choice     string             `json:"choice"`            // off, auto or a node
	State      string             `json:"state"`             // off, resting (own line works), searching, up, failing
	Why        string             `json:"why,omitempty"`     // in plain words
	ID         string             `json:"id,omitempty"`      // of the gateway in use
	Name       string             `json:"name,omitempty"`    // its name, if it has one
	IPv4       netip.Addr         `json:"ipv4,omitzero"`     // leased address
	IPv6       netip.Addr         `json:"ipv6,omitzero"`     // address that IPv6 goes out with
	Price      uint32             `json:"price"`             // ncredit per MiB
	RTTUs      int64              `json:"rtt_us"`            // to the gateway
	Since      time.Time          `json:"since,omitzero"`    // it is in use
	Standby    string             `json:"standby,omitempty"` // id of the gateway that takes over
	Failovers  uint64             `json:"failovers"`         // since the start
	Last       string             `json:"last,omitempty"`    // reason of the last change
	Whole      bool               `json:"whole"`             // the whole device uses it, not only the proxy
	Candidates []GatewayCandidate `json:"candidates"`        // gateways that are known, best first
}

// GatewayCandidate is a gateway that could be used.
type GatewayCandidate struct {
	ID      string `json:"id"`                // node
	Name    string `json:"name,omitempty"`    // its name, if it has one
	Offer   string `json:"offer"`             // in plain words
	Price   uint64 `json:"price"`             // ncredit per MiB, the carriage on the way included
	CostUs  uint32 `json:"cost_us"`           // of the way to it
	RTTUs   int64  `json:"rtt_us"`            // measured, 0 when not
	Score   uint64 `json:"score"`             // less is better
	State   string `json:"state"`             // in use, in reserve, asked, possible, unsuitable, left alone (after failures)
	Refused string `json:"refused,omitempty"` // why it is not used
}

// DNS is the node's resolver.
type DNS struct {
	Listen    []string      `json:"listen"`    // where it can be asked
	Redirect  bool          `json:"redirect"`  // all plain questions of this device end here
	Queries   uint64        `json:"queries"`   // since the start
	Cached    uint64        `json:"cached"`    // of which answered from the cache
	Failed    uint64        `json:"failed"`    // of which nobody answered
	Upstreams []DNSUpstream `json:"upstreams"` // who is asked
}

// DNSUpstream is a server that is asked.
type DNSUpstream struct {
	URI     string `json:"uri"`               // as configured
	RTTUs   int64  `json:"rtt_us"`            // smoothed
	Asked   uint64 `json:"asked"`             // questions
	Failed  uint64 `json:"failed"`            // of which unanswered
	Problem string `json:"problem,omitempty"` // the last one, in plain words
}

// OfferRequest changes the sharing of this node's line.
type OfferRequest struct {
	On      bool   `json:"on"`           // share
	Price   uint32 `json:"price"`        // ncredit per MiB
	DownBps uint64 `json:"down_bps"`     // bit/s, 0 is no limit
	UpBps   uint64 `json:"up_bps"`       // bit/s, 0 is no limit
	IPv4    bool   `json:"ipv4"`         // share IPv4
	IPv6    bool   `json:"ipv6"`         // share IPv6
	Members bool   `json:"members_only"` // with members of the community only
	Once    bool   `json:"once"`         // forget it when the node stops
}

// UseRequest chooses where the internet comes from.
type UseRequest struct {
	Choice string `json:"choice"` // off, auto, or a node: its name, id, key or address
	Once   bool   `json:"once"`   // forget it when the node stops
}

// Meter is who carried what for whom.
type Meter struct {
	Sessions []MeterSession `json:"sessions"` // gateway traffic, by peer
	Links    []MeterLink    `json:"links"`    // by neighbour
	Today    Traffic        `json:"today"`    // gateway traffic of this node's own household, UTC
	Month    Traffic        `json:"month"`    // likewise, since the first of the month
}

// Traffic is bytes and packets both ways.
type Traffic struct {
	SentBytes   uint64 `json:"sent_bytes"`   // IP packets to the other side
	SentPackets uint64 `json:"sent_packets"` // their number
	RecvBytes   uint64 `json:"recv_bytes"`   // IP packets from the other side
	RecvPackets uint64 `json:"recv_packets"` // their number
}

// MeterSession is what two nodes count of the gateway traffic between them.
type MeterSession struct {
	ID       string  `json:"id"`               // the other node
	Name     string  `json:"name,omitempty"`   // its name, if it has one
	Role     string  `json:"role"`             // gateway or client: what the other node is here
	Total    Traffic `json:"total"`            // as this node counts, since ever
	Agreed   Traffic `json:"agreed"`           // delivered, as both ends know: what a bill would say, without the constant per packet
	SentBps  uint64  `json:"sent_bps"`         // at present, bit/s
	RecvBps  uint64  `json:"recv_bps"`         // at present, bit/s
	GapSent  int64   `json:"gap_sent_bytes"`   // sent and not received, in the last full window
	GapRecv  int64   `json:"gap_recv_bytes"`   // sent by the other and not received here
	State    string  `json:"state"`            // good, or gap: the ends differ by more than the way may lose
	Reason   string  `json:"reason,omitempty"` // of a gap: lossy, silent, inflated, rewound
	BeaconMs int64   `json:"beacon_ms"`        // since the last word of the other's meter; negative when none came
	Billed   uint64  `json:"billed_bytes"`     // agreed bytes plus the constant per packet, both directions
}

// MeterLink is what a neighbour and this node handed each other.
type MeterLink struct {
	ID        string             `json:"id"`               // neighbour
	Name      string             `json:"name,omitempty"`   // its name, if it has one
	Classes   map[string]Traffic `json:"classes"`          // by class: bulk, control, gateway
	Delivered int                `json:"delivered"`        // of a thousand bytes sent through it, how many arrived at the end; -1 is not known
	Penalty   int                `json:"penalty_permille"` // what the link's cost is multiplied by for it; 1000 is none
}

// Guests are devices without Weft behind this node.
type Guests struct {
	On        bool    `json:"on"`                  // there is a network for guests
	Why       string  `json:"why,omitempty"`       // why not, in plain words
	Interface string  `json:"interface,omitempty"` // that they are on
	Mode      string  `json:"mode,omitempty"`      // voucher or open
	Portal    string  `json:"portal,omitempty"`    // URL of their first page
	Subnet    string  `json:"subnet,omitempty"`    // mesh addresses they get
	Network   string  `json:"network,omitempty"`   // IPv4 addresses they get
	DHCP      string  `json:"dhcp,omitempty"`      // who serves DHCP: dnsmasq, own, off
	Clients   []Guest `json:"clients"`             // devices
}

// Guest is one device.
type Guest struct {
	MAC       string   `json:"mac"`               // hardware address
	Addresses []string `json:"addresses"`         // IP addresses seen
	Name      string   `json:"name,omitempty"`    // that it gave itself
	State     string   `json:"state"`             // new, seen (was shown the page), allowed, expired
	Voucher   string   `json:"voucher,omitempty"` // code
	LeftS     int64    `json:"left_s"`            // seconds left, of who is allowed; -1 is no limit
	LeftBytes int64    `json:"left_bytes"`        // bytes left, of who is allowed; -1 is no limit
	Bytes     uint64   `json:"bytes"`             // used
}

// Voucher lets guests in.
type Voucher struct {
	Code      string    `json:"code"`               // what the guest types
	Note      string    `json:"note,omitempty"`     // for whom it is
	Minutes   int       `json:"minutes"`            // from the first use; 0 is no limit
	Bytes     int64     `json:"bytes"`              // 0 is no limit
	Devices   int       `json:"devices"`            // how many may use it; 0 is no limit
	State     string    `json:"state"`              // new, active, used up, expired, revoked
	Created   time.Time `json:"created"`            // when it was made
	Activated time.Time `json:"activated,omitzero"` // first use
	Expires   time.Time `json:"expires,omitzero"`   // end
	Used      uint64    `json:"used_bytes"`         // so far
	MACs      []string  `json:"macs,omitempty"`     // devices that use it
}

// VoucherRequest makes vouchers.
type VoucherRequest struct {
	Count   int    `json:"count"`   // how many, 1 to 1000
	Note    string `json:"note"`    // for whom they are
	Minutes int    `json:"minutes"` // from the first use; 0 is no limit
	Bytes   int64  `json:"bytes"`   // 0 is no limit
	Devices int    `json:"devices"` // how many may use one; 0 is no limit
}

// VoucherFile is a file of vouchers, in pirania's form.
type VoucherFile struct {
	JSON string `json:"json"` // the file's text
}

// VoucherImport says what became of a file.
type VoucherImport struct {
	Added   int      `json:"added"`             // vouchers
	Known   int      `json:"known"`             // were there already
	Refused []string `json:"refused,omitempty"` // and why
}

func (c *Client) Gateway(ctx context.Context) (Gateway, error) {
	return call[Gateway](ctx, c, "GET", "/v1/gateway", nil)
}

func (c *Client) OfferGateway(ctx context.Context, req OfferRequest) (Gateway, error) {
	return call[Gateway](ctx, c, "PUT", "/v1/gateway/offer", req)
}

func (c *Client) UseGateway(ctx context.Context, req UseRequest) (Gateway, error) {
	return call[Gateway](ctx, c, "PUT", "/v1/gateway/use", req)
}

func (c *Client) Meter(ctx context.Context) (Meter, error) {
	return call[Meter](ctx, c, "GET", "/v1/meter", nil)
}

func (c *Client) Guests(ctx context.Context) (Guests, error) {
	return call[Guests](ctx, c, "GET", "/v1/guests", nil)
}

func (c *Client) Vouchers(ctx context.Context) ([]Voucher, error) {
	return call[[]Voucher](ctx, c, "GET", "/v1/vouchers", nil)
}

func (c *Client) MakeVouchers(ctx context.Context, req VoucherRequest) ([]Voucher, error) {
	return call[[]Voucher](ctx, c, "POST", "/v1/vouchers", req)
}

func (c *Client) RevokeVoucher(ctx context.Context, code string) error {
	resp, err := c.do(ctx, "DELETE", "/v1/vouchers?code="+url.QueryEscape(code), nil)
	if err != nil {
		return err
	}
	return resp.Body.Close()
}

func (c *Client) ImportVouchers(ctx context.Context, req VoucherFile) (VoucherImport, error) {
	return call[VoucherImport](ctx, c, "POST", "/v1/vouchers/import", req)
}

func (c *Client) ExportVouchers(ctx context.Context) (VoucherFile, error) {
	return call[VoucherFile](ctx, c, "POST", "/v1/vouchers/export", nil)
}
