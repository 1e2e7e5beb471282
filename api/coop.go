package api

import (
	"context"
	"net"
	"net/http"
	"time"

	"weft/ident"
)

// Cooper is this node's part in a community's ledger. What the ledger holds is read under /v1/ledger/, which speaks as the
// engine's own socket does (package ledger/bft/bftclient).
type Cooper interface {
	Coop(ctx context.Context) (Coop, error)
	// FoundCoop begins a community whose ledger this node keeps.
	FoundCoop(ctx context.Context, req CoopFound) (Coop, error)
	// JoinCoop follows the ledger of a community that another node keeps. It makes nobody a member.
	JoinCoop(ctx context.Context, req CoopJoin) (Coop, error)
	// Transact signs a transaction with the node's key and waits until it is in a block.
	Transact(ctx context.Context, req CoopTx) (CoopResult, error)
	// Sponsor signs for a key that wants to apply for membership.
	Sponsor(ctx context.Context, req CoopSponsor) (CoopWord, error)
	// Agree signs with the node's key that it agrees to something that a member then sends.
	Agree(ctx context.Context, req CoopAgree) (CoopAgreement, error)
}

// Coop is this node's community as the ledger has it.
type Coop struct {
	State      string    `json:"state"`                // none, starting, keeping, following, unreachable
	Why        string    `json:"why,omitempty"`        // in plain words
	Chain      string    `json:"chain,omitempty"`      // id of the ledger's chain
	Keeper     string    `json:"keeper,omitempty"`     // id of the node whose ledger is followed
	Name       string    `json:"name,omitempty"`       // of that node
	Height     int64     `json:"height"`               // of the newest block
	Time       time.Time `json:"time,omitzero"`        // of the newest block
	Validators int       `json:"validators"`           // that vote on blocks
	Validating bool      `json:"validating"`           // this node is one of them
	Members    uint64    `json:"members"`              // with a vote
	Member     uint64    `json:"member,omitempty"`     // number of this node's owner; 0 is none
	Called     string    `json:"called,omitempty"`     // as the register has the owner
	Standing   string    `json:"standing,omitempty"`   // active, suspended, left, expelled
	Balance    int64     `json:"balance_ncredit"`      // of this node's key; negative is owed
	Limit      int64     `json:"limit_ncredit"`        // how far it may be owed
	Verified   bool      `json:"verified"`             // the account is proved against blocks that this node has verified
	Verifying  string    `json:"verifying,omitempty"`  // how the verification of blocks stands, in plain words
	Domain     string    `json:"domain,omitempty"`     // of the community's names: LABEL.DOMAIN
	Names      []string  `json:"names,omitempty"`      // of this node's owner, whole
	Registered string    `json:"registered,omitempty"` // how this node stands in the ledger: whose it is, what it serves as, in plain words
	Warnings   []string  `json:"warnings,omitempty"`   // what the owner must know, in plain words: a new key for the owner's membership, rules that this program does not know
}

// CoopFound begins a community.
type CoopFound struct {
	Name     string            `json:"name"`               // of the community
	Called   string            `json:"called"`             // the founder's name in the register
	Template string            `json:"template,omitempty"` // of the bylaws
	Settings map[string]string `json:"settings,omitempty"` // bylaws that differ from it
}

// CoopJoin follows a community's ledger.
type CoopJoin struct {
	Node string `json:"node"` // that keeps it: name, id, key or address
	Full bool   `json:"full"` // keep the whole ledger here too; it is needed to become a validator
}

// CoopTx is a transaction to sign: a body of package ledger/tx.
type CoopTx struct {
	Kind uint16 `json:"kind"` // of the body
	Body []byte `json:"body"` // its bytes
}

// CoopResult is what became of a transaction.
type CoopResult struct {
	Hash   string `json:"hash"`           // names it
	Code   uint32 `json:"code"`           // 0 is success
	Text   string `json:"text,omitempty"` // why it was refused
	Data   []byte `json:"data,omitempty"` // such as the number of a proposal
	Height int64  `json:"height"`         // of its block
}

// CoopSponsor asks for a word for a key.
type CoopSponsor struct {
	Key  ident.PublicKey `json:"key"`  // that wants to apply
	Days int             `json:"days"` // for which the word holds; 0 is 14
}

// CoopWord is a member's signature for an applicant.
type CoopWord struct {
	Sponsor ident.PublicKey `json:"sponsor"` // who signs
	Until   int64           `json:"until"`   // seconds since 1970
	Word    []byte          `json:"word"`    // the signature
}

// CoopAgree asks for the node's signature under something that concerns its key.
type CoopAgree struct {
	To     string `json:"to"`     // rekey: be the member's new key; act: act for the member; register: be the member's node; revoke: be revoked
	Member uint64 `json:"member"` // number; of no meaning when To is revoke
}

// CoopAgreement is that signature.
type CoopAgreement struct {
	To     string          `json:"to"`     // as it was asked
	Member uint64          `json:"member"` // number
	Key    ident.PublicKey `json:"key"`    // of this node, which signs
	Word   []byte          `json:"word"`   // the signature
}

// Ledger is a Backend through which the ledger's state can be read.
type Ledger interface {
	// LedgerHandler serves what the engine's own socket serves.
	LedgerHandler() http.Handler
}

func (c *Client) Coop(ctx context.Context) (Coop, error) {
	return call[Coop](ctx, c, "GET", "/v1/coop", nil)
}

func (c *Client) FoundCoop(ctx context.Context, req CoopFound) (Coop, error) {
	return call[Coop](ctx, c, "POST", "/v1/coop/found", req)
}

func (c *Client) JoinCoop(ctx context.Context, req CoopJoin) (Coop, error) {
	return call[Coop](ctx, c, "POST", "/v1/coop/join", req)
}

func (c *Client) Transact(ctx context.Context, req CoopTx) (CoopResult, error) {
	return call[CoopResult](ctx, c, "POST", "/v1/coop/tx", req)
}

func (c *Client) Sponsor(ctx context.Context, req CoopSponsor) (CoopWord, error) {
	return call[CoopWord](ctx, c, "POST", "/v1/coop/sponsor", req)
}

func (c *Client) Agree(ctx context.Context, req CoopAgree) (CoopAgreement, error) {
	return call[CoopAgreement](ctx, c, "POST", "/v1/coop/agree", req)
}

// DialLedger connects to the node's socket, for a bftclient.Client over LedgerPath.
func (c *Client) DialLedger(ctx context.Context) (net.Conn, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", c.socket)
	if err != nil {
		return nil, c.dialError(err)
	}
	return conn, nil
}

// LedgerPath is where LedgerHandler is served.
const LedgerPath = "/v1/ledger"
