package lite

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"time"

	"weft/ledger/tx"
)

// DefaultPeriod is how long a block is trusted: no longer than validators can be held to account for what they signed, which is
// CometBFT's evidence window (docs/spec/ledger.md section 5).
const DefaultPeriod = 14 * 24 * time.Hour

// Bounds of a client's state.
const (
	maxKept  = 32       // trusted blocks in memory: 0.5 MB at worst, 30 kB with four validators
	MaxState = 64 << 10 // bytes that Save returns; 2 kB with four validators
	lateAge  = time.Hour
)

// Trust is where a client begins: a block whose hash a person has from somebody trusted, in an invitation or read aloud.
type Trust struct {
	Chain  string
	Height int64
	Hash   Hash
	Period time.Duration // whole seconds; 0: DefaultPeriod
}

// Fields implements tx.Record.
func (t *Trust) Fields(c *tx.Coder) {
	c.Text(&t.Chain, MaxChain)
	c.I64(&t.Height)
	c.Fixed(t.Hash[:])
	sec := int64(t.Period / time.Second)
	c.I64(&sec)
	if err := checkPeriod(sec); err != nil {
		c.Fail(err)
	}
	t.Period = time.Duration(sec) * time.Second
}

func checkPeriod(sec int64) error {
	if sec < 3600 || sec > 365*86400 {
		return fmt.Errorf("a trusting period of %d seconds: an hour to a year is allowed", sec)
	}
	return nil
}

// Client knows which blocks to believe. It is fed by Update with blocks from any neighbours, in any order.
//
//	            the block of Trust            every valid block
//	(waiting) ──────────────────▶ (trusting) ◀───────────┐
//	                                 │  │  └─────────────┘
//	              older than Period  │  │ two that contradict each other
//	                      (expired) ◀┘  └▶ (forked)            out of both only New leads
type Client struct {
	trust Trust
	kept  []known // by height; the last is the newest
	wait  *known  // newer, but too far from the newest: bisection is under way
	asked int64   // the height that Want gave last for the sake of wait
	fork  *Evidence
}

type known struct {
	*LightBlock
	hash Hash
}

// Evidence is two blocks that were both found valid and cannot both be of one chain: one height with two hashes, a block and the next
// that names another before it, or an older one with a later time. More than a third of the validators' power must have broken the rules.
type Evidence struct{ A, B *LightBlock }

// New returns a client that trusts t and nothing else yet.
func New(t Trust) (*Client, error) {
	if t.Period == 0 {
		t.Period = DefaultPeriod
	}
	t.Period = t.Period.Truncate(time.Second)
	if t.Chain == "" || t.Height < 1 || t.Hash == (Hash{}) {
		return nil, errors.New("a checkpoint is a chain's id with a block's height and hash: ask a member for one")
	}
	if err := tx.Check(&t); err != nil {
		return nil, fmt.Errorf("use checkpoint: %w", err)
	}
	return &Client{trust: t}, nil
}

// News is what a block brought.
type News int

// The news. Refused comes with an error.
const (
	Refused News = iota
	Known        // it was trusted already: another neighbour says the same
	Trusted      // it is trusted now
	Later        // it may be right, but one in between is needed first: see Want
)

