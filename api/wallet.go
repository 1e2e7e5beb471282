package api

import (
	"context"
	"net/url"
	"time"
)

// Purse is what this node pays for what others carry, and what it earns by carrying.
type Purse interface {
	Wallet(ctx context.Context) (Wallet, error)
	// SetWallet changes what the node may spend by itself.
	SetWallet(ctx context.Context, req WalletRequest) (Wallet, error)
	// SettleWallet claims at the ledger now what others have promised; by itself the node does so once a day.
	SettleWallet(ctx context.Context) (Wallet, error)
	// Bill returns the lines of a calendar month (UTC), such as 2026-11; an empty month is this one.
	Bill(ctx context.Context, month string) ([]BillLine, error)
	// AuditWallet checks all lines, vouchers and receipts again against this node's own counters.
	AuditWallet(ctx context.Context) (WalletAudit, error)
}

// Wallet is the owner's view of tabs. Money is in ncredit, prices are in ncredit per MiB.
type Wallet struct {
	State     string          `json:"state"`                // none (no community), starting, on
	Why       string          `json:"why,omitempty"`        // in plain words, and what to do
	Member    bool            `json:"member"`               // of the community; only a member pays and is paid
	Cap       int64           `json:"cap_ncredit"`          // for a month
	Spent     int64           `json:"spent_ncredit"`        // this month
	Earned    int64           `json:"earned_ncredit"`       // this month: as a gateway and by carrying
	Balance   int64           `json:"balance_ncredit"`      // of this node's account
	Limit     int64           `json:"limit_ncredit"`        // how far it may be below zero
	Available int64           `json:"available_ncredit"`    // balance, credit, and what is left in tabs
	From      string          `json:"from,omitempty"`       // the gateway in use
	Price     uint32          `json:"price,omitempty"`      // its, with carriage
	Left      uint64          `json:"left_bytes"`           // what the rest of the cap and the account buy at that price
	FreeKbit  uint32          `json:"free_kbit,omitempty"`  // the free tier
	Carriage  uint32          `json:"carriage,omitempty"`   // price of a relay's work
	PriceMost uint32          `json:"price_most,omitempty"` // highest price that a gateway may ask
	Bylaws    uint64          `json:"bylaws,omitempty"`     // version in force here
	Today     WalletUse       `json:"today"`
	Days      []WalletUse     `json:"days"` // of this month, those with any use, oldest first
	Accounts  []WalletAccount `json:"accounts"`
	Problem   string          `json:"problem,omitempty"` // nothing can be signed or booked, and why
}

// WalletUse is what was used, paid, carried and earned on a day.
type WalletUse struct {
	Day     string `json:"day"`          // UTC, 2026-11-22
	Used    uint64 `json:"used_bytes"`   // billed to this node as a user
	Cost    int64  `json:"cost_ncredit"` // of that and of carriage
	Served  uint64 `json:"served_bytes"` // billed by it
	Earned  int64  `json:"earned_ncredit"`
	Forgive int64  `json:"forgiven_ncredit,omitempty"` // of what others owed: the free tier's worth
}

// WalletAccount is one peer to whom this node pays, or who pays it, for one service.
type WalletAccount struct {
	ID       string `json:"id"`
	Name     string `json:"name,omitempty"`
	Role     string `json:"role"`    // payer: this node pays; payee
	Service  string `json:"service"` // internet, carriage
	State    string `json:"state"`   // free, trust, open, due, grace, throttled
	Price    uint32 `json:"price"`
	Refused  uint32 `json:"refused_price,omitempty"` // asked, and more than the owner wants to pay
	Bytes    uint64 `json:"bytes"`                   // billed in all
	Owed     int64  `json:"owed_ncredit"`
	Paid     int64  `json:"paid_ncredit"` // promised by vouchers in all
	Exposure uint64 `json:"exposure_bytes,omitempty"`
	Tab      string `json:"tab,omitempty"`
	TabLeft  int64  `json:"tab_left_ncredit,omitempty"`    // not promised yet
	Claimed  int64  `json:"tab_claimed_ncredit,omitempty"` // as the ledger has it
	Earmark  int64  `json:"tab_earmark_ncredit,omitempty"`
	Gap      bool   `json:"gap,omitempty"` // the meters of both ends differ
	Dry      bool   `json:"dry,omitempty"` // the month's cap is reached
}

// WalletRequest changes what a node may spend.
type WalletRequest struct {
	Cap  int64 `json:"cap_ncredit"` // for a calendar month
	Once bool  `json:"once"`        // until the node's next start
}

// Readings are counters at one end of a bill's line.
type Readings struct {
	Sent   uint64 `json:"sent_bytes"`
	Recv   uint64 `json:"received_bytes"`
	Series uint64 `json:"series,string"` // readings of one series can be compared
}

// BillLine is one account at one price in one tab on one day. First and Last are this node's meter; what moved between them is Bytes.
type BillLine struct {
	Number   uint64    `json:"number"` // 0: it is open
	Role     string    `json:"role"`
	Service  string    `json:"service"`
	ID       string    `json:"id"`
	Name     string    `json:"name,omitempty"`
	From     time.Time `json:"from"`
	Until    time.Time `json:"until"`
	Price    uint32    `json:"price"`
	First    Readings  `json:"first"`
	Last     Readings  `json:"last"`
	Bytes    uint64    `json:"bytes"`
	Amount   int64     `json:"amount_ncredit"`
	Forgiven int64     `json:"forgiven_ncredit,omitempty"`
	Signed   int64     `json:"signed_ncredit"` // by vouchers within the line
	Tab      string    `json:"tab,omitempty"`
	Voucher  uint64    `json:"voucher,omitempty"` // number of the newest
	Receipt  uint64    `json:"receipt,omitempty"` // number of the voucher that the payee has signed for
}

// WalletAudit is what an audit has found.
type WalletAudit struct {
	Lines    int      `json:"lines"`
	Vouchers int      `json:"vouchers"`
	Receipts int      `json:"receipts"`
	Bytes    uint64   `json:"bytes"`
	Unbilled uint64   `json:"unbilled_bytes"`
	Rewound  uint64   `json:"rewound_bytes"`
	Paid     int64    `json:"paid_ncredit"`
	Earned   int64    `json:"earned_ncredit"`
	Owing    int64    `json:"owing_ncredit"` // not yet signed for
	Owned    int64    `json:"owned_ncredit"` // not yet signed for by others
	Findings []string `json:"findings"`      // what cannot be; empty: all of it agrees
}

func (c *Client) Wallet(ctx context.Context) (Wallet, error) {
	return call[Wallet](ctx, c, "GET", "/v1/wallet", nil)
}

func (c *Client) SetWallet(ctx context.Context, req WalletRequest) (Wallet, error) {
	return call[Wallet](ctx, c, "PUT", "/v1/wallet", req)
}

func (c *Client) SettleWallet(ctx context.Context) (Wallet, error) {
	return call[Wallet](ctx, c, "POST", "/v1/wallet/settle", nil)
}

func (c *Client) Bill(ctx context.Context, month string) ([]BillLine, error) {
	return call[[]BillLine](ctx, c, "GET", "/v1/wallet/bill?"+url.Values{"month": {month}}.Encode(), nil)
}

func (c *Client) AuditWallet(ctx context.Context) (WalletAudit, error) {
	return call[WalletAudit](ctx, c, "GET", "/v1/wallet/audit", nil)
}
