package ledger

import (
	"weft/ident"
	"weft/ledger/tx"
)

// A tab is money of the payer's that is set aside for one payee, so that what the payer promises in vouchers off the chain is sure to be
// paid. While it lives, the payee needs the chain no more than once: to claim before the end.
//
//	         open                 close by the payer, or expiry              both time and blocks have passed
//	(none) ────────▶  open  ──────────────────────────────────▶  closing  ────────────────────────────────────▶  (none): the rest goes back
//	                   │  claim, top up, renew                      │  claim                                         to the payer
//	                   └────────────── close by the payee ──────────┴────────────────────────────────────────▶
//
// Each opening has an epoch of its own, which no other opening of any tab on the chain has. So a voucher from before is void for ever
// and nothing need be kept of a tab that is settled.
const kindTab = 't'

var keyEpochs = key(kindQueue, uint8(queueEpochs))

// number32 is a record of one number.
type number32 uint32

func (n *number32) Fields(c *tx.Coder) { c.U32((*uint32)(n)) }

// epochs is how many tabs have been opened on this chain.
func (c *call) epochs() uint32 {
	var n number32
	c.load(keyEpochs, &n)
	return uint32(n)
}

func payerKey(t *tx.Tab) []byte { return key(kindQueue, uint8(queuePayer), t.PayerID, t.ID[:]) }
func payeeKey(t *tx.Tab) []byte { return key(kindQueue, uint8(queuePayee), t.PayeeID, t.ID[:]) }

// tabEvent is the key of the next event of t in time.
func tabEvent(t *tx.Tab) []byte {
	if t.Closing() {
		return queueKey(t.Until, eventTab, t.ID[:])
	}
	return queueKey(t.Expiry, eventTab, t.ID[:])
}

// blockQueueKey is where a closing tab waits whose time has come, but not its block.
func blockQueueKey(t *tx.Tab) []byte {
	return key(kindQueue, uint8(queueBlock), uint64(max(t.UntilBlock, 0)), t.ID[:])
}

func tabHolder(id tx.TabID) string { return "tab:" + id.String() }

func countTabs(a *Account) *uint32 { return &a.Tabs }

// tab returns a tab in the given opening.
func (c *call) tab(id tx.TabID, epoch uint32) (t tx.Tab, err error) {
	if !c.load(tx.StateKeyTab(id), &t) {
		return t, refuse(CodeUnknown, "there is no tab %s: it was settled, or never opened", id)
	}
	if t.Epoch != epoch {
		return t, refuse(CodeState, "tab %s was opened anew: its epoch is %d now, not %d", id, t.Epoch, epoch)
	}
	return t, nil
}

// ownTab returns an open tab of which from is the payer.
func (c *call) ownTab(from ident.PublicKey, id tx.TabID, epoch uint32) (t tx.Tab, err error) {
	if t, err = c.tab(id, epoch); err != nil {
		return t, err
	}
	if mb, ok := c.memberByKey(from); !ok || mb.ID != t.PayerID {
		return t, refuse(CodeForbid, "only the payer of a tab may do this")
	}
	if t.Closing() {
		return t, refuse(CodeState, "the tab is closing: open another")
	}
	return t, nil
}

func (c *call) checkExpiry(expiry int64) error {
	if life := c.params().TabLife; expiry <= c.Time || expiry > c.Time+life {
		return refuse(CodeValue, "a tab may live up to %d days from now (tab.life)", life/day)
	}
	return nil
}