// Update judges a block that a neighbour sent, at time now, and keeps it if it is good: the caller does not change it any more. An error is ErrInvalid (the neighbour errs or lies), ErrFar (a block older than the newest
// that cannot be judged from what is kept), ErrExpired or ErrFork.
//
// Ask a second neighbour for the newest block's height and feed its answer too: so a fork is found, or the same block is Known.
func (c *Client) Update(now time.Time, b *LightBlock) (News, error) {
	if c.fork != nil {
		return Refused, ErrFork
	}
	h, err := b.check(c.trust.Chain)
	if err != nil {
		return Refused, err
	}
	k := known{b, h}
	if len(c.kept) == 0 {
		return c.begin(now, k)
	}
	i, same := slices.BinarySearchFunc(c.kept, b.Header.Height, func(k known, height int64) int {
		return int(min(1, max(-1, k.Header.Height-height)))
	})
	if same && c.kept[i].hash == h {
		return Known, nil
	}
	if same {
		// Another block at a height that has one. It is a fork if those who signed ours signed this too; if it has other validators, an older
		// block may tell.
		if s := newSignatures(b, h); s.byTrusted(c.kept[i].Set) == nil && s.byOwn() == nil {
			return Refused, c.keep(i, same, k)
		}
	}
	if i == 0 {
		return Refused, fmt.Errorf("%w: block %d is not newer than all that is kept here", ErrFar, b.Header.Height)
	}
	err = verify(c.kept[i-1].LightBlock, b, h, now, c.trust.Period)
	if errors.Is(err, ErrFar) && i == len(c.kept) {
		// The nearer one helps more, and is no use to a liar: each answer to Want either leads on or shows the lie.
		if c.wait == nil || b.Header.Height < c.wait.Header.Height {
			c.wait = &k
		}
		return Later, nil
	}
	if err != nil {
		return Refused, err
	}
	if err := c.keep(i, same, k); err != nil {
		return Refused, err
	}
	c.retry(now, b.Header.Height)
	if c.fork != nil {
		return Refused, ErrFork
	}
	return Trusted, nil
}

// begin takes the block of the checkpoint.
func (c *Client) begin(now time.Time, k known) (News, error) {
	switch {
	case k.Header.Height != c.trust.Height:
		return Refused, fmt.Errorf("%w: the checkpoint's block, %d, comes first", ErrFar, c.trust.Height)
	case k.hash != c.trust.Hash:
		return Refused, invalid("block %d is %v, where the checkpoint says %v", k.Header.Height, k.hash, c.trust.Hash)
	case !k.Header.Time.Before(now.Add(MaxDrift)):
		return Refused, invalid("the checkpoint's block is of %v, which is not yet: set this device's clock", k.Header.Time)
	}
	if err := newSignatures(k.LightBlock, k.hash).byOwn(); err != nil {
		return Refused, err
	}
	c.kept = append(c.kept, k)
	return Trusted, nil
}

// keep puts a verified block at place i, or finds that it contradicts one that is there (same: of the same height).
func (c *Client) keep(i int, same bool, k known) error {
	accuse := func(o known) error {
		c.fork = &Evidence{o.LightBlock, k.LightBlock}
		c.wait = nil
		return ErrFork
	}
	if same {
		return accuse(c.kept[i])
	}
	if o := c.kept[i-1]; contradict(o, k) {
		return accuse(o)
	}
	if i < len(c.kept) {
		if o := c.kept[i]; contradict(k, o) {
			return accuse(o)
		}
	}
	c.kept = slices.Insert(c.kept, i, k)
	if len(c.kept) > maxKept {
		c.kept = slices.Delete(c.kept, 0, 1)
	}
	return nil
}

// contradict reports whether a block and a later one cannot be of one chain.
func contradict(a, b known) bool {
	return a.Header.Height+1 == b.Header.Height && b.Header.Last.Hash != a.hash || !b.Header.Time.After(a.Header.Time)
}

// retry looks at the waiting block again after one of some height was taken.
func (c *Client) retry(now time.Time, height int64) {
	newest := c.kept[len(c.kept)-1]
	if c.wait == nil || newest.Header.Height != height {
		return
	}
	w, err := *c.wait, ErrInvalid
	if w.Header.Height > newest.Header.Height {
		err = verify(newest.LightBlock, w.LightBlock, w.hash, now, c.trust.Period)
	}
	if errors.Is(err, ErrFar) && height == c.asked {
		return // on the way
	}
	// Done, false, or nobody has what Want asks for its sake: the next newest block starts anew.
	c.wait = nil
	if err == nil {
		_ = c.keep(len(c.kept), false, w) // its error is in c.fork
	}
}