func (c *call) openTab(from ident.PublicKey, b *tx.TabOpen) error {
	payer, err := c.self(from)
	if err != nil {
		return err
	}
	payee, ok := c.memberByKey(b.Payee)
	switch {
	case !ok:
		return refuse(CodeUnknown, "the payee is not a member, or has another key by now")
	case payee.State == Left || payee.State == Expelled:
		return refuse(CodeState, "the payee is not a member any more")
	case payee.ID == payer.ID:
		return refuse(CodeValue, "payer and payee are the same")
	case b.Earmark == 0:
		return refuse(CodeValue, "a tab needs some money set aside")
	}
	if err := c.checkExpiry(b.Expiry); err != nil {
		return err
	}
	signer := b.Signer
	if signer.IsZero() {
		signer = from
	}
	if _, err := signer.X25519(); err != nil { // anybody could sign for a weak key
		return refuse(CodeValue, "the signer's key is none: %v", err)
	}
	t := tx.Tab{ID: tx.TabIDOf(c.m.chain, from, b.Payee, b.Number), Number: b.Number, PayerID: payer.ID, PayeeID: payee.ID, Payer: from, Payee: b.Payee,
		Signer: signer, Earmark: b.Earmark, Opened: c.Time, Expiry: b.Expiry}
	if c.s.Get(tx.StateKeyTab(t.ID)) != nil {
		return refuse(CodeExists, "this tab is open or closing: take another number, or top it up")
	}
	if err := c.count(from, countTabs, 1, c.params().TabsPerMember, "tabs"); err != nil {
		return err
	}
	if err := c.earmark(&t, b.Earmark); err != nil {
		return err
	}
	n := number32(c.epochs() + 1)
	if n == 0 {
		return refuse(CodeOverflow, "this chain has seen 2^32 tabs; it takes no more")
	}
	c.save(keyEpochs, &n)
	t.Epoch = uint32(n)
	c.save(tx.StateKeyTab(t.ID), &t)
	c.s.Set(tabEvent(&t), one)
	c.s.Set(payerKey(&t), one)
	c.s.Set(payeeKey(&t), one)
	c.data = tx.Encode(&tx.Opened{Tab: t.ID, Epoch: t.Epoch})
	return nil
}

// earmark moves money from the payer's account into the tab.
func (c *call) earmark(t *tx.Tab, amount int64) error {
	mb, _ := c.member(t.PayerID)
	if err := c.change(mb.Key, -amount, "set aside"); err != nil {
		return err
	}
	c.post(tabHolder(t.ID), amount, "set aside")
	return nil
}

func (c *call) topUpTab(from ident.PublicKey, b *tx.TabTopUp) error {
	if _, err := c.self(from); err != nil {
		return err
	}
	t, err := c.ownTab(from, b.Tab, b.Epoch)
	if err != nil {
		return err
	}
	if b.Amount == 0 {
		return refuse(CodeValue, "a top-up of nothing")
	}
	if t.Earmark, err = add(t.Earmark, b.Amount); err != nil || t.Earmark > tx.MaxAmount {
		return refuse(CodeOverflow, "a tab cannot hold so much")
	}
	if err := c.earmark(&t, b.Amount); err != nil {
		return err
	}
	c.save(tx.StateKeyTab(t.ID), &t)
	return nil
}

func (c *call) renewTab(from ident.PublicKey, b *tx.TabRenew) error {
	t, err := c.ownTab(from, b.Tab, b.Epoch)
	if err != nil {
		return err
	}
	if b.Expiry <= t.Expiry {
		return refuse(CodeValue, "the tab lives as long already; close it if it shall end earlier")
	}
	if err := c.checkExpiry(b.Expiry); err != nil {
		return err
	}
	c.drop(tabEvent(&t))
	t.Expiry = b.Expiry
	c.s.Set(tabEvent(&t), one)
	c.save(tx.StateKeyTab(t.ID), &t)
	return nil
}

// claimTabs pays vouchers, each by itself. If not one of them is paid, the transaction is refused as the first of them was.
func (c *call) claimTabs(b *tx.TabClaim) error {
	if len(b.Vouchers) == 0 {
		return refuse(CodeValue, "a claim without vouchers")
	}
	var data []byte
	var first error
	paid := false
	for i := range b.Vouchers {
		n, err := c.claim(b.Vouchers[i][:])
		if i == 0 {
			first = err
		}
		paid = paid || err == nil
		data = append(data, tx.Encode(&tx.Claimed{Code: uint32(resultOf(err).Code), Paid: n})...)
	}
	if !paid {
		return first
	}
	c.data = data
	return nil
}

// claim pays what a voucher promises over what was claimed before. On an error nothing has changed. What is cheap to find out comes first.
func (c *call) claim(raw []byte) (paid int64, err error) {
	v, err := tx.ParseVoucher(raw)
	if err != nil {
		return 0, refuse(CodeMalform, "%v", err)
	}
	if v.Chain != c.m.chain {
		return 0, refuse(CodeChain, "this voucher is for another community's chain")
	}
	t, err := c.tab(v.Tab, v.Epoch)
	if err != nil {
		return 0, err
	}
	if v.Amount <= t.Claimed {
		return 0, refuse(CodeState, "%d ncredit of this tab were claimed already, and the voucher is for %d ncredit", t.Claimed, v.Amount)
	}
	if paid = min(v.Amount, t.Earmark) - t.Claimed; paid == 0 {
		return 0, refuse(CodeFunds, "the tab is used up: ask the payer to top it up, then claim again")
	}
	if !c.m.verifyOnce(tx.Hash(append(t.Signer[:], raw...)), func() bool { return v.Verify(t.Signer) }) {
		return 0, refuse(CodeSig, "the voucher is not signed by the tab's signer")
	}
	mb, _ := c.member(t.PayeeID)
	if err := c.change(mb.Key, paid, "claimed"); err != nil {
		return 0, err
	}
	c.post(tabHolder(t.ID), -paid, "claimed")
	t.Claimed += paid
	c.save(tx.StateKeyTab(t.ID), &t)
	return paid, nil
}

func (c *call) closeTab(from ident.PublicKey, b *tx.TabClose) error {
	t, err := c.tab(b.Tab, b.Epoch)
	if err != nil {
		return err
	}
	mb, ok := c.memberByKey(from)
	switch {
	case ok && mb.ID == t.PayeeID:
		if err := c.giveBack(&t); err != nil {
			return err
		}
		c.drop(tabEvent(&t))
		c.drop(blockQueueKey(&t))
		c.forget(&t)
	case !ok || mb.ID != t.PayerID:
		return refuse(CodeForbid, "only payer and payee may close a tab")
	case t.Closing():
		return refuse(CodeState, "the tab is closing already")
	default:
		c.drop(tabEvent(&t))
		c.startClosing(&t)
	}
	return nil
}

// startClosing leaves the payee a window for a last claim. The caller has removed the tab's event.
func (c *call) startClosing(t *tx.Tab) {
	p := c.params()
	t.Until, t.UntilBlock = c.Time+p.TabWindow, c.Height+p.TabBlocks
	c.s.Set(tabEvent(t), one)
	c.save(tx.StateKeyTab(t.ID), t)
}

// tabDue handles a tab's event, which the caller has removed.
func (c *call) tabDue(id tx.TabID) {
	var t tx.Tab
	switch c.load(tx.StateKeyTab(id), &t); {
	case !t.Closing():
		c.startClosing(&t)
	case c.Height < t.UntilBlock:
		c.s.Set(blockQueueKey(&t), one)
	default:
		c.settleTab(id)
	}
}

// settleTab ends a tab whose window is over. The caller has removed its event.
func (c *call) settleTab(id tx.TabID) {
	var t tx.Tab
	c.load(tx.StateKeyTab(id), &t)
	if c.giveBack(&t) != nil { // the payer's balance would overflow: some other time
		c.startClosing(&t)
		return
	}
	c.forget(&t)
}

// giveBack returns what is left to the payer.
func (c *call) giveBack(t *tx.Tab) error {
	if t.Left() == 0 {
		return nil
	}
	mb, _ := c.member(t.PayerID)
	if err := c.change(mb.Key, t.Left(), "given back"); err != nil {
		return err
	}
	c.post(tabHolder(t.ID), -t.Left(), "given back")
	return nil
}

// forget removes a tab from which everything is gone.
func (c *call) forget(t *tx.Tab) {
	mb, _ := c.member(t.PayerID)
	_ = c.count(mb.Key, countTabs, -1, 0, "") // counting down is never refused
	c.drop(payerKey(t))
	c.drop(payeeKey(t))
	c.drop(tx.StateKeyTab(t.ID))
}