// Want returns the height of the block to ask neighbours for next; 0 is the newest that they have. ok is false when no block helps any more.
func (c *Client) Want(now time.Time) (height int64, ok bool) {
	switch {
	case c.fork != nil:
		return 0, false
	case len(c.kept) == 0:
		return c.trust.Height, true
	case expired(&c.newest().Header, now, c.trust.Period):
		return 0, false
	case c.wait == nil:
		return 0, true
	}
	low := c.newest().Header.Height
	c.asked = low + max(1, (c.wait.Header.Height-low)/2)
	return c.asked, true
}

func (c *Client) newest() *LightBlock { return c.kept[len(c.kept)-1].LightBlock }

// Newest returns the newest trusted block, nil when there is none. It is not to be changed.
func (c *Client) Newest() *LightBlock {
	if len(c.kept) == 0 {
		return nil
	}
	return c.newest()
}

// Fork returns the proof that the validators broke the rules, nil when there is none.
func (c *Client) Fork() *Evidence { return c.fork }

// ErrHeader is returned by Prove when the header after the proof's height is not trusted: ask for that block first, and feed it to Update.
var ErrHeader = errors.New("the block after the proof's height is not known here: ask for it first")

// Prove checks that key has value in the state after block height: the root of that state is in the header of the next block. It returns
// when that was, by the chain's time; how old an answer may be, the caller decides. An error is ErrHeader, ErrProof, ErrExpired or ErrFork.
func (c *Client) Prove(now time.Time, key, value []byte, p *Proof, height int64) (at time.Time, err error) {
	switch {
	case c.fork != nil:
		return at, ErrFork
	case len(c.kept) == 0:
		return at, ErrHeader
	case expired(&c.newest().Header, now, c.trust.Period):
		return at, ErrExpired
	}
	for _, k := range c.kept {
		if height >= 0 && k.Header.Height-1 == height {
			root, err := p.Root(key, value)
			if err != nil {
				return at, err
			}
			if !bytes.Equal(root[:], k.Header.AppHash) {
				return at, fmt.Errorf("%w: it leads to another state than block %d has", ErrProof, k.Header.Height)
			}
			return k.Header.Time, nil
		}
	}
	return at, ErrHeader
}

// State is how much a client's word is worth.
type State int

// The states.
const (
	Waiting State = iota // for the block of the checkpoint
	Good
	Late      // the newest block is over an hour old: the ledger stands still, or nobody near has news
	WrongTime // the newest block is younger than this device's clock can be
	Expired
	Forked
)

// Status is what a person should know.
type Status struct {
	State  State
	Height int64         // of the newest trusted block; 0: none
	Time   time.Time     // its
	Age    time.Duration // since then
	Until  time.Time     // the client expires unless it hears of a newer block
	Text   string        // in plain words: what is, and what to do
}

// Status describes the client at time now.
func (c *Client) Status(now time.Time) Status {
	if len(c.kept) == 0 {
		return Status{State: Waiting, Text: fmt.Sprintf("Looking for block %d of %s, where trust begins. A neighbour in the community can give it.", c.trust.Height, c.trust.Chain)}
	}
	h := &c.newest().Header
	s := Status{State: Good, Height: h.Height, Time: h.Time, Age: now.Sub(h.Time), Until: h.Time.Add(c.trust.Period)}
	switch {
	case c.fork != nil:
		s.State = Forked
		s.Text = fmt.Sprintf("The validators signed two blocks that contradict each other, %d and %d. Nothing about balances is believed any more. "+
			"Show this to the community; when it has agreed which blocks hold, give this node a fresh checkpoint.", c.fork.A.Header.Height, c.fork.B.Header.Height)
	case h.Time.After(now.Add(MaxDrift)):
		s.State = WrongTime
		s.Text = "This device's clock is slow: the ledger is ahead of it. Set the clock."
	case expired(h, now, c.trust.Period):
		s.State = Expired
		s.Text = fmt.Sprintf("The last block known here is %d days old, too old to go on from. Give this node a fresh checkpoint: the height and hash of a new block, from a member whom you trust.", int(s.Age.Hours()/24))
	case s.Age > lateAge:
		s.State = Late
		s.Text = fmt.Sprintf("No news of the ledger for %s: it stands still, or no neighbour has newer blocks. Tabs go on meanwhile. Without news by %s this node will need a fresh checkpoint.",
			round(s.Age), s.Until.UTC().Format("2 January"))
	default:
		s.Text = fmt.Sprintf("Up to date: block %d, %s old.", h.Height, round(s.Age))
	}
	return s
}

// round prints an age in words, to what matters of it.
func round(d time.Duration) string {
	n, unit := int64(max(d, 0)/time.Second), "second"
	switch {
	case d >= 48*time.Hour:
		n, unit = int64(d/(24*time.Hour)), "day"
	case d >= 2*time.Hour:
		n, unit = int64(d/time.Hour), "hour"
	case d >= 2*time.Minute:
		n, unit = int64(d/time.Minute), "minute"
	}
	if n != 1 {
		unit += "s"
	}
	return fmt.Sprintf("%d %s", n, unit)
}

// saved is what must last: the checkpoint, the newest block, the evidence. Older blocks come again when they are needed.
type saved struct {
	trust  Trust
	newest *LightBlock
	fork   *Evidence
}

func (s *saved) Fields(c *tx.Coder) {
	version := uint8(1)
	c.U8(&version)
	if version != 1 {
		c.Fail(fmt.Errorf("version %d of the light client's state is not known here", version))
	}
	s.trust.Fields(c)
	optional(c, &s.newest)
	var e Evidence
	if s.fork != nil {
		e = *s.fork
	}
	optional(c, &e.A)
	if e.A != nil {
		optional(c, &e.B)
	}
	if e.A != nil && e.B != nil {
		s.fork = &e
	} else if e.A != nil {
		c.Fail(errors.New("half of the evidence is missing"))
	}
}

func optional(c *tx.Coder, b **LightBlock) {
	there := *b != nil
	c.Bool(&there)
	if !there {
		return
	}
	if *b == nil {
		*b = &LightBlock{}
	}
	(*b).Fields(c)
}

// Save returns what a client needs to go on after a restart, at most MaxState bytes. Keep it where others cannot write, and write it seldom: a state
// that is some hours old costs nothing, one older than Period is worthless.
func (c *Client) Save() []byte {
	s := saved{trust: c.trust, fork: c.fork}
	if len(c.kept) > 0 {
		s.newest = c.newest()
	}
	return tx.Encode(&s) // all blocks in it were checked, so it can be encoded
}

// Load returns the client that Save has written.
func Load(b []byte) (*Client, error) {
	var s saved
	if len(b) > MaxState {
		return nil, fmt.Errorf("the light client's state has %d bytes, where at most %d may be", len(b), MaxState)
	}
	if err := tx.Decode(b, &s); err != nil {
		return nil, fmt.Errorf("read the light client's state: %w (start from a checkpoint again)", err)
	}
	c, err := New(s.trust)
	if err != nil {
		return nil, err
	}
	c.fork = s.fork
	if s.fork != nil {
		for _, b := range []*LightBlock{s.fork.A, s.fork.B} {
			if _, err := b.check(c.trust.Chain); err != nil {
				return nil, fmt.Errorf("read the light client's state: %w", err)
			}
		}
	}
	if s.newest != nil {
		h, err := s.newest.check(c.trust.Chain)
		if err != nil {
			return nil, fmt.Errorf("read the light client's state: %w", err)
		}
		c.kept = []known{{s.newest, h}}
	}
	return c, nil
}
